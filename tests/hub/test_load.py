"""Loading: what is read equals what was written, on one device or eight, and whatever is wrong with a folder is one clear error."""

import json
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from vital_jax.hub.load import (
    check_coverage,
    check_weights,
    fingerprint,
    load_backbone,
    load_params,
    load_text_decoder,
    to_tensors,
)
from vital_jax.hub.safetensors import INDEX, read_folder, read_header, write_file
from vital_jax.models.backbone import abstract_backbone
from vital_jax.models.families import backbone_entries
from vital_jax.models.names import Entry
from vital_jax.models.quantize import SCALE, quantize, scale_of
from vital_jax.training.partition import flatten

NAME = "gqa4_untied"
CONVOLUTION = "model.visual.patch_embed.proj.weight"


@pytest.fixture(scope="module")
def reference():
    return tiny.qwen3_vl(NAME)


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    return tiny.save(reference, tmp_path_factory.mktemp("load") / "single")


@pytest.fixture(scope="module")
def loaded(folder):
    return load_backbone(folder, param_dtype=jnp.float32)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def edit(folder, change):
    """Rewrites the weights of a folder after `change` has edited the dict of its tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), ours, theirs)


def test_values_are_those_of_the_state_dict(reference, loaded):
    model, params = loaded
    state = {name: value.numpy() for name, value in reference.state_dict().items()}
    tower = params["visual"]
    np.testing.assert_array_equal(tower["patch_embed"]["kernel"], state[CONVOLUTION].reshape(32, -1))
    kernel = params["language_model"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.shape[0] == model.config.decoder.layers == 5
    for i in range(5):
        np.testing.assert_array_equal(kernel[i], state[f"model.language_model.layers.{i}.mlp.up_proj.weight"])
    np.testing.assert_array_equal(
        tower["deepstack_mergers"]["norm"]["bias"][2], state["model.visual.deepstack_merger_list.2.norm.bias"]
    )


def test_shards_with_an_index_equal_one_file(reference, folder, loaded, tmp_path):
    sharded = tiny.save(reference, tmp_path / "sharded", shard="100KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 3 and not (sharded / "model.safetensors").exists()
    equal(load_backbone(sharded, param_dtype=jnp.float32)[1], loaded[1])
    assert fingerprint(sharded) == fingerprint(folder)


def test_a_tied_head_has_no_leaf(tmp_path):
    _, params = load_text_decoder(tiny.save(tiny.qwen3(tied=True), tmp_path / "tied"))
    assert "lm_head" not in params
    _, params = load_text_decoder(tiny.save(tiny.qwen3(tied=False), tmp_path / "untied"))
    assert params["lm_head"].shape == params["embed_tokens"]["embedding"].shape


@pytest.mark.parametrize("kept", ["bfloat16", "float32"])
def test_half_precision_is_bit_equal_to_torch(folder, tmp_path, kept):
    """From bfloat16 files nothing changes; float32 files are rounded as torch rounds."""
    torch = pytest.importorskip("torch")

    half = tiny.qwen3_vl(NAME).to(torch.bfloat16)
    where = folder if kept == "float32" else tiny.save(half, tmp_path / "half")
    _, params = load_backbone(where)
    theirs = half.state_dict()["model.language_model.embed_tokens.weight"].view(torch.int16).numpy()
    ours = np.asarray(params["language_model"]["embed_tokens"]["embedding"])
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours.view(np.int16), theirs)
    scale = half.state_dict()["model.language_model.layers.4.self_attn.k_norm.weight"].view(torch.int16).numpy()
    ours = np.asarray(params["language_model"]["layers"]["self_attn"]["k_norm"]["scale"][4])
    np.testing.assert_array_equal(ours.view(np.int16), scale)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_eight_devices_hold_the_same_values(folder, loaded, first):
    """Every leaf cut along an axis of its own: the stacked layers, the rows, the columns, or two of them."""
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    cut = set()

    def sharding(path, shape):
        spec, free = [None] * len(shape), ["fsdp", "tensor"]
        for axis in [(first + i) % len(shape) for i in range(len(shape))]:
            if free and shape[axis] % 2 == 0:
                spec[axis] = free.pop()
                cut.add((len(shape), axis))
        return NamedSharding(mesh, PartitionSpec(*spec))

    _, params = load_backbone(folder, sharding, jnp.float32)
    assert len(cut) >= 4
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(params))
    equal(params, loaded[1])


def test_on_a_cpu_what_was_read_is_what_jax_holds(folder):
    """No second copy, of files in the type that is kept."""
    from vital_jax.hub.load import _reader

    names = tuple(f"model.language_model.layers.{i}.mlp.up_proj.weight" for i in range(5))
    read = _reader(Entry("e", names, True), (5, 96, 64), np.float32, read_folder(folder))
    made, here = [], jax.sharding.SingleDeviceSharding(jax.devices()[0])
    array = jax.make_array_from_callback((5, 96, 64), here, lambda index: made.append(read(index)) or made[-1])
    assert array.unsafe_buffer_pointer() == made[0].ctypes.data


PLACES = {"rows": (None, ("fsdp", "tensor")), "columns": (None, None, "fsdp"), "layers": (None, "data", "tensor")}


@pytest.mark.parametrize("place", [None, *PLACES])
def test_int8_is_what_quantising_whole_rows_gives(folder, loaded, place):
    """Wherever the devices cut; scales are split as their own length allows."""
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)

    def spec(path, shape):
        return PLACES[place][: len(shape)] if path.endswith(("kernel", SCALE)) and "layers" in path else ()

    sharding = (lambda path, shape: NamedSharding(mesh, PartitionSpec(*spec(path, shape)))) if place else None
    model, params = load_backbone(folder, sharding, jnp.bfloat16, quantize="int8")
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, abstract_backbone(model))
    leaves, exact = flatten(params), flatten(loaded[1])
    ours = {path: leaf for path, leaf in leaves.items() if leaf.dtype == jnp.int8}
    assert len(ours) == 7 and all(path.startswith("language_model/layers/") for path in ours)
    for path, leaf in ours.items():
        for layer in range(5):
            kernel, scale = quantize(np.asarray(exact[path])[layer], jnp.bfloat16)
            np.testing.assert_array_equal(leaf[layer], kernel)
            np.testing.assert_array_equal(leaves[scale_of(path)][layer], scale)
    assert {leaf.dtype for path, leaf in leaves.items() if path not in ours} == {np.dtype(jnp.bfloat16)}


def test_only_the_rows_a_device_holds_are_read(folder, monkeypatch):
    """A process that holds the second half of the rows asks the file for nothing else."""
    from vital_jax.hub.load import _reader

    tensors = read_folder(folder)
    name = "model.language_model.embed_tokens.weight"
    asked = []
    rows = type(tensors[name]).rows
    monkeypatch.setattr(type(tensors[name]), "rows", lambda self, *at: (asked.append(at), rows(self, *at))[1])
    half = _reader(Entry("e", (name,), False), (300, 64), np.float32, tensors)((slice(150, 300), slice(None)))
    assert [at[:2] for at in asked] == [(150, 300)]
    np.testing.assert_array_equal(half, load_file(folder / "model.safetensors")[name][150:])
    asked.clear()
    block = type(tensors[name]).block
    monkeypatch.setattr(type(tensors[name]), "block", lambda self, *at: (asked.append(at[:4]), block(self, *at))[1])
    columns = _reader(Entry("e", (name,), False), (300, 64), np.float32, tensors)((slice(None), slice(8, 16)))
    assert asked == [(0, 300, 8, 16)]
    np.testing.assert_array_equal(columns, load_file(folder / "model.safetensors")[name][:, 8:16])
    assert columns.base.nbytes <= columns.nbytes + 64  # no view that holds the whole tensor
    assert half.ctypes.data % 64 == columns.ctypes.data % 64 == 0  # or JAX on the CPU makes a copy


def test_one_error_lists_missing_extra_and_misshapen(copy):
    def change(tensors):
        del tensors["model.visual.blocks.3.norm1.bias"]
        tensors["model.surprise.weight"] = np.zeros(3, np.float32)
        tensors["model.language_model.norm.weight"] = np.ones(65, np.float32)
        kernel = "model.language_model.layers.2.mlp.down_proj.weight"
        tensors[kernel] = np.ascontiguousarray(tensors[kernel].T)
        tensors[CONVOLUTION] = np.ascontiguousarray(tensors[CONVOLUTION][:, :, :1])

    edit(copy, change)
    with pytest.raises(ValueError) as error:
        load_backbone(copy)
    text = str(error.value)
    assert str(copy) in text and "\n" not in text
    assert "missing tensors: model.visual.blocks.3.norm1.bias;" in text
    assert "extra tensors: model.surprise.weight;" in text
    assert "model.language_model.norm.weight is [65], the model needs [64]" in text
    assert "layers.2.mlp.down_proj.weight is [96, 64], the model needs [64, 96]" in text
    assert f"{CONVOLUTION} is [32, 3, 1, 16, 16], the model needs [32, 1536]" in text


def test_a_long_list_is_cut_short(copy):
    edit(copy, lambda tensors: tensors.update({f"extra.{i:02}": np.zeros(1, np.float32) for i in range(40)}))
    with pytest.raises(ValueError, match=r"extra\.11 and 28 more$"):
        load_backbone(copy)


def say_tied(folder, tied):
    table = json.loads((folder / "config.json").read_text())
    inner = {"text_config": {**table["text_config"], "tie_word_embeddings": tied}} if "text_config" in table else {}
    (folder / "config.json").write_text(json.dumps({**table, **inner, "tie_word_embeddings": tied}))


def test_a_head_that_contradicts_the_configuration_gets_a_hint(tmp_path):
    folder = tiny.save(tiny.qwen3(tied=True), tmp_path)
    say_tied(folder, False)
    with pytest.raises(ValueError, match=r"missing tensors: lm_head\.weight; lm_head\.weight follows tie_word_embed"):
        load_text_decoder(folder)


@pytest.mark.parametrize("held", ["both", "the head alone", "another head"])
def test_a_tied_head_in_the_file_is_what_transformers_makes_of_it(tmp_path, held):
    """One that differs is refused by name: told that it is not tied, both sides read it."""
    torch = pytest.importorskip("torch")
    from transformers import Qwen3VLForConditionalGeneration

    folder, embeddings = tiny.save(tiny.qwen3_vl("mha_tied"), tmp_path), "model.language_model.embed_tokens.weight"

    def change(tensors):
        tensors["lm_head.weight"] = tensors[embeddings].copy()
        if held == "another head":
            tensors["lm_head.weight"][[3, 7]] *= 2
        elif held == "the head alone":
            del tensors[embeddings]

    edit(folder, change)
    if held == "another head":
        with pytest.raises(
            ValueError,
            match=rf"but lm_head\.weight differs from {embeddings} in 2 of 300 rows \(the first is 3\): set it",
        ):
            check_weights(folder)
        say_tied(folder, False)
    check_weights(folder)
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    model, params = load_backbone(folder, param_dtype=jnp.float32, dtype=jnp.float32)
    tables = {"head": theirs.lm_head.weight, "input": theirs.get_input_embeddings().weight}
    for side, table in tables.items():
        ours = model.apply({"params": params}, side, method=lambda m, side: m.language_model.table(side))
        np.testing.assert_array_equal(ours, table.detach())


def test_a_stack_of_other_depth_is_misshapen(folder):
    tensors = read_folder(folder)
    names = tuple(f"model.language_model.layers.{i}.input_layernorm.weight" for i in range(4))
    leaf = {"scale": jax.ShapeDtypeStruct((5, 64), jnp.float32)}
    others = "|".join(set(tensors) - set(names)).replace(".", r"\.")
    with pytest.raises(ValueError, match="scale stacks 4 tensors, the model has 5"):
        load_params(folder, [Entry("scale", names, True)], leaf, unused=others)


def test_a_truncated_file_is_named(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: tensor .* does not lie inside the file"):
        load_backbone(copy)


def test_a_file_cut_short_while_it_is_read_is_named(copy):
    tensors = read_folder(copy)
    last = max(tensors.values(), key=lambda tensor: tensor.offset)
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[: last.offset + 1])
    with pytest.raises(ValueError, match=r"model\.safetensors: the file ends inside a tensor"):
        last.rows()
    matrix = max((tensor for tensor in tensors.values() if len(tensor.shape) == 2), key=lambda tensor: tensor.offset)
    path.write_bytes(path.read_bytes()[: matrix.offset + 1])
    with pytest.raises(ValueError, match=r"model\.safetensors: the file ends inside a tensor"):
        matrix.block(0, 2, 0, 3, np.empty((2, 3), matrix.dtype))


def _file(header, data=b""):
    return struct.pack("<Q", len(header)) + header + data


def _one(**change):
    return json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}}).encode()


GARBAGE = {
    "nothing": (b"", "not a complete safetensors file"),
    "less than a length": (b"\x00\x01", "not a complete safetensors file"),
    "a length beyond the file": (struct.pack("<Q", 1 << 40) + b"{}", "not a complete safetensors file"),
    "a page of HTML": (b"<!DOCTYPE html><html></html>", "not a complete safetensors file"),
    "no JSON": (_file(b"{nonsense"), "does not describe tensors"),
    "no text": (_file(b"\xff\xfe\xfd"), "does not describe tensors"),
    "a list": (_file(b"[1, 2]"), "does not describe tensors"),
    "no dtype": (_file(b'{"a": {"shape": [], "data_offsets": [0, 0]}}'), "does not describe tensors"),
    "a word for a shape": (_file(_one(shape="two"), b"12345678"), "does not describe tensors"),
    "an unknown dtype": (_file(_one(dtype="F4"), b"12345678"), "tensor a has dtype F4"),
    "a negative shape": (_file(_one(shape=[-1, -2]), b"12345678"), "tensor a does not lie inside"),
    "a negative offset": (_file(_one(data_offsets=[-8, 0]), b"12345678"), "tensor a does not lie inside"),
    "bytes that do not fit the shape": (_file(_one(data_offsets=[0, 4]), b"12345678"), "tensor a does not lie inside"),
    "bytes beyond the end": (_file(_one(data_offsets=[4, 12]), b"12345678"), "tensor a does not lie inside"),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_named(tmp_path, kind):
    content, message = GARBAGE[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_header(path)
    assert str(path) in str(error.value)


def test_a_good_header_by_hand(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(_file(_one(), np.array([1.5, -2], np.float32).tobytes()))
    np.testing.assert_array_equal(read_header(path)["a"].rows(), [1.5, -2])
    np.testing.assert_array_equal(read_header(path)["a"].rows(1, 2), [-2])


@pytest.mark.parametrize("outside", ["../elsewhere.safetensors", "/etc/passwd", "sub/model.safetensors", ".."])
def test_an_index_cannot_leave_its_folder(copy, outside):
    (copy / INDEX).write_text(json.dumps({"weight_map": {"a": outside}}))
    shutil.copy(copy / "model.safetensors", copy.parent / "elsewhere.safetensors")
    with pytest.raises((ValueError, FileNotFoundError), match=r"points outside its folder|are absent: \.\."):
        read_folder(copy)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_a_broken_index_is_named(copy, content):
    (copy / INDEX).write_text(content)
    with pytest.raises(ValueError, match=r"index\.json is not an index of shards"):
        read_folder(copy)


def test_absent_shards_and_broken_promises_are_named(copy):
    (copy / INDEX).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"are absent: model-1\.safetensors"):
        read_folder(copy)
    (copy / INDEX).write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    with pytest.raises(ValueError, match="promises tensors its shards do not hold: a"):
        read_folder(copy)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds neither model\.safetensors nor"):
        read_folder(tmp_path)


def test_the_way_back_is_read_by_transformers(reference, folder, loaded, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import Qwen3VLForConditionalGeneration

    model, params = loaded
    shapes = {CONVOLUTION: tuple(reference.state_dict()[CONVOLUTION].shape)}
    tensors = to_tensors(backbone_entries(model.config), params, shapes)
    write_file(tmp_path / "model.safetensors", tensors)
    shutil.copy(folder / "config.json", tmp_path)
    again = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32, local_files_only=True)
    ours, theirs = again.state_dict(), reference.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    equal(load_backbone(tmp_path, param_dtype=jnp.float32)[1], params)


def test_half_precision_survives_the_way_back(folder, tmp_path):
    model, params = load_backbone(folder)
    entries = backbone_entries(model.config)
    write_file(tmp_path / "model.safetensors", to_tensors(entries, params))
    shutil.copy(folder / "config.json", tmp_path)
    assert {tensor.dtype for tensor in read_folder(tmp_path).values()} == {np.dtype(jnp.bfloat16)}
    check_coverage(entries, flatten(params), read_folder(tmp_path), "written")
    equal(load_backbone(tmp_path)[1], params)


def test_a_fingerprint_knows_a_checkpoint(folder, copy):
    assert fingerprint(copy) == fingerprint(folder)

    def change(tensors):
        tensors["model.visual.merger.linear_fc2.weight"][-1, 0] += 1e-3

    edit(copy, change)
    assert fingerprint(copy) != fingerprint(folder)


def test_a_fingerprint_knows_a_configuration(folder, copy):
    table = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(dict(reversed(table.items())), indent=7))
    assert fingerprint(copy) == fingerprint(folder)
    table["text_config"]["rms_norm_eps"] = 2e-3
    (copy / "config.json").write_text(json.dumps(table))
    assert fingerprint(copy) != fingerprint(folder)
