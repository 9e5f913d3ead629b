"""Advantages worked by hand, against published ones (data/README.md), and which groups are left out or asked again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vital_jax.rl.advantages import Normalisation, advantages

DATA = Path(__file__).parent / "data" / "published.npz"
GRPO = Normalisation(
    baseline="mean",
    scale="group",
    std="unbiased",
    epsilon=1e-6,
    several="sum_then_normalise",
    zero_variance="keep",
    filter_on="total",
    overlong="keep",
)
TRL = replace(GRPO, epsilon=1e-4)
PUBLISHED = {
    "verl_grpo": GRPO,
    "easyr1_grpo": GRPO,
    "verl_dr_grpo": replace(GRPO, scale="none"),
    **{
        name: replace(GRPO, baseline="leave_one_out", scale="none")
        for name in ("verl_rloo", "verl_rloo_vectorized", "easyr1_rloo")
    },
    **{
        f"trl_{name}{tail}": how
        for tail in ("", "_missing")
        for name, how in {
            "sum_then_normalize_group": TRL,
            "sum_then_normalize_batch": replace(TRL, scale="batch"),
            "sum_then_normalize_none": replace(TRL, scale="none"),
            "normalize_then_sum_group": replace(TRL, several="normalise_then_sum"),
        }.items()
    },
}


@pytest.fixture(scope="module")
def published():
    with np.load(DATA) as file:
        return dict(file)


@pytest.mark.parametrize("name", PUBLISHED)
def test_equals_the_published_advantages(name, published):
    rewards = published["missing" if name.endswith("_missing") else "rewards"]
    rewards, present = {str(k): rewards[..., k] for k in range(3)}, ~np.isnan(rewards[..., 0])
    found = advantages(PUBLISHED[name], rewards, dict(zip("012", published["weights"], strict=True)), present)
    np.testing.assert_allclose(found.values, published[f"advantages/{name}"], rtol=1e-6, atol=1e-7)


def test_every_published_case_is_compared(published):
    assert {f"advantages/{name}" for name in PUBLISHED} == {
        name for name in published if name.startswith("advantages/")
    }


def one(how, *rows, **more):
    """Of one reward."""
    return advantages(how, {"r": np.asarray(rows, float)}, {"r": 1.0}, **more)


def test_by_hand():
    """Rewards 1, 0, 0, 3: mean 1, squares 0 + 1 + 1 + 4 = 6."""
    exact = replace(GRPO, epsilon=0)
    row = (1, 0, 0, 3)
    np.testing.assert_allclose(one(exact, row).values, [np.array([0, -1, -1, 2]) / np.sqrt(6 / 3)], rtol=1e-6)
    np.testing.assert_allclose(
        one(replace(exact, std="biased"), row).values, [np.array([0, -1, -1, 2]) / np.sqrt(6 / 4)], rtol=1e-6
    )
    np.testing.assert_allclose(
        one(replace(exact, epsilon=0.5), row).values, [np.array([0, -1, -1, 2]) / (np.sqrt(2) + 0.5)], rtol=1e-6
    )
    np.testing.assert_array_equal(one(replace(exact, scale="none"), row).values, [[0, -1, -1, 2]])
    # 1 - (0 + 0 + 3) / 3, 0 - (1 + 0 + 3) / 3, the same, 3 - 1 / 3
    alone = replace(exact, scale="none", baseline="leave_one_out")
    np.testing.assert_allclose(one(alone, row).values, [[0, -4 / 3, -4 / 3, 8 / 3]], rtol=1e-6)


def test_the_deviation_of_the_batch_by_hand():
    """Rewards 0, 2 and 4, 4: mean 2.5, squares 6.25 + .25 + 2.25 + 2.25 = 11."""
    found = one(replace(GRPO, scale="batch", std="biased", epsilon=0), (0, 2), (4, 4))
    np.testing.assert_allclose(found.values, np.array([[-1, 1], [0, 0]]) / np.sqrt(11 / 4), rtol=1e-6)
    assert found.flat.tolist() == [False, True]


def test_several_rewards_by_hand():
    """Two rewards on scales 1 and 10; summed, the small one drowns, normalised first they are worth their weights."""
    rewards = {"right": np.array([[1.0, 0.0, 0.0, 1.0]]), "length": np.array([[0.0, 10.0, 0.0, 10.0]])}
    biased = replace(GRPO, std="biased", epsilon=0)
    summed = advantages(biased, rewards, {"right": 1, "length": 0.5})
    # 1, 5, 0, 6: mean 3, squares 4 + 4 + 9 + 9 = 26
    np.testing.assert_allclose(summed.values, [np.array([-2, 2, -3, 3]) / np.sqrt(26 / 4)], rtol=1e-6)
    apart = advantages(replace(biased, several="normalise_then_sum"), rewards, {"right": 1, "length": 0.5})
    # (1, -1, -1, 1) + (-1, 1, -1, 1) / 2 = .5, -.5, -1.5, 1.5, of deviation sqrt(5 / 4)
    np.testing.assert_allclose(apart.values, [np.array([0.5, -0.5, -1.5, 1.5]) / np.sqrt(5 / 4)], rtol=1e-6)


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_a_missing_reply_is_not_of_its_group(baseline):
    how = replace(GRPO, baseline=baseline)
    rows = np.array([[1.0, np.nan, 0.0, 3.0], [2.0, np.nan, np.nan, 7.0]])
    found = one(how, *rows, present=~np.isnan(rows))
    np.testing.assert_array_equal(found.values[0, [0, 2, 3]], one(how, (1, 0, 3)).values[0])
    np.testing.assert_array_equal(found.values[1, [0, 3]], one(how, (2, 7)).values[0])
    assert not found.values[np.isnan(rows)].any() and (found.counted == ~np.isnan(rows)).all()


def test_a_group_of_one_reply_or_none_teaches_nothing():
    rows, present = [[5.0, 1.0], [3.0, 4.0]], np.array([[True, False], [False, False]])
    for how in (
        GRPO,
        replace(GRPO, baseline="leave_one_out"),
        replace(GRPO, scale="none"),
        replace(GRPO, scale="batch"),
    ):
        found = one(how, *rows, present=present)
        assert not found.values.any() and found.flat.all()


def test_equal_rewards_give_exactly_zero():
    """0.1 three times has a mean that is not 0.1; over an epsilon of 0 or 1e-6 that would be an advantage."""
    for epsilon in (0, 1e-6):
        assert not one(replace(GRPO, epsilon=epsilon), [0.1] * 3, [0.7] * 3).values.any()


def test_groups_without_variance():
    rows = [[1, 1], [0, 1], [0, 0]]
    for choice, counted, again in (
        ("keep", [1, 1, 1], [0, 0, 0]),
        ("drop", [0, 1, 0], [0] * 3),
        ("resample", [0, 1, 0], [1, 0, 1]),
    ):
        found = one(replace(GRPO, zero_variance=choice), *rows)
        assert found.flat.tolist() == [True, False, True]
        assert found.counted.all(axis=-1).tolist() == counted and found.counted.any(axis=-1).tolist() == counted
        assert found.resample.tolist() == again


def test_the_filter_looks_at_the_accuracy_and_not_at_the_shaped_reward():
    """All right but of different lengths: the sum varies, the accuracy does not. And the other way round."""
    rewards = {"right": np.array([[1, 1], [1, 0]]), "length": np.array([[0.0, -0.5], [-1.0, 0.0]])}
    weights = {"right": 1.0, "length": 1.0}
    how = replace(GRPO, zero_variance="resample")
    assert advantages(how, rewards, weights).resample.tolist() == [False, True]
    found = advantages(replace(how, filter_on="right"), rewards, weights)
    assert found.resample.tolist() == [True, False] and not found.values.any()


def test_overlong_replies_are_masked_but_stay_in_their_group():
    rows, ended = [[1, 0, 0, 3]], np.array([[True, True, False, True]])
    kept, masked = (one(replace(GRPO, overlong=choice), *rows, ended=ended) for choice in ("keep", "mask"))
    assert kept.counted.all() and masked.counted.tolist() == ended.tolist()
    np.testing.assert_array_equal(masked.values[ended], kept.values[ended])
    assert masked.values[0, 2] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "median"}, "baseline='median': did you mean 'mean'.* use one of 'mean', 'leave_one_out'"),
        ({"std": 1}, "std=1: use one of 'biased', 'unbiased'"),
        ({"epsilon": -1}, "epsilon=-1: use a number of at least 0"),
        ({"several": "normalise_then_sum", "scale": "none"}, "scale='none': normalise_then_sum"),
        ({"zero_variance": "dropped"}, "did you mean 'drop'"),
    ],
)
def test_choices_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(GRPO, **changes)


def test_bad_rewards_are_named():
    with pytest.raises(ValueError, match=r"reward 'r' of group 1, reply 0 is nan"):
        one(GRPO, [0, 1], [np.nan, 1])
    with pytest.raises(ValueError, match=r"rewards \['r'\] and weights \['s'\]"):
        advantages(GRPO, {"r": np.zeros((1, 2))}, {"s": 1})
    with pytest.raises(ValueError, match=r"ended has shape \(2,\); .* here \(1, 2\)"):
        one(GRPO, [0, 1], ended=np.ones(2))
    with pytest.raises(
        ValueError, match=r"filter_on: reward 'acuracy' is not known; .*'accuracy'\? There are total, accuracy"
    ):
        advantages(replace(GRPO, filter_on="acuracy"), {"accuracy": np.zeros((1, 2))}, {"accuracy": 1})
