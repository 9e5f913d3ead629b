"""ROI features: geometry against torch and transformers, hand-computed cases, and every edge case of methods.md §1.5."""

import weakref
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vital_jax.construct.folders import MaskFolder
from vital_jax.construct.roi import (
    area_resize,
    crop_box,
    extract,
    extract_many,
    record_rows,
    siglip_pixels,
    square_crop,
)
from vital_jax.pipeline.records import Record

GRID, SIZE = 8, 32


def encode(images: np.ndarray, grid: int = GRID) -> np.ndarray:
    """A stand-in encoder: mean colour of every patch, its row and column, and a constant."""
    n, size = images.shape[:2]
    cells = images.reshape(n, grid, size // grid, grid, size // grid, 3).mean((2, 4))
    place = np.stack(np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij"), -1) / grid
    place = np.broadcast_to(place, (n, grid, grid, 2))
    return np.concatenate([cells, place, np.ones((n, grid, grid, 1))], -1).reshape(n, grid * grid, 6)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def box_mask(height: int, width: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("shape", [(32, 32), (448, 448), (101, 63), (1070, 1348), (5, 200), (31, 33), (1, 1)])
def test_area_resize_is_torchs(shape):
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(1).random(shape)
    expected = torch.nn.functional.interpolate(torch.tensor(values)[None, None], size=(32, 32), mode="area")[0, 0]
    # Running sums lose a few of the 16 digits of a double.
    np.testing.assert_allclose(area_resize(values, 32), expected.numpy(), rtol=0, atol=1e-10)
    mask = torch.tensor(values > 0.7)[None, None].double()
    expected = torch.nn.functional.interpolate(mask, size=(32, 32), mode="area")[0, 0]
    # torch divides by height and by width, which rounds twice; a count over an area rounds once.
    np.testing.assert_allclose(area_resize(values > 0.7, 32), expected.numpy(), rtol=0, atol=2e-16)


@pytest.mark.parametrize("shape", [(448, 448), (300, 420), (37, 1000), (1024, 1024)])
def test_pixels_are_transformers_bit_for_bit(shape):
    processor = SiglipImageProcessorPil(
        size={"height": 448, "width": 448}, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    image = picture(*shape)
    expected = processor(images=image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    got = siglip_pixels(image, 448)
    assert got.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        # 20 x 40 box, 5 % of 20 and 40 on each side
        (box_mask(200, 300, 50, 70, 100, 140), (49, 71, 98, 142)),
        # parts of a pixel are taken whole: 0.05 * 30 = 1.5
        (box_mask(200, 300, 50, 80, 100, 130), (48, 82, 98, 132)),
        # clipped at the border
        (box_mask(200, 300, 0, 40, 260, 300), (0, 42, 258, 300)),
        # a single pixel, 3 x 3 with its margin, grows to one patch of the image: ceil(200 / 32) x ceil(300 / 32) = 7 x 10
        (box_mask(200, 300, 100, 101, 150, 151), (97, 104, 146, 156)),
        # in a corner the patch is moved inside, not cut
        (box_mask(200, 300, 0, 1, 299, 300), (0, 7, 290, 300)),
        (box_mask(200, 300, 199, 200, 0, 1), (193, 200, 0, 10)),
        # an image smaller than the grid: one pixel is a patch
        (box_mask(20, 20, 3, 4, 5, 6), (2, 5, 4, 7)),
        (np.ones((200, 300), bool), (0, 200, 0, 300)),
    ],
)
def test_crop_box(mask, expected):
    assert crop_box(mask, 0.05, 32) == expected


def test_square_crop_centres_on_black():
    image = picture(50, 60)
    square, valid = square_crop(image, (10, 15, 20, 32))
    assert square.size == (12, 12) and valid.sum() == 5 * 12
    pixels = np.asarray(square)
    np.testing.assert_array_equal(pixels[3:8], np.asarray(image)[10:15, 20:32])
    assert not pixels[:3].any() and not pixels[8:].any() and valid[3:8].all()


def test_whole_image_path_by_hand():
    image = picture(64, 64)
    # Rows 16..47 of 64 = cells 2..5 of 8; row cell 6 is filled to 2 of 8 rows (25 %), under 30 %.
    mask = box_mask(64, 64, 16, 50, 0, 64)
    made = extract(image, mask, encode, GRID, SIZE)
    view = encode(siglip_pixels(image, SIZE)[None])[0].reshape(GRID, GRID, 6)
    expected = unit(view[2:6].reshape(-1, 6).mean(0))
    assert made.path == "full"
    np.testing.assert_allclose(made.feature, expected, atol=1e-6)
    np.testing.assert_allclose(made.global_feature, unit(view.reshape(-1, 6).mean(0)), atol=1e-6)
    cosine = view.reshape(-1, 6) @ expected / np.linalg.norm(view.reshape(-1, 6), axis=1)
    assert made.top5.tolist() == np.argsort(-cosine)[:5].tolist() and made.top5.dtype == np.int32


def test_crop_path_counts_image_not_mask_and_not_padding():
    image = picture(64, 64)
    mask = np.zeros((64, 64), bool)
    mask[20, 10:30] = mask[29, 10:30] = True  # a hollow 10 x 20 box: 40 pixels, under 20 %
    made = extract(image, mask, encode, GRID, SIZE, margin=0.0)
    square, _ = square_crop(image, (20, 30, 10, 30))
    view = encode(siglip_pixels(square, SIZE)[None])[0].reshape(GRID, GRID, 6)
    # 10 of 20 rows are image, from row 5: cells 2..5 of 8.
    assert made.path == "crop"
    np.testing.assert_allclose(made.feature, unit(view[2:6].reshape(-1, 6).mean(0)), atol=1e-6)


def test_the_threshold_itself_takes_the_whole_image():
    image = picture(50, 50)
    assert extract(image, box_mask(50, 50, 0, 10, 0, 50), encode, GRID, SIZE).path == "full"
    mask = box_mask(50, 50, 0, 10, 0, 50)
    mask[0, 0] = False
    assert extract(image, mask, encode, GRID, SIZE).path == "crop"


def test_structures_too_thin_for_any_cell_take_the_fullest():
    image = picture(64, 64)
    mask = np.zeros((64, 64), bool)
    mask[::4] = True  # a quarter of every cell
    mask[8:16, 24] = True
    made = extract(image, mask, encode, GRID, SIZE)
    view = encode(siglip_pixels(image, SIZE)[None])[0]
    assert made.path == "full"
    np.testing.assert_allclose(made.feature, unit(view[1 * GRID + 3]), atol=1e-6)
    # A crop so long that its strip fills no cell to a half.
    made = extract(picture(64, 4000), box_mask(64, 4000, 30, 32, 0, 4000), encode, GRID, SIZE)
    assert made.path == "crop" and np.isfinite(made.feature).all() and abs(np.linalg.norm(made.feature) - 1) < 1e-6


def test_bad_input_is_refused():
    image = picture(20, 30)
    with pytest.raises(ValueError, match="mask is empty"):
        extract(image, np.zeros((20, 30), bool), encode, GRID, SIZE)
    with pytest.raises(ValueError, match=r"mask of \(30, 20\) for an image of \(20, 30\)"):
        extract(image, np.ones((30, 20), bool), encode, GRID, SIZE)
    with pytest.raises(ValueError, match=r"encode gave \(1, 16, 6\), expected \(1, 64 or one more, E\)"):
        extract(image, np.ones((20, 30), bool), lambda images: encode(images, 4), GRID, SIZE)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_batches_change_nothing_and_images_are_encoded_once(batch_size):
    rng = np.random.default_rng(3)
    images = [picture(40 + i, 50, i) for i in range(5)]
    samples = []
    for image in images:
        for _ in range(3):
            y, x = rng.integers(0, 30, 2)
            large = rng.random() < 0.3
            samples.append((image, box_mask(image.height, 50, y, y + (40 if large else 6), 0 if large else x, x + 9)))
    calls = []

    def counted(pixels):
        calls.append(len(pixels))
        return encode(pixels)

    many = list(extract_many(iter(samples), counted, batch_size, GRID, SIZE))
    singles = [extract(image, mask, encode, GRID, SIZE) for image, mask in samples]
    assert len(many) == 15 and set(calls) == {batch_size}
    crops = sum(single.path == "crop" for single in singles)
    assert 0 < crops < 15 and len(calls) == -(-(5 + crops) // batch_size)
    for one, other in zip(many, singles, strict=True):
        assert one.path == other.path
        for left, right in zip(one[:2], other[:2], strict=True):
            np.testing.assert_array_equal(left, right)
        np.testing.assert_array_equal(one.top5, other.top5)


def with_class_token(images):
    """The same encoder with a first row of its own: the mean colour, far from any patch."""
    patches = encode(images)
    token = np.concatenate([images.mean((1, 2)), np.full((len(images), 3), -9.0)], -1)
    return np.concatenate([token[:, None], patches], 1)


def test_a_class_token_is_the_images_feature_and_shifts_no_patch():
    image = picture(64, 64)
    for mask in (box_mask(64, 64, 16, 50, 0, 64), box_mask(64, 64, 3, 9, 4, 20)):
        plain, made = (extract(image, mask, how, GRID, SIZE) for how in (encode, with_class_token))
        np.testing.assert_array_equal(made.feature, plain.feature)
        np.testing.assert_array_equal(made.top5, plain.top5)
        token = with_class_token(siglip_pixels(image, SIZE)[None])[0, 0]
        np.testing.assert_allclose(made.global_feature, unit(token), atol=1e-6)


def test_images_that_follow_each_other_in_one_place_of_memory_are_not_one():
    """Python may give a new image the place, and so the id, of one that is gone."""
    colours = [(i * 5, 0, 0) for i in range(40)]
    mask = np.ones((8, 8), bool)
    made = list(extract_many(((Image.new("RGB", (8, 8), c), mask) for c in colours), encode, 4, GRID, SIZE))
    for colour, got in zip(colours, made, strict=True):
        alone = extract(Image.new("RGB", (8, 8), colour), mask, encode, GRID, SIZE)
        np.testing.assert_array_equal(got.feature, alone.feature)


def test_an_image_with_very_many_targets_keeps_their_order():
    image, masks = picture(40, 60), [box_mask(40, 60, 2, 8, x, x + 6) for x in range(40)]
    made = list(extract_many(((image, mask) for mask in masks), encode, 8, GRID, SIZE))
    assert len(made) == 40
    for number in (0, 15, 16, 39):
        np.testing.assert_array_equal(made[number].feature, extract(image, masks[number], encode, GRID, SIZE).feature)


def png(image) -> bytes:
    file = BytesIO()
    Image.fromarray(np.uint8(image) * 255 if image.dtype == bool else image).save(file, "PNG")
    return file.getvalue()


def record(name: str, image: bytes, mask: bytes | None) -> Record:
    return Record(name, (image,), "Q?", "A.", masks=() if mask is None else (mask,))


def test_rows_of_records_share_images_and_masks():
    first, second = (png(np.asarray(picture(40, 50, i))) for i in range(2))
    left, right = (png(box_mask(40, 50, 5, 15, x, x + 10)) for x in (3, 33))
    plan = [(first, left), (first, None), (first, right), (first, left), (second, None), (second, right), (first, left)]
    records = [record(f"r{i}", *files) for i, files in enumerate(plan)]
    calls = []

    def counted(images):
        calls.append(len(images))
        return encode(images)

    rows = list(record_rows(iter(records), counted, 1, GRID, SIZE))
    assert [row is None for row in rows] == [mask is None for _, mask in plan]
    # first: whole, left, right; second: whole, right; first again: whole, left
    assert len(calls) == 3 + 2 + 2
    for (image, mask), row in zip(plan, rows, strict=True):
        if mask is not None:
            region = np.asarray(Image.open(BytesIO(mask))) > 0
            alone = extract(Image.open(BytesIO(image)).convert("RGB"), region, encode, GRID, SIZE)
            np.testing.assert_array_equal(row.feature, alone.feature)


def test_what_cannot_be_used_is_told_record_by_record():
    good, bad = png(np.asarray(picture(40, 50))), b"no picture"
    mask, empty = png(box_mask(40, 50, 5, 15, 3, 13)), png(np.zeros((40, 50), bool))
    small = png(np.ones((4, 5), bool))
    plan = [
        (good, mask),
        (bad, mask),
        (png(np.asarray(picture(40, 50, 1))), empty),
        (bad, None),
        (good, small),
        (good, None),
    ]
    records = [record(f"r{i}", *files) for i, files in enumerate(plan)]
    faults = []
    rows = list(record_rows(records, encode, 2, GRID, SIZE, faults=faults))
    assert [row is None for row in rows] == [False, True, True, True, True, True]
    assert [fault.split()[:3] for fault in faults] == [["r1", "is", "no"], ["mask", "of", "r2:"], ["mask", "of", "r4"]]
    with pytest.raises(ValueError, match=r"^r1 is no image"):
        list(record_rows(records, encode, 2, GRID, SIZE))


def test_regions_of_steps_are_encoded_with_their_image_and_equal_ones_once():
    image, other = (png(np.asarray(picture(40, 50, i))) for i in range(2))
    left, right, low = (png(box_mask(40, 50, y, y + 10, x, x + 10)) for y, x in ((5, 3), (5, 33), (25, 20)))
    steps = (right, left, right)
    plain = Record("own", (image,), "Q?", "A.", ("a", "b", "c"), masks=(left,), step_masks=steps)
    absent = Record("none", (image,), "Q?", "A.", ("a",), step_masks=(low,))
    records = [plain, absent, record("old", image, left), record("empty", image, None), record("next", other, low)]
    calls = []

    def counted(images):
        calls.append(len(images))
        return encode(images)

    rows = list(record_rows(records, counted, 1, GRID, SIZE))
    assert len(calls) == 4 + 2  # whole, left, right, low; the other image: whole, low

    def alone(data, mask):
        region = np.asarray(Image.open(BytesIO(mask))) > 0
        return extract(Image.open(BytesIO(data)).convert("RGB"), region, encode, GRID, SIZE)

    np.testing.assert_array_equal(rows[0].steps, [alone(image, mask).feature for mask in steps])
    np.testing.assert_array_equal(rows[0].feature, alone(image, left).feature)
    assert rows[1].feature is None and rows[3] is None and len(rows[2].steps) == len(rows[4].steps) == 0
    np.testing.assert_array_equal(rows[1].steps, [alone(image, low).feature])
    np.testing.assert_array_equal(rows[1].global_feature, rows[0].global_feature)


@pytest.mark.parametrize(
    ("mask", "fault"),
    [(np.zeros((40, 50), bool), "empty"), (np.ones((4, 5), bool), "mask of r, step 2")],
)
def test_a_bad_region_of_a_step_names_record_and_step(mask, fault):
    good = png(box_mask(40, 50, 5, 15, 3, 13))
    bad = Record("r", (png(np.asarray(picture(40, 50))),), "Q?", "A.", ("a", "b"), step_masks=(good, png(mask)))
    faults = []
    assert list(record_rows([bad], encode, 2, GRID, SIZE, faults=faults)) == [None]
    assert faults[0].startswith("mask of r, step 2") and fault in faults[0]


def test_memory_holds_a_few_views_only():
    made = []

    def watched(pixels):
        patches = encode(pixels).astype(np.float32)
        made.append(weakref.ref(patches))
        return patches

    images = [picture(40, 40, i) for i in range(30)]
    for _ in extract_many(((image, box_mask(40, 40, 5, 9, 5, 9)) for image in images), watched, 2, GRID, SIZE):
        assert sum(ref() is not None for ref in made) <= 3
    assert len(made) == 30


@pytest.mark.parametrize("name", ["kvasir_polyp", "drishti_optic_disc_cup", "biomedparse_demo"])
def test_real_images_against_a_plain_version_in_torch(real, name):
    """The same rules once more, written with torch and transformers for one image at a time."""
    torch = pytest.importorskip("torch")
    processor = SiglipImageProcessorPil(
        size={"height": 448, "width": 448}, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    weights = torch.randn(16 * 14 * 3, 12, generator=torch.Generator().manual_seed(0))[: 14 * 14 * 3]

    def patches(image):
        pixels = torch.tensor(processor(images=image, return_tensors="np")["pixel_values"])
        cells = torch.nn.functional.unfold(pixels, 14, stride=14)[0].T  # [1024, 588], channel first
        return (cells @ weights).double()

    def ours(images):
        pixels = torch.tensor(images).permute(0, 3, 1, 2)
        return (torch.nn.functional.unfold(pixels, 14, stride=14).transpose(1, 2) @ weights).numpy()

    def area(values):
        return torch.nn.functional.interpolate(
            torch.tensor(values)[None, None].float(), size=(32, 32), mode="area"
        ).flatten()

    folder = MaskFolder(real(name))
    samples = [sample for _, sample in zip(range(8), folder, strict=False)]
    made = list(extract_many(((s.picture, s.region) for s in samples), ours, 4))
    for sample, got in zip(samples, made, strict=True):
        image, mask = sample.picture, sample.region
        if mask.sum() / mask.size >= 0.2:
            view, cells = patches(image), area(mask) >= 0.3
        else:
            ys, xs = np.nonzero(mask)
            height, width = ys.max() + 1 - ys.min(), xs.max() + 1 - xs.min()
            top, bottom = max(0, int(np.floor(ys.min() - 0.05 * height))), int(np.ceil(ys.max() + 1 + 0.05 * height))
            left, right = max(0, int(np.floor(xs.min() - 0.05 * width))), int(np.ceil(xs.max() + 1 + 0.05 * width))
            bottom, right = min(bottom, image.height), min(right, image.width)
            side = max(bottom - top, right - left)
            canvas, valid = np.zeros((side, side, 3), np.uint8), np.zeros((side, side))
            y, x = (side - bottom + top) // 2, (side - right + left) // 2
            canvas[y : y + bottom - top, x : x + right - left] = np.asarray(image)[top:bottom, left:right]
            valid[y : y + bottom - top, x : x + right - left] = 1
            view, cells = patches(Image.fromarray(canvas)), area(valid) >= 0.5
        expected = torch.nn.functional.normalize(view[cells].mean(0), dim=0).numpy()
        # float32 sums of 588 products in another order
        np.testing.assert_allclose(got.feature, expected, atol=1e-5)
        whole = torch.nn.functional.normalize(patches(image).mean(0), dim=0).numpy()
        np.testing.assert_allclose(got.global_feature, whole, atol=1e-5)
