"""Statistics that several packages need: the interval beside every share that this package prints, and the part that stands for a whole."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TypeVar

T = TypeVar("T")


def spread(whole: Sequence[T], count: int | None) -> list[T]:
    """`count` of the whole in its order, evenly spaced, so that neighbours with one image do not stand for all; None takes all."""
    count = len(whole) if count is None else min(count, len(whole))
    return [whole[i * len(whole) // count] for i in range(count)]


def wilson(correct: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share (1927, equation 1): it stays inside [0, 1] and is of use at 0 and n correct too.

    Args:
      correct: successes, 0 to n; an expected number may be fractional. n: trials. level: of confidence, between 0 and 1.
    Raises: ValueError for no trials, more successes than trials, or a level that is none.
    """
    if n < 1 or not 0 <= correct <= n or not 0 < level < 1:
        raise ValueError(f"no interval for {correct} of {n} at level {level}")
    share, z2 = correct / n, NormalDist().inv_cdf((1 + level) / 2) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # The two ends that are exact in theory; rounding would leave them a little beside.
    low = 0.0 if correct == 0 else centre - half
    high = 1.0 if correct == n else centre + half
    return low, high
