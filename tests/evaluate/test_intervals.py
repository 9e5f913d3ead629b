"""Intervals by image: copies of a question tell nothing more, and independent questions have the textbook's interval."""

import numpy as np
import pytest

from vital_jax.evaluate.intervals import clustered_macro, clustered_mean, wilson_macro
from vital_jax.statistics import wilson


def test_independent_questions_have_the_normal_interval():
    values = np.random.default_rng(0).random(2000)
    low, high = clustered_mean(values, range(2000), draws=4000)
    half = 1.96 * values.std() / np.sqrt(2000)
    # A bootstrap of 4,000 draws knows its ends to about 3 % of the width.
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.06 * half)


def test_wilson_of_a_mean_over_strata():
    # One stratum: Wilson's own. Two: the distances to their ends, squared, added, and the root halved.
    assert wilson_macro([0, 1, 1, 1], [0] * 4) == pytest.approx(wilson(3, 4))
    low, high = wilson_macro([0, 0, 1, 1, 1, 1], ["a", "a", "b", "b", "b", "b"])
    assert low == pytest.approx(0.5 - (1 - wilson(4, 4)[0]) / 2) and high == pytest.approx(0.5 + wilson(0, 2)[1] / 2)


def test_copies_within_an_image_do_not_narrow_the_interval():
    values = np.random.default_rng(1).random(30)
    once = clustered_mean(values, range(30))
    ten = clustered_mean(np.repeat(values, 10), np.repeat(np.arange(30), 10))
    assert ten == pytest.approx(once, abs=1e-12)
    naive = clustered_mean(np.repeat(values, 10), range(300))
    assert naive[1] - naive[0] < 0.5 * (once[1] - once[0])


def test_images_weigh_by_their_questions():
    # Two images, of one and of three questions: a draw is 0, 3/4 or 1.
    low, high = clustered_mean([0, 1, 1, 1], ["a", "b", "b", "b"])
    assert (low, high) == (0.0, 1.0)
    assert clustered_mean([0, 1, 1, 1], ["a", "b", "b", "b"], level=0.2) == (0.75, 0.75)


def test_the_macro_mean_and_strata_that_a_draw_misses():
    value, ends = clustered_macro([1, 0, 1], ["a", "b", "c"], ["CT", "CT", "MRI"])
    assert value == pytest.approx((0.5 + 1) / 2) and 0 <= ends[0] < value < ends[1] <= 1
    # Names that do not sort together are fine: only equality matters.
    assert clustered_macro([1, 0], ["a", 1], ["x", None])[0] == 0.5


def test_the_same_seed_gives_the_same_interval_and_a_chunk_changes_nothing(monkeypatch):
    values, images = np.random.default_rng(2).random(50), list(range(50))
    whole = clustered_mean(values, images, seed=3)
    assert whole == clustered_mean(values, images, seed=3) != clustered_mean(values, images, seed=4)
    monkeypatch.setattr("vital_jax.evaluate.intervals.CHUNK", 500)
    assert clustered_mean(values, images, seed=3) == whole


def test_edges():
    assert clustered_mean([0.3, 0.5], ["a", "a"]) is None
    for values, groups, more in (([], [], {}), ([1], ["a", "b"], {}), ([np.nan, 1], ["a", "b"], {})):
        with pytest.raises(ValueError, match="finite values"):
            clustered_mean(values, groups, **more)
    for more in ({"level": 1.0}, {"draws": 10}):
        with pytest.raises(ValueError, match="no interval at level"):
            clustered_mean([0, 1], ["a", "b"], **more)
