"""The training-time scaffold: what a latent must be able to say (text decoder) and to show (visual projector). Dropped at inference.

Both read the loop's outputs z_1..z_K (VITAL section 3.3). A latent enters the text decoder as the first input of its own sequence, so steps
do not see each other; it enters the projector alone.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vital_jax.models.attention import Causal
from vital_jax.models.decoder import Decoder
from vital_jax.models.layers import LayerNorm, Linear

PROJECTORS = ("residual_mlp_ln", "mlp_ln", "mlp", "linear", "transformer")
OUTPUT_NORMS = ("ln", "ln_literal", "l2")
_EPS = 1e-5  # torch's LayerNorm default, which the paper's projector leaves alone


class OutputNorm(nn.Module):
    """The projector's last norm, against a target of unit length.

    `ln` starts its scale at E^-0.5, where the output has the target's length; with the literal start of 1 it is sqrt(E) times longer and
    the scale must first shrink 34-fold at 2e-5 a step (`ln_literal`). `l2` divides by the length.
    """

    kind: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.kind == "l2":
            # Not x / |x|: an unused step's zero output would have a gradient of 0/0.
            return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))
        start = x.shape[-1] ** -0.5 if self.kind == "ln" else 1.0
        scale = self.param("scale", nn.initializers.constant(start), (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + _EPS) * scale + bias


class VisualProjector(nn.Module):
    """Latents [..., D] to the region-of-interest space [..., E] (equation 5), in float32.

    residual_mlp_ln: LN(W2(GELU(W1 LN(z)) + z)), the raw z in the residual, as written. The other kinds are the rows of Table 13: the same
    without the residual (`mlp_ln`), also without either norm (`mlp`), one matrix (`linear`), and one pre-norm self-attention block over
    the K latents before W2 (`transformer`).
    """

    features: int  # E
    kind: str = "residual_mlp_ln"
    output_norm: str = "ln"
    dropout: float = 0.1
    heads: int = 8

    @nn.compact
    def __call__(self, z: jax.Array, own: jax.Array | None = None, deterministic: bool = True) -> jax.Array:
        """z [B, K, D] -> [B, K, E]; `own` [B, K] marks the steps a row has, for the one kind that looks at several."""
        if self.kind not in PROJECTORS or self.output_norm not in OUTPUT_NORMS:
            raise ValueError(
                f"projector {self.kind!r} with {self.output_norm!r}: use one of {PROJECTORS} and {OUTPUT_NORMS}"
            )
        z = z.astype(jnp.float32)
        D = z.shape[-1]
        if self.kind == "linear":
            return Linear(self.features, True, name="w2")(z)
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        if self.kind == "transformer":
            attention = nn.MultiHeadDotProductAttention(self.heads, name="attention")
            mixed = attention(LayerNorm(_EPS, name="input_norm")(z), mask=None if own is None else own[:, None, None])
            z = z + mixed
            z = z + drop(nn.gelu(Linear(D, True, name="w1")(LayerNorm(_EPS, name="mlp_norm")(z)), approximate=False))
        else:
            inner = z if self.kind == "mlp" else LayerNorm(_EPS, name="input_norm")(z)
            hidden = drop(nn.gelu(Linear(D, True, name="w1")(inner), approximate=False))
            z = hidden + z if self.kind == "residual_mlp_ln" else hidden
        y = Linear(self.features, True, name="w2")(z)
        return y if self.kind == "mlp" else OutputNorm(self.output_norm, name="output_norm")(y)


class PjIn(nn.Module):
    """The linear map from latents [..., D] to the text decoder's input width (equation 3)."""

    features: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        return Linear(self.features, True, name="linear")(z)


def read_latents(decoder: Decoder, params: Mapping[str, Any], z: jax.Array, chain: jax.Array) -> jax.Array:
    """States of the text decoder that predict each step's sentence (equation 3).

    Args:
      decoder: the text decoder. params: the scaffold, with `text_decoder` and `pj_in`.
      z: [B, K, D] latents, in the dtype to compute in.
      chain: [B, K, C] tokens of each step's sentence, its end token included.
    Returns: [B, K, C, D'] normed states; column c, fed [pj_in(z_k), e_k[0], .., e_k[c-1]], predicts e_k[c].
    """
    B, K, C = chain.shape
    text = {"params": params["text_decoder"]}
    first = PjIn(decoder.config.width).apply({"params": params["pj_in"]}, z)
    words = decoder.apply(text, chain[..., : C - 1], z.dtype, method="embed")
    x = jnp.concatenate([first[:, :, None], words], axis=2).reshape(B * K, 1, C, -1)
    positions = jnp.broadcast_to(jnp.arange(C), (3, B * K, 1, C))
    h, *_ = decoder.apply(text, x, positions, Causal(jnp.full((B * K,), C)))
    return decoder.apply(text, h, method="final_norm").reshape(B, K, C, -1)
