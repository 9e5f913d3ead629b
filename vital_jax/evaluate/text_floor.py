"""What the text decoder owes to a latent, and what it would say anyway.

L_text trains through z_k, but sentences of a chain are alike, and a decoder that knows the kind of question needs no latent to write most
of one. So the cross-entropy of the taught sentences is measured with a row's own latents and with latents that know less: of another row
that asks the same type of question, of another row about the same target, of any other row, and the mean latent, which knows nothing. What
lies between these and the own ones is what the latents tell.
"""

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vital_jax.evaluate.intervals import clustered_mean
from vital_jax.evaluate.replacements import means, partners
from vital_jax.latent.read import decode_steps
from vital_jax.latent.scaffold import read_latents
from vital_jax.models.decoder import Decoder
from vital_jax.pipeline.prompts import Prompter
from vital_jax.pipeline.records import Record

OWN = "own latents"
_TILE = 8


@dataclass(frozen=True, eq=False)
class Reader:
    """A run's text decoder: its module, the scaffold's parameters with `text_decoder` and `pj_in`, and its tokens."""

    decoder: Decoder
    scaffold: Mapping[str, Any]
    prompter: Prompter
    dtype: Any = jnp.float32


@functools.partial(jax.jit, static_argnames="decoder")
def _sentence_losses(
    decoder: Decoder, scaffold: Mapping[str, Any], z: jax.Array, chain: jax.Array, mask: jax.Array
) -> jax.Array:
    """Mean nats per token of each step's sentence, [B, K]; z [B, K, D], chain and mask [B, K, C]. Zero where a sentence is empty."""
    states = read_latents(decoder, scaffold, z, chain)
    head = decoder.apply({"params": scaffold["text_decoder"]}, method="head")

    def row(parts):
        h, ids = parts
        scores = head(h)
        return jax.nn.logsumexp(scores, axis=-1) - jnp.take_along_axis(scores, ids[..., None], axis=-1)[..., 0]

    # Row by row: scores of a whole batch over a large vocabulary are gigabytes.
    lost = jax.lax.map(row, (states, chain))
    return jnp.sum(jnp.where(mask, lost, 0), axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1)


def sentence_losses(reader: Reader, z: np.ndarray, chain: np.ndarray, mask: np.ndarray, batch: int = 32) -> np.ndarray:
    """Cross-entropy of each step's sentence given its latent, in nats per token (equation 3), [n, K] float64.

    Args:
      z: [n, K, D]. chain, mask: [n, K, C] tokens and which are there. batch: rows of the program.
    """
    scaffold = {name: reader.scaffold[name] for name in ("pj_in", "text_decoder")}
    out = []
    for start in range(0, len(z), batch):
        rows = np.arange(start, start + batch).clip(max=len(z) - 1)
        found = _sentence_losses(
            reader.decoder, scaffold, jnp.asarray(z[rows], reader.dtype), jnp.asarray(chain[rows]), mask[rows]
        )
        out.append(np.asarray(found, np.float64)[: len(z) - start])
    return np.concatenate(out)


@functools.partial(jax.jit, static_argnames=("decoder", "length", "end"))
def _written(decoder: Decoder, scaffold: Mapping[str, Any], z: jax.Array, length: int, end: int) -> jax.Array:
    return decode_steps(decoder, scaffold, z, length, end)


def written(reader: Reader, z: np.ndarray, length: int, batch: int = 32) -> list[list[str]]:
    """The sentence that the text decoder writes, greedily, from each latent alone, [n][K].

    Args:
      z: [n, K, D]. length: C, the most tokens of a sentence. batch: rows of the program.
    """
    scaffold = {name: reader.scaffold[name] for name in ("pj_in", "text_decoder")}
    out: list[list[str]] = []
    for start in range(0, len(z), batch):
        rows = np.arange(start, start + batch).clip(max=len(z) - 1)
        inputs = jnp.asarray(z[rows], reader.dtype)
        tokens = np.asarray(_written(reader.decoder, scaffold, inputs, length, reader.prompter.end_token_id))
        out += [[reader.prompter.decode(ids) for ids in sentences] for sentences in tokens[: len(z) - start]]
    return out


