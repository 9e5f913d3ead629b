"""Loading at its true size, in small: a checkpoint written from an index alone, and the memory that reading it takes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vital_jax.hub.load import load_backbone
from vital_jax.hub.safetensors import INDEX, read_folder
from vital_jax.models.families import backbone_entries, read_config

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def load_8b():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import load_8b
    finally:
        sys.path.remove(str(BENCHMARKS))
    return load_8b


@pytest.fixture(scope="module")
def layout(load_8b, tmp_path_factory):
    """A folder without weights: the configuration of load_memory.py with three of its layers, 580 MB, and an index in three shards."""
    from load_memory import CONFIG

    folder = tmp_path_factory.mktemp("layout")
    config = {**CONFIG, "text_config": {**CONFIG["text_config"], "num_hidden_layers": 3}}
    (folder / "config.json").write_text(json.dumps(config))
    names = [name for entry in backbone_entries(read_config(folder)) for name in entry.names]
    weight_map = {name: f"model-{i % 3 + 1:05}-of-00003.safetensors" for i, name in enumerate(names)}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"the shapes make (\d+) bytes in bfloat16, .* promises 0") as error:
        load_8b.layout(folder)
    index["metadata"]["total_size"] = int(str(error.value).split("make ")[1].split()[0])
    (folder / INDEX).write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def folder(load_8b, layout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    size = load_8b.write(layout, folder)
    assert size == json.loads((layout / INDEX).read_text())["metadata"]["total_size"] > 250e6
    return folder


def test_shards_are_those_of_the_index(layout, folder):
    weight_map = json.loads((layout / INDEX).read_text())["weight_map"]
    tensors = read_folder(folder)
    assert {name: tensor.path.name for name, tensor in tensors.items()} == weight_map
    a, b = (tensors[f"model.language_model.layers.{i}.mlp.up_proj.weight"].rows(0, 1) for i in (0, 1))
    assert not np.array_equal(a, b) and 0.015 < np.std(a.astype(np.float32)) < 0.025


@pytest.mark.parametrize("model", ["Qwen3-VL-4B-Instruct", "Qwen3-VL-8B-Instruct"])
def test_published_layouts_are_understood_to_the_byte(load_8b, real, model):
    shard_of, shapes = load_8b.layout(real("model_configs") / model)
    assert len(shard_of) == len(shapes) == {"Qwen3-VL-4B-Instruct": 713, "Qwen3-VL-8B-Instruct": 750}[model]


def test_reading_takes_the_weights_and_little_beside(folder):
    """A second copy of anything large would show: 10 % and 64 MB are for what JAX itself takes."""
    command = [sys.executable, BENCHMARKS / "load_8b.py", "--read", "vital_jax", "-", folder]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    baseline, peak, own, size, *seconds = json.loads(child.stdout.splitlines()[-1])
    assert size <= own and peak - baseline <= 1.1 * size + 64e6
    assert 0 < seconds[0] <= seconds[1]


def test_a_missing_shard_is_one_line_before_anything_is_read(folder, tmp_path, monkeypatch):
    for path in folder.iterdir():
        if "00002" not in path.name:
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.setattr("vital_jax.hub.safetensors.Tensor.rows", lambda *_: pytest.fail("read"))
    with pytest.raises(FileNotFoundError, match=r"are absent: model-00002-of-00003\.safetensors$") as error:
        load_backbone(tmp_path)
    assert "\n" not in str(error.value)
