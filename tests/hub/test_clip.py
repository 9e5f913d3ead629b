"""CLIP's vision tower: transformers' and timm's forms against these libraries, its normalisation, and what is refused."""

import json

import jax
import numpy as np
import pytest
import tiny

from vital_jax.construct.roi import extract
from vital_jax.hub.encoders import identity, load_encoder
from vital_jax.models.config import clip_config

torch = pytest.importorskip("torch")
files = pytest.importorskip("safetensors.torch")
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def images(side, count=2):
    """[count, side, side, 3] float32 in -1..1."""
    return np.random.default_rng(side).uniform(-1, 1, (count, side, side, 3)).astype(np.float32)


def run(encoder, pixels):
    with jax.default_matmul_precision("highest"):
        return np.asarray(encoder.apply(pixels))


def theirs(pixels, mean=MEAN, std=STD):
    """The same images as these libraries take them: channels first, in their own normalisation."""
    scaled = (pixels.astype(np.float64) / 2 + 0.5 - mean) / std
    return torch.from_numpy(scaled.astype(np.float32).transpose(0, 3, 1, 2).copy())


def factor(ours, expected):
    """The largest difference over what is allowed: 2e-5 up to |x| = 8, in proportion beyond."""
    assert ours.shape == expected.shape
    return float(np.max(np.abs(ours - expected)) / (2e-5 * max(1.0, np.max(np.abs(expected)) / 8)))


@pytest.mark.parametrize("whole, activation", [(False, "quick_gelu"), (True, "quick_gelu"), (False, "gelu")])
def test_equals_transformers(tmp_path, whole, activation):
    model = tiny.clip(whole=whole, hidden_act=activation)
    tiny.save(model, tmp_path)
    tower = model.vision_model if whole else model
    pixels = images(30)
    with torch.no_grad():
        out = tower(theirs(pixels))
    encoder = load_encoder(tmp_path, "block")
    assert (encoder.size, encoder.grid, encoder.width) == (30, 4, 40)
    ours = run(encoder, pixels)
    assert ours.shape == (2, 17, 40)
    assert factor(ours, out.last_hidden_state.numpy()) <= 1
    # transformers norms the class token alone; the patches are not compared.
    normed = run(load_encoder(tmp_path, "post_layernorm"), pixels)
    assert factor(normed[:, 0], out.pooler_output.numpy()) <= 1
    # Another activation, or pixels in SigLIP's normalisation, would be something else.
    other = tmp_path / "config.json"
    table = json.loads(other.read_text())
    (table["vision_config"] if whole else table)["hidden_act"] = {"gelu": "quick_gelu"}.get(activation, "gelu")
    other.write_text(json.dumps(table))
    assert factor(run(load_encoder(tmp_path, "block"), pixels), ours) > 100


def test_a_prefixed_tower_of_older_transformers_is_the_same(tmp_path):
    tiny.save(tiny.clip(), tmp_path)
    pixels = images(30)
    ours = run(load_encoder(tmp_path, "block"), pixels)
    file = tmp_path / "model.safetensors"
    files.save_file(
        {f"vision_model.{name}": tensor for name, tensor in files.load_file(file).items()}, file, {"format": "pt"}
    )
    np.testing.assert_array_equal(run(load_encoder(tmp_path, "block"), pixels), ours)


def test_the_folders_own_normalisation_is_used(tmp_path):
    model = tiny.clip()
    tiny.save(model, tmp_path)
    mean, std = [0.2, 0.4, 0.6], [0.5, 0.3, 0.1]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    pixels = images(30)
    with torch.no_grad():
        expected = model(theirs(pixels, mean, std)).last_hidden_state.numpy()
    assert factor(run(load_encoder(tmp_path, "block"), pixels), expected) <= 1
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": [0.5, 0.5, 0]}))
    with pytest.raises(ValueError, match=r"std .* must be three numbers each, std above 0"):
        load_encoder(tmp_path, "block")


