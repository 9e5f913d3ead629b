"""Encoders of Table 14: the backbone's own tower against transformers, SigLIP through the same door, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from vital_jax.construct.roi import siglip_pixels
from vital_jax.hub.encoders import identity, load_encoder
from vital_jax.hub.load import fingerprint, load_siglip
from vital_jax.pipeline.features import RoiFeatures
from vital_jax.pipeline.records import Record, write_splits
from vital_jax.run.prepare import features_name, make_features

PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "size": {"shortest_edge": 256, "longest_edge": 16_777_216},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def edit(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))
    return folder


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    return {
        name: edit(tiny.save(tiny.qwen3_vl(name), root / name), "preprocessor_config.json", **PROCESSOR)
        for name in ("gqa4_untied", "mha_tied")
    }


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return tiny.save(tiny.siglip(), tmp_path_factory.mktemp("siglip") / "encoder")


def pictures(side, count=2):
    """Square RGB images of noise in coarse blocks, other in every channel, so that no two patches are alike."""
    values = np.random.default_rng(side).integers(0, 256, (count, side // 4, side // 4, 3), np.uint8)
    return [Image.fromarray(v).resize((side, side), Image.Resampling.BILINEAR) for v in values]


def reference(name, images):
    """transformers' own path: its image processor, its tower, the state at the door of the merger, put row by row."""
    torch = pytest.importorskip("torch")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    keys = ("size", "patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")
    found = Qwen2VLImageProcessorPil(**{key: PROCESSOR[key] for key in keys})(images, return_tensors="pt")
    visual, caught = tiny.qwen3_vl(name).model.visual, {}
    visual.merger.register_forward_pre_hook(lambda module, args: caught.update(x=args[0].numpy()))
    with torch.no_grad():
        visual(found["pixel_values"], grid_thw=found["image_grid_thw"])
    half = images[0].width // 32
    blocks = caught["x"].reshape(
        len(images), half, half, 2, 2, -1
    )  # row and column of the token, then of the patch in it
    return blocks.swapaxes(2, 3).reshape(len(images), 4 * half * half, -1)


def run(encoder, images):
    pixels = np.stack([siglip_pixels(image, encoder.size) for image in images])
    with jax.default_matmul_precision("highest"):
        return np.asarray(encoder.apply(pixels))


def factor(ours, theirs):
    """The largest difference over what is allowed: 2e-5 up to |x| = 8, in proportion beyond."""
    assert ours.shape == theirs.shape
    return float(np.max(np.abs(ours - theirs)) / (2e-5 * max(1.0, np.max(np.abs(theirs)) / 8)))


