"""The loops of `shared_prefix` on a TPU (Mosaic): four kernels over the tiles that `Tiling` cuts.

    forward            grid (B, M, Q, steps)    steps: blocks of the prefix, then of the suffix; running maximum, sum and output
    backward_queries   grid (B, M, Q, steps)    the same walk; dQ is what is summed
    backward_prefix    grid (B, M, keys, Q)     a block of keys stays, all blocks of rows pass: dK, dV summed over rows, so over G
    backward_suffix    grid (B, M, groups, keys, parts)

The last axis of a grid runs in order on one core, and what is summed lies in VMEM meanwhile. Blocks of the prefix behind a row's length are
neither fetched (their index stays where it was) nor computed. Scores stand as [rows, keys], in `backward_prefix` as [keys, rows]: there
log-sum-exp and delta, kept as one line of lanes [1, rows], broadcast as they are. Elsewhere `_column` turns the line.

Products accumulate in float32. Operands in float32 are multiplied in full precision, which a TPU does not do unasked.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LOWEST = -1e30  # finite: exp(LOWEST - LOWEST) is masked, and never NaN
_ROWS_KEYS, _KEYS_ROWS = ((1,), (1,)), ((0,), (0,))  # contractions: a b^T and a^T b


def _dot(a: jax.Array, b: jax.Array, contract: Any = ((1,), (0,))) -> jax.Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, (contract, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _eye(n: int) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, (n, n), 0) == jax.lax.broadcasted_iota(jnp.int32, (n, n), 1)


def _column(line: jax.Array) -> jax.Array:
    """[1, n] as [n, 1], by a selection that every compiler takes."""
    return jnp.sum(jnp.where(_eye(line.shape[1]), line, 0.0), axis=1, keepdims=True)


def _line(column: jax.Array) -> jax.Array:
    """[n, 1] as [1, n]."""
    return jnp.sum(jnp.where(_eye(column.shape[0]), column, 0.0), axis=0, keepdims=True)


def _real(shape: tuple[int, int], axis: int, block: Any, length: Any) -> jax.Array:
    """Which keys of a block of the prefix exist."""
    return block * shape[axis] + jax.lax.broadcasted_iota(jnp.int32, shape, axis) < length


def _group(t: Any, g: int) -> slice:
    """The rows of a block's g-th group."""
    return slice(g * t.each, (g + 1) * t.each)


def _visible(t: Any, seen: jax.Array) -> jax.Array:
    """[u, keys] bytes as [R u, keys] bool."""
    return jnp.concatenate([seen.astype(jnp.int32)] * t.R, axis=0) != 0


def _each_block(t: Any, steps: int, length: Any, kp, vp, ks, vs, seen, add: Any) -> None:
    """Calls `add(rows, keys, values, which are seen)` for the block of the walk's step: prefix for all rows, suffix group by group."""
    step = pl.program_id(3)

    @pl.when(step * t.keys < jnp.where(step < steps, length, 0))
    def _():
        add(slice(0, t.rows), kp[...], vp[...], _real((t.rows, t.keys), 1, step, length))

    @pl.when(step >= steps)
    def _():
        for g in range(t.groups):
            add(_group(t, g), ks[g], vs[g], _visible(t, seen[g]))


# --- forward ----------------------------------------------------------------------------------------------------------


def _forward(lengths, q, kp, vp, ks, vs, seen, o, lse, m, l, acc, *, t, steps):  # noqa: E741
    b, step = pl.program_id(0), pl.program_id(3)

    @pl.when(step == 0)
    def _():
        m[...], l[...], acc[...] = jnp.full_like(m, LOWEST), jnp.zeros_like(l), jnp.zeros_like(acc)

    def add(rows: slice, k: jax.Array, v: jax.Array, see: jax.Array) -> None:
        s = jnp.where(see, _dot(q[rows], k, _ROWS_KEYS) * t.H**-0.5, LOWEST)
        before = m[rows]
        top = jnp.maximum(before, jnp.max(s, axis=1, keepdims=True))
        p = jnp.where(see, jnp.exp(s - top), 0.0)
        shrink = jnp.exp(before - top)
        m[rows] = top
        l[rows] = l[rows] * shrink + jnp.sum(p, axis=1, keepdims=True)
        acc[rows] = acc[rows] * shrink + _dot(p.astype(v.dtype), v)

    _each_block(t, steps, lengths[b], kp, vp, ks, vs, seen, add)

    @pl.when(step == pl.num_programs(3) - 1)
    def _():
        total = jnp.where(l[...] == 0, 1.0, l[...])
        o[...] = (acc[...] / total).astype(o.dtype)
        lse[...] = _line(jnp.where(l[...] == 0, LOWEST, m[...] + jnp.log(total)))


# --- backward ---------------------------------------------------------------------------------------------------------


