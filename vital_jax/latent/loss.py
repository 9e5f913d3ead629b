"""Scores over a large vocabulary, a chunk of tokens at a time: the cross entropy, and the log-probability and entropy of each token.

At V = 151,936 the float32 scores of one chain token take 0.6 MB; a sample has two hundred. Scores are made, used and dropped chunk by
chunk, in the backward pass too, so memory does not grow with the number of tokens.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from vital_jax.models.layers import Head

CHUNK = 512  # tokens scored at a time, over all rows


def _cut(x: jax.Array, chunk: int) -> jax.Array:
    """[B, tokens, ...] -> [chunks, B, width, ...].

    Chunks run along the tokens of each row, never across rows: rows are split over devices, and each device scores its own.
    """
    width = max(1, min(chunk // x.shape[0], x.shape[1]))
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % width)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, width, *x.shape[2:]), 1, 0)


def _clean(h: jax.Array, targets: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What nobody learns from may be anything: a state NaN, a target outside the vocabulary."""
    return jnp.where(own[..., None], h, 0), jnp.where(own, targets, 0)


def cross_entropy(
    h: jax.Array, head: Head, targets: jax.Array, weights: jax.Array, chunk: int = CHUNK
) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of token losses, and of correct tokens.

    Args:
      h: [B, ..., D] normed states. head: what scores them, a table [V, D]. targets: [B, ...] int32.
      weights: [B, ...] float32, zero where nothing is to be learned.
    Returns: (sum of weights * -log p, sum of weights * [argmax is the target]), float32 scalars.
    """
    rows, D = h.shape[0], h.shape[-1]
    h, targets, weights = (
        h.reshape(rows, -1, D),
        targets.reshape(rows, -1),
        weights.reshape(rows, -1).astype(jnp.float32),
    )
    h, targets = _clean(h, targets, weights > 0)

    @jax.checkpoint
    def score(h: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = head(h)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        lost = jax.nn.logsumexp(logits, axis=-1) - chosen
        return jnp.sum(weights * lost), jnp.sum(weights * (jnp.argmax(logits, axis=-1) == targets))

    def step(total: tuple[jax.Array, jax.Array], part: Sequence[jax.Array]) -> tuple[tuple[jax.Array, jax.Array], None]:
        loss, correct = score(*part)
        return (total[0] + loss, total[1] + correct), None

    parts = tuple(_cut(x, chunk) for x in (h, targets, weights))
    total, _ = jax.lax.scan(step, (jnp.zeros(()), jnp.zeros(())), parts)
    return total


def token_log_probs(
    h: jax.Array,
    head: Head,
    targets: jax.Array,
    own: jax.Array,
    scaled: Callable[[jax.Array], jax.Array],
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """(log-probability of each target, entropy of the distribution it is from), float32 [B, ...]; zero where a token is not `own`.

    Args:
      h, head, targets: as `cross_entropy`. own: [B, ...] bool.
      scaled: what the scores [..., V] become before the softmax; -inf takes a token out. An own target's is finite.
    """
    rows, shape = h.shape[0], targets.shape
    h, targets, own = h.reshape(rows, -1, h.shape[-1]), targets.reshape(rows, -1), own.reshape(rows, -1)
    h, targets = _clean(h, targets, own)

    @jax.checkpoint
    def score(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        h, targets = part
        log_p = jax.nn.log_softmax(scaled(head(h)), axis=-1)
        finite = jnp.where(jnp.isneginf(log_p), 0, log_p)  # what has no probability adds none to the entropy
        return (
            jnp.take_along_axis(finite, targets[..., None], axis=-1)[..., 0],
            -jnp.sum(jnp.exp(log_p) * finite, axis=-1),
        )

    def joined(x: jax.Array) -> jax.Array:
        """[chunks, B, width] -> [B, ...]."""
        flat = jnp.moveaxis(x, 0, 1).reshape(rows, -1)[:, : targets.shape[1]]
        return jnp.where(own, flat, 0).reshape(shape)

    found = jax.lax.map(score, (_cut(h, chunk), _cut(targets, chunk)))
    return joined(found[0]), joined(found[1])
