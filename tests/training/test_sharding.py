"""The mesh and the sharding table, on eight host devices."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from vital_jax.training.partition import flatten
from vital_jax.training.sharding import (
    base_rows,
    batch_sharding,
    make_mesh,
    own_mesh,
    place_batch,
    row_share,
    shard,
    shardings,
)

TREE = {
    "base": {
        "kernel": np.arange(2 * 8 * 4, dtype=np.float32).reshape(2, 8, 4),
        "scale": np.ones(6, np.float32),
        "embed_tokens": {"embedding": np.arange(8 * 4, dtype=np.float32).reshape(8, 4)},
        "mlp": {
            "down_proj": {
                "kernel": np.arange(2 * 4 * 8, dtype=np.float32).reshape(2, 4, 8),
                "kernel_scale": np.ones((2, 4), np.float32),
            }
        },
    },
    "lora": {"a": np.ones((2, 4), np.float32)},
}
LORA = ("lora/.*", P())


def test_axes_are_auto_and_the_rest_is_filled_in():
    mesh = make_mesh(fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert dict(make_mesh(devices=jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, 1, 1), (4, 1, 1)])
def test_sizes_that_do_not_cover_the_devices_are_refused(sizes):
    with pytest.raises(ValueError, match=rf"data={sizes[0]}, fsdp={sizes[1]}"):
        make_mesh(*sizes)


class Card:
    """A GPU as far as a mesh looks at it; jax takes the nodes of a cluster for slices."""

    platform, device_kind = "gpu", "NVIDIA H100"

    def __init__(self, number, per_node):
        self.id, self.slice_index, self.process_index = number, number // per_node, number // per_node


class Chip:
    """One of 4 x 4 TPU chips of a generation for which jax has no table of its own."""

    platform, device_kind, core_on_chip, process_index = "tpu", "TPU v6 lite", 0, 0

    def __init__(self, number):
        self.id, self.coords = number, (number % 4, number // 4, 0)


@pytest.mark.parametrize(
    "sizes, nodes",
    [
        ((-1, 1, 1), [[[0]], [[0]], [[1]], [[1]]]),
        ((2, 2, 1), [[[0], [0]], [[1], [1]]]),  # a copy of the model in each node
        ((1, 4, 1), [[[0], [0], [1], [1]]]),
        ((1, 2, 2), [[[0, 0], [1, 1]]]),
    ],
)
def test_the_first_axis_that_divides_goes_across_nodes(sizes, nodes):
    mesh = make_mesh(*sizes, devices=[Card(number, 2) for number in (2, 0, 3, 1)])
    assert np.vectorize(lambda card: card.slice_index)(mesh.devices).tolist() == nodes


def test_axes_that_do_not_divide_by_the_nodes_are_refused():
    with pytest.raises(
        ValueError, match=r"data=1, fsdp=6, tensor=1: the devices are of 4 slices or nodes, by which no"
    ):
        make_mesh(1, 6, 1, devices=[Card(number, 2) for number in range(5)] + [Card(6, 2)])


def test_an_axis_may_be_a_part_of_one_of_the_torus():
    mesh = make_mesh(2, 8, devices=[Chip(number) for number in range(16)])
    for row in mesh.devices[..., 0]:
        rows, columns = ({chip.coords[axis] for chip in row} for axis in (0, 1))
        assert sorted((len(rows), len(columns))) == [2, 4], "neighbours: two rows of the four"


def test_base_is_replicated_or_sharded_behind_the_layer_axis():
    mesh = make_mesh(data=2, fsdp=4)
    specs = {path: s.spec for path, s in flatten(shardings(TREE, mesh, (*base_rows("replicated"), LORA))).items()}
    assert specs["base/kernel"] == P() and specs["lora/a"] == P()
    specs = {path: s.spec for path, s in flatten(shardings(TREE, mesh, (*base_rows("fsdp"), LORA))).items()}
    assert specs["base/kernel"] == P(None, "fsdp")
    assert specs["base/embed_tokens/embedding"] == P("fsdp"), "a vocabulary table is split by rows"
    assert specs["base/mlp/down_proj/kernel"] == P(None, None, "fsdp"), (
        "over what the first product leaves on each chip"
    )
    assert specs["base/mlp/down_proj/kernel_scale"] == P(None, "fsdp")
    assert specs["base/scale"] == P(), "6 does not divide by 4, and the default rows end in P()"
    with pytest.raises(ValueError, match=r"'sharded': use one of replicated, fsdp"):
        base_rows("sharded")


def test_what_does_not_divide_is_an_error_unless_the_row_says_otherwise():
    mesh = make_mesh(data=2, fsdp=4)
    with pytest.raises(ValueError, match=r"base/scale of shape \(6,\).*6 does not divide by fsdp=4"):
        shardings(TREE, mesh, (("base/(kernel|embed.*|mlp.*)", P()), ("base/scale", P("fsdp")), LORA))
    placed = shardings(TREE, mesh, (("base/(kernel|embed.*|mlp.*)", P()), ("base/scale", (P("fsdp"), P("data"))), LORA))
    assert placed["base"]["scale"].spec == P("data")


@pytest.mark.parametrize(
    "spec, reason",
    [(P(None, "fsdp"), "more dimensions"), (P("model"), "axis 'model'"), (P(("data", "fsdp")), r"data=2\*fsdp=4")],
)
def test_specs_that_cannot_hold_are_named(spec, reason):
    with pytest.raises(ValueError, match=reason):
        shardings({"scale": np.ones(6)}, make_mesh(data=2, fsdp=4), ((".*", spec),))


def test_unmatched_leaves_are_an_error():
    with pytest.raises(ValueError, match="lora/a"):
        shardings(TREE, make_mesh(), base_rows("replicated"))


def test_shard_places_values_unchanged():
    mesh = make_mesh(data=2, fsdp=4)
    placed = shard(TREE, mesh, (*base_rows("fsdp"), LORA))
    kernel = placed["base"]["kernel"]
    assert {piece.data.shape for piece in kernel.addressable_shards} == {(2, 2, 4)}
    jax.tree.map(np.testing.assert_array_equal, placed, TREE)


@pytest.mark.parametrize("micro_batches", [False, True])
def test_batches_are_split_by_rows_over_data_and_fsdp(micro_batches):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    shape = (3, 8, 5) if micro_batches else (8, 5)
    batch = {"tokens": np.arange(np.prod(shape)).reshape(shape)}
    placed = place_batch(batch, mesh, micro_batches)["tokens"]
    assert placed.sharding.is_equivalent_to(batch_sharding(mesh, micro_batches), len(shape))
    assert {piece.data.shape for piece in placed.addressable_shards} == {(3, 2, 5) if micro_batches else (2, 5)}
    np.testing.assert_array_equal(placed, batch["tokens"])


def test_rows_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match=r"'tokens' has 6 rows.*data\*fsdp = 8"):
        place_batch({"tokens": np.zeros((6, 2))}, make_mesh())


def grid(data, fsdp, tensor, per_process):
    """A mesh of the three axes over made-up devices, `per_process` of them in a row belonging to one process."""
    places = [SimpleNamespace(process_index=number // per_process) for number in range(data * fsdp * tensor)]
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    return SimpleNamespace(devices=np.array(places).reshape(data, fsdp, tensor), shape=sizes)


@pytest.mark.parametrize(
    "sizes, per_process, parts",
    [
        ((4, 1, 1), 1, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((2, 4, 1), 4, [(0, 2), (1, 2)]),
        ((1, 4, 2), 4, [(0, 2), (1, 2)]),
        ((2, 1, 4), 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),  # two processes hold the same rows: both make them
        ((1, 1, 4), 2, [(0, 1), (0, 1)]),
    ],
)
def test_every_process_makes_the_rows_of_its_devices(monkeypatch, sizes, per_process, parts):
    for index, part in enumerate(parts):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        assert row_share(grid(*sizes, per_process)) == part


def test_processes_that_share_some_rows_only_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="some share a part of their rows"):
        row_share(grid(2, 1, 3, 2))


def test_a_mesh_of_ones_own():
    assert dict(own_mesh("replicated").shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(own_mesh("fsdp").shape) == {"data": 1, "fsdp": 8, "tensor": 1}
