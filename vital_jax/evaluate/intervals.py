"""Intervals of means whose questions share images: whole images are drawn, never single questions.

Ten questions about one picture are not ten independent trials. Drawing images with all their questions (the cluster bootstrap) keeps what
they share; the percentile method reads off the interval. Proportions use `statistics.wilson`, also of use where every answer is right or
wrong and a bootstrap would give an interval of no width.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from vital_jax.statistics import wilson

Ends = tuple[float, float]
CHUNK = 2**22  # counts held at once


def clustered_mean(
    values: Sequence[float], groups: Sequence[Hashable], level: float = 0.95, draws: int = 1000, seed: int = 0
) -> Ends | None:
    """The interval of a mean by drawing groups (images); None for fewer than two groups, where nothing can be drawn.

    Args:
      values: one for each question. groups: the image of each. level: of confidence. draws: of the bootstrap. seed: of its generator.
    Raises: ValueError for no values, values that are no finite numbers, lengths that differ, a level that is none or too few draws.
    """
    _, ends = clustered_macro(values, groups, [0] * len(values), level, draws, seed)
    return ends


def clustered_macro(
    values: Sequence[float],
    groups: Sequence[Hashable],
    strata: Sequence[Hashable],
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, Ends | None]:
    """The plain mean over strata (modalities, subjects) of their means, and its interval by drawing groups (images).

    A draw without any image of a stratum leaves that stratum out.
    Args, raises: as `clustered_mean`; strata: the stratum of each question.
    """
    values = np.asarray(values, np.float64)
    if not len(values) or not len(values) == len(groups) == len(strata) or not np.isfinite(values).all():
        raise ValueError(f"need as many finite values as groups, at least one: {len(values)} and {len(groups)}")
    if not 0 < level < 1 or draws < 100:
        raise ValueError(f"no interval at level {level} from {draws} draws; at least 100 are needed")
    group, stratum = (_numbered(names) for names in (groups, strata))
    shape = (max(group) + 1, max(stratum) + 1)
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (group, stratum), values)
    np.add.at(counts, (group, stratum), 1.0)
    value = float((sums.sum(0) / counts.sum(0)).mean())
    if shape[0] < 2:
        return value, None
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK // shape[0])
    means = []
    for start in range(0, draws, step):
        times = generator.multinomial(shape[0], np.full(shape[0], 1 / shape[0]), size=min(step, draws - start))
        with np.errstate(invalid="ignore"):
            means.append(np.nanmean(times @ sums / (times @ counts), axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return value, (float(low), float(high))


def wilson_macro(values: Sequence[float], strata: Sequence[Hashable], level: float = 0.95) -> Ends:
    """The interval of a plain mean over strata from Wilson's interval of each (MOVER: Zou and Donner 2008, Statistics in Medicine 27).

    With m_s in [l_s, u_s]: m ± sqrt(Σ_s (distance of m_s to its end)²) / S. It has a width where all answers of a stratum are alike, and is
    wide enough for values between 0 and 1, whose variance is at most that of 0 and 1 of the same mean.
    Args: as `clustered_macro`; values between 0 and 1.
    """
    groups: dict[Hashable, list[float]] = {}
    for value, stratum in zip(values, strata, strict=True):
        groups.setdefault(stratum, []).append(value)
    means = np.array([np.mean(group) for group in groups.values()])
    ends = np.array([wilson(sum(group), len(group), level) for group in groups.values()])
    below, above = (float(np.sqrt(((means - side) ** 2).sum()) / len(groups)) for side in ends.T)
    return max(0.0, float(means.mean()) - below), min(1.0, float(means.mean()) + above)


def _numbered(names: Sequence[Hashable]) -> list[int]:
    places: dict[Hashable, int] = {}
    return [places.setdefault(name, len(places)) for name in names]
