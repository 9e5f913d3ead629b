"""The small layers every tower is made of. Kernels are [out, in], the orientation of the checkpoint files, so loading never transposes."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from vital_jax.models import layout
from vital_jax.models.config import LoraConfig
from vital_jax.models.quantize import SCALE, scaled_product


def kernel_init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """N(0, 1 / fan-in) for kernels [out, in]."""
    return (jax.random.normal(key, shape, jnp.float32) * shape[-1] ** -0.5).astype(dtype)


def _mixed(x: jax.Array) -> jax.Array:
    """MurmurHash3's finaliser of uint32: every bit of x turns about half of the bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def kept(key: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """Draws which of [*shape] stay, each with probability 1 - rate: a hash of the element's number and the key.

    Adapters drop before each of seven projections, in every layer and again in its recomputation. jax's own generator, which is made to
    withstand more than dropout asks of it, was three fifths of what a training step takes to compile for a TPU. Like it, this one gives
    each element the same number however the array is split over chips.
    """
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    number = sum(jax.lax.broadcasted_iota(jnp.uint32, shape, i) * jnp.uint32(n % 2**32) for i, n in enumerate(strides))
    first, second = jax.random.key_data(key)[:2]
    return _mixed((number + first) ^ second) >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


class Dropout(nn.Module):
    """Zeroes elements with probability `rate` and divides the others by 1 - rate; its key is that of the stream `dropout`."""

    rate: float
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.deterministic or not self.rate:
            return x
        return jnp.where(kept(self.make_rng("dropout"), x.shape, self.rate), x / (1 - self.rate), 0).astype(x.dtype)


class Linear(nn.Module):
    """y = x W^T + b, plus the low-rank update s (drop(x) A^T) B^T wherever the `lora` collection holds this layer's `a` and `b`.

    LoRA is on exactly if its parameters are given: the base model is the same call without them. s = alpha / rank. So is quantisation: a
    kernel with scales beside it is int8 (models/quantize.py).
    """

    features: int
    use_bias: bool = False
    lora: LoraConfig | None = None
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, gathered: jax.Array | None = None) -> jax.Array:
        """[..., in] -> [..., features], in the dtype of x. `gathered` is x again, as the kernel meets it where chips hold parts of x."""
        kernel = self.param("kernel", kernel_init, (self.features, x.shape[-1]), jnp.float32)
        met, kernel = (x, layout.whole(kernel)) if gathered is None else (gathered, kernel)
        if self.has_variable("params", SCALE):
            y = scaled_product(met, kernel, self.get_variable("params", SCALE))
        else:
            y = jnp.einsum("...i,oi->...o", met, kernel.astype(x.dtype))
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(x.dtype)
        if self.has_variable("lora", "a"):
            a, b = (self.get_variable("lora", name).astype(x.dtype) for name in ("a", "b"))
            dropped = Dropout(self.lora.dropout, self.deterministic)(x)
            if gathered is not None:  # as x and y lie, forward and backward: only the few numbers between A and B move
                dropped, a, b = layout.columns(dropped), layout.part(a, 1), layout.part(b, 0)
            update = jnp.einsum("...r,or->...o", jnp.einsum("...i,ri->...r", dropped, a), b)
            y = y + update * jnp.asarray(self.lora.alpha / self.lora.rank, x.dtype)
        return y


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, the statistics in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return scale.astype(x.dtype) * wide.astype(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / std * scale + bias over the last axis, in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        wide = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + self.eps)
        return (wide * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


class Embedding(nn.Module):
    """A table [V, D] that reads rows and, where the head is tied, scores against them."""

    vocab: int
    width: int

    def setup(self):
        self.embedding = self.param("embedding", nn.initializers.normal(1.0), (self.vocab, self.width), jnp.float32)

    def __call__(self, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """[...] int32 -> [..., D]."""
        return self.embedding[tokens].astype(dtype)


@struct.dataclass
class Head:
    """An output table, and the rows of added tokens that stand in place of its own: the table itself (1.2 GB at 8B) is never copied."""

    table: jax.Array  # [V, D]
    rows: jax.Array | None = None  # [n, D] float32
    added: tuple[int, ...] = struct.field(pytree_node=False, default=())  # which rows of the table they replace

    def __call__(self, h: jax.Array) -> jax.Array:
        """Scores [..., V] float32 of normed states [..., D]."""
        score = lambda table: jnp.einsum("...d,vd->...v", h, table.astype(h.dtype), preferred_element_type=jnp.float32)  # noqa: E731
        logits = score(self.table)
        return logits if self.rows is None else logits.at[..., jnp.asarray(self.added)].set(score(self.rows))
