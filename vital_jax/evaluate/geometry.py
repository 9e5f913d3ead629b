"""The shape of latents: whether steps differ from each other, how many directions they use, and how long they are.

Steps that are all alike are a loop that does nothing (VITAL's modality collapse, equation 9). The mean cosine sees pairs; the effective
rank (Roy and Vetterli 2007: exp of the entropy of the normalised singular values) sees all steps of a row, or all rows of a step, at once:
it is 1 where everything is one direction and the number of vectors where they are orthogonal and equally long. Rows of one image are not
independent, so every interval draws images.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from vital_jax.evaluate.intervals import clustered_mean

ROWS = 1024  # of a matrix whose singular values are taken over the data: more would take minutes and change little


def effective_rank(vectors: np.ndarray) -> np.ndarray:
    """Of [..., rows, D] matrices, [...]: from 1 to min(rows, D), NaN where all vectors are zero."""
    values = np.linalg.svd(np.asarray(vectors, np.float64), compute_uv=False)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = values / values.sum(-1, keepdims=True)
        entropy = -np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0.0).sum(-1)
        return np.where(values.sum(-1) > 0, np.exp(entropy), np.nan)


def shape_of(z: np.ndarray, own: np.ndarray, z0: np.ndarray, embedding: np.ndarray, images: Sequence[Hashable]) -> Any:
    """The shape of a run's latents as JSON.

    Args:
      z: [n, K, D]. own: [n, K] bool, a row's own steps, the first ones. z0: [n, D]. embedding: [V] lengths of the token embeddings.
      images: [n] what questions about one picture share.
    Returns:
      "cosine": {"z_1 z_2": mean}, over the rows that have both (equation 9);
      "rank": {"2": mean}, of z_1..z_K of the rows with so many steps, K >= 2;
      "data_rank": {"z_1": {"n", "most", "value", "centred"}}, over the rows of a step, as they are and less their mean; "z_0" too;
      "length": {"z_1": mean with "sd"}, and of "z_0" and "token embeddings"; a step's input u_k is z_{k-1}.
      A mean is {"n", "value", "low", "high"}, its ends None where all rows share one image.
    """
    mean = lambda values, rows: _mean(values[rows], [images[i] for i in np.flatnonzero(rows)])  # noqa: E731
    out: dict[str, Any] = {**alike(z, own, images), "data_rank": {}, "length": {}}
    named = [("z_0", z0, np.ones(len(z), bool))] + [(f"z_{k + 1}", z[:, k], own[:, k]) for k in range(own.shape[1])]
    for name, vectors, rows in named:
        if not rows.any():
            continue
        chosen = np.asarray(vectors[rows], np.float64)
        lengths = np.linalg.norm(chosen, axis=-1)
        out["length"][name] = {**mean(np.linalg.norm(vectors, axis=-1), rows), "sd": float(lengths.std())}
        if len(chosen) > 1:
            some = chosen[np.linspace(0, len(chosen) - 1, min(ROWS, len(chosen))).astype(int)]
            both = effective_rank(np.stack([some, some - some.mean(0)]))
            if np.isfinite(both).all():
                found = {"n": len(some), "most": min(some.shape), "value": float(both[0]), "centred": float(both[1])}
                out["data_rank"][name] = found
    rows = np.asarray(embedding, np.float64)
    value = {"n": len(rows), "value": float(rows.mean()), "low": None, "high": None, "sd": float(rows.std())}
    out["length"]["token embeddings"] = value
    return out


def alike(z: np.ndarray, own: np.ndarray, images: Sequence[Hashable]) -> dict[str, Any]:
    """ "cosine" and "rank" of `shape_of`: how alike the steps of a row are."""
    steps, K = own.sum(1), own.shape[1]
    length = np.linalg.norm(np.asarray(z, np.float64), axis=-1)
    unit = z / np.maximum(length, 1e-12)[..., None]
    cosine = np.einsum("nid,njd->nij", unit, unit)
    mean = lambda values, rows: _mean(values[rows], [images[i] for i in np.flatnonzero(rows)])  # noqa: E731
    out: dict[str, Any] = {"cosine": {}, "rank": {}}
    for i in range(K):
        for j in range(i + 1, K):
            if (both := own[:, j]).any():
                out["cosine"][f"z_{i + 1} z_{j + 1}"] = mean(cosine[:, i, j], both)
    for k in range(2, K + 1):
        if (rows := steps == k).any():
            ranks = effective_rank(z[rows, :k])
            if np.isfinite(ranks).all():
                out["rank"][str(k)] = _mean(ranks, [images[i] for i in np.flatnonzero(rows)])
    return out


def _mean(values: np.ndarray, images: Sequence[Hashable]) -> dict[str, Any]:
    low, high = clustered_mean(values.tolist(), images) or (None, None)
    return {"n": len(values), "value": float(values.mean()), "low": low, "high": high}