def taught(records: Sequence[Record], own: np.ndarray, prompter: Prompter) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the sentences of each row's own steps, [n, K, C] int32, and which are there. Raises: ValueError naming a record."""
    n, K = own.shape
    words = {
        (i, k): prompter.encode_text(text, name=f"record {record.id!r} chain step {k + 1}")
        for i, record in enumerate(records)
        for k, text in enumerate(record.chain[: own[i].sum()])
    }
    C = -(-max(map(len, words.values()), default=1) // _TILE) * _TILE
    chain, mask = np.zeros((n, K, C), np.int32), np.zeros((n, K, C), bool)
    for (i, k), ids in words.items():
        chain[i, k, : len(ids)], mask[i, k, : len(ids)] = ids, True
    return chain, mask


def text_floors(
    reader: Reader,
    records: Sequence[Record],
    z: np.ndarray,
    own: np.ndarray,
    images: Sequence[Hashable],
    batch: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """Cross-entropy with own and exchanged latents, by step and over all of a row's steps ("all").

    Args:
      records: with chains. z [n, K, D], own [n, K]: as `evidence.latents`. images: [n] what questions about one picture share.
      batch: rows of the program. seed: of the exchanges, which are all with rows about another image that take as many steps.
    Returns: {name: {step: {"n", "value", "low", "high", "own", "difference", "difference_low", "difference_high"}}}: means over n rows,
      `own` that of the same rows with their own latents, ends None where all rows share one image; names without any row are left out.
    Raises: ValueError where no record has a chain, or naming one that cannot be written in tokens.
    """
    chain, mask = taught(records, own, reader.prompter)
    has = mask.any(-1)
    if not has.any():
        raise ValueError("no record has a chain: there is no sentence to read")
    steps = own.sum(1).tolist()
    # A record that does not say is like no other.
    types, names = (
        [record.metadata.get(key) or i for i, record in enumerate(records)] for key in ("question_type", "target_name")
    )
    exchanges = {
        "latents of another sample": partners(steps, images, seed=seed),
        "of another sample, same question type": partners(steps, images, types, seed),
        "of another sample, same target": partners(steps, images, names, seed),
    }
    latents = {OWN: (z, np.ones(len(z), bool))}
    latents |= {name: (z[places], places >= 0) for name, places in exchanges.items()}
    latents["mean latent"] = (np.broadcast_to(means(z, own), z.shape), np.ones(len(z), bool))
    losses = {name: sentence_losses(reader, vectors, chain, mask, batch) for name, (vectors, _) in latents.items()}
    out: dict[str, Any] = {}
    for name, (_, held) in latents.items():
        for step, wanted in {"all": has, **{str(k + 1): _only(has, k) for k in range(has.shape[1])}}.items():
            rows = held & wanted.any(1)
            if not rows.any():
                continue
            # A row's mean over its steps, then the mean over rows: equation 4's order.
            mean = lambda x, m=wanted, r=rows: (x * m).sum(1)[r] / m.sum(1)[r]  # noqa: E731
            value, base = mean(losses[name]), mean(losses[OWN])
            groups = [images[i] for i in np.flatnonzero(rows)]
            low, high = clustered_mean(value.tolist(), groups) or (None, None)
            found = {"n": len(value), "value": float(value.mean()), "low": low, "high": high}
            if name != OWN:
                low, high = clustered_mean((value - base).tolist(), groups) or (None, None)
                found |= {"own": float(base.mean()), "difference": float((value - base).mean())}
                found |= {"difference_low": low, "difference_high": high}
            out.setdefault(name, {})[step] = found
    return out


def _only(has: np.ndarray, k: int) -> np.ndarray:
    """The k-th column alone."""
    return has & (np.arange(has.shape[1]) == k)