def open_clip(folder, name, state, **settings):
    """An open_clip folder with a tower from timm, a text tower of some kind and a projection, as BiomedCLIP is distributed."""
    folder.mkdir()
    tensors = {f"visual.trunk.{key}": value.contiguous() for key, value in state.items()}
    tensors |= {
        "visual.head.proj.weight": torch.zeros(4, 4),
        "text.transformer.embeddings.position_ids": torch.zeros(1, 4, dtype=torch.int64),
        "text.proj.0.weight": torch.zeros(4, 4),
        "logit_scale": torch.tensor(1.0),
    }
    files.save_file(tensors, folder / "open_clip_model.safetensors")
    table = {
        "model_cfg": {"embed_dim": 4, "vision_cfg": {"timm_model_name": name, "timm_pool": "", **settings}},
        "preprocess_cfg": {"mean": MEAN, "std": STD},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(table))
    return folder


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_224", "vit_base_patch16_clip_224", "vit_base_patch16_clip_quickgelu_224"]
)
def test_equals_timm(tmp_path, monkeypatch, name):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    monkeypatch.setattr("vital_jax.models.config._TIMM_SIZES", {"base": (40, 3, 4)})
    side = 64
    model = timm.create_model(name, num_classes=0, img_size=side, embed_dim=40, depth=3, num_heads=4).eval()
    tiny.redraw(model)
    folder = open_clip(tmp_path / "m", name, model.state_dict(), image_size=side)
    pixels = images(side)
    caught = {}
    model.norm.register_forward_pre_hook(lambda module, args: caught.update(block=args[0].numpy()))
    with torch.no_grad():
        normed = model.forward_features(theirs(pixels)).numpy()
    for hook, expected in (("block", caught["block"]), ("post_layernorm", normed)):
        assert factor(run(load_encoder(folder, hook), pixels), expected) <= 1
    assert len(identity(folder)) == 16


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_sizes_are_timms(tmp_path, size):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    name = f"vit_{size}_patch16_224"
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    table = {"model_cfg": {"vision_cfg": {"timm_model_name": name}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(table))
    config, block = clip_config(tmp_path), model.blocks[0]
    assert (config.width, config.layers, config.heads) == (model.embed_dim, len(model.blocks), block.attn.num_heads)
    assert (config.ffn, config.eps) == (block.mlp.fc1.out_features, model.norm.eps)
    assert (config.image, config.patch) == (model.patch_embed.img_size[0], model.patch_embed.patch_size[0])


def renamed(model):
    """A transformers tower under timm's names: q, k and v in one tensor, a leading axis of one on token and positions."""
    held = model.state_dict()
    state = {
        "cls_token": held["embeddings.class_embedding"][None, None],
        "pos_embed": held["embeddings.position_embedding.weight"][None],
        "patch_embed.proj.weight": held["embeddings.patch_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        state[f"norm_pre.{kind}"] = held[f"pre_layrnorm.{kind}"]
        state[f"norm.{kind}"] = held[f"post_layernorm.{kind}"]
        for i in range(model.config.num_hidden_layers):
            here, there = f"encoder.layers.{i}.", f"blocks.{i}."
            parts = [held[f"{here}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            state[f"{there}attn.qkv.{kind}"] = torch.cat(parts)
            for ours, names in (("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("attn.proj", "self_attn.out_proj"),
                                ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):  # fmt: skip
                state[f"{there}{ours}.{kind}"] = held[f"{here}{names}.{kind}"]
    return state


def test_timms_names_hold_the_same_tower_as_transformers(tmp_path, monkeypatch):
    monkeypatch.setattr("vital_jax.models.config._TIMM_SIZES", {"tiny": (40, 3, 4)})
    options = dict(intermediate_size=160, layer_norm_eps=1e-5)
    model = tiny.clip(**options)
    pixels = images(30)
    ours = run(load_encoder(tiny.save(model, tmp_path / "theirs"), "block"), pixels)
    folder = open_clip(tmp_path / "m", "vit_tiny_patch7_clip_quickgelu_30", renamed(model))
    np.testing.assert_allclose(run(load_encoder(folder, "block"), pixels), ours, atol=2e-5)


def test_biomedclips_shape(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {"vision_cfg": {"timm_model_name": "vit_base_patch16_224", "image_size": 224}}})
    )
    config = clip_config(tmp_path)
    assert (config.width, config.layers, config.heads, config.ffn) == (768, 12, 12, 3072)
    assert (config.image, config.patch, config.grid) == (224, 16, 14)
    assert config.timm and not config.pre_norm and config.activation == "gelu" and config.eps == 1e-6


def test_the_class_token_is_the_images_feature_and_no_patch(tmp_path):
    encoder = load_encoder(tiny.save(tiny.clip(), tmp_path), "block")
    from PIL import Image

    values = np.random.default_rng(1).integers(0, 256, (30, 30, 3), np.uint8)
    mask = np.zeros((30, 30), bool)
    mask[7:21] = True  # rows 1 and 2 of the grid
    mask[21:, 0] = True
    made = extract(Image.fromarray(values), mask, encoder.apply, encoder.grid, encoder.size)
    states = np.asarray(encoder.apply(values[None].astype(np.float32) / 127.5 - 1))[0]
    chosen = states[1:].reshape(4, 4, -1)[1:3].reshape(8, -1).mean(0)
    assert made.path == "full"
    np.testing.assert_allclose(made.global_feature, states[0] / np.linalg.norm(states[0]), atol=1e-5)
    assert made.feature @ chosen / np.linalg.norm(chosen) > 0.9 and made.top5.max() < 16


def test_what_is_refused_says_so(tmp_path):
    folder = tiny.save(tiny.clip(), tmp_path / "clip")
    with pytest.raises(ValueError, match="takes images of 30 pixels a side, not 60"):
        load_encoder(folder, "block", size=60)
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(table | {"hidden_act": "relu"}))
    with pytest.raises(ValueError, match=r"hidden_act='relu' .*quick_gelu or gelu"):
        load_encoder(folder, "block")
    (folder / "config.json").write_text(json.dumps(table))
    (folder / "model.safetensors").rename(folder / "kept")
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(
        ValueError, match=r"open_clip_pytorch_model.bin is a pickle.*weights_only=True.*model.safetensors"
    ):
        load_encoder(folder, "block")
    own = tmp_path / "own"
    own.mkdir()
    (own / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"vision_cfg": {"layers": 12, "width": 768}}}))
    with pytest.raises(ValueError, match=r"no timm_model_name in vision_cfg; .*CLIPVisionModel"):
        load_encoder(own, "block")
    (own / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {"vision_cfg": {"timm_model_name": "resnet50"}}})
    )
    with pytest.raises(ValueError, match=r"timm_model_name='resnet50' is not implemented"):
        load_encoder(own, "block")


def test_the_advice_for_a_pickle_works(tmp_path):
    """The command of the message turns the pickle into a folder that is read."""
    import re
    import subprocess
    import sys

    folder = tiny.save(tiny.clip(), tmp_path / "clip")
    ours = run(load_encoder(folder, "block"), images(30))
    state = files.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ValueError) as error:
        load_encoder(folder, "block")
    code = re.search(r'python -c "(.*)"', str(error.value)).group(1)
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    np.testing.assert_array_equal(run(load_encoder(folder, "block"), images(30)), ours)
