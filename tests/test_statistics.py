"""Wilson's interval against published values, and the part of a whole that every --limit takes."""

import pytest

from vital_jax.statistics import spread, wilson


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # Newcombe 1998, table I, method 3 (score, no continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        # Agresti and Coull (1998).
        (0, 10, 0.0, 0.2775),
        (1, 29, 0.0061, 0.1718),
        # The mirror image.
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilsons_interval_has_the_published_values(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_wilsons_interval_at_its_edges():
    assert wilson(0, 7)[0] == 0.0 and wilson(7, 7)[1] == 1.0
    assert wilson(3, 9, 0.5)[1] < wilson(3, 9)[1] < wilson(3, 9, 0.99)[1]
    assert wilson(2, 9)[1] < wilson(2.5, 9)[1] < wilson(3, 9)[1]
    for wrong in ((0, 0), (4, 3), (-1, 3), (1, 3, 1.0)):
        with pytest.raises(ValueError, match="no interval"):
            wilson(*wrong)


def test_a_part_is_spread_over_the_whole_in_its_order():
    assert spread(range(10), 4) == [0, 2, 5, 7] and spread("abc", 1) == ["a"]
    assert spread([3, 1, 2], None) == spread([3, 1, 2], 7) == [3, 1, 2] and spread([], 2) == spread([], None) == []
    sources = ["a"] * 97 + ["b"] * 3
    assert len(spread(sources, 50)) == 50 and set(spread(sources, 50)) == {"a", "b"}
