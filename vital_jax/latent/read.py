"""What a latent says: each step's sentence, decoded greedily by the scaffold's text decoder (paper section 3.3 and its figures).

Training shows the decoder the right words (`read_latents`); here it reads its own. Every latent starts a sequence of its own, so what is
written about step k comes from z_k alone.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vital_jax.latent.scaffold import PjIn
from vital_jax.models.attention import KeyValues
from vital_jax.models.decoder import Decoder

Carry = tuple[jax.Array, KeyValues, jax.Array, jax.Array]  # column, cache, tokens, which sentences have ended


def decode_steps(decoder: Decoder, scaffold: Mapping[str, Any], z: jax.Array, length: int, end: int) -> jax.Array:
    """Greedy sentences of latents, stopping when all have ended.

    Args:
      decoder: the text decoder. scaffold: its parameters, with `text_decoder` and `pj_in`.
      z: [B, K, D] latents, in the dtype to compute in.
      length: C, the most tokens of a sentence. end: the token that ends one.
    Returns: [B, K, C] int32 tokens, the end token included, then `end`.
    """
    B, K, _ = z.shape
    c, text = decoder.config, {"params": scaffold["text_decoder"]}
    first = PjIn(c.width).apply({"params": scaffold["pj_in"]}, z).reshape(B * K, 1, 1, -1)
    columns = jnp.arange(length)

    def read(x: jax.Array, t: jax.Array | int, cache: KeyValues) -> tuple[jax.Array, KeyValues]:
        """The next token [B * K] after input x at column t, and the cache that holds it."""
        positions = jnp.broadcast_to(t, (3, B * K, 1, 1))
        h, cache, _ = decoder.apply(text, x, positions, (columns <= t)[None, None, None], None, cache, t)
        scores = decoder.apply(text, decoder.apply(text, h, method="final_norm"), method="logits")
        return jnp.argmax(scores[:, 0, 0], axis=-1).astype(jnp.int32), cache

    def write(tokens: jax.Array, done: jax.Array, token: jax.Array, t: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        token = jnp.where(done, end, token)
        return tokens.at[:, t].set(token), done | (token == end)

    def step(carry: Carry) -> Carry:
        t, cache, tokens, done = carry
        word = decoder.apply(text, tokens[:, t - 1, None, None], z.dtype, method="embed")
        token, cache = read(word, t, cache)
        return t + 1, cache, *write(tokens, done, token, t)

    cache = tuple(jnp.zeros((c.layers, B * K, 1, length, c.kv_heads, c.head_width), z.dtype) for _ in range(2))
    token, cache = read(first, 0, cache)
    state = write(jnp.full((B * K, length), end, jnp.int32), jnp.zeros(B * K, bool), token, 0)
    _, _, tokens, _ = jax.lax.while_loop(
        lambda carry: (carry[0] < length) & ~jnp.all(carry[3]), step, (1, cache, *state)
    )
    return tokens.reshape(B, K, length)
