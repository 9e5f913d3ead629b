"""The Qwen3 decoder: language model of Qwen3-VL and text decoder of the scaffold, one file for both.

Layers are one scanned block, so compile time does not grow with depth. The same call serves a prefix pass, a latent step, a teacher-forced
answer and G rollouts: what differs is which keys and values are handed in. Deepstack features (Qwen3-VL) are added after the first layers
inside the scan, chosen by the scanned layer index from a table whose last entry is zero.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from vital_jax.models import layout
from vital_jax.models.attention import KEPT, KeyValues, Mask, attend
from vital_jax.models.config import DecoderConfig, LoraConfig
from vital_jax.models.layers import Embedding, Head, Linear, RMSNorm, kernel_init
from vital_jax.models.rope import multimodal_angles, rotate

REMAT = ("full", "names", "none")


def _keep(x: jax.Array) -> jax.Array:
    return checkpoint_name(x, KEPT)


def _write(cache: jax.Array, new: jax.Array, slot: jax.Array | int) -> jax.Array:
    """A cache [B, G, U', M, H] with new columns [B, G, U, M, H] from `slot` on, or, one column a row, at slots [B, G]."""
    new = new.astype(cache.dtype)
    if not jnp.ndim(slot):
        return jax.lax.dynamic_update_slice_in_dim(cache, new, slot, axis=2)
    here = jnp.arange(cache.shape[2]) == slot[..., None]
    return jnp.where(here[..., None, None], new, cache)


class SelfAttention(nn.Module):
    """Grouped-query attention with per-head RMS norms of queries and keys (Qwen3)."""

    config: DecoderConfig
    lora: LoraConfig | None
    attention: str
    deterministic: bool
    stationary: bool

    def setup(self):
        c = self.config
        linear = lambda features, bias: Linear(features, bias, self.lora, self.deterministic)  # noqa: E731
        self.q_proj = linear(c.heads * c.head_width, c.attention_bias)
        self.k_proj = linear(c.kv_heads * c.head_width, c.attention_bias)
        self.v_proj = linear(c.kv_heads * c.head_width, c.attention_bias)
        self.o_proj = linear(c.width, c.attention_bias)
        self.q_norm, self.k_norm = RMSNorm(c.eps), RMSNorm(c.eps)

    def __call__(self, x, angles, mask: Mask, prefix_kv, suffix_kv, slot):
        c = self.config
        # Attention is by rows in either layout: the keys and values of a row's prefix stay where its prefix pass left them.
        own = lambda y: layout.rows(layout.columns(y)) if self.stationary else y  # noqa: E731
        heads = lambda y, n: own(y).reshape(*y.shape[:-1], n, c.head_width)  # noqa: E731
        whole = layout.gathered(x) if self.stationary else None
        q = rotate(self.q_norm(heads(_keep(self.q_proj(x, whole)), c.heads)), angles)
        k = rotate(self.k_norm(heads(_keep(self.k_proj(x, whole)), c.kv_heads)), angles)
        v = heads(_keep(self.v_proj(x, whole)), c.kv_heads)
        if suffix_kv is not None:
            k, v = (_write(old, new, slot) for old, new in zip(suffix_kv, (k, v), strict=True))
        mixed = attend(q, prefix_kv, (k, v), mask, self.attention)
        mixed = mixed.reshape(*mixed.shape[:-2], -1)
        if self.stationary:
            mixed = layout.columns(layout.rows(mixed))
        return self.o_proj(mixed, layout.gathered(mixed) if self.stationary else None), (k, v)


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    config: DecoderConfig
    lora: LoraConfig | None
    deterministic: bool
    stationary: bool

    def setup(self):
        linear = lambda features: Linear(features, False, self.lora, self.deterministic)  # noqa: E731
        self.gate_proj, self.up_proj = linear(self.config.ffn), linear(self.config.ffn)
        self.down_proj = linear(self.config.width)

    def __call__(self, x):
        if not self.stationary:
            return self.down_proj(nn.silu(_keep(self.gate_proj(x))) * _keep(self.up_proj(x)))
        whole = layout.gathered(x)
        gate, up = (_keep(layout.columns(y)) for y in (self.gate_proj(x, whole), self.up_proj(x, whole)))
        h = nn.silu(gate) * up
        return self.down_proj(h, h)


class Block(nn.Module):
    """One decoder layer in the form `nn.scan` wants: carry x, scanned keys and values, the rest broadcast."""

    config: DecoderConfig
    lora: LoraConfig | None
    attention: str
    deterministic: bool
    stationary: bool

    def setup(self):
        c = self.config
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(c.eps), RMSNorm(c.eps)
        self.self_attn = SelfAttention(c, self.lora, self.attention, self.deterministic, self.stationary)
        self.mlp = GatedMLP(c, self.lora, self.deterministic, self.stationary)

    def __call__(self, x, layer, prefix_kv, suffix_kv, angles, mask, slot, deepstack, taps):
        tapped = None if taps is None else jnp.take_along_axis(x, taps[..., None], axis=2)
        border = layout.columns if self.stationary else layout.rows
        x = border(x)
        mixed, kv = self.self_attn(self.input_layernorm(x), angles, mask, prefix_kv, suffix_kv, slot)
        x = _keep(border(x + mixed))
        x = border(x + self.mlp(self.post_attention_layernorm(x)))
        if deepstack is not None:
            x = x + deepstack[jnp.minimum(layer, deepstack.shape[0] - 1)][:, None]
        return x, (kv, tapped)


class Decoder(nn.Module):
    """Embeddings, scanned blocks, final norm and head.

    `remat` keeps for the backward pass only block inputs (`full`); also queries, keys, values, the feed-forward's two inner products and
    the state between the halves, so that little but attention is computed twice (`names`); or everything (`none`). Single columns over a
    prefix (latent steps, tokens written) are so small that `full` means `names` for them. `stationary` is for a base that is split over
    chips: single columns leave the weights where they are (models/layout.py).
    """

    config: DecoderConfig
    lora: LoraConfig | None = None
    remat: str = "none"
    attention: str = "auto"
    stationary: bool = False

    def setup(self):
        c = self.config
        self.embed_tokens = Embedding(c.vocab, c.width)
        self.norm = RMSNorm(c.eps)
        if not c.tied:
            self.lm_head = self.param("lm_head", kernel_init, (c.vocab, c.width), jnp.float32)

    def embed(self, tokens: jax.Array, dtype: Any) -> jax.Array:
        """[...] int32 tokens -> [..., D]."""
        return self.embed_tokens(tokens, dtype)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: Mask,
        prefix_kv: KeyValues | None = None,
        suffix_kv: KeyValues | None = None,
        slot: jax.Array | int = 0,
        deepstack: jax.Array | None = None,
        deterministic: bool = True,
        taps: jax.Array | None = None,
    ) -> tuple[jax.Array, KeyValues, jax.Array | None]:
        """Runs all layers.

        Args:
          x: [B, G, U, D] inputs, in the dtype to compute in.
          positions: [3, B, G, U] int32 (time, row, column; three equal rows for text).
          mask: as `attend`.
          prefix_kv: keys and values [L, B, S, M, H] of a shared prefix, or None.
          suffix_kv: a cache [L, B, G, U', M, H] in whose slots [slot, slot + U) the new keys and values are written, or None: then the
            suffix block is this call's own U columns.
          slot: first slot to write, an integer or a traced scalar; or [B, G] slots of single columns, one for each row.
          deepstack: [n, B, U, D] added after layers 0..n-1, or None.
          taps: [B, G, n] int32, columns of this call whose state is handed out before every layer, or None.
        Returns: the state before the final norm [B, G, U, D], the suffix block's keys and values for every layer, and the states at `taps`
          before each layer [L, B, G, n, D] (None without taps).
        Raises: ValueError for an unknown `remat`.
        """
        if self.remat not in REMAT:
            raise ValueError(f"unknown remat {self.remat!r}: use one of {', '.join(REMAT)}")
        c = self.config
        single = prefix_kv is not None and x.shape[2] == 1
        stationary, remat = self.stationary and single, "names" if self.remat == "full" and single else self.remat
        angles = multimodal_angles(positions, c.head_width, c.rope_theta, c.mrope_section)
        if deepstack is not None:
            deepstack = jnp.concatenate([deepstack, jnp.zeros_like(deepstack[:1])]).astype(x.dtype)
        policies = {"full": None, "names": jax.checkpoint_policies.save_only_these_names(KEPT)}
        block = Block if remat == "none" else nn.remat(Block, prevent_cse=False, policy=policies[remat])
        layers = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, 0, 0, *[nn.broadcast] * 5),
            length=c.layers,
        )(c, self.lora, self.attention, deterministic, stationary, name="layers")
        x, (kv, tapped) = layers(x, jnp.arange(c.layers), prefix_kv, suffix_kv, angles, mask, slot, deepstack, taps)
        return layout.rows(x), kv, tapped

    def final_norm(self, h: jax.Array) -> jax.Array:
        """The norm between the last layer and the head, [..., D] -> [..., D]."""
        return self.norm(h)

    def table(self, side: str) -> jax.Array:
        """The table [V, D] of one side, `input` or `head`; a tied head's is the embeddings themselves."""
        return self.embed_tokens.embedding if side == "input" or self.config.tied else self.lm_head

    def head(self) -> Head:
        """What scores states."""
        return Head(self.table("head"))

    def logits(self, h: jax.Array) -> jax.Array:
        """Scores [..., V] float32 of normed states [..., D]."""
        return self.head()(h)


def init_decoder(model: Decoder, key: jax.Array) -> dict:
    """A random parameter tree of the decoder, float32."""
    x = jnp.zeros((1, 1, 1, model.config.width))
    tokens = jnp.zeros((1, 1, 1), jnp.int32)

    def touch(decoder: Decoder) -> jax.Array:
        h, *_ = decoder(
            decoder.embed(tokens, x.dtype), jnp.zeros((3, 1, 1, 1), jnp.int32), jnp.ones((1, 1, 1, 1), bool)
        )
        return decoder.logits(decoder.final_norm(h))

    return nn.init(touch, model)(key)["params"]


def abstract_decoder(model: Decoder) -> dict:
    """The shapes of the decoder's parameters; nothing is allocated."""
    return jax.eval_shape(lambda key: init_decoder(model, key), jax.random.key(0))