@pytest.mark.parametrize("name, side", [("gqa4_untied", 96), ("mha_tied", 160)])
def test_the_tower_equals_transformers_before_its_merger(towers, name, side):
    encoder = load_encoder(towers[name], "block", max_pixels=side * side + 31)
    assert (encoder.size, encoder.grid) == (side, side // 16)
    images = pictures(side)
    theirs = reference(name, images)
    ours = run(encoder, images)
    assert encoder.width == ours.shape[-1] == theirs.shape[-1]
    assert factor(ours, theirs) <= 1
    # Merge-block order, or columns first, would be something else.
    grid = encoder.grid
    blocks = ours.reshape(2, grid // 2, 2, grid // 2, 2, -1).swapaxes(2, 3).reshape(ours.shape)
    columns = ours.reshape(2, grid, grid, -1).swapaxes(1, 2).reshape(ours.shape)
    assert min(factor(blocks, theirs), factor(columns, theirs)) > 100


def test_the_tower_does_not_read_the_language_model(towers, tmp_path):
    folder = shutil.copytree(towers["mha_tied"], tmp_path / "m")
    encoder = load_encoder(folder, "block", size=64)
    assert (encoder.size, encoder.grid) == (64, 4)
    shapes = {leaf.shape for leaf in jax.tree.leaves(encoder.apply.args[0])}
    assert (tiny.VOCAB, 48) not in shapes


@pytest.mark.parametrize(
    "longest, max_pixels, side",
    [(16_777_216, None, 448), (16_777_216, 128 * 128, 128), (100 * 100, None, 96), (100 * 100, 128 * 128, 96)],
)
def test_the_towers_side_keeps_to_the_pixels_allowed(towers, tmp_path, longest, max_pixels, side):
    folder = shutil.copytree(towers["mha_tied"], tmp_path / "m")
    edit(folder, "preprocessor_config.json", size={"shortest_edge": 1024, "longest_edge": longest})
    assert load_encoder(folder, "block", max_pixels=max_pixels).size == side
    # Features at another resolution are other features.
    assert identity(folder, max_pixels) == f"{fingerprint(folder)}-{side}px"


@pytest.mark.parametrize("hook, theirs", [("block", "last_block"), ("post_layernorm", "post_layernorm")])
def test_siglip_comes_through_unchanged(siglip, hook, theirs):
    images = np.random.default_rng(0).uniform(-1, 1, (2, 30, 30, 3)).astype(np.float32)
    model, params = load_siglip(siglip)
    encoder = load_encoder(siglip, hook, max_pixels=64)  # a cap says nothing where the side is fixed
    assert (encoder.size, encoder.grid, encoder.width) == (30, 4, 40)
    np.testing.assert_allclose(encoder.apply(images), model.apply({"params": params}, images, theirs), atol=1e-5)
    assert identity(siglip, 64) == fingerprint(siglip)


def test_a_siglip_tower_saved_alone_is_read(tmp_path):
    encoder = load_encoder(tiny.save(tiny.siglip(whole=False), tmp_path / "alone"), "block")
    assert encoder.apply(np.zeros((1, 30, 30, 3), np.float32)).shape == (1, 16, 40)


def test_what_is_refused_says_so(towers, siglip, tmp_path):
    tower = towers["mha_tied"]
    with pytest.raises(ValueError, match=r"unknown hook 'pooled': use one of block, post_layernorm"):
        load_encoder(siglip, "pooled")
    with pytest.raises(ValueError, match=r"mha_tied.*ends in a merger, it has no post_layernorm"):
        load_encoder(tower, "post_layernorm")
    with pytest.raises(ValueError, match=r"takes images of 30 pixels a side, not 60"):
        load_encoder(siglip, "block", size=60)
    for size, max_pixels in ((80, None), (160, 128 * 128), (None, 31 * 31)):
        with pytest.raises(ValueError, match=r"multiple of 32, at most"):
            load_encoder(tower, "block", size=size, max_pixels=max_pixels)
    with pytest.raises(ValueError, match=r"takes \[n, 64, 64, 3\]"):
        load_encoder(tower, "block", size=64).apply(np.zeros((1, 96, 96, 3), np.float32))
    (tmp_path / "dino").mkdir()
    edit(tmp_path / "dino", "config.json", model_type="dinov2")
    with pytest.raises(ValueError, match=r"model_type='dinov2'.* siglip, siglip_vision_model, clip, .*qwen3_vl"):
        load_encoder(tmp_path / "dino", "block")
    with pytest.raises(FileNotFoundError, match=r"config.json"):
        load_encoder(tmp_path / "nowhere", "block")


@pytest.mark.parametrize("kind", ["tower", "siglip"])
def test_another_normalisation_is_refused(towers, siglip, tmp_path, kind):
    folder = shutil.copytree(towers["mha_tied"] if kind == "tower" else siglip, tmp_path / "m")
    edit(folder, "preprocessor_config.json", image_mean=[0.48, 0.46, 0.41])
    with pytest.raises(ValueError, match=r"image_mean.*0.48"):
        load_encoder(folder, "block")


# --- features of a run -----------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path, siglip):
    """A run's settings over two records, each with a mask; the encoder's folder is its own copy."""
    from io import BytesIO

    def png(image):
        file = BytesIO()
        image.save(file, "PNG")
        return file.getvalue()

    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).ellipse((8, 8, 40, 30), fill=255)
    records = [
        ("train", Record(f"r{i}", (png(image),), "What?", "That.", masks=(png(mask),)))
        for i, image in enumerate(pictures(64))
    ]
    write_splits(records, tmp_path / "records")
    data = dict(
        records=str(tmp_path / "records"),
        encoder=str(shutil.copytree(siglip, tmp_path / "encoder")),
        hook="block",
        roi_threshold=0.2,
        roi_margin=0.05,
        features="auto",
        max_pixels=64 * 64,
    )
    return ConfigDict({"data": data})


def test_the_name_of_the_features_follows_from_the_settings(config):
    assert features_name(config) == "roi-encoder-block-T0.20-P0.05"
    config.data.features = "roi-encoder-block-T0.20-P0.05"
    assert features_name(config) == config.data.features
    config.data.features = "roi-other"
    with pytest.raises(ValueError, match=r"roi-other.*roi-encoder-block-T0.20-P0.05"):
        features_name(config)
    config.data.features = ""
    assert features_name(config) == ""


def test_features_of_the_backbones_own_tower(config, towers):
    config.data.encoder = str(towers["mha_tied"])
    make_features(config)
    folder = f"{config.data.records}/{features_name(config)}/train"
    features = RoiFeatures(folder, ["r0", "r1"])
    assert features.info["encoder"] == "mha_tied" and features.roi.shape == (2, 48) and features.valid.all()
    config.data.max_pixels = 96 * 96
    with pytest.raises(ValueError, match=r"-64px.*-96px"):
        make_features(config)


def test_another_encoder_of_the_same_name_is_refused(config, tmp_path):
    make_features(config)
    make_features(config)  # the same one is left alone
    folder = tmp_path / "records" / features_name(config) / "train"
    before, held = (folder / "roi.npy").read_bytes(), fingerprint(config.data.encoder)
    other = tiny.save(tiny.siglip(seed=1), tmp_path / "elsewhere" / "encoder")
    config.data.encoder = str(other)
    with pytest.raises(ValueError) as error:
        make_features(config)
    assert all(str(part) in str(error.value) for part in (folder, held, other, fingerprint(other)))
    assert (folder / "roi.npy").read_bytes() == before
    # Features may travel without their encoder.
    shutil.rmtree(other)
    make_features(config)


def test_features_without_their_encoder_cannot_be_made(config):
    shutil.rmtree(config.data.encoder)
    with pytest.raises(FileNotFoundError, match=r"encoder/config.json"):
        make_features(config)
