"""Images against transformers' PIL processor (bit for bit), Pillow, and values worked out by hand."""

import gzip
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as oracle_resize

from vital_jax.pipeline.images import ImageConfig, decode, image_size, patchify, smart_resize
from vital_jax.pipeline.masks import decode_mask

CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
QWEN2_5 = ImageConfig(patch_size=14, min_pixels=3136, max_pixels=200_000, **CLIP)
UPRIGHT = {"size": (4, 6), "orientation": 1}


def oracle(config: ImageConfig) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        patch_size=config.patch_size,
        temporal_patch_size=config.temporal_patch_size,
        merge_size=config.merge_size,
        image_mean=list(config.mean),
        image_std=list(config.std),
        size={"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels},
    )


def assert_as_oracle(data: bytes, config: ImageConfig) -> None:
    """The file through our path equals the file through Pillow and transformers, to the last bit."""
    expected = oracle(config)(ImageOps.exif_transpose(Image.open(io.BytesIO(data))), return_tensors="np")
    patches, grid = patchify(decode(data, "test")[0], config)
    assert patches.dtype == np.float32 and patches.shape == (grid[1] * grid[2], config.patch_dim)
    assert (grid,) == tuple(map(tuple, expected["image_grid_thw"].tolist()))
    np.testing.assert_array_equal(patches.view(np.uint32), expected["pixel_values"].view(np.uint32))


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """An 8-bit grey PNG whose header says what it likes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# --- patches against transformers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [ImageConfig(), QWEN2_5], ids=["qwen3", "qwen2.5"])
@pytest.mark.parametrize(
    "size", [(3, 500), (1, 190), (2000, 11), (28, 28), (1500, 1400), (256, 256), (1, 1), (200, 1), (479, 643)], ids=str
)
def test_patches_equal_transformers_for_any_size(size, config):
    assert_as_oracle(encoded(Image.fromarray(noise(*size))), config)


def transparent_palette() -> bytes:
    image = Image.fromarray(noise(40, 60)).quantize(16)
    return encoded(image, transparency=3)


FILES = {
    "1": lambda: encoded(Image.fromarray(noise(40, 60, 1)[..., 0]).convert("1")),
    "L": lambda: encoded(Image.fromarray(noise(40, 60, 1)[..., 0])),
    "LA": lambda: encoded(Image.fromarray(noise(40, 60, 2), "LA")),
    "P": lambda: encoded(Image.fromarray(noise(40, 60)).quantize(16)),
    "P with transparency": transparent_palette,
    "P gif": lambda: encoded(Image.fromarray(noise(40, 60)).quantize(16), "GIF", transparency=2),
    "RGB": lambda: encoded(Image.fromarray(noise(40, 60))),
    "RGB with transparency": lambda: encoded(Image.fromarray(noise(40, 60) // 128 * 128), transparency=(0, 128, 0)),
    "L with transparency": lambda: encoded(Image.fromarray(noise(40, 60, 1)[..., 0] // 64), transparency=1),
    "RGBA": lambda: encoded(Image.fromarray(noise(40, 60, 4), "RGBA")),
    "RGBA webp": lambda: encoded(Image.fromarray(noise(40, 60, 4), "RGBA"), "WEBP", lossless=True),
    "CMYK jpeg": lambda: encoded(Image.fromarray(noise(40, 60, 4), "CMYK"), "JPEG"),
    "CMYK tiff": lambda: encoded(Image.fromarray(noise(40, 60, 4), "CMYK"), "TIFF"),
    "jpeg": lambda: encoded(Image.fromarray(noise(40, 60)), "JPEG"),
    "bmp": lambda: encoded(Image.fromarray(noise(40, 60)), "BMP"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_patches_equal_transformers_for_any_file_mode(kind):
    assert_as_oracle(FILES[kind](), ImageConfig())


def test_transparency_is_seen():
    """The modes above would agree by accident if alpha were dropped on both sides: here the outcome is known."""
    clear = encoded(Image.new("RGBA", (2, 2), (10, 20, 30, 0)))
    assert np.asarray(decode(clear, "clear")[0]).tolist() == [[[255] * 3] * 2] * 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(kind, orientation):
    data = encoded(Image.fromarray(noise(40, 61)), kind, exif=oriented(orientation))
    assert_as_oracle(data, ImageConfig())
    image, info = decode(data, "turned")
    assert info == {"mode": "RGB", "size": (40, 61), "orientation": orientation, "window": None}
    assert image.size == ((61, 40) if orientation < 5 else (40, 61))


@pytest.mark.parametrize(
    ("folder", "pattern", "mode"),
    [
        ("kvasir_polyp", "images/*.jpg", "RGB"),
        ("hc18_fetal_head", "images/*.jpg", "RGB"),
        ("biomedparse_demo", "demo/*.png", "RGBA"),
        ("mmmu_health", "images/**/*.png", None),
        ("msd_task08_hepaticvessel_2d", "images/*.png", "L"),
    ],
)
def test_real_images_equal_transformers(real, folder, pattern, mode):
    paths = sorted(real(folder).glob(pattern))[:4]
    assert paths
    for path in paths:
        data = path.read_bytes()
        assert mode in (None, decode(data, path.name)[1]["mode"])
        assert_as_oracle(data, ImageConfig(max_pixels=300_000))


def test_smart_resize_equals_transformers_and_is_symmetric():
    draw = np.random.default_rng(0)
    for _ in range(3000):
        height, width = (int(10 ** draw.uniform(0, 4)) for _ in range(2))
        bounds = {
            "factor": int(draw.choice([28, 32])),
            "min_pixels": int(10 ** draw.uniform(3, 5)),
            "max_pixels": 400_000,
        }
        if max(height, width) / min(height, width) > 200:
            with pytest.raises(ValueError, match="aspect ratio"):
                smart_resize(height, width, **bounds)
        else:
            size = smart_resize(height, width, **bounds)
            assert size == oracle_resize(height, width, **bounds)
            assert size[::-1] == smart_resize(width, height, **bounds)


def test_cap_shrinks_and_never_drops():
    ramp = np.repeat(np.arange(240, dtype=np.uint8), 5)[:, None]
    image = Image.fromarray(np.repeat(ramp, 1300, axis=1)).convert("RGB")
    patches, (_, rows, columns) = patchify(image, ImageConfig(max_pixels=65_536))
    assert 0.8 * 65_536 < rows * columns * 256 <= 65_536
    assert patches.min() < -0.97 and patches.max() > 0.85  # the dark top and the bright bottom are both still there


# --- configuration ----------------------------------------------------------------------------------------------------


def test_config_of_real_folders(real):
    qwen3 = ImageConfig.from_folder(real("model_configs") / "Qwen3-VL-8B-Instruct")
    assert qwen3 == ImageConfig() and qwen3.max_pixels == 1_048_576 and qwen3.patch_dim == 1536
    legacy = ImageConfig.from_folder(real("model_configs") / "Qwen2.5-VL-7B-Instruct", max_pixels=10**9)
    assert legacy == ImageConfig(patch_size=14, min_pixels=3136, max_pixels=12_845_056, **CLIP)


def test_config_that_transformers_saved(tmp_path):
    oracle(QWEN2_5).save_pretrained(tmp_path)
    assert ImageConfig.from_folder(tmp_path) == QWEN2_5
    table = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": table}))
    assert ImageConfig.from_folder(tmp_path) == QWEN2_5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_resize": False}, "do_resize=False"),
        ({"image_processor_type": "SiglipImageProcessor"}, "SiglipImageProcessor"),
        ({"image_mean": None}, "missing image_mean"),
        ({"size": {"height": 3}}, "missing shortest_edge, longest_edge"),
    ],
)
def test_config_refuses_what_it_would_get_wrong(tmp_path, change, message):
    table = {
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    table |= {"size": {"shortest_edge": 65_536, "longest_edge": 16_777_216}} | change
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=f"preprocessor_config.json.*{message}"):
        ImageConfig.from_folder(tmp_path)


def test_config_missing_or_broken(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        ImageConfig.from_folder(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        ImageConfig.from_folder(tmp_path)
    with pytest.raises(ValueError, match="max_pixels 1000"):
        ImageConfig(max_pixels=1000)


# --- windows ----------------------------------------------------------------------------------------------------------


def deep(values: np.ndarray) -> bytes:
    return encoded(Image.fromarray(values), "TIFF")


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        (np.array([[0, 1000, 1500, 2000, 65535]], np.uint16), "I;16"),
        (np.array([[-40000, 1000, 1500, 2000, 70000]], np.int32), "I"),
        (np.array([[-np.inf, 1000, 1500, 2000, np.inf]], np.float32), "F"),
    ],
)
def test_given_window(values, mode):
    image, info = decode(deep(values), "ct", window=[1000, 2000])
    assert np.asarray(image)[..., 0].tolist() == [[0, 0, 128, 255, 255]]  # 127.5 rounds half to even
    assert image.mode == "RGB" and (np.asarray(image) == np.asarray(image)[..., :1]).all()
    assert info == {"mode": mode, "size": (1, 5), "orientation": 1, "window": (1000.0, 2000.0)}


def test_default_window_is_the_percentiles_and_is_linear():
    values = np.random.default_rng(0).normal(5000, 800, (50, 70)).astype(np.uint16)
    image, info = decode(encoded(Image.fromarray(values)), "mr")
    low, high = info["window"]
    assert (low, high) == tuple(np.percentile(values, [0.5, 99.5]))
    expected = np.clip((values - low) / (high - low) * 255, 0, 255)
    assert np.abs(np.asarray(image)[..., 0] - expected).max() <= 0.5 + 1e-9  # rounding to whole numbers
    again, _ = decode(encoded(Image.fromarray(values)), "mr", window=info["window"])
    np.testing.assert_array_equal(np.asarray(again), np.asarray(image))


def test_default_window_of_odd_images():
    flat, info = decode(deep(np.full((4, 5), 700, np.uint16)), "flat")
    assert not np.asarray(flat).any() and info["window"] == (700.0, 1400.0)
    sparse = np.zeros((100, 100), np.uint16)
    sparse[3, 4] = 900
    image, info = decode(deep(sparse), "sparse")
    assert info["window"] == (0.0, 900.0) and np.asarray(image)[3, 4, 0] == 255 and np.asarray(image).sum() == 255 * 3
    holes = np.linspace(-1, 1, 400, dtype=np.float32).reshape(20, 20)
    low, high = np.percentile(holes.astype(np.float64).ravel()[3:], [0.5, 99.5])
    holes.ravel()[:3] = np.nan, np.inf, -np.inf
    image, info = decode(deep(holes), "holes")
    assert info["window"] == (low, high)
    assert np.asarray(image)[0, :3, 0].tolist() == [0, 255, 0]
    with pytest.raises(ValueError, match="void holds no finite value"):
        decode(deep(np.full((4, 5), np.nan, np.float32)), "void")


@pytest.mark.parametrize("window", [(5, 5), (9, 1), (0, np.inf), (np.nan, 1), (1,), "lung", ["a", "b"], (0, 1, 2)])
def test_bad_window(window):
    with pytest.raises(ValueError, match=r"ct is deeper than 8 bits: its window must be \[low, high\]"):
        decode(deep(np.arange(20, dtype=np.uint16).reshape(4, 5)), "ct", window=window)


def test_window_leaves_8_bit_images_alone():
    data = encoded(Image.fromarray(noise(4, 5)))
    image, info = decode(data, "rgb", window="soft tissue")
    np.testing.assert_array_equal(np.asarray(image), noise(4, 5))
    assert info["window"] is None


# --- what is refused --------------------------------------------------------------------------------------------------


def frames(kind: str) -> bytes:
    first, second = (Image.fromarray(noise(40, 60, seed=seed)) for seed in (0, 1))
    return encoded(first, kind, save_all=True, append_images=[second])


def nifti(magic: bytes) -> bytes:
    return struct.pack("<i", 348).ljust(344, b"\0") + magic + bytes(400)


BAD = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "text": (b"this is not an image at all", "is no image"),
    "no pixels": (png(0, 5), "has no pixels"),
    "cut in the header": (encoded(Image.fromarray(noise(40, 60)))[:20], "is no image, is cut short"),
    "gif": (frames("GIF"), "GIF of 2 frames"),
    "apng": (frames("PNG"), "PNG of 2 frames"),
    "webp": (frames("WEBP"), "WEBP of 2 frames"),
    "tiff": (frames("TIFF"), "TIFF of 2 frames"),
    "nifti": (nifti(b"n+1\0"), "a NIfTI volume.*slices"),
    "nifti gz": (gzip.compress(nifti(b"n+1\0")), "a NIfTI volume.*slices"),
    "nifti 2": (struct.pack("<i", 540) + b"n+2\0\r\n\x1a\n" + bytes(600), "a NIfTI-2 volume.*slices"),
    "dicom": (bytes(128) + b"DICM" + bytes(300), "a DICOM file.*slices"),
    "mp4": (b"\0\0\0\x18ftypisom" + bytes(100), "MP4-family file"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is no image"),
    "gzipped text": (gzip.compress(b"hello"), "is no image"),
    "broken gzip": (b"\x1f\x8b" + bytes(100), "is no image"),
    "bomb": (png(60_000, 60_000), "too large to decode safely"),
    "large": (png(12_000, 12_000), "too large to decode safely"),
    "wide": (png(402, 2, bytes(403 * 2)), r"402x2 \(width x height\), an aspect ratio over 200"),
    "tall": (png(1, 201, bytes(2 * 201)), "aspect ratio over 200"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_files_are_named(kind):
    data, message = BAD[kind]
    for read in (decode, image_size, lambda data, name: decode_mask(data, name, UPRIGHT)):
        with pytest.raises(ValueError, match=message) as caught:
            read(data, "record 'r7' image 0")
        assert str(caught.value).startswith("record 'r7' image 0 is ") and "\n" not in str(caught.value)


def test_limits_themselves_are_allowed():
    assert image_size(png(400, 2), "wide") == (2, 400)
    assert decode(png(400, 2, bytes(401 * 2)), "wide")[0].size == (400, 2)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF"])
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_a_cut_file_raises_or_is_still_whole(kind):
    data = encoded(Image.fromarray(noise(40, 60)), kind)
    whole = np.asarray(decode(data, "whole")[0])
    raised = 0
    for size in range(1, len(data), max(1, len(data) // 60)):
        try:
            image, _ = decode(data[:size], "cut.img")
        except ValueError as error:
            assert str(error).startswith("cut.img is ")
            raised += 1
        else:
            np.testing.assert_array_equal(np.asarray(image), whole)
    assert raised >= 50


def test_photograph_with_preview_is_one_image():
    data = frames("MPO")
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert decode(data, "mpo")[0].size == (60, 40)


@pytest.mark.parametrize(
    ("folder", "pattern", "what"),
    [
        ("sct_spinal_cord", "t2.nii.gz", "a NIfTI volume"),
        ("msd_task04_hippocampus", "imagesTr/*.nii.gz", "a NIfTI volume"),
        ("biomedparse_demo", "examples/*.dcm", "a DICOM file"),
    ],
)
def test_real_volumes_are_named(real, folder, pattern, what):
    path = min(real(folder).glob(pattern))
    with pytest.raises(ValueError, match=f"{path.name} is {what}"):
        decode(path.read_bytes(), path.name)


# --- masks ------------------------------------------------------------------------------------------------------------

SHAPE = np.array([[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]], bool)


def palette() -> Image.Image:
    image = Image.fromarray(SHAPE.astype(np.uint8) * 2)
    image.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0])
    return image


MASKS = {
    "1": lambda: encoded(Image.fromarray(SHAPE)),
    "L of ones": lambda: encoded(Image.fromarray(SHAPE.astype(np.uint8))),
    "L of 255": lambda: encoded(Image.fromarray(SHAPE.astype(np.uint8) * 255)),
    "I;16": lambda: encoded(Image.fromarray(SHAPE.astype(np.uint16) * 256)),
    "I": lambda: deep(SHAPE.astype(np.int32) * 70_000),
    "F": lambda: deep(np.where(SHAPE, np.float32(0.5), np.float32(np.nan))),
    "P": lambda: encoded(palette()),
    "RGB blue": lambda: encoded(Image.fromarray(SHAPE[..., None] * np.array([0, 0, 1], np.uint8))),
    "RGBA opaque": lambda: encoded(
        Image.fromarray(np.concatenate([SHAPE[..., None] * np.uint8([7, 0, 0]), np.full((4, 6, 1), 255, np.uint8)], -1))
    ),
    "RGBA clear": lambda: encoded(
        Image.fromarray(np.concatenate([SHAPE[..., None] * np.uint8([7, 0, 0]), np.zeros((4, 6, 1), np.uint8)], -1))
    ),
    "LA": lambda: encoded(Image.merge("LA", (Image.fromarray(SHAPE.astype(np.uint8)), Image.new("L", (6, 4), 255)))),
}


@pytest.mark.parametrize("kind", MASKS)
def test_mask_foreground(kind):
    mask = decode_mask(MASKS[kind](), "mask", UPRIGHT)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, SHAPE)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_mask_turns_with_its_image(kind, orientation):
    """An image that is its own mask: after decoding, both must still say the same."""
    stored = SHAPE.astype(np.uint8) * 255
    image, info = decode(encoded(Image.fromarray(stored), kind, exif=oriented(orientation)), "image")
    mask = decode_mask(encoded(Image.fromarray(stored)), "mask", info)
    np.testing.assert_array_equal(mask, np.asarray(image)[..., 0] > 0)
    assert mask.sum() == SHAPE.sum()


def test_bad_masks():
    def check(data: bytes, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            decode_mask(data, "m.png", UPRIGHT)

    check(encoded(Image.new("L", (6, 5))), r"m.png is 6x5 \(width x height\) pixels but its image is stored as 6x4")
    check(encoded(Image.fromarray(SHAPE.astype(np.uint8) * 255), "JPEG"), r"m.png is lossy \(JPEG\)")
    check(encoded(Image.new("L", (6, 4)), exif=oriented(6)), "orientation tag of its own")
    inverted = palette()
    inverted.putpalette([255, 255, 255, 9, 9, 9, 0, 0, 0])
    check(encoded(inverted), "palette image")


def test_real_masks(real):
    """BiomedParse's RGBA masks have alpha 255 everywhere; the areas in the manifest were counted independently."""
    folder = real("biomedparse_demo")
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()][:6]
    for row in rows:
        _, info = decode((folder / row["image"]).read_bytes(), row["id"])
        for entry in row["masks"]:
            mask = decode_mask((folder / entry["file"]).read_bytes(), entry["file"], info)
            assert mask.shape == (row["height"], row["width"]) and mask.sum() == entry["area"]
