"""Paired comparison: McNemar against published values and scipy's binomial test, and files that do not belong together."""

import pytest
from scipy.stats import binom, binomtest

from vital_jax.evaluate.intervals import clustered_mean
from vital_jax.evaluate.paired import compare, comparison_table, mcnemar
from vital_jax.evaluate.protocols import write_predictions


@pytest.mark.parametrize(
    ("b", "c", "exact", "mid_p"),
    [
        # Fagerland 2013, airway hyper-responsiveness, 1 and 7 disagreements: 18 and 10 of 256.
        (1, 7, 0.0703, 0.0391),
        # By hand: 2 / 2^5, and less 1 / 2^5.
        (0, 5, 0.0625, 0.03125),
        # Equal: exact 1, mid-p 1 - C(10, 5) / 2^11.
        (5, 5, 1.0, 1 - 252 / 2048),
        (0, 0, 1.0, 1.0),
        (1, 1, 1.0, 0.75),
    ],
)
def test_mcnemar_has_the_published_values(b, c, exact, mid_p):
    test = mcnemar(b, c)
    assert (test.exact, test.mid_p) == pytest.approx((exact, mid_p), abs=5e-5)
    assert mcnemar(c, b).exact == test.exact and mcnemar(c, b).mid_p == test.mid_p


@pytest.mark.parametrize(("b", "c"), [(3, 4), (10, 30), (150, 199), (3000, 3200), (0, 900)])
def test_mcnemar_is_the_binomial_test(b, c):
    test = mcnemar(b, c)
    assert test.exact == pytest.approx(binomtest(b, b + c).pvalue, rel=1e-9)
    assert test.mid_p == pytest.approx(test.exact - binom.pmf(b, b + c, 0.5), rel=1e-6)
    assert test.mid_p < test.exact
    with pytest.raises(ValueError, match="cannot be negative"):
        mcnemar(-1, 2)


def rows(correct, benchmark="vqa_rad", f1=None, images=3):
    return [
        {"id": str(n), "benchmark": benchmark, "split": "test", "protocol": "paper/1", "gold": "x", "correct": bool(right),
         "image": f"{benchmark}/{n % images}", "measures": {} if f1 is None else {"open token F1": f1[n]}}
        for n, right in enumerate(correct)
    ]  # fmt: skip


def test_two_files_are_compared_by_benchmark(tmp_path):
    a = write_predictions(tmp_path / "a.jsonl", rows([1, 1, 0, 0, 0, 1]) + rows([1, 0], "slake"))
    # Another order: questions are paired by id.
    b = write_predictions(tmp_path / "b.jsonl", (rows([1, 0, 1, 1, 1, 1]) + rows([1, 1], "slake"))[::-1])
    slake, rad, both = compare(a, b)
    assert [(pair.benchmark, pair.n, pair.images) for pair in (slake, rad, both)] == [
        ("slake", 2, 2),
        ("vqa_rad", 6, 3),
        ("all", 8, 5),
    ]
    assert (rad.a, rad.b, rad.difference) == pytest.approx((3 / 6, 5 / 6, 2 / 6))
    assert (rad.test.b, rad.test.c, rad.test.exact) == (1, 3, pytest.approx(2 * 5 / 16))
    assert (rad.low, rad.high) == clustered_mean([0, -1, 1, 1, 1, 0], [0, 1, 2, 0, 1, 2])
    table = comparison_table([slake, rad, both], "VITAL", "K = 0")
    assert "only VITAL" in table and "+33.3" in table and len(table.splitlines()) == 5
    (same,) = compare(rows([1, 0, 1]), rows([1, 0, 1]))
    assert same.difference == 0 and (same.low, same.high) == (0, 0) and same.test.exact == 1


def test_graded_measures_have_an_interval_and_no_mcnemar():
    a, b = rows([0, 0, 1], f1=[0.2, 0.5, 1.0]), rows([0, 1, 1], f1=[0.4, 1.0, 1.0])
    (pair,) = compare(a, b, measure="open token F1")
    assert pair.difference == pytest.approx(0.7 / 3) and pair.test is None
    assert comparison_table([pair]).splitlines()[2].count(" - ") == 4
    with pytest.raises(ValueError, match="no question is counted by 'BLEU'"):
        compare(a, b, measure="BLEU")
    with pytest.raises(ValueError, match="counted in one file only"):
        compare(a, rows([0, 1, 1]), measure="open token F1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.pop(), r"the second file lacks 1 questions of the other: vqa_rad/test/2; compare nothing"),
        (lambda b: b.append({**b[0], "id": "9"}), r"the first file lacks 1 questions of the other: vqa_rad/test/9"),
        (lambda b: b.append(b[0]), "the second file has '0' twice"),
        (lambda b: b[1].pop("correct"), "the second file is not scored: '1' has no 'correct'"),
        (
            lambda b: b[1].update(protocol="paper/2"),
            "'1': protocol is 'paper/1' in one file and 'paper/2' in the other",
        ),
        (lambda b: b[1].update(gold="y"), "'1': gold is 'x' in one file and 'y'"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(change, message):
    b = rows([1, 1, 1])
    change(b)
    with pytest.raises(ValueError, match=message):
        compare(rows([1, 0, 1]), b)


def test_one_image_has_no_interval():
    (pair,) = compare(rows([1, 0], images=1), rows([1, 1], images=1))
    assert (pair.low, pair.high) == (None, None) and "none" in comparison_table([pair])
