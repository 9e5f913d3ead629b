"""Numbers beside heat maps: does the map lie on the region, and would another vector's map lie there as well?

A heat map always looks like something. So every number stands beside the same number of maps that cannot know the case:

    shuffled  latents of a question about another image of the same modality, with as many steps
    other     the same, and about a target of the same name: what the question's words alone give away
    random    a random direction in the encoder's space
    target    the region's own stored feature, where the records have one: what the best latent could show, a ceiling and no baseline

A step is judged against the region that its sentence is about, where records have those (`pipeline.masks.regions_of`), else against the
record's. Exchanging a row's own steps would be no baseline of the latter: all of them have one region, and the table has their mean.

The mask is brought to the patch grid, not the map to the pixels: a patch has one cosine, so its pixels share one, and with the exact share
of each patch that the mask covers every sum over pixels is a sum over patches. Small regions therefore cannot reach an overlap of 1.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vital_jax.construct.roi import CELL_SHARE, chosen_cells
from vital_jax.evaluate.intervals import clustered_mean
from vital_jax.evaluate.replacements import partners
from vital_jax.statistics import wilson

MEASURES = ("pointing", "iou_best", "iou_area", "share")
OWN, SHUFFLED, OTHER, RANDOM, TARGET = "own", "shuffled", "other", "random", "target"
BASELINES = (SHUFFLED, OTHER, RANDOM)
DRAWS = 5  # of each baseline for each question; its number is their mean
ALL = "all"
UNKNOWN = "not stated"
ABOUT = (
    "pointing: how often the hottest patch belongs to the region: its mask covers 30 % of the patch, or covers no other patch more",
    "iou_best: overlap (intersection over union) of the region and the hottest patches, as many of them as give the largest overlap; "
    "chosen with the mask in hand, so it is never below the region's share of the image",
    "iou_area: overlap of the region and the hottest patches, as many as the region's area, at least one",
    "share: share of the heat inside the region, the map shifted so that its coldest patch has none; an even map gives the region's "
    "share of the image",
    f"shuffled: latents of a question about another image of the same modality; other: the same, and of the same target name; random: a "
    f"random vector of the encoder's space; each the mean of {DRAWS} draws",
)  # fmt: skip


class Pointed(NamedTuple):
    """The numbers of one question with a mask.

    Attributes:
      modality: "not stated" where the record does not say. image: what questions about one picture share. area: the region's share of it,
        the mean over steps.
      scores: {own | shuffled | other | random | target: {measure: [K]}}, absent where there is no such map.
    """

    modality: str
    image: Hashable
    area: float
    scores: Mapping[str, Mapping[str, np.ndarray]]


def patch_shares(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The share of each patch that a mask [H, W] covers, [h, w] in 0..1, also where h and w do not divide H and W."""
    rows, columns = (_overlaps(length, cells) for length, cells in zip(mask.shape, grid, strict=True))
    return rows @ np.asarray(mask, np.float64) @ columns.T


def _overlaps(length: int, cells: int) -> np.ndarray:
    """[cells, length]: which share of a cell each pixel is."""
    edges, pixels = np.arange(cells + 1) * (length / cells), np.arange(length)
    low = np.maximum(edges[:-1, None], pixels)
    high = np.minimum(edges[1:, None], pixels + 1)
    return np.maximum(high - low, 0) * (cells / length)


def score(heat: np.ndarray, shares: np.ndarray) -> dict[str, np.ndarray]:
    """The measures of `ABOUT` of heat maps.

    Args:
      heat: [m, h, w] cosines. shares: [h, w] of `patch_shares`, not all zero.
    Returns: {measure: [m] float64}; pointing is 0 or 1. Equal heat: the patch that comes first counts as the hotter one, but the best
      threshold never parts equals.
    """
    flat, inside = np.asarray(heat, np.float64).reshape(len(heat), -1), shares.ravel()
    order = np.argsort(-flat, axis=1, kind="stable")
    ranked = np.take_along_axis(flat, order, axis=1)
    hit = np.cumsum(inside[order], axis=1)
    overlap = hit / (np.arange(1, flat.shape[1] + 1) + inside.sum() - hit)
    cut = np.ones(flat.shape, bool)
    cut[:, :-1] = ranked[:, :-1] > ranked[:, 1:]
    warm = flat - flat.min(1, keepdims=True)
    total = warm.sum(1)
    even = np.full(len(flat), inside.mean())
    return {
        "pointing": chosen_cells(shares, CELL_SHARE)[order[:, 0]].astype(np.float64),
        "iou_best": np.where(cut, overlap, 0.0).max(1),
        "iou_area": overlap[:, max(1, round(inside.sum())) - 1],
        "share": np.divide(warm @ inside, total, out=even, where=total > 0),
    }


