"""A run's parameters: in which types they are kept, and what is refused before any weights are read."""

import jax
import jax.numpy as jnp
import pytest
import tiny
from ml_collections import ConfigDict

from configs import vital
from vital_jax.hub.safetensors import INDEX, Tensor
from vital_jax.methods.base import settings_of
from vital_jax.run import setup
from vital_jax.training.partition import flatten
from vital_jax.training.sharding import make_mesh


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("setup")
    return tiny.save(tiny.qwen3_vl("mha_tied"), scratch / "base", "60KB"), tiny.save(
        tiny.qwen3(), scratch / "text", "8KB"
    )


def recipe(folders, **changes):
    config = vital.get_config()
    config.model.update(folder=str(folders[0]), text_decoder=str(folders[1]))
    config.lora.rank = 4
    config.phases = (
        vital.phase("alone", 2, 0, steps=1, latent_steps=2, weights=ConfigDict(dict(text=1.0, visual=0.0))),
    )
    config.method = ConfigDict(settings_of(config.method.to_dict()))
    config.update_from_flattened_dict(changes)
    return config, setup.make_method(config, None)


def test_a_quantised_run_is_kept_in_three_types_and_loaded_so(folders):
    config, method = recipe(folders, **{"model.quantize": "int8", "mesh.base": "fsdp"})
    kept = flatten(setup.kept_params(config, method))
    kinds = {path: leaf.dtype for path, leaf in kept.items()}
    matrices = {path for path in kept if path.startswith("base/language_model/layers/") and path.endswith("/kernel")}
    assert {path for path, kind in kinds.items() if kind == jnp.int8} == matrices
    assert {path for path, kind in kinds.items() if kind == jnp.float32} == {
        p for p in kept if not p.startswith("base/")
    }
    mesh = make_mesh(data=1, fsdp=2, devices=jax.devices()[:2])
    loaded = flatten(setup.load_params(config, method, mesh))
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in loaded.items()} == {
        path: (leaf.shape, leaf.dtype) for path, leaf in kept.items()
    }
    up = "base/language_model/layers/mlp/up_proj/kernel"
    rows = [loaded[path].sharding.shard_shape(loaded[path].shape)[1] for path in (up, f"{up}_scale")]
    assert rows == [40, 40], "a kernel and its scales are split alike"


def test_training_a_quantised_base_is_refused(folders):
    config, method = recipe(folders, **{"model.quantize": "int8"}, table=(("(base|lora|scaffold)/.*", "trainable"),))
    with pytest.raises(
        ValueError, match=r"quantize='int8' freezes the base's decoder, and 14 of its leaves are to train \(base/lang"
    ):
        setup.kept_params(config, method)


@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_shard_of_either_model_is_named_before_anything_is_read(folders, tmp_path, monkeypatch, which):
    broken = list(folders)
    broken[which] = tmp_path / "broken"
    broken[which].mkdir()
    lost = sorted(path.name for path in folders[which].glob("*-00002-of-*.safetensors"))[0]
    for path in folders[which].iterdir():
        if path.name != lost:
            (broken[which] / path.name).symlink_to(path)
    config, method = recipe(broken)
    monkeypatch.setattr(Tensor, "rows", lambda *_: pytest.fail("read"))
    with pytest.raises(FileNotFoundError, match=rf"{broken[which]}: shards named by {INDEX} are absent: {lost}$"):
        setup.load_params(config, method, make_mesh(devices=jax.devices()[:1]))
