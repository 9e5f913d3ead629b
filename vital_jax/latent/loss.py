"""Cross entropy over a large vocabulary, a chunk of tokens at a time.

At V = 151,936 the float32 scores of one chain token take 0.6 MB; a sample has two hundred. Scores are made, used and dropped chunk by
chunk, in the backward pass too, so memory does not grow with the number of tokens.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vital_jax.models.layers import Head


def cross_entropy(
    h: jax.Array, head: Head, targets: jax.Array, weights: jax.Array, chunk: int = 512
) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of token losses, and of correct tokens.

    Chunks run along the tokens of each row, never across rows: rows are split over devices, and each device scores its own.

    Args:
      h: [B, ..., D] normed states. head: what scores them, a table [V, D]. targets: [B, ...] int32.
      weights: [B, ...] float32, zero where nothing is to be learned.
      chunk: tokens scored at a time, over all rows.
    Returns: (sum of weights * -log p, sum of weights * [argmax is the target]), float32 scalars.
    """
    rows, D = h.shape[0], h.shape[-1]
    h, targets, weights = (
        h.reshape(rows, -1, D),
        targets.reshape(rows, -1),
        weights.reshape(rows, -1).astype(jnp.float32),
    )
    # What nobody learns from may be anything: a state NaN, a target outside the vocabulary.
    h, targets = jnp.where((weights > 0)[..., None], h, 0), jnp.where(weights > 0, targets, 0)
    width = max(1, min(chunk // rows, h.shape[1]))
    short = -h.shape[1] % width

    def cut(x: jax.Array) -> jax.Array:
        """[B, tokens, ...] -> [chunks, B, width, ...]."""
        x = jnp.pad(x, [(0, 0), (0, short)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, -1, width, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def score(h: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = head(h)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        lost = jax.nn.logsumexp(logits, axis=-1) - chosen
        return jnp.sum(weights * lost), jnp.sum(weights * (jnp.argmax(logits, axis=-1) == targets))

    def step(total: tuple[jax.Array, jax.Array], part: Sequence[jax.Array]) -> tuple[tuple[jax.Array, jax.Array], None]:
        loss, correct = score(*part)
        return (total[0] + loss, total[1] + correct), None

    total, _ = jax.lax.scan(step, (jnp.zeros(()), jnp.zeros(())), tuple(map(cut, (h, targets, weights))))
    return total
