"""Attention through one function: every attention of the package is a call of `attend`.

Queries carry a group axis G over one shared prefix, so that G rollouts of a prompt, or the latent steps and answer of one row, read the
prefix's keys and values without copying them. The scores of the prefix block and of the suffix block meet only inside one softmax: the
prefix stays a constant of the latent loop, and its backward pass keeps no copy of it per step. (Merging two finished attentions by
their log-sum-exp would lose gradients silently in today's libraries.)

XLA is the implementation everywhere and the oracle of the others. Long prefix passes may go to splash (TPU) or cuDNN (GPU), short queries
over a prefix to `kernels/shared_prefix.py` (TPU). All take the structured masks below and nothing else, and whatever they cannot take goes
to XLA with a log line.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vital_jax.kernels.shared_prefix import shared_prefix
from vital_jax.kernels.tuned import blocks_for

_LOG = logging.getLogger(__name__)
_LOWEST = -1e30  # finite, so that a row with nothing to attend to yields zeros and finite gradients
_ROWS = ("data", "fsdp")  # the mesh axes that split a batch
KEPT = "kept"  # the name under which rematerialisation keeps what is dear to make again


class Causal(NamedTuple):
    """Query i sees keys 0..i; of the columns the first `lengths[b]` exist, and the others see nothing."""

    lengths: jax.Array  # [B] int32


class Segments(NamedTuple):
    """Full attention inside each segment; 0 marks padding, which sees nothing and is seen by nothing."""

    ids: jax.Array  # [B, U] int32


class Suffix(NamedTuple):
    """Queries over a shared prefix and suffix columns: what exists, how far each query looks, and which branch sees which.

    A query sees the real columns of the prefix and every real suffix column up to its `last`, as far as its branch does.
    """

    lengths: jax.Array  # [B] int32, real columns of the prefix
    real: jax.Array  # [B, G, U'] bool, which suffix columns exist
    last: jax.Array  # [B, G, U] int32, or with axes of one: the last suffix column each query may look at
    between: jax.Array | None = (
        None  # [U, U'] bool, which columns are on a query's branch; None where there is one branch
    )


Mask = jax.Array | Causal | Segments | Suffix
KeyValues = tuple[jax.Array, jax.Array]


def _segments(mask: Causal | Segments, queries: int) -> jax.Array:
    """[B, U] int32, 0 on columns that do not exist."""
    return (jnp.arange(queries) < mask.lengths[:, None]).astype(jnp.int32) if isinstance(mask, Causal) else mask.ids


def _own(mask: Suffix, queries: int) -> jax.Array:
    """[B, G, U, U'] bool, the suffix columns that each query sees."""
    B, G, columns = mask.real.shape
    seen = mask.real[:, :, None] & (jnp.arange(columns) <= mask.last[..., None])
    seen = seen if mask.between is None else seen & mask.between
    return jnp.broadcast_to(seen, (B, G, queries, columns))


def dense_mask(mask: Mask, queries: int, prefix: int = 0) -> jax.Array:
    """The boolean mask a structured mask stands for, or the array itself.

    Args:
      queries: U. prefix: S, the columns of the prefix, where there is one.
    Returns: [B, 1, U, U], where padding sees nothing and is not seen; of a `Suffix` [B, G, U, S + U'].
    """
    if isinstance(mask, Suffix):
        own = _own(mask, queries)
        inside = (jnp.arange(prefix) < mask.lengths[:, None])[:, None, None]
        return jnp.concatenate([jnp.broadcast_to(inside, (*own.shape[:-1], prefix)), own], axis=-1)
    if not isinstance(mask, Causal | Segments):
        return mask
    ids = _segments(mask, queries)
    seen = (ids[:, :, None] == ids[:, None, :]) & (ids > 0)[:, None, :]
    if isinstance(mask, Causal):
        seen &= jnp.tril(jnp.ones((queries, queries), bool))
    return seen[:, None]


def implementation_for(platform: str) -> str:
    """What `auto` means on a platform, as jax calls it."""
    return {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(platform, "xla")


def attend(
    q: jax.Array, prefix_kv: KeyValues | None, suffix_kv: KeyValues, mask: Mask, implementation: str = "xla"
) -> jax.Array:
    """Grouped-query attention of suffix queries over a shared prefix and their own suffix.

    Args:
      q: [B, G, U, N, H].
      prefix_kv: keys and values [B, S, M, H] shared by all G, or None.
      suffix_kv: keys and values [B, G, U', M, H].
      mask: `Causal` or `Segments` (no prefix then), `Suffix` beside a prefix, or a boolean array broadcastable to [B, G, U, S + U'], true
        where a query may look.
      implementation: xla | splash (TPU, with the kernel of this package over a prefix) | cudnn | auto (splash on TPU, cuDNN on GPU, XLA
        elsewhere).
    Returns: [B, G, U, N, H] in the dtype of q. A query that may look nowhere gets zeros.
    Raises: ValueError for an unknown implementation, or a mask of the suffix block alone beside a prefix.
    """
    if isinstance(mask, Causal | Segments) and prefix_kv is not None:
        raise ValueError(f"{type(mask).__name__} describes the suffix block alone; give a Suffix beside a prefix")
    if implementation == "auto":
        implementation = implementation_for(jax.default_backend())
    if implementation not in ("xla", "splash", "cudnn"):
        raise ValueError(f"unknown attention implementation {implementation!r}: use xla, splash, cudnn or auto")
    if implementation != "xla" and q.shape[1] == 1 and q.shape[2] > 1 and isinstance(mask, Causal | Segments):
        refusal = _REFUSALS[implementation](q, suffix_kv[0], mask)
        if refusal is None:
            # Kernels leave padded rows to chance, and a weight of zero times a stray infinity is not zero: padding goes in and comes out as
            # zeros, forward and, through the transposes of these selections, backward.
            exists = (_segments(mask, q.shape[2]) > 0)[:, :, None, None]
            q, k, v = (jnp.where(exists, x[:, 0], 0) for x in (q, *suffix_kv))
            return jnp.where(exists, _LONG[implementation](q, k, v, mask), 0)[:, None]
        _say_once(f"{implementation} attention handed over to XLA: {refusal}")
    if implementation in _SHORT and prefix_kv is not None and isinstance(mask, Suffix):
        refusal = _short_refusal(q, prefix_kv[0], mask)
        if refusal is None:
            return _SHORT[implementation](q, prefix_kv, suffix_kv, mask)
        _say_once(f"attention over a shared prefix handed over to XLA: {refusal}")
    columns = 0 if prefix_kv is None else prefix_kv[0].shape[1]
    return _attend_xla(q, prefix_kv, suffix_kv, dense_mask(mask, q.shape[2], columns))


@functools.cache
def _say_once(message: str) -> None:
    _LOG.warning(message)


def _attend_xla(q: jax.Array, prefix_kv: KeyValues | None, suffix_kv: KeyValues, mask: jax.Array) -> jax.Array:
    B, G, U, N, H = q.shape
    M = suffix_kv[0].shape[-2]
    S = 0 if prefix_kv is None else prefix_kv[0].shape[1]
    mask = jnp.broadcast_to(mask, (B, G, U, S + suffix_kv[0].shape[2]))[:, None, None]
    q = q.reshape(B, G, U, M, N // M, H)
    # Scores [B, M, R, G, U, keys] with R = N / M query heads per key/value head, accumulated in float32.
    blocks = [("bgumrh,bgsmh->bmrgus", "bmrgus,bgsmh->bgumrh", suffix_kv, mask[..., S:])]
    if prefix_kv is not None:
        blocks.insert(0, ("bgumrh,bsmh->bmrgus", "bmrgus,bsmh->bgumrh", prefix_kv, mask[..., :S]))
    scores = [
        jnp.where(m, jnp.einsum(look, q, kv[0], preferred_element_type=jnp.float32) * H**-0.5, _LOWEST)
        for look, _, kv, m in blocks
    ]
    top = functools.reduce(jnp.maximum, [jnp.max(s, axis=-1, keepdims=True) for s in scores])
    top = jax.lax.stop_gradient(top)
    weights = [jnp.where(m, jnp.exp(s - top), 0.0) for s, (*_, m) in zip(scores, blocks, strict=True)]
    total = sum(jnp.sum(w, axis=-1) for w in weights)
    mixed = sum(
        jnp.einsum(gather, w.astype(kv[1].dtype), kv[1], preferred_element_type=jnp.float32)
        for w, (_, gather, kv, _) in zip(weights, blocks, strict=True)
    )
    total = jnp.moveaxis(jnp.where(total == 0, 1.0, total), (1, 2), (3, 4))[..., None]
    return (mixed / total).reshape(B, G, U, N, H).astype(q.dtype)


def _uneven(q: jax.Array, k: jax.Array) -> str | None:
    """Why a mesh cannot split rows and key heads, where it cannot."""
    mesh = jax.sharding.get_abstract_mesh()
    rows = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in _ROWS)
    parts = 1 if mesh.empty else mesh.shape["tensor"]
    if q.shape[0] % rows or k.shape[-2] % parts:
        return f"{q.shape[0]} rows and {k.shape[-2]} key heads do not divide by the mesh's {rows} and {parts}"
    return None


def _splash_refusal(q: jax.Array, k: jax.Array, mask: Mask) -> str | None:
    del mask
    return f"{q.shape[2]} queries are not a multiple of 128" if q.shape[2] % 128 else _uneven(q, k)


def _short_refusal(q: jax.Array, k: jax.Array, mask: Suffix) -> str | None:
    del mask
    H = q.shape[-1]
    if q.dtype not in (jnp.float32, jnp.bfloat16) or k.dtype != q.dtype:
        return f"queries of {q.dtype} over keys of {k.dtype} are not taken"
    if H % 8 or H > 256:
        return f"heads {H} wide are not a multiple of 8, or wider than 256"
    return _uneven(q, k)


def _cudnn_refusal(q: jax.Array, k: jax.Array, mask: Mask) -> str | None:
    del k
    if isinstance(mask, Segments):
        return "segment masks are not taken"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"{q.dtype} is not taken"
    return None


def _splash(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, interpret: bool = False, largest: int = 512
) -> jax.Array:
    """Splash attention of [B, U, N, H] queries; inside a mesh each device works on its own rows and heads.

    The kernel walks over square blocks of at most `largest` columns. Its own default, 128, reads every key once for each 128 queries; 512
    is what public TPU trainers settled on.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    U = q.shape[1]
    shape = (U, U)
    block = next(size for size in (512, 384, 256, 128) if size <= largest and U % size == 0)
    names = [field.name for field in dataclasses.fields(kernel.BlockSizes) if field.name.startswith("block_")]
    ids = _segments(mask, U)
    kind = masks.CausalMask(shape) if isinstance(mask, Causal) else masks.FullMask(shape)

    def local(q, k, v, ids):
        attention = kernel.make_splash_mha(
            masks.MultiHeadMask([kind] * q.shape[2]),
            block_sizes=kernel.BlockSizes(**dict.fromkeys(names, block)),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        # The kernel takes scaled queries; in bfloat16 the factor itself would be rounded.
        scaled = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (scaled, k, v))
        out = jax.vmap(lambda q, k, v, i: attention(q, k, v, kernel.SegmentIds(i, i)))(q, k, v, ids)
        return jnp.swapaxes(out, 1, 2)

    heads = PartitionSpec(_ROWS, None, "tensor", None)
    return _locally(local, (heads, heads, heads, PartitionSpec(_ROWS, None)), heads)(q, k, v, ids)


def _locally(kernel: Callable[..., jax.Array], inputs: Any, output: Any) -> Callable[..., jax.Array]:
    """A kernel on each device's own rows and heads, where there is a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return kernel
    return jax.shard_map(kernel, in_specs=inputs, out_specs=output, check_vma=False)


def _short(
    q: jax.Array, prefix_kv: KeyValues, suffix_kv: KeyValues, mask: Suffix, interpret: bool = False
) -> jax.Array:
    """`kernels.shared_prefix` on each device's own rows and heads."""

    def local(q, prefix_kv, suffix_kv, lengths, seen):
        blocks = blocks_for(q, prefix_kv[0])
        return shared_prefix(q, prefix_kv, suffix_kv, lengths, seen, blocks, KEPT, interpret)[0]

    prefix = PartitionSpec(_ROWS, None, "tensor", None)
    heads = PartitionSpec(_ROWS, None, None, "tensor", None)
    rows = PartitionSpec(_ROWS)
    inputs = (heads, (prefix, prefix), (heads, heads), rows, rows)
    return _locally(local, inputs, heads)(q, prefix_kv, suffix_kv, mask.lengths, _own(mask, q.shape[2]))


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: Causal) -> jax.Array:
    # is_causal is top-left aligned, which is right here and only here: queries and keys are the same columns.
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=True,
        query_seq_lengths=mask.lengths,
        key_value_seq_lengths=mask.lengths,
        implementation="cudnn",
    )


_REFUSALS = {"splash": _splash_refusal, "cudnn": _cudnn_refusal}
_LONG = {"splash": _splash, "cudnn": _cudnn}
_SHORT = {"splash": _short}
