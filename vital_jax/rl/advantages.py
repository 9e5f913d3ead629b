"""By how much a reply beats the others to its question, and which replies teach anything.

A group whose replies all earned the same says nothing about which is better. What becomes of it is a choice, and so is what "the same" is
judged by: a shaped reward (length, format) varies within groups that are all right or all wrong. A filter that means accuracy has to look
at the accuracy.

Numbers of the host, in float64: groups are few, and where all rewards are equal the advantage must be zero and not rounding over epsilon.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from vital_jax.rl.choices import Names, Number, check, unknown

TOTAL = "total"


@dataclass(frozen=True)
class Normalisation:
    """How rewards become advantages. No choice has a default.

    Attributes:
      baseline: what is taken off a reply's reward.
        mean: of its group, GRPO (Shao 2024, arXiv 2402.03300, section 4.1.2); with scale none, Dr. GRPO (Liu 2025, arXiv 2503.20783).
        leave_one_out: the mean of the others of its group, RLOO (Ahmadian 2024, arXiv 2402.14740).
      scale: what the difference is divided by, plus epsilon.
        none. group: the deviation of the group. batch: that of all rewards of the step, TRL's scale_rewards="batch".
      std: biased divides the squares by n, unbiased by n - 1, as torch does, and with it verl, EasyR1 and TRL.
      epsilon: 1e-6 in verl and EasyR1, 1e-4 in TRL.
      several: what is made of more than one reward.
        sum_then_normalise: their weighted sum is the reward.
        normalise_then_sum: each is normalised in its group, and the weighted sum of these over the step, to mean 0 and deviation 1: GDPO
          (arXiv 2601.05242), as in TRL; verl weighs the last part by tokens.
      zero_variance: what becomes of groups whose replies are all worth the same.
        keep: advantages 0, counted where the loss counts. drop: out of the loss and its counts.
        resample: dropped, and named, so that other prompts can take their places: DAPO (Yu 2025, arXiv 2503.14476, section 3.2).
      filter_on: by which reward, as the function returned it, replies are worth the same; `total` is the weighted sum.
      overlong: replies that the budget cut off. keep. mask: out of the loss and its counts; their rewards still are their group's, DAPO
        (section 3.4) and TRL's mask_truncated_completions. A penalty is a reward (`overlong`).

    Raises: ValueError naming a choice that is not allowed and what is.
    """

    baseline: str
    scale: str
    std: str
    epsilon: float
    several: str
    zero_variance: str
    filter_on: str
    overlong: str

    CHOICES: ClassVar[dict[str, Names | Number]] = {
        "baseline": Names(("mean", "leave_one_out")),
        "scale": Names(("none", "group", "batch")),
        "std": Names(("biased", "unbiased")),
        "epsilon": Number("a number of at least 0", 0),
        "several": Names(("sum_then_normalise", "normalise_then_sum")),
        "zero_variance": Names(("keep", "drop", "resample")),
        "overlong": Names(("keep", "mask")),
    }

    def __post_init__(self) -> None:
        check(vars(self), self.CHOICES)
        if self.several == "normalise_then_sum" and self.scale != "group":
            raise ValueError(
                f"scale={self.scale!r}: normalise_then_sum normalises each reward in its group; use 'group'"
            )

    def deviation(self, values: np.ndarray) -> np.ndarray:
        """Over the last axis, ignoring NaN; 0 of a single number or none."""
        n = np.sum(~np.isnan(values), axis=-1, keepdims=True)
        squares = np.nansum((values - _mean(values)) ** 2, axis=-1, keepdims=True)
        return np.sqrt(squares / np.maximum(n - (self.std == "unbiased"), 1))

    def normalised(self, rewards: np.ndarray) -> np.ndarray:
        """[B, G] rewards, NaN where there is none, as advantages; zero where a group has no two different rewards."""
        n = np.sum(~np.isnan(rewards), axis=-1, keepdims=True)
        apart = rewards - _mean(rewards)
        if self.baseline == "leave_one_out":
            # r - (sum - r) / (n - 1)
            apart = apart * n / np.maximum(n - 1, 1)
        if self.scale != "none":
            whole = rewards if self.scale == "group" else rewards.reshape(1, -1)
            apart = _over(apart, self.deviation(whole) + self.epsilon)
        return np.where(flat(rewards)[:, None], 0.0, apart)


class Advantages(NamedTuple):
    """What a step's groups teach."""

    values: np.ndarray  # [B, G] float32, zero where nothing is counted
    counted: np.ndarray  # [B, G] bool: replies that belong in the loss
    flat: np.ndarray  # [B] bool: groups whose replies are all worth the same
    resample: np.ndarray  # [B] bool: groups that other prompts should replace


