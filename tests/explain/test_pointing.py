"""Numbers of heat maps against the same numbers counted pixel by pixel, their baselines, and the table over questions."""

import numpy as np
import pytest

from vital_jax.explain import pointing
from vital_jax.explain.pointing import ALL, BASELINES, OTHER, OWN, RANDOM, SHUFFLED, Baselines, Pointed

GRID = (4, 4)


def blob(height=13, width=18):
    """A region whose edges are no patch edges: sides that 4 does not divide."""
    mask = np.zeros((height, width), bool)
    mask[2:8, 5:11] = True
    return mask


def fine(values, times):
    return np.kron(values, np.ones(times))


def test_patch_shares_are_those_of_a_finer_grid():
    mask = blob()
    pixels = fine(mask, (4, 4))  # both grids divide this one
    expected = pixels.reshape(4, 13, 4, 18).mean((1, 3))
    np.testing.assert_allclose(pointing.patch_shares(mask, GRID), expected, atol=1e-12)
    assert pointing.patch_shares(np.ones((5, 3), bool), (2, 7)) == pytest.approx(np.ones((2, 7)))


def test_measures_are_those_of_pixels():
    """Every pixel has the heat of its patch; a threshold is any heat there is."""
    mask, r = blob(), np.random.default_rng(0)
    heat = r.normal(size=(6, *GRID)).round(1)  # rounded: some patches are equal
    found = pointing.score(heat, pointing.patch_shares(mask, GRID))
    region = fine(mask, (4, 4)).astype(bool)
    for i, one in enumerate(heat):
        warm = fine(one, (13, 18))
        overlaps = [(region & (warm >= t)).sum() / (region | (warm >= t)).sum() for t in np.unique(one)]
        assert found["iou_best"][i] == pytest.approx(max(overlaps))
        shifted = warm - warm.min()
        assert found["share"][i] == pytest.approx(shifted[region].sum() / shifted.sum())


def test_the_area_is_as_many_patches_as_the_region_fills_and_at_least_one():
    shares = np.zeros(GRID)
    shares[1, 1:3], shares[2, 1] = 1.0, 0.6  # 2.6 patches: three
    heat = np.zeros((2, *GRID))
    heat[0, 1, 1], heat[0, 1, 2], heat[0, 3, 3] = 3, 2, 1
    heat[1, 1, 1], heat[1, 1, 2], heat[1, 2, 1] = 1, 2, 3
    assert pointing.score(heat, shares)["iou_area"] == pytest.approx([2 / (3 + 2.6 - 2), 2.6 / 3])
    speck = np.zeros(GRID)
    speck[0, 0] = 0.2
    assert pointing.score(heat, speck)["iou_area"] == pytest.approx([0, 0])
    assert pointing.score(-np.indices(GRID).sum(0)[None], speck)["iou_area"] == pytest.approx([0.2])


def test_a_hit_is_a_patch_of_the_region_by_the_rule_of_its_feature():
    shares = np.zeros(GRID)
    shares[0, 0], shares[0, 1], shares[0, 2] = 0.9, 0.3, 0.29
    heat = np.zeros((4, *GRID))
    heat[[0, 1, 2, 3], [0, 0, 0, 3], [0, 1, 2, 3]] = 1
    assert pointing.score(heat, shares)["pointing"].tolist() == [1, 1, 0, 0]
    # None reaches 30 %: the fullest one counts.
    assert pointing.score(heat, shares * 0.3)["pointing"].tolist() == [1, 0, 0, 0]


def test_an_even_map_gives_the_regions_share_of_the_image():
    shares = pointing.patch_shares(blob(), GRID)
    found = pointing.score(np.full((1, *GRID), 0.3), shares)
    area = blob().mean()
    assert found["share"] == pytest.approx([area]) and found["iou_best"] == pytest.approx([area])


# --- baselines ----------------------------------------------------------------------------------------------------------

METADATA = [
    {"modality": "CT", "target_name": "liver"},
    {"modality": "CT", "target_name": "liver"},
    {"modality": "CT", "target_name": "spleen"},
    {"modality": "MRI", "target_name": "liver"},
    {"modality": "CT"},
    {"modality": "CT"},
]
IMAGES = list("abcdee")