# --- baselines ----------------------------------------------------------------------------------------------------------


class Baselines:
    """Vectors that other maps of a question are made from.

    Args:
      vectors: [n, K, E] projected latents of unit length. steps: [n] K_i. images: [n] what questions about one picture share.
      metadata: [n] of the records. seed: of the draws.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        steps: Sequence[int],
        images: Sequence[Hashable],
        metadata: Sequence[Mapping],
        seed: int,
    ):
        self._vectors, self._steps, self._seed = vectors, steps, seed
        modality = [one.get("modality") for one in metadata]
        named = [(kind, one.get("target_name") or i) for i, (kind, one) in enumerate(zip(modality, metadata, strict=True))]  # fmt: skip
        # [n, DRAWS], -1 throughout where a question has no partner.
        self._partners = {
            who: np.stack([partners(steps, images, kinds, seed + draw) for draw in range(DRAWS)], axis=1)
            for who, kinds in ((SHUFFLED, modality), (OTHER, named))
        }

    def of(self, place: int) -> dict[str, np.ndarray]:
        """{baseline: [DRAWS, K_i, E]} of the question at `place`, without those it has no partner for."""
        K, width = self._steps[place], self._vectors.shape[-1]
        random = np.random.default_rng((self._seed, place)).normal(size=(DRAWS, K, width))
        found = {RANDOM: random / np.linalg.norm(random, axis=-1, keepdims=True)}
        for who, chosen in self._partners.items():
            if (chosen[place] >= 0).all():
                found[who] = self._vectors[chosen[place], :K]
        return {who: np.asarray(vectors, np.float32) for who, vectors in found.items()}


# --- the table ----------------------------------------------------------------------------------------------------------


def table(pointed: Sequence[Pointed]) -> list[dict[str, Any]]:
    """Means over questions of the means over their own steps: one row per modality and measure, all modalities together first.

    Returns: rows {"modality", "measure", "n", "own", "low", "high", "shuffled", "other", "random", "target", "over"}: low and high are the
      95 % interval of `own` by drawing images, None where all questions share one; a baseline is None where no question has it, target
      where one lacks it; "over" is {baseline: {"n", "value", "low", "high"}}, how much higher `own` is on the questions that have that
      baseline. Empty for no questions.
    """
    modalities = sorted({one.modality for one in pointed})
    groups = [ALL, *modalities] if len(modalities) > 1 else modalities
    chosen = {name: [one for one in pointed if name in (ALL, one.modality)] for name in groups}
    return [{"modality": name, **_row(chosen[name], measure, slice(None))} for name in groups for measure in MEASURES]


def by_step(pointed: Sequence[Pointed]) -> list[dict[str, Any]]:
    """The same step by step over all modalities, apart for questions of 2, 3, ... steps, with "K" and "step" in place of the modality.

    Whether maps sharpen from z_1 to z_K (figure 12) can only be seen on the same questions.
    """
    numbers = [len(one.scores[OWN][MEASURES[0]]) for one in pointed]
    rows = []
    for K in sorted(set(numbers) - {1}):
        chosen = [one for one, number in zip(pointed, numbers, strict=True) if number == K]
        rows += [
            {"K": K, "step": k + 1, **_row(chosen, measure, slice(k, k + 1))} for k in range(K) for measure in MEASURES
        ]
    return rows


def _row(pointed: Sequence[Pointed], measure: str, steps: slice) -> dict[str, Any]:
    value = lambda one, who: float(np.mean(one.scores[who][measure][steps]))  # noqa: E731
    own = [value(one, OWN) for one in pointed]
    images = [one.image for one in pointed]
    low, high = clustered_mean(own, images) or (None, None)
    if measure == "pointing" and low is not None and low == high:
        # All hit or none: drawing images gives an interval of no width.
        low, high = wilson(own[0] * len(set(images)), len(set(images)))
    row = {"measure": measure, "n": len(own), "own": float(np.mean(own)), "low": low, "high": high, "over": {}}
    for who in (*BASELINES, TARGET):
        having = [one for one in pointed if who in one.scores]
        counted = having if who != TARGET or len(having) == len(own) else []
        row[who] = float(np.mean([value(one, who) for one in counted])) if counted else None
        if having and who != TARGET:
            more = [value(one, OWN) - value(one, who) for one in having]
            ends = clustered_mean(more, [one.image for one in having]) or (None, None)
            row["over"][who] = {"n": len(more), "value": float(np.mean(more)), "low": ends[0], "high": ends[1]}
    return row
