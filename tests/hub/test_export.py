"""`export` without torch: every tensor against what the run holds, files against the base's, and a folder that is whole or not there.

The bases are tiny checkpoints made by transformers with every parameter redrawn; one has an untied head, the other a tied one.
"""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import trained
from huggingface_hub import ModelCard
from PIL import Image
from trained import export_run as write
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vital_jax.hub import card, export, exported, folders, peft, writing
from vital_jax.hub.load import load_backbone, load_text_decoder
from vital_jax.hub.safetensors import INDEX, read_folder, read_header, write_file
from vital_jax.models.config import LoraConfig
from vital_jax.models.families import read_config
from vital_jax.pipeline.images import ImageConfig
from vital_jax.training.checkpoint import Checkpoints
from vital_jax.training.partition import flatten

UP = "language_model/layers/mlp/up_proj/kernel"
NORM = "language_model/norm/scale"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("export")
    trained.save_base("gqa4_untied", work / "untied")
    trained.save_base("gqa2_tied", work / "tied")
    tiny.save(tiny.qwen3(), work / "text")
    return work


@pytest.fixture(scope="module")
def run(work):
    return trained.write_run(work / "run", work / "untied", work / "text")


@pytest.fixture(scope="module")
def moved(work):
    """A run without scaffold that trained leaves of its base too, one of them under an adapter."""
    return trained.write_run(work / "moved", work / "tied", trained_base=(UP, NORM))


@pytest.fixture(scope="module")
def whole(work, run):
    """Everything of the first run, in shards."""
    return write(run.folder, work / "whole", "both", shard=60_000, say=lambda line: None)


def tensors(folder):
    return {name: tensor.rows() for name, tensor in read_folder(folder).items()}


def longhand(run, base, name):
    """A merged tensor in float64."""
    entry = {n: (e, i) for e in export.backbone_entries(read_config(base)) for i, n in enumerate(e.names)}
    (entry, layer), leaves = entry[name], flatten(run.params)
    value = np.asarray(leaves[f"base/{entry.path}"], np.float64)
    value = value[layer] if entry.stacked else value
    adapter = f"lora/{entry.path.removesuffix('/kernel')}"
    if f"{adapter}/a" in leaves:
        a, b = (np.asarray(leaves[f"{adapter}/{side}"][layer], np.float64) for side in "ab")
        value = value + 2.0 * b @ a
    return value


def test_merged_weights_are_those_of_the_run(work, run, whole):
    found, base = tensors(whole), tensors(work / "untied")
    assert found.keys() == base.keys() and "lm_head.weight" in found
    changed = set()
    for name, array in found.items():
        assert (array.shape, array.dtype) == (base[name].shape, base[name].dtype)
        expected = longhand(run, work / "untied", name).reshape(array.shape)
        np.testing.assert_allclose(array, expected, rtol=0, atol=1e-6 * np.abs(expected).max(), err_msg=name)
        if not np.array_equal(array, base[name]):
            changed.add(name)
    layers = read_config(work / "untied").decoder.layers
    assert len(changed) == 7 * layers and all("_proj.weight" in name for name in changed)


def test_leaves_of_the_base_that_were_trained_are_taken_from_the_checkpoint(work, moved):
    out = write(moved.folder, work / "merged", dtype="bfloat16", say=print)
    found, base = tensors(out), tensors(work / "tied")
    assert {array.dtype for array in found.values()} == {np.dtype(jnp.bfloat16)}
    for name in ("model.language_model.norm.weight", "model.language_model.layers.2.mlp.up_proj.weight"):
        expected = longhand(moved, work / "tied", name)
        assert np.abs(expected - base[name]).max() > 0.05
        np.testing.assert_allclose(found[name].astype(np.float64), expected, rtol=2**-8, atol=1e-6)
    assert not (out / "explain").exists()


def test_files_of_the_base_are_copied_byte_by_byte(work, whole):
    for folder in (whole, whole / "adapter"):
        for name in ("config.json", "generation_config.json", "LICENSE"):
            assert (folder / name).read_bytes() == (work / "untied" / name).read_bytes()
    assert not (whole / "notes.py").exists() and not (whole / writing._MARK).exists()


def test_shards_and_their_index_describe_each_other(whole):
    index = json.loads((whole / INDEX).read_text())
    files = sorted(path.name for path in whole.glob("model-*.safetensors"))
    assert (
        files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)] and len(files) > 3
    )
    total = 0
    for file in files:
        held = read_header(whole / file)
        assert set(held) == {name for name, where in index["weight_map"].items() if where == file}
        size = sum(np.prod(tensor.shape) * tensor.dtype.itemsize for tensor in held.values())
        assert size <= 60_000 or len(held) == 1
        total += size
    assert index["metadata"]["total_size"] == total


