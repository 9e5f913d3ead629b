"""What can stand in the latent slots instead of what the loop put there: token replacement, the first question asked of latent reasoning.

A run that answers as well with noise in its slots does not reason in them, however it was trained. Prompt, number of steps and decoding
are held; only the vectors u_1..u_K change (Token Replacement Test of arXiv 2605.21642). VITAL has no markers around its latents, so nothing
else about the sequence tells that they were exchanged.

VITAL has no `oracle` here. That test puts the vectors a slot was trained to hold into it, and methods that regress their inputs have them
(LVR, MedLVR). VITAL's targets, a sentence and a region's feature, stand in other spaces and are asked of the outputs z_k.

A replacement that leaves a question's vectors as they were says nothing about it (one step has no order). Each therefore names the
questions it changes, and only those are counted.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

REPLAYED, OTHER, SAME = "own latents replayed", "latents of another sample", "latents of another sample, same question"
ABOUT = {
    REPLAYED: "the recorded inputs; must answer as the loop did",
    "zeros": "zero vectors",
    "noise of the same length": "Gaussian directions, each as long as the vector it replaces",
    "first latent repeated": "u_1 as it is, then z_1 in every slot: the loop stands still after its first step",
    "z_0 in every slot": "the state after the prompt, never updated",
    "shuffled order": "a row's own vectors in another order",
    "mean latent": "the mean over the questions of what stands in the slot",
    OTHER: "of a question about another image with as many steps",
    SAME: "the same, and in the same words; where none is, it asks the same thing about a target of the same name",
}
ORACLE = (
    "VITAL trains no vector to stand in a slot, so there is none to put there (see vital_jax/evaluate/replacements.py)"
)


class Replacement(NamedTuple):
    """Vectors [n, K, D] for the slots, and which questions they change, [n] bool."""

    vectors: np.ndarray
    counted: np.ndarray


def partners(
    steps: Sequence[int], images: Sequence[Hashable], kinds: Sequence[Hashable] | None = None, seed: int = 0
) -> np.ndarray:
    """For each row one about another image with as many steps, [n] int; -1 where there is none.

    Args:
      steps: K_i. images: what questions about one picture share. kinds: by default any row will do, otherwise one of the same kind.
    """
    rng, found = np.random.default_rng(seed), np.full(len(steps), -1)
    members: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(zip(steps, kinds or [None] * len(steps), strict=True)):
        members[key].append(place)
    for places in members.values():
        for place in places:
            others = [other for other in places if images[other] != images[place]]
            if others:
                found[place] = others[rng.integers(len(others))]
    return found


def means(vectors: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The mean of each slot over the rows that have it, [n, K, D] -> [K, D]; zero where none has."""
    count = np.maximum(own.sum(0), 1)[:, None]
    return np.einsum("nkd,nk->kd", vectors, own.astype(vectors.dtype)) / count


def replacements(
    u: np.ndarray,
    own: np.ndarray,
    images: Sequence[Hashable],
    asked: Sequence[tuple[Hashable, Hashable]],
    seed: int = 0,
) -> dict[str, Replacement]:
    """All of `ABOUT` that change any question, by name.

    Args:
      u: [n, K, D] recorded inputs. own: [n, K] bool, a row's own slots, the first ones.
      images: [n] what questions about one picture share. seed: of all draws.
      asked: [n] a question's words, and what it asks about what. The latter may name the answer; it serves where the words find nobody.
    Raises: ValueError for no slots.
    """
    n, K, _ = u.shape
    if not n or not K:
        raise ValueError(f"nothing to replace in {n} rows of {K} slots")
    rng, steps = np.random.default_rng(seed), own.sum(1).tolist()
    noise = rng.normal(size=u.shape)
    noise *= np.linalg.norm(u, axis=-1, keepdims=True) / np.linalg.norm(noise, axis=-1, keepdims=True)
    repeated = u.copy()
    repeated[:, 2:] = u[:, 1:2]
    made = {
        REPLAYED: u,
        "zeros": np.zeros_like(u),
        "noise of the same length": noise,
        "first latent repeated": repeated,
        "z_0 in every slot": np.repeat(u[:, :1], K, axis=1),
        "shuffled order": np.stack([row[_order(rng, k, K)] for row, k in zip(u, steps, strict=True)]),
        "mean latent": np.broadcast_to(means(u, own), u.shape),
    }
    words, kinds = (partners(steps, images, list(keys), seed) for keys in zip(*asked, strict=True))
    for name, chosen in ((OTHER, partners(steps, images, seed=seed)), (SAME, np.where(words >= 0, words, kinds))):
        made[name] = np.where((chosen >= 0)[:, None, None], u[chosen], u)
    out = {}
    for name, vectors in made.items():
        vectors = np.asarray(vectors, np.float32)
        counted = ((vectors != u).any(-1) & own).any(-1)
        if name == REPLAYED:
            counted = np.ones(n, bool)
        if counted.any():
            out[name] = Replacement(vectors, counted)
    return out


def _order(rng: np.random.Generator, own: int, slots: int) -> np.ndarray:
    """A permutation of `slots` that moves some of the first `own` and none of the others."""
    order = np.arange(slots)
    while own > 1 and (order[:own] == np.arange(own)).all():
        order[:own] = rng.permutation(own)
    return order
