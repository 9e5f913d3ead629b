"""Where arrays live: one mesh with the axes `data`, `fsdp`, `tensor`, one regex table from parameter paths to specs.

Axis types are Auto and passed explicitly: Explicit axes, which `jax.make_mesh` makes by default from jax 0.10 on, put
shardings into types and ask for annotations inside the model. `jax.make_mesh` itself takes neither several slices or
nodes nor, on some slices, an axis that is a part of one of the torus. Batches are split by rows over `data` and `fsdp`;
parameters by the table.

One rule on sizes: a spec fits a leaf if every sharded dimension divides by its axes' sizes; a row holds one spec, or
several in order of preference, of which the first that fits is taken. None fits is an error, so nothing is replicated
unless the row ends in an explicit `PartitionSpec()`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vital_jax.training.partition import Table, flatten, match, unflatten

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")

# Vocabulary tables are split by rows: a reader of weights then reads each row once. The feed-forward's second product is split over its
# inputs, which the first leaves where they are needed: a latent step then sends D numbers a row behind it, not the feed-forward's width
# before it (models/layout.py).
_TABLES, _DOWN = "embed_tokens/embedding|lm_head", "mlp/down_proj/kernel"


def fsdp_rows(
    part: str, axes: Sequence[str | tuple[str, ...]] = ("fsdp",)
) -> tuple[tuple[str, tuple[PartitionSpec, ...]], ...]:
    """Rows that split the leaves under `part` over one of these axes (or products of axes), in order of preference.

    A scanned stack has its layers first, and slicing a sharded layer axis gathers a layer per step: the dimension behind it is split.
    """
    layers, second, third = (tuple(PartitionSpec(*lead, axis) for axis in axes) for lead in ((), (None,), (None, None)))
    return (
        (f"{part}/.*({_TABLES})", (*layers, PartitionSpec())),
        (f"{part}/.*{_DOWN}", (*third, *second, *layers, PartitionSpec())),
        (f"{part}/(?!.*({_TABLES}|{_DOWN})$).*", (*second, *layers, PartitionSpec())),
    )


FSDP_ROWS = fsdp_rows("base")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (all by default). At most one size is -1: what is left over. Use it under `jax.set_mesh`.

    Neighbours on the last axes are neighbours on the wire. Where the devices are of several slices (TPUs of several pods, and for jax
    the GPUs of several nodes), the first axis that divides by their number goes across them, and the others stay within each.

    Raises: ValueError when the sizes do not multiply to the number of devices, or no axis divides by the number of slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp, tensor]
    asked = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"mesh {asked}: sizes are positive, and at most one is -1 (what is left over)")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise ValueError(
            f"mesh {asked} does not cover the {len(devices)} devices: the sizes must multiply to that number"
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    across = next((i for i, size in enumerate(sizes) if size % slices == 0), None)
    if across is None:
        raise ValueError(
            f"mesh {asked}: the devices are of {slices} slices or nodes, by which no axis divides; let data do"
        )
    # An axis of the mesh may be a part of one of the torus: 2 x 8 on 4 x 4 chips.
    split = dict(devices=devices, allow_split_physical_axes=True)
    if slices == 1:
        placed = mesh_utils.create_device_mesh(sizes, **split)
    else:
        inner = [size // slices if i == across else size for i, size in enumerate(sizes)]
        outer = [slices if i == across else 1 for i in range(len(sizes))]
        placed = mesh_utils.create_hybrid_device_mesh(inner, outer, **split)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def base_rows(placement: str, fsdp_rows: Table = FSDP_ROWS) -> Table:
    """The table rows of the frozen base.

    Args:
      placement: `replicated` (a copy on every device: no gathers, wherever it fits) or `fsdp` (the rows given).
      fsdp_rows: rows (regex, specs) for `fsdp`; by default the second dimension of every leaf that divides.
    Raises: ValueError for another placement.
    """
    placements = {"replicated": (("base/.*", PartitionSpec()),), "fsdp": tuple(fsdp_rows)}
    if placement not in placements:
        raise ValueError(f"unknown base placement {placement!r}: use one of {', '.join(placements)}")
    return placements[placement]


def _misfit(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> str | None:
    """Why `spec` does not fit `shape`, or None if it does."""
    if len(spec) > len(shape):
        return f"{spec} has more dimensions than the leaf"
    for size, axes in zip(shape, spec, strict=False):
        names = () if axes is None else (axes,) if isinstance(axes, str) else axes
        if strange := [name for name in names if name not in mesh.shape]:
            return f"{spec} names the axis {strange[0]!r}, which the mesh {tuple(mesh.shape)} lacks"
        if size % math.prod(mesh.shape[name] for name in names):
            return f"{spec}: {size} does not divide by {'*'.join(f'{name}={mesh.shape[name]}' for name in names)}"
    return None


def shardings(tree: Mapping[str, Any], mesh: Mesh, table: Table, allow_unused: bool = False) -> dict[str, Any]:
    """The tree of `NamedSharding`s.

    Args:
      tree: leaves need only `shape`.
      table: rows (regex, PartitionSpec, or a tuple of them in order of preference).
      allow_unused: as in `match`.
    Raises: ValueError as `match`, or naming a leaf that no spec of its row fits.
    """
    flat = flatten(tree)
    placed = {}
    for path, value in match(table, flat, allow_unused).items():
        specs = (value,) if isinstance(value, PartitionSpec) else tuple(value)
        reasons = [_misfit(spec, flat[path].shape, mesh) for spec in specs]
        if None not in reasons:
            raise ValueError(
                f"no sharding fits {path} of shape {tuple(flat[path].shape)}: {'; '.join(map(str, reasons))}. "
                "Change the mesh, or end the row in PartitionSpec() to replicate what does not divide"
            )
        placed[path] = NamedSharding(mesh, specs[reasons.index(None)])
    return unflatten(placed)


def shard(tree: Mapping[str, Any], mesh: Mesh, table: Table, allow_unused: bool = False) -> dict[str, Any]:
    """The tree with every leaf on the devices its row says. Raises: ValueError as `shardings`."""
    placed = flatten(shardings(tree, mesh, table, allow_unused))
    return unflatten({path: jax.device_put(leaf, placed[path]) for path, leaf in flatten(tree).items()})


def moment_sharding(leaf: Any) -> Any:
    """Where what belongs to a trained leaf and is met once a step (an optimizer's moment) lies: split even where the leaf is not.

    Args:
      leaf: an array or its shape, with a sharding.
    Returns: the leaf's own sharding where that is no mesh's, or splits it already; otherwise over `data` and `fsdp` along the first
      dimension that divides, whole where none does.
    """
    own = leaf.sharding
    if not isinstance(own, NamedSharding) or any(own.spec) or own.mesh.size == 1:
        return own
    sizes = own.mesh.shape
    axes = [axis for axis in (ROWS, *ROWS) if math.prod(sizes[name] for name in np.atleast_1d(axis)) > 1]
    specs = [PartitionSpec(*[None] * i, axis) for axis in axes for i in range(len(leaf.shape))]
    return NamedSharding(
        own.mesh, next((s for s in specs if _misfit(s, leaf.shape, own.mesh) is None), PartitionSpec())
    )


def batch_sharding(mesh: Mesh, micro_batches: bool = False) -> NamedSharding:
    """Rows over `data` and `fsdp`: of [B, ...], or of [A, B, ...] with `micro_batches` (A is scanned, never split)."""
    return NamedSharding(mesh, PartitionSpec(None, ROWS) if micro_batches else PartitionSpec(ROWS))


def row_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which part of every batch's rows this process makes, and how many parts there are.

    Processes whose devices hold the same rows (they differ along `tensor` only) make the same part. The parts are in the order of the rows,
    so a batch is the same whatever the number of processes.

    Raises: ValueError where devices of two processes share some rows and not others.
    """
    groups: dict[int, set[int]] = {}
    rows = mesh.devices.reshape(-1, mesh.shape["tensor"])
    for number, devices in enumerate(rows):
        for device in devices:
            groups.setdefault(device.process_index, set()).add(number)
    parts = sorted({tuple(sorted(held)) for held in groups.values()})
    if sum(map(len, parts)) != len(rows):
        raise ValueError(
            f"mesh {dict(mesh.shape)} over {len(groups)} processes: some share a part of their rows; let tensor divide, or be a "
            "multiple of, the devices of a process"
        )
    return parts.index(tuple(sorted(groups[jax.process_index()]))), len(parts)


def own_mesh(base: str) -> Mesh:
    """A mesh of this process's devices alone, for work that one process does: the base copied to each, or split over them (`base`)."""
    devices = jax.local_devices()
    return make_mesh(fsdp=len(devices) if base == "fsdp" else 1, devices=devices)


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, micro_batches: bool = False) -> dict[str, jax.Array]:
    """This process's rows of a batch (a dict of [B, ...], or [A, B, ...] arrays) as global arrays split by rows.

    Raises: ValueError naming the array whose rows do not divide by the devices of this process along `data` and `fsdp`.
    """
    sharding = batch_sharding(mesh, micro_batches)
    groups = math.prod(mesh.shape[axis] for axis in ROWS)
    parts = row_share(mesh)[1]
    for name, value in batch.items():
        rows = value.shape[int(micro_batches)] * parts
        if rows % groups:
            raise ValueError(
                f"batch array {name!r} has {rows} rows, which do not divide by data*fsdp = {groups}: "
                "choose a batch size that is a multiple"
            )
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
