"""SigLIP's vision tower against transformers at both hooks, and a table of mistakes that comparison must notice."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn
from safetensors.numpy import load_file, save_file

from vital_jax.hub.load import load_siglip
from vital_jax.models import siglip
from vital_jax.models.config import siglip_config

IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 30, 30, 3)).astype(np.float32)


def towers(root):
    """The same tower as three libraries write it: whole, alone (5.x: no prefix), alone (4.57: `vision_model.`)."""
    whole = tiny.save(tiny.siglip(), root / "whole")
    alone = root / "alone"
    kept = {k: v for k, v in load_file(whole / "model.safetensors").items() if k.startswith("vision_model.")}
    model = tiny.siglip(whole=False)
    model.load_state_dict({name: kept_tensor(kept, name) for name in model.state_dict()})
    tiny.save(model, alone)
    older = root / "older"
    shutil.copytree(alone, older)
    save_file(kept, older / "model.safetensors", {"format": "pt"})
    return {"whole": whole, "alone": alone, "older": older}


def kept_tensor(kept, name):
    torch = pytest.importorskip("torch")

    return torch.from_numpy(kept["vision_model." + name.removeprefix("vision_model.")])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return towers(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module")
def reference():
    """What transformers computes for IMAGES at both hooks; the blocks' output is caught at the door of `post_layernorm`."""
    torch = pytest.importorskip("torch")

    tower = tiny.siglip().vision_model
    caught = {}
    tower.post_layernorm.register_forward_pre_hook(lambda module, args: caught.update(last_block=args[0].numpy()))
    with torch.no_grad():
        out = tower(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy()))
    return {**caught, "post_layernorm": out.last_hidden_state.numpy()}


def run(model, params, hook):
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(model.apply, static_argnums=2)({"params": params}, IMAGES, hook))


def factor(ours, theirs):
    """The largest difference over what is allowed: 2e-5 up to |x| = 8, in proportion beyond."""
    return float(np.max(np.abs(ours - theirs)) / (2e-5 * max(1.0, np.max(np.abs(theirs)) / 8)))


@pytest.mark.parametrize("hook", siglip.HOOKS)
def test_equals_transformers(folders, reference, hook):
    model, params = load_siglip(folders["whole"])
    ours = run(model, params, hook)
    assert ours.shape == (3, 16, 40)
    assert factor(ours, reference[hook]) <= 1


def test_the_layouts_on_disk_hold_the_same_tower(folders):
    written = {name: set(load_file(folder / "model.safetensors")) for name, folder in folders.items()}
    assert "vision_model.post_layernorm.weight" in written["whole"] and "text_model.head.weight" in written["whole"]
    assert "post_layernorm.weight" in written["alone"] and "vision_model.post_layernorm.weight" in written["older"]
    loaded = {name: load_siglip(folder) for name, folder in folders.items()}
    for name in ("alone", "older"):
        assert loaded[name][0] == loaded["whole"][0]
        jax.tree.map(np.testing.assert_array_equal, loaded[name][1], loaded["whole"][1])


def _with(params, path, change):
    holder, leaf = path.split("/")
    return {**params, holder: {**params[holder], leaf: change(params[holder][leaf])}}


def _columns_first(grid):
    return jnp.swapaxes(grid.reshape(4, 4, -1), 0, 1).reshape(grid.shape)


def _channels_last(kernel):
    return jnp.moveaxis(kernel.reshape(-1, 3, 7, 7), 1, -1).reshape(kernel.shape)


def _erf(monkeypatch):
    original = nn.gelu
    monkeypatch.setattr(siglip.nn, "gelu", lambda x, approximate: original(x, approximate=False))


def _eps(model):
    return model.clone(config=dataclasses.replace(model.config, eps=1e-6))


# Each takes (monkeypatch, model, params) and gives (model, params, the hook read instead) with one thing wrong.
MISTAKES = {
    "erf GELU": lambda p, m, w: (_erf(p), (m, w, "last_block"))[1],
    "the other hook": lambda p, m, w: (m, w, "post_layernorm"),
    "position embeddings column by column": lambda p, m, w: (
        m,
        {**w, "pos_embed": _columns_first(w["pos_embed"])},
        "last_block",
    ),
    "patch kernel read channels last": lambda p, m, w: (
        m,
        _with(w, "patch_embed/kernel", _channels_last),
        "last_block",
    ),
    "a bias not loaded": lambda p, m, w: (m, _with(w, "patch_embed/bias", jnp.zeros_like), "last_block"),
    "eps not read": lambda p, m, w: (_eps(m), w, "last_block"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_breaks_it(folders, reference, monkeypatch, mistake, record_property):
    times = factor(run(*MISTAKES[mistake](monkeypatch, *load_siglip(folders["whole"]))), reference["last_block"])
    record_property("mistake", f"SigLIP: {mistake:<38} {times:,.0f} x tolerance")
    assert times >= 2


def test_scale_of_the_post_norm_is_loaded(folders, reference):
    model, params = load_siglip(folders["whole"])
    params = _with(params, "post_layernorm/scale", jnp.ones_like)
    assert factor(run(model, params, "post_layernorm"), reference["post_layernorm"]) >= 2


def test_half_precision_stays_close(folders, reference):
    model, params = load_siglip(folders["whole"], param_dtype=jnp.bfloat16, dtype=jnp.bfloat16)
    theirs = reference["last_block"]
    ours = run(model, params, "last_block")
    assert ours.dtype == jnp.bfloat16
    # Four units in bfloat16's last place of the largest number, as for Qwen3-VL (hub/parity.py).
    assert np.max(np.abs(ours.astype(np.float32) - theirs)) <= 2.0**-6 * np.max(np.abs(theirs))


def test_random_tree_is_the_loaded_tree(folders):
    model, params = load_siglip(folders["whole"])
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)  # noqa: E731
    assert shapes(siglip.abstract_siglip(model)) == shapes(params)


def test_wrong_calls_are_named(folders):
    model, params = load_siglip(folders["whole"])
    with pytest.raises(ValueError, match="unknown hook 'pooled'"):
        model.apply({"params": params}, IMAGES, "pooled")
    with pytest.raises(ValueError, match=r"\[n, 30, 30, 3\]"):
        model.apply({"params": params}, IMAGES[:, :29])


@pytest.mark.parametrize(
    "edit, key", [({"hidden_act": "gelu"}, "hidden_act"), ({"image_size": [30, 60]}, "image_size")]
)
def test_refused_configurations_are_named(folders, tmp_path, edit, key):
    table = json.loads((folders["whole"] / "config.json").read_text())
    table["vision_config"] |= edit
    (tmp_path / "config.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=key):
        siglip_config(tmp_path)


def test_missing_tensors_are_listed(folders, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folders["whole"], broken)
    tensors = load_file(broken / "model.safetensors")
    del tensors["vision_model.encoder.layers.1.mlp.fc1.bias"]
    save_file({**tensors, "vision_model.surprise": np.zeros(2, np.float32)}, broken / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing tensors: .*layers\.1\.mlp\.fc1\.bias; extra .*surprise"):
        load_siglip(broken)