def baselines(steps=(2, 2, 2, 2, 1, 1)):
    r = np.random.default_rng(1)
    vectors = r.normal(size=(6, 2, 5)).astype(np.float32)
    return vectors, Baselines(vectors, list(steps), IMAGES, METADATA, 0)


def origins(vectors, found, k=0):
    return {int(np.flatnonzero((vectors[:, k] == draw[k]).all(-1))[0]) for draw in found}


def test_baselines_are_of_other_images_of_the_modality_and_of_the_name():
    vectors, made = baselines()
    found = made.of(0)
    assert origins(vectors, found[SHUFFLED]) <= {1, 2} and origins(vectors, found[OTHER]) == {1}
    assert found[SHUFFLED].shape == (pointing.DRAWS, 2, 5) and origins(vectors, found[SHUFFLED], 1) <= {1, 2}
    np.testing.assert_allclose(np.linalg.norm(found[RANDOM], axis=-1), 1, rtol=1e-6)
    assert set(made.of(2)) == {SHUFFLED, RANDOM}  # no other spleen
    assert set(made.of(3)) == {RANDOM}  # no other MRI
    # One step each, but one image; and targets without a name are not of one name.
    assert set(made.of(4)) == {RANDOM} and made.of(4)[RANDOM].shape[1] == 1


def test_draws_depend_on_seed_and_question_alone():
    one, other = (baselines()[1].of(0) for _ in range(2))
    for who in one:
        np.testing.assert_array_equal(one[who], other[who])
    assert not np.array_equal(one[RANDOM], baselines()[1].of(1)[RANDOM])


# --- the table ----------------------------------------------------------------------------------------------------------


def pointed(modality, image, own, **others):
    scores = lambda value: {measure: np.atleast_1d(np.asarray(value, float)) for measure in pointing.MEASURES}  # noqa: E731
    return Pointed(modality, image, 0.1, {who: scores(value) for who, value in {OWN: own, **others}.items()})


ROWS = [
    pointed("CT", "a", [0.2, 0.4], shuffled=[0.1, 0.1], random=[0.0, 0.0], target=[0.5, 0.5]),
    pointed("CT", "b", [0.5], random=[0.1]),
    pointed("MRI", "c", [0.9, 0.1], shuffled=[0.7, 0.7], random=[0.2, 0.2]),
]


def test_the_table_has_means_of_means_and_paired_differences():
    rows = pointing.table(ROWS)
    assert [row["modality"] for row in rows[::4]] == [ALL, "CT", "MRI"] and len(rows) == 12
    first = next(row for row in rows if row["measure"] == "iou_area")
    assert first["n"] == 3 and first["own"] == pytest.approx((0.3 + 0.5 + 0.5) / 3)
    assert first["low"] <= first["own"] <= first["high"]
    assert first[SHUFFLED] == pytest.approx(0.4) and first[OTHER] is None
    # A ceiling of one question says nothing of three.
    assert first["target"] is None and pointing.table(ROWS[:1])[0]["target"] == pytest.approx(0.5)
    over = first["over"][SHUFFLED]
    # The question without that baseline is left out of the difference.
    assert over["n"] == 2 and over["value"] == pytest.approx(((0.3 - 0.1) + (0.5 - 0.7)) / 2)
    assert set(first["over"]) == {SHUFFLED, RANDOM}
    mri = rows[-1]
    assert mri["n"] == 1 and mri["low"] is None and mri["over"][RANDOM]["low"] is None


def test_one_modality_is_not_shown_twice_and_nothing_gives_nothing():
    assert {row["modality"] for row in pointing.table(ROWS[:2])} == {"CT"}
    assert pointing.table([]) == [] == pointing.by_step([])


def test_all_misses_have_an_interval_with_a_width():
    row = next(row for row in pointing.table([pointed("CT", i, [0.0], random=[0.1]) for i in "abcd"]))
    assert row["measure"] == "pointing" and row["own"] == row["low"] == 0 and 0.3 < row["high"] < 0.7


def test_steps_are_compared_on_questions_of_as_many_steps():
    rows = [row for row in pointing.by_step(ROWS) if row["measure"] == "share"]
    assert [(row["K"], row["step"], row["n"]) for row in rows] == [(2, 1, 2), (2, 2, 2)]
    assert [row["own"] for row in rows] == pytest.approx([0.55, 0.25])
    assert set(BASELINES) == {SHUFFLED, OTHER, RANDOM}