def test_tensors_are_made_one_at_a_time(tmp_path):
    alive, most = set(), []

    def make(number):
        alive.add(number)
        most.append(len(alive))
        alive.discard(number)
        return np.full(3, number, np.float32)

    pending = {str(n): writing.Pending((3,), np.float32, lambda n=n: make(n)) for n in range(5)}
    cut = writing.shards(pending, 24)
    assert [list(part) for part in cut.values() if isinstance(part, dict)] == [["0", "1"], ["2", "3"], ["4"]]
    assert not most  # planning makes none
    writing.write_files(tmp_path, cut, lambda line: None)
    assert max(most) == 1 and tensors(tmp_path)["3"].tolist() == [3, 3, 3]


def test_the_adapter_has_pefts_names_and_our_numbers(run, whole):
    config = json.loads((whole / "adapter" / peft.CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8.0, 0.05)
    held = read_header(whole / "adapter" / peft.WEIGHTS)
    name = "base_model.model.model.language_model.layers.3.mlp.down_proj.lora_{}.weight"
    leaf = run.params["lora"]["language_model"]["layers"]["mlp"]["down_proj"]
    np.testing.assert_array_equal(held[name.format("A")].rows(), leaf["a"][3])
    np.testing.assert_array_equal(held[name.format("B")].rows(), leaf["b"][3])
    assert len(held) == 5 * 7 * 2 and not list((whole / "adapter").glob("model*.safetensors"))


def test_every_adapter_of_a_published_model_is_named_once(real):
    config = read_config(real("model_configs") / "Qwen3-VL-8B-Instruct")
    leaves = peft.adapter_leaves(config, LoraConfig())
    names = [name for leaf in leaves.values() for name in leaf.names]
    assert len(set(names)) == len(names) == 36 * 7 * 2
    # The paper's count of what LoRA trains on 8B.
    assert sum(np.prod(leaf.shape) for leaf in leaves.values()) == 174_587_904
    modules = {name.split(".lora_")[0].removeprefix("base_model.model.") + ".weight" for name in names}
    index = json.loads((real("model_configs") / "Qwen3-VL-8B-Instruct" / "model.safetensors.index.json").read_text())
    assert modules <= set(index["weight_map"])


def test_the_scaffold_lies_apart_and_loads_again(work, run, whole):
    scaffold = run.params["scaffold"]
    _, text = load_text_decoder(whole / "explain" / "text_decoder")
    assert flatten(text).keys() == flatten(scaffold["text_decoder"]).keys()
    jax.tree.map(np.testing.assert_array_equal, text, scaffold["text_decoder"])
    held = read_header(whole / "explain" / "projector.safetensors")
    table = json.loads((whole / "explain" / "config.json").read_text())
    assert {name: list(tensor.shape) for name, tensor in held.items()} == table["tensors"]
    assert (table["visual"]["kind"], table["visual"]["width"]) == ("residual_mlp_ln", trained.ROI)
    np.testing.assert_array_equal(
        held["visual_projector.w2.weight"].rows(), scaffold["visual_projector"]["w2"]["kernel"]
    )
    np.testing.assert_array_equal(held["pj_in.linear.weight"].rows(), scaffold["pj_in"]["linear"]["kernel"])
    assert (whole / "explain" / "text_decoder" / "config.json").read_bytes() == (
        work / "text" / "config.json"
    ).read_bytes()


def test_the_loops_code_knows_this_models_steps(whole):
    code = (whole / "custom_generate" / "generate.py").read_text()
    assert "\nLATENT_STEPS = 4\n" in code and '\nLATENT_STATE = "post_norm"\n' in code
    assert (whole / "adapter" / "custom_generate" / "generate.py").read_text() == code
    compile(code, "generate.py", "exec")


# --- the card ---------------------------------------------------------------------------------------


def test_the_card_warns_first_and_shows_no_number_without_n(work, run):
    about = card.About(
        licence="Apache-2.0",
        licence_basis="the base's card states",
        encoder="medsiglip",
        data=[card.Data("MSD", 120, "CC-BY-SA-4.0", "file", "ten tasks")],
        metrics=[card.Metric("exact answers", 598, "45.7", "41.7 to 49.7", "exact match, K = 4")],
    )
    out = write(run.folder, work / "card", "peft", base_name="Qwen/Qwen3-VL-8B-Instruct", about=about, explain=False)
    page = ModelCard.load(out / "README.md")
    front = page.data
    assert (front.license, front.library_name, front.base_model) == ("apache-2.0", "peft", "Qwen/Qwen3-VL-8B-Instruct")
    assert front.base_model_relation == "adapter" and "custom_generate" in front.tags
    text = page.text
    assert text.index("not a medical device") < text.index("## Use") < text.index("## Limits")
    assert "| exact answers | 598 | 45.7 | 41.7 to 49.7 | exact match, K = 4 |" in text
    assert "| MSD | 120 | CC-BY-SA-4.0 | file | ten tasks" in text and "Health AI Developer Foundations" in text
    assert "| switch `lora_rank` | 4 |" in text and "latent_steps=4" in text


def test_no_file_of_an_export_names_a_folder_of_this_machine(work, whole):
    """Neither where the run was started nor where its models are: an export goes to strangers."""
    for path in whole.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(str(place).encode() in content for place in (work, Path.cwd())), path


def test_the_card_says_what_is_not_known(whole):
    text = (whole / "README.md").read_text()
    assert "Treat the model as untested" in text and "Not stated" in text and "not at hand" in text


# --- beside the tensors -----------------------------------------------------------------------------


def processors(folder):
    """The image processor of a folder as transformers opens it, and what it is told of sizes."""
    table = json.loads((folder / "preprocessor_config.json").read_text())
    return Qwen2VLImageProcessorPil.from_pretrained(folder), table


@pytest.mark.parametrize("form", ["", "adapter"])
def test_images_get_the_sizes_of_the_training(run, whole, form):
    ours, (theirs, table) = ImageConfig(min_pixels=1024, max_pixels=128 * 128), processors(whole / form)
    # Under both names: 4.57's processor with Pillow forgets `size`.
    assert table["size"] == {"shortest_edge": 1024, "longest_edge": 128 * 128}
    assert (table["min_pixels"], table["max_pixels"]) == (1024, 128 * 128)
    for height, width in ((512, 512), (300, 200), (20, 30), (128, 128), (90, 260)):
        found = theirs(images=[Image.new("RGB", (width, height))], return_tensors="np")["image_grid_thw"]
        assert found.tolist() == [list(ours.grid(height, width))]


def test_a_base_with_the_later_processor_file_gets_the_earlier_one_too(work, run, tmp_path):
    base = shutil.copytree(work / "untied", tmp_path / "base")
    table = json.loads((base / "preprocessor_config.json").read_text())
    (base / "preprocessor_config.json").unlink()
    (base / "processor_config.json").write_text(json.dumps({"image_processor": table, "processor_class": "X"}))
    out = write(run.folder, tmp_path / "out", base=base, explain=False)
    _, early = processors(out)
    late = json.loads((out / "processor_config.json").read_text())
    assert late["image_processor"] == early and early["max_pixels"] == 128 * 128 and late["processor_class"] == "X"


def test_types_are_those_of_the_training_or_those_stated(work, tmp_path):
    """Rounded to the base's bfloat16, what a float32 run learned would be lost."""
    base = shutil.copytree(work / "tied", tmp_path / "base")
    narrow = {name: array.astype(jnp.bfloat16) for name, array in tensors(base).items()}
    write_file(base / "model.safetensors", narrow)
    table = json.loads((base / "config.json").read_text())
    table["text_config"]["dtype"], table["torch_dtype"] = "bfloat16", table.pop("dtype", "bfloat16")
    (base / "config.json").write_text(json.dumps(table))
    run = trained.write_run(tmp_path / "run", base)
    for stated, kind in ((None, "float32"), ("bfloat16", "bfloat16")):
        out = write(run.folder, tmp_path / kind, dtype=stated, explain=False)
        config, facts = (json.loads((out / name).read_text()) for name in ("config.json", "vital.json"))
        assert {str(array.dtype) for array in tensors(out).values()} == {kind}
        assert config["dtype"] == config["text_config"]["dtype"] == kind and "torch_dtype" not in config
        assert facts["model"] == {"dtype": kind, "param_dtype": kind}
        assert f'dtype="{kind}"' in (out / "README.md").read_text()


# --- the place --------------------------------------------------------------------------------------


def test_an_export_is_replaced_only_when_told_and_nothing_else_ever(work, run, tmp_path):
    out = write(run.folder, tmp_path / "out", "peft", explain=False)
    (out / "mine.txt").write_text("kept beside")
    with pytest.raises(FileExistsError, match=r"out exists: .*--overwrite"):
        write(run.folder, out, "peft")
    write(run.folder, out, "peft", explain=False, overwrite=True)
    assert not (out / "mine.txt").exists()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="not made by an export"):
        write(run.folder, tmp_path / "home", "peft", overwrite=True)
    with pytest.raises(FileExistsError, match="is what is being exported"):
        write(run.folder, work / "untied", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out"]


@pytest.mark.parametrize(
    "error, message",
    [(OSError(28, "No space left on device"), r"out\.partial.*safetensors"), (KeyboardInterrupt(), None)],
)
def test_an_interrupted_export_leaves_the_old_one_and_nothing_else(run, tmp_path, monkeypatch, error, message):
    out = write(run.folder, tmp_path / "out", "peft", explain=False)
    before = (out / peft.WEIGHTS).read_bytes()

    def breaks(path, tensors):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(writing, "write_file", breaks)
    with pytest.raises(type(error), match=message):
        write(run.folder, out, "merged", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (out / peft.WEIGHTS).read_bytes() == before


def test_what_a_killed_export_left_is_cleared_and_a_strangers_folder_is_not(run, tmp_path):
    left = tmp_path / "out.partial"
    left.mkdir()
    (left / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"out\.partial is in the way"):
        write(run.folder, tmp_path / "out", "peft")
    (left / writing._MARK).touch()
    out = write(run.folder, tmp_path / "out", "peft", explain=False)
    assert not left.exists() and not (out / "thesis.tex").exists()


def test_a_disk_without_room_and_a_place_that_cannot_be_written_are_named(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"file is a file, so .*out cannot be made"):
        write(run.folder, tmp_path / "file" / "out", "peft")
    with monkeypatch.context() as patch:
        patch.setattr(writing.os, "access", lambda path, mode: False)
        with pytest.raises(PermissionError, match="cannot be written"):
            write(run.folder, tmp_path / "out", "peft")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: usage._replace(free=17 << 20))
    with pytest.raises(OSError, match=r"has 17\.0 MiB free, .*out takes 1\.\d MiB"):
        write(run.folder, tmp_path / "deep" / "out", "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_only_the_first_process_writes_and_the_others_read_along(run, tmp_path, monkeypatch):
    read = []
    original = Checkpoints.read_parameters
    monkeypatch.setattr(Checkpoints, "read_parameters", lambda *a: read.append(1) or original(*a))
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    write(run.folder, tmp_path / "out", "both")
    assert not list(tmp_path.iterdir()) and read


# --- what does not fit ------------------------------------------------------------------------------


def test_a_wrong_base_and_an_absent_one_are_named(work, run, tmp_path):
    with pytest.raises(ValueError, match=r"trained on another base: it records the fingerprint \w+, .*tied has \w+"):
        write(run.folder, tmp_path / "out", base=work / "tied")
    with pytest.raises(FileNotFoundError, match=r"base \(--base\): no folder"):
        write(run.folder, tmp_path / "out", base=work / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"text_decoder \(--text-decoder\): no folder"):
        write(run.folder, tmp_path / "out", text_decoder=work / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no checkpoints"):
        write(work / "untied", tmp_path / "out")
    with pytest.raises(ValueError, match="no form 'onnx': use merged, peft, both"):
        write(run.folder, tmp_path / "out", "onnx")


def test_what_an_adapter_cannot_hold_is_refused(work, moved, tmp_path):
    with pytest.raises(ValueError, match=r"trained 2 leaves of its base too .*: export it as merged"):
        write(moved.folder, tmp_path / "out", "peft")
    plain = trained.write_run(tmp_path / "plain", work / "tied", rank=0, trained_base=(NORM,))
    with pytest.raises(ValueError, match=r"trained no adapters \(lora\.rank=0\)"):
        write(plain.folder, tmp_path / "out", "peft")


def test_a_checkpoint_without_scaffold_is_exported_and_that_is_said(moved, tmp_path):
    said = []
    out = write(moved.folder, tmp_path / "out", say=said.append)
    assert any("holds no scaffold" in line for line in said) and not (out / "explain").exists()
    assert "`explain/`" not in (out / "README.md").read_text()


# --- the way back -----------------------------------------------------------------------------------


def test_an_exported_folder_loads_with_what_it_was_trained_for(work, run, whole):
    found = exported.open_exported(whole)
    assert (folders.kind(whole), folders.kind(work / "untied")) == (folders.EXPORT, folders.BASE)
    assert (found.base, found.lora, found.latent_steps, found.latent_state) == (whole, None, 4, "post_norm")
    assert (found.max_pixels, found.buckets, found.answer, found.chain) == (128 * 128, ((96, 64),), 10, 8)
    params = found.read_params(steps=True)
    jax.tree.map(np.testing.assert_array_equal, params["base"], load_backbone(whole, param_dtype=jnp.float32)[1])
    own = {name: run.params["scaffold"][name] for name in ("pj_in", "text_decoder")}
    jax.tree.map(np.testing.assert_array_equal, params["scaffold"], own)
    with pytest.raises(ValueError, match="whole model: a base is for adapters"):
        exported.open_exported(whole, work / "untied")


def test_an_adapter_comes_back_leaf_by_leaf(work, run, whole):
    with pytest.raises(FileNotFoundError, match=r"is an adapter to untied, and 'untied' is no model folder here"):
        exported.open_exported(whole / "adapter")
    with pytest.raises(ValueError, match="was trained on another base"):
        exported.open_exported(whole / "adapter", work / "tied")
    found = exported.open_exported(whole / "adapter", work / "untied")
    assert (found.lora, found.latent_steps) == (LoraConfig(4, 8.0, 0.05), 4)
    assert flatten(found.read_params()["lora"]).keys() == flatten(run.params["lora"]).keys()
    jax.tree.map(np.testing.assert_array_equal, found.read_params()["lora"], run.params["lora"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' is not read"),
        ({"use_dora": True}, "use_dora=True is not read; merge it with PEFT"),
        ({"use_qalora": True}, "use_qalora=True is not read"),
        ({"kasa_config": {"beta": 1.0}}, "kasa_config"),
        *(
            (
                {"init_lora_weights": start},
                rf"init_lora_weights='{start}' changed the base .*path_initial_model_for_weight_conversion",
            )
            for start in ("pissa", "pissa_niter_16", "OLoRA", "corda", "loftq", "lora_ga", "some_later_way")
        ),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"r": 8}, r"lora_A\.weight is \[4, 96\], this base with r=8 needs \[8, 96\]"),
        ({"r": None}, "no usable r and lora_alpha"),
    ],
)
def test_another_kind_of_adapter_is_refused_by_name(work, whole, tmp_path, change, message):
    folder = tmp_path / "adapter"
    shutil.copytree(whole / "adapter", folder)
    config = json.loads((folder / peft.CONFIG).read_text())
    (folder / peft.CONFIG).write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=message):
        peft.load_adapter(folder, read_config(work / "untied"))