def advantages(
    how: Normalisation,
    rewards: Mapping[str, np.ndarray],
    weights: Mapping[str, float],
    present: np.ndarray | None = None,
    ended: np.ndarray | None = None,
) -> Advantages:
    """The advantages of a step's replies.

    Args:
      rewards: [B, G] by name, as the functions returned them, of the whole step: `batch` and `normalise_then_sum` look at all groups.
      weights: by name.
      present: [B, G], false where there is no reply; none of its numbers is read. ended: [B, G], false where the budget cut a reply off.
    Raises: ValueError for names without a weight, shapes that differ, a reward that is no number, or an unknown `filter_on`.
    """
    if not rewards or rewards.keys() != weights.keys():
        raise ValueError(
            f"rewards {list(rewards)} and weights {list(weights)} must name the same functions, at least one"
        )
    shape = np.shape(next(iter(rewards.values())))
    present = np.ones(shape, bool) if present is None else np.asarray(present, bool)
    ended = np.ones(shape, bool) if ended is None else np.asarray(ended, bool)
    for name, array in {**rewards, "present": present, "ended": ended}.items():
        if np.shape(array) != shape or len(shape) != 2:
            raise ValueError(f"{name} has shape {np.shape(array)}; all of a step's groups are [B, G], here {shape}")
    values = {name: np.where(present, np.asarray(x, np.float64), np.nan) for name, x in rewards.items()}
    for name, x in values.items():
        if (wrong := present & ~np.isfinite(x)).any():
            row = tuple(map(int, np.argwhere(wrong)[0]))
            raise ValueError(
                f"reward {name!r} of group {row[0]}, reply {row[1]} is {x[row]}; a reward is a finite number"
            )
    if how.filter_on != TOTAL and how.filter_on not in values:
        raise ValueError(unknown("filter_on: reward", how.filter_on, (TOTAL, *values)))

    total = _sum(values, weights)
    if how.several == "sum_then_normalise":
        found = how.normalised(total)
    else:
        found = _sum({name: how.normalised(x) for name, x in values.items()}, weights)
        found = np.where(present, found, np.nan)
        whole = found.reshape(1, -1)
        found = _over(found - _mean(whole), how.deviation(whole) + how.epsilon)
    same = flat(total if how.filter_on == TOTAL else values[how.filter_on])
    counted = present & (ended | (how.overlong == "keep"))
    if how.zero_variance != "keep":
        counted &= ~same[:, None]
    resample = same & (how.zero_variance == "resample")
    return Advantages(np.where(counted, found, 0.0).astype(np.float32), counted, same, resample)


def flat(rewards: np.ndarray) -> np.ndarray:
    """[B] bool: groups [B, G] without two different rewards; NaN is none."""
    known = ~np.isnan(rewards)
    least, most = (np.where(known, rewards, end) for end in (np.inf, -np.inf))
    return least.min(axis=-1) >= most.max(axis=-1)


def _mean(values: np.ndarray) -> np.ndarray:
    n = np.sum(~np.isnan(values), axis=-1, keepdims=True)
    return np.nansum(values, axis=-1, keepdims=True) / np.maximum(n, 1)


def _over(x: np.ndarray, divisor: np.ndarray) -> np.ndarray:
    """x / divisor, 0 where that is 0: all are equal, and epsilon is 0."""
    return np.divide(x, divisor, out=np.zeros_like(x), where=np.broadcast_to(divisor > 0, x.shape))


def _sum(values: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    return sum((weights[name] * x for name, x in values.items()), start=np.zeros(()))
