"""Cross entropy over a large vocabulary, a chunk of tokens at a time.

At V = 151,936 the float32 scores of one chain token take 0.6 MB; a sample has two hundred. Scores are made, used and dropped chunk by
chunk, in the backward pass too, so memory does not grow with the number of tokens.
"""

import jax
import jax.numpy as jnp


def cross_entropy(
    h: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array, chunk: int = 512
) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of token losses, and of correct tokens.

    Args:
      h: [..., D] normed states. head: [V, D]. targets: [...] int32. weights: [...] float32, zero where nothing is to be learned.
      chunk: tokens scored at a time.
    Returns: (sum of weights * -log p, sum of weights * [argmax is the target]), float32 scalars.
    """
    D = h.shape[-1]
    h, targets, weights = h.reshape(-1, D), targets.reshape(-1), weights.reshape(-1).astype(jnp.float32)
    chunk = min(chunk, max(h.shape[0], 1))
    short = -h.shape[0] % chunk
    h, targets, weights = (jnp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1)) for x in (h, targets, weights))

    @jax.checkpoint
    def score(h, targets, weights):
        logits = jnp.einsum("td,vd->tv", h, head.astype(h.dtype), preferred_element_type=jnp.float32)
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        # A weight of zero also silences a token whose state is not finite.
        lost = jnp.where(weights > 0, jax.nn.logsumexp(logits, axis=-1) - chosen, 0.0)
        return jnp.sum(weights * lost), jnp.sum(weights * (jnp.argmax(logits, axis=-1) == targets))

    def step(total, part):
        loss, correct = score(*part)
        return (total[0] + loss, total[1] + correct), None

    parts = tuple(x.reshape(-1, chunk, *x.shape[1:]) for x in (h, targets, weights))
    total, _ = jax.lax.scan(step, (jnp.zeros(()), jnp.zeros(())), parts)
    return total