@pytest.mark.parametrize("start", [None, True, False, "gaussian", "Gaussian", "eva", "orthogonal", "mica"])
def test_a_start_that_left_the_base_alone_is_read(work, run, whole, tmp_path, start):
    """What else those settings leave in the file (eva's, or a loftq_config that PEFT ignored) says nothing."""
    folder = tmp_path / "adapter"
    shutil.copytree(whole / "adapter", folder)
    config = json.loads((folder / peft.CONFIG).read_text()) | {
        "eva_config": {"rho": 2.0},
        "loftq_config": {"loftq_bits": 4},
    }
    (folder / peft.CONFIG).write_text(json.dumps({**config, "init_lora_weights": start}))
    jax.tree.map(
        np.testing.assert_array_equal, peft.load_adapter(folder, read_config(work / "untied"))[0], run.params["lora"]
    )


def test_an_adapter_that_reaches_elsewhere_or_lacks_a_half_is_refused(work, whole, tmp_path):
    config, folder = read_config(work / "untied"), tmp_path
    shutil.copy(whole / "adapter" / peft.CONFIG, folder)
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors not found"):
        peft.load_adapter(folder, config)
    held = {name: tensor.rows() for name, tensor in read_header(whole / "adapter" / peft.WEIGHTS).items()}
    stray = "base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight"
    write_file(folder / peft.WEIGHTS, {**held, stray: np.ones((4, 32), np.float32)})
    with pytest.raises(ValueError, match=r"1 tensors belong to no projection of this language model, .*visual"):
        peft.load_adapter(folder, config)
    write_file(folder / peft.WEIGHTS, {name: x for name, x in held.items() if "q_proj.lora_B" not in name})
    with pytest.raises(ValueError, match=r"q_proj has one of lora_A and lora_B only"):
        peft.load_adapter(folder, config)


def test_a_later_format_is_refused(work, whole, tmp_path):
    shutil.copytree(whole / "adapter", tmp_path / "adapter")
    facts = tmp_path / "adapter" / "vital.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "format_version": 2}))
    with pytest.raises(ValueError, match=r"has format 2, this package reads up to 1: update vital_jax"):
        exported.open_exported(tmp_path / "adapter", work / "untied")
