"""Where activations lie on the mesh: constraints at the borders of blocks, where the compiler's own propagation would have to guess.

`rows` is the layout of long passes: every chip works on its own rows, and gathers the weights it lacks layer by layer. A latent step has
one column per row, so few numbers that moving the weights to them would be most of a training step's traffic: with a sharded base the
weights stay (weight-stationary), every chip multiplies all rows of its fsdp group with its slice of each kernel, and activations travel.

Without a mesh, on one device, and along dimensions that do not divide, a constraint is nothing; nowhere does it change a value.
"""

import math

import jax
from jax.sharding import PartitionSpec

_ROWS = ("data", "fsdp")


def _constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x

    def count(axis: str | tuple[str, ...] | None) -> int:
        names = () if axis is None else (axis,) if isinstance(axis, str) else axis
        return math.prod(mesh.shape[name] for name in names)

    if not {*_ROWS} <= {*mesh.shape} or any(size % count(axis) for size, axis in zip(x.shape, axes, strict=False)):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def rows(x: jax.Array) -> jax.Array:
    """[B, ...], rows split over all chips."""
    return _constrain(x, _ROWS)


def columns(x: jax.Array) -> jax.Array:
    """[B, ..., D], all rows of an fsdp group on each of its chips, and of their last dimension its own part: what a kernel split over
    outputs leaves behind."""
    return _constrain(x, "data", *[None] * (x.ndim - 2), "fsdp")


@jax.custom_vjp
def whole(kernel: jax.Array) -> jax.Array:
    """A kernel gathered on every chip, for a pass over long rows; its gradient may lie as it likes. Said nothing, the compiler would pass
    parts of a large kernel from chip to chip in a loop of its own around each product, thousands of them, at five times the traffic."""
    return _constrain(kernel, None)


whole.defvjp(lambda kernel: (whole(kernel), None), lambda _, gradient: (gradient,))


def part(x: jax.Array, axis: int) -> jax.Array:
    """A parameter's own part of one of its dimensions on each chip of an fsdp group, and its gradient's."""
    return _constrain(x, *[None] * axis, "fsdp")


@jax.custom_vjp
def gathered(x: jax.Array) -> jax.Array:
    """[B, ...], all rows of an fsdp group whole on each of its chips. Its gradient is split by columns again, not summed on every chip."""
    return _constrain(x, "data")


gathered.defvjp(lambda x: (gathered(x), None), lambda _, gradient: (columns(gradient),))