def _backward_queries(lengths, q, do, lse, delta, kp, vp, ks, vs, seen, dq, acc, high, low, *, t, steps):
    b, step = pl.program_id(0), pl.program_id(3)

    @pl.when(step == 0)
    def _():
        acc[...], high[...], low[...] = jnp.zeros_like(acc), _column(lse[...]), _column(delta[...])

    def add(rows: slice, k: jax.Array, v: jax.Array, see: jax.Array) -> None:
        s = _dot(q[rows], k, _ROWS_KEYS) * t.H**-0.5
        p = jnp.where(see, jnp.exp(s - high[rows]), 0.0)
        ds = p * (_dot(do[rows], v, _ROWS_KEYS) - low[rows])
        acc[rows] += _dot(ds.astype(k.dtype), k)

    _each_block(t, steps, lengths[b], kp, vp, ks, vs, seen, add)

    @pl.when(step == pl.num_programs(3) - 1)
    def _():
        dq[...] = (acc[...] * t.H**-0.5).astype(dq.dtype)


def _backward_prefix(lengths, q, do, lse, delta, kp, vp, dk, dv, acc_k, acc_v, *, t):
    b, block, i = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(i == 0)
    def _():
        acc_k[...], acc_v[...] = jnp.zeros_like(acc_k), jnp.zeros_like(acc_v)

    @pl.when(block * t.keys < lengths[b])
    def _():
        s = _dot(kp[...], q[...], _ROWS_KEYS) * t.H**-0.5
        p = jnp.where(_real((t.keys, t.rows), 0, block, lengths[b]), jnp.exp(s - lse[...]), 0.0)
        acc_v[...] += _dot(p.astype(do.dtype), do[...])
        ds = p * (_dot(vp[...], do[...], _ROWS_KEYS) - delta[...])
        acc_k[...] += _dot(ds.astype(q.dtype), q[...])

    @pl.when(i == pl.num_programs(3) - 1)
    def _():
        dk[...], dv[...] = (acc_k[...] * t.H**-0.5).astype(dk.dtype), acc_v[...].astype(dv.dtype)


def _backward_suffix(q, do, lse, delta, ks, vs, seen, dk, dv, acc_k, acc_v, *, t):
    part = pl.program_id(4)

    @pl.when(part == 0)
    def _():
        acc_k[...], acc_v[...] = jnp.zeros_like(acc_k), jnp.zeros_like(acc_v)

    high, low = _column(lse[...]), _column(delta[...])
    for g in range(t.groups):
        rows = _group(t, g)
        s = _dot(q[rows], ks[g], _ROWS_KEYS) * t.H**-0.5
        p = jnp.where(_visible(t, seen[g]), jnp.exp(s - high[rows]), 0.0)
        acc_v[g] += _dot(p.astype(do.dtype), do[rows], _KEYS_ROWS)
        ds = p * (_dot(do[rows], vs[g], _ROWS_KEYS) - low[rows])
        acc_k[g] += _dot(ds.astype(q.dtype), q[rows], _KEYS_ROWS)

    @pl.when(part == pl.num_programs(4) - 1)
    def _():
        dk[...], dv[...] = (acc_k[...] * t.H**-0.5).astype(dk.dtype), acc_v[...].astype(dv.dtype)


# --- grids ------------------------------------------------------------------------------------------------------------


def _row_specs(t: Any, at: Any) -> list[pl.BlockSpec]:
    """q, do [rows, H] and lse, delta [1, rows] of the block at (b, m, i)."""
    wide = pl.BlockSpec((None, None, None, t.rows, t.H), lambda *i: (*at(*i), 0, 0))
    line = pl.BlockSpec((None, None, None, 1, t.rows), lambda *i: (*at(*i), 0, 0))
    return [wide, wide, line, line]


def _prefix_spec(t: Any, at: Any) -> pl.BlockSpec:
    """A block of prefix keys or values at (b, m, block)."""

    def place(*i: Any) -> tuple[Any, Any, Any]:
        b, m, block = at(*i)
        return (b, block, m) if t.side_by_side else (b * t.M + m, block, 0)

    return pl.BlockSpec((None, t.keys, t.H), place)


def _suffix_specs(t: Any, at: Any) -> list[pl.BlockSpec]:
    """Blocks of suffix keys or values, and of `seen`, at (b, m, block of groups, part, block of keys)."""

    def own(*i: Any) -> tuple[Any, ...]:
        b, m, groups, _, block = at(*i)
        return b * t.M + m, groups, block, 0

    def pairs(*i: Any) -> tuple[Any, ...]:
        b, _, groups, part, block = at(*i)
        return b, groups, part, block

    return [
        pl.BlockSpec((None, t.groups, t.own, t.H), own),
        pl.BlockSpec((None, t.groups, t.queries, t.own), pairs),
    ]


