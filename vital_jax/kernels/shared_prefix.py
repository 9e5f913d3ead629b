"""Attention of a few queries over a long shared prefix and their own short suffix, with its full gradient.

A latent step, an answer, and the G rollouts of a prompt are short, their prefix is long and the same. XLA writes the scores
[B, M, R, G, U, S] out; here they never leave the chip, and a block of the prefix's keys and values is read once for all queries of its
rows:

                      keys: prefix [S]                       | suffix of the row's own group [U']
    rows (g, r, u)    block, block, block, ... up to length  | block, ...
                      ------------- one softmax over both --------------

Rows are what one key head serves: G groups, R = N / M query heads, U columns. They are packed whole groups to a block where a group is
short, and U is cut into blocks where it is long. Inside the suffix a query sees what `seen` says, one byte a pair: the real columns, up to
its own, on its own branch.

Gradients (FlashAttention-2, Dao 2023, arXiv 2307.08691, algorithm 2), with a cotangent of the log-sum-exp L beside that of the output O:

    P = exp(S - L)      delta = rowsum(dO * O) - dL      dS = P * (dO V^T - delta)      dQ = dS K      dK = dS^T Q      dV = P^T dO

The prefix's dK and dV are summed over all rows, so over G, inside the kernel. This file is the layout and the derivative; the loops over
blocks are in `shared_prefix_tpu.py`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vital_jax.kernels import shared_prefix_tpu as tpu

KeyValues = tuple[jax.Array, jax.Array]


class Blocks(NamedTuple):
    """Sizes of a block: `rows` of queries (at most), `prefix` and `suffix` keys (multiples of 128)."""

    rows: int = 256
    prefix: int = 512
    suffix: int = 512


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a shape is cut.

    Attributes:
      B, G, U, N, H, M: of the queries [B, G, U, N, H] and keys. S, columns: of the padded prefix and suffix.
      groups: whole groups in a block of rows. queries: u, columns of a block of rows. parts: blocks that U is cut into; above 1 a block
        holds one group. keys, own: of a block of prefix and of suffix keys.
    """

    B: int
    G: int
    U: int
    N: int
    H: int
    M: int
    S: int
    columns: int
    groups: int
    queries: int
    parts: int
    keys: int
    own: int

    @classmethod
    def of(cls, q: jax.Array, prefix: jax.Array, suffix: jax.Array, blocks: Blocks) -> "Tiling":
        """The tiling of queries [B, G, U, N, H] over keys [B, S, M, H] and [B, G, U', M, H]."""
        B, G, U, N, H = q.shape
        S, M = prefix.shape[1:3]
        R, tile = N // M, 8 * 4 // q.dtype.itemsize
        queries, parts, groups = _up(U, tile), 1, 1
        if R * queries > blocks.rows:
            queries = max(32, blocks.rows // R // 32 * 32)  # bytes lie in tiles of 32
            parts = -(-U // queries)
        else:
            groups = max(n for n in range(1, G + 1) if G % n == 0 and n * R * queries <= blocks.rows)
        keys = min(blocks.prefix, _up(S, 128))
        columns = _up(suffix.shape[2], tile)
        own = min(blocks.suffix, columns)
        return cls(B, G, U, N, H, M, _up(S, keys), _up(columns, own), groups, queries, parts, keys, own)

    @property
    def R(self) -> int:
        """Query heads of a key head."""
        return self.N // self.M

    @property
    def each(self) -> int:
        """Rows of one group in a block: R queries' columns."""
        return self.R * self.queries

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return self.groups * self.each

    @property
    def blocks(self) -> int:
        """Q, blocks of rows."""
        return self.G // self.groups * self.parts

    def packed(self, x: jax.Array) -> jax.Array:
        """[B, G, U, N, *] as [B, M, Q, rows, *]."""
        x = _padded(x, 2, self.parts * self.queries)
        outer = (self.B, self.G // self.groups, self.groups, self.parts, self.queries, self.M, self.R)
        x = x.reshape(*outer, *x.shape[4:])
        x = jnp.moveaxis(x, (5, 1, 3, 2, 6, 4), (1, 2, 3, 4, 5, 6))  # B, M, blocks of groups, parts, groups, R, u
        return x.reshape(self.B, self.M, self.blocks, self.rows, *x.shape[7:])

    def unpacked(self, x: jax.Array) -> jax.Array:
        """The inverse of `packed`."""
        outer = (self.B, self.M, self.G // self.groups, self.parts, self.groups, self.R, self.queries)
        x = jnp.moveaxis(x.reshape(*outer, *x.shape[4:]), (1, 2, 3, 4, 5, 6), (5, 1, 3, 2, 6, 4))
        return x.reshape(self.B, self.G, self.parts * self.queries, self.N, *x.shape[7:])[:, :, : self.U]

    def prefix(self, x: jax.Array) -> jax.Array:
        """[B, S, M, H] as the kernels read it: heads side by side where a head fills whole lanes, so that nothing moves; else apart."""
        x = _padded(x, 1, self.S)
        return x.reshape(self.B, self.S, -1) if self.side_by_side else jnp.swapaxes(x, 1, 2).reshape(-1, self.S, self.H)

    def from_prefix(self, x: jax.Array, S: int) -> jax.Array:
        """The inverse of `prefix`, of S columns."""
        if self.side_by_side:
            return x.reshape(self.B, self.S, self.M, self.H)[:, :S]
        return jnp.swapaxes(x.reshape(self.B, self.M, self.S, self.H), 1, 2)[:, :S]

    @property
    def side_by_side(self) -> bool:
        """Whether heads lie side by side in `prefix`."""
        return self.H % 128 == 0

    def suffix(self, x: jax.Array) -> jax.Array:
        """[B, G, U', M, H] as [B M, G, U', H]."""
        return jnp.moveaxis(_padded(x, 2, self.columns), 3, 1).reshape(-1, self.G, self.columns, self.H)

    def from_suffix(self, x: jax.Array, columns: int) -> jax.Array:
        """The inverse of `suffix`, of U' columns."""
        return jnp.moveaxis(x.reshape(self.B, self.M, self.G, self.columns, self.H), 1, 3)[:, :, :columns]

    def pairs(self, seen: jax.Array) -> jax.Array:
        """[B, G, U, U'] bool as bytes, padded."""
        seen = _padded(_padded(seen, 2, self.parts * self.queries), 3, self.columns)
        return seen.astype(jnp.int8)


def _padded(x: jax.Array, axis: int, size: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths) if size != x.shape[axis] else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def shared_prefix(
    q: jax.Array,
    prefix_kv: KeyValues,
    suffix_kv: KeyValues,
    lengths: jax.Array,
    seen: jax.Array,
    blocks: Blocks,
    name: str = "",
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """(output [B, G, U, N, H] in the dtype of q, log-sum-exp of scaled scores [B, G, U, N] float32); both may be differentiated.

    Args:
      q: [B, G, U, N, H], unscaled. prefix_kv: [B, S, M, H] each, of which lengths [B] columns are real, and their scores are all seen.
      suffix_kv: [B, G, U', M, H] each. seen: [B, G, U, U'] bool, which of a group's own columns a query looks at.
      blocks: sizes. name: under which a rematerialisation may keep output and log-sum-exp. interpret: run without a TPU.
    A query that sees nothing has an output of zeros and a log-sum-exp of -1e30.
    """
    return _forward(q, prefix_kv, suffix_kv, lengths, seen, blocks, name, interpret)[0]


def _forward(q, prefix_kv, suffix_kv, lengths, seen, blocks, name, interpret):
    t = Tiling.of(q, prefix_kv[0], suffix_kv[0], blocks)
    tiles = (*map(t.prefix, prefix_kv), *map(t.suffix, suffix_kv), t.pairs(seen))
    o, lse = tpu.forward(t, lengths, t.packed(q), *tiles, interpret=interpret)
    o, lse = t.unpacked(o), t.unpacked(lse)
    if name:
        o, lse = checkpoint_name(o, name), checkpoint_name(lse, name)
    return (o, lse), (q, prefix_kv, suffix_kv, lengths, seen, o, lse)


def _backward(blocks, name, interpret, kept, cotangents) -> Any:
    del name
    q, prefix_kv, suffix_kv, lengths, seen, o, lse = kept
    do, dlse = cotangents
    t = Tiling.of(q, prefix_kv[0], suffix_kv[0], blocks)
    delta = jnp.sum(do.astype(jnp.float32) * o.astype(jnp.float32), axis=-1) - dlse
    rows = tuple(map(t.packed, (q, do.astype(q.dtype), lse, delta)))
    tiles = (*map(t.prefix, prefix_kv), *map(t.suffix, suffix_kv), t.pairs(seen))
    dq = t.unpacked(tpu.backward_queries(t, lengths, *rows, *tiles, interpret=interpret))
    prefix = tpu.backward_prefix(t, lengths, *rows, *tiles[:2], interpret=interpret)
    suffix = tpu.backward_suffix(t, *rows, *tiles[2:], interpret=interpret)
    return (
        dq,
        tuple(t.from_prefix(x, prefix_kv[0].shape[1]) for x in prefix),
        tuple(t.from_suffix(x, suffix_kv[0].shape[2]) for x in suffix),
        None,
        None,
    )


shared_prefix.defvjp(_forward, _backward)