def _walk(t: Any) -> tuple[tuple[int, ...], int, list[pl.BlockSpec], list[pl.BlockSpec]]:
    """Grid, blocks of the prefix, and specs of rows and keys, of the walk over prefix and suffix."""
    steps, own = t.S // t.keys, t.columns // t.own

    def prefix(b: Any, m: Any, i: Any, step: Any, lengths: Any) -> tuple[Any, Any, Any]:
        last = jnp.maximum(pl.cdiv(lengths[b], t.keys), 1) - 1
        return b, m, jnp.minimum(step, last)

    def suffix(b: Any, m: Any, i: Any, step: Any, lengths: Any) -> tuple[Any, ...]:
        return b, m, i // t.parts, i % t.parts, jnp.maximum(step - steps, 0)

    kv, pairs = _suffix_specs(t, suffix)
    keys = [*[_prefix_spec(t, prefix)] * 2, kv, kv, pairs]
    return (t.B, t.M, t.blocks, steps + own), steps, _row_specs(t, lambda b, m, i, *_: (b, m, i)), keys


def _lined(x: jax.Array) -> jax.Array:
    """[B, M, Q, rows] as [B, M, Q, 1, rows]."""
    return x[..., None, :]


def _call(
    kernel: Any, t: Any, grid: Any, scalars: int, inputs: Any, outputs: Any, shapes: Any, scratch: Any, **options
):
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=scalars,
            grid=grid,
            in_specs=inputs,
            out_specs=outputs,
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * (len(grid) - 1) + ("arbitrary",)),
        **options,
    )


def forward(t: Any, lengths, q, kp, vp, ks, vs, seen, *, interpret: bool) -> tuple[jax.Array, jax.Array]:
    """(output [B, M, Q, rows, H], log-sum-exp [B, M, Q, rows])."""
    grid, steps, rows, keys = _walk(t)
    o, lse = _call(
        functools.partial(_forward, t=t, steps=steps), t, grid, 1, [rows[0], *keys], [rows[0], rows[2]],
        [jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((*q.shape[:3], 1, t.rows), jnp.float32)],
        [(t.rows, 1), (t.rows, 1), (t.rows, t.H)], interpret=interpret, name="shared_prefix_forward",
    )(lengths, q, kp, vp, ks, vs, seen)  # fmt: skip
    return o, lse[..., 0, :]


def backward_queries(t: Any, lengths, q, do, lse, delta, kp, vp, ks, vs, seen, *, interpret: bool) -> jax.Array:
    """dQ, as q."""
    grid, steps, rows, keys = _walk(t)
    return _call(
        functools.partial(_backward_queries, t=t, steps=steps), t, grid, 1, [*rows, *keys], rows[0],
        jax.ShapeDtypeStruct(q.shape, q.dtype),
        [(t.rows, t.H), (t.rows, 1), (t.rows, 1)], interpret=interpret, name="shared_prefix_backward_queries",
    )(lengths, q, do, _lined(lse), _lined(delta), kp, vp, ks, vs, seen)  # fmt: skip


def backward_prefix(t: Any, lengths, q, do, lse, delta, kp, vp, *, interpret: bool) -> tuple[jax.Array, jax.Array]:
    """(dK, dV) of the prefix, as its keys."""
    rows = _row_specs(t, lambda b, m, block, i, *_: (b, m, i))
    keys = _prefix_spec(t, lambda b, m, block, i, *_: (b, m, block))
    return _call(
        functools.partial(_backward_prefix, t=t), t, (t.B, t.M, t.S // t.keys, t.blocks), 1, [*rows, keys, keys], [keys, keys],
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (kp, vp)],
        [(t.keys, t.H)] * 2, interpret=interpret, name="shared_prefix_backward_prefix",
    )(lengths, q, do, _lined(lse), _lined(delta), kp, vp)  # fmt: skip


def backward_suffix(t: Any, q, do, lse, delta, ks, vs, seen, *, interpret: bool) -> tuple[jax.Array, jax.Array]:
    """(dK, dV) of the suffix, as its keys."""
    rows = _row_specs(t, lambda b, m, groups, block, part: (b, m, groups * t.parts + part))
    kv, pairs = _suffix_specs(t, lambda b, m, groups, block, part: (b, m, groups, part, block))
    grid = (t.B, t.M, t.G // t.groups, t.columns // t.own, t.parts)
    return _call(
        functools.partial(_backward_suffix, t=t), t, grid, 0, [*rows, kv, kv, pairs], [kv, kv],
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (ks, vs)],
        [(t.groups, t.own, t.H)] * 2, interpret=interpret, name="shared_prefix_backward_suffix",
    )(q, do, _lined(lse), _lined(delta), ks, vs, seen)  # fmt: skip
