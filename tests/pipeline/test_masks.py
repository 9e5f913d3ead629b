"""Masks of more than two values: what is meant where it has one meaning, and a refusal where it has several."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vital_jax.pipeline.masks import UnclearMask, decode_mask, marked_values, regions_of

ROWS, COLUMNS = np.indices((96, 128))
DISC, CUP = np.hypot(ROWS - 40, COLUMNS - 50) < 24, np.hypot(ROWS - 40, COLUMNS - 50) < 11
INFO = {"size": (96, 128), "orientation": 1}
U8 = np.uint8


def read(pixels, value=None, **options):
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(file, "PNG", **options)
    return decode_mask(file.getvalue(), "m.png", INFO, value)


def jpeg(pixels, quality):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


TRIMAP = np.where(CUP, 0, np.where(DISC, 128, 255)).astype(U8)
LABELS = np.where(CUP, 2, np.where(DISC, 1, 0)).astype(U8)
SOFT = np.clip(255 / (1 + np.exp((np.hypot(ROWS - 40, COLUMNS - 50) - 24) / 5)), 0, 255).astype(U8)
COLOURS = np.stack([DISC * 255, CUP * 255, CUP * 0], -1).astype(U8)
WHITE = np.full((96, 128, 3), 255, U8)
UNCLEAR = {
    "trimap": (TRIMAP, "holds 3 values \\(0, 128, 255\\)"),
    "labels": (LABELS, "holds 3 values \\(0, 1, 2\\)"),
    "16-bit labels": (LABELS.astype(np.uint16) * 300, "holds 3 values \\(0, 300, 600\\)"),
    "no zero": (DISC.astype(U8) + 1, "holds the values 1, 2 and no 0"),
    "probabilities": (SOFT, "holds [0-9]+ values"),
    "two colours": (COLOURS, "holds 3 colours"),
    "instances": (LABELS + (ROWS // 12).astype(U8) * 3, "holds [0-9]+ values"),
    "thin classes beside a void of 255": (
        np.where(CUP, 255, DISC * (1 + COLUMNS // 3 % 7)).astype(U8),
        "holds 9 values",
    ),
    "a label map with a void": (np.where(CUP, 255, COLUMNS // 16).astype(U8), "holds 9 values"),
    "jpeg of a trimap": (jpeg(TRIMAP, 90), "holds [0-9]+ values"),
    "colour and alpha": (
        np.dstack([DISC[..., None].repeat(3, 2) * U8(255), CUP * U8(255)]),
        "one shape in its colours and another in its alpha",
    ),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_what_has_several_meanings_is_refused_with_the_way_out(kind):
    pixels, message = UNCLEAR[kind]
    with pytest.raises(UnclearMask, match=f"m.png {message}|{message}"):
        read(pixels)


MENDED = {
    "jpeg 40, which stores black as 1": jpeg(DISC.astype(U8) * 255, 40),
    "jpeg 75": jpeg(DISC.astype(U8) * 255, 75),
    "jpeg 10, in colour": np.asarray(Image.fromarray(jpeg(DISC.astype(U8) * 255, 10)).convert("RGB")),
    "antialiased": np.asarray(
        Image.fromarray(np.repeat(np.repeat(DISC, 2, 0), 2, 1).astype(U8) * 255).resize(
            (128, 96), Image.Resampling.LANCZOS
        )
    ),
    "white, shape in alpha": np.dstack([WHITE, DISC * U8(255)]),
    "black, shape in alpha": np.dstack([WHITE * 0, DISC * U8(255)]),
    "grey, shape in alpha": np.stack([np.full((96, 128), 255, U8), DISC * U8(255)], -1),
    "red on transparent white": np.dstack(
        [WHITE * ~DISC[..., None] + DISC[..., None] * U8([255, 0, 0]), DISC * U8(255)]
    ),
    "black outside, shape in both": np.dstack([WHITE * DISC[..., None], DISC * U8(255)]),
    "soft alpha": np.dstack([WHITE, jpeg(DISC.astype(U8) * 255, 75)]),
}


@pytest.mark.parametrize("kind", MENDED)
def test_what_has_one_meaning_is_read(kind):
    assert (read(MENDED[kind]) ^ DISC).sum() <= 0.02 * DISC.sum()


@pytest.mark.parametrize(
    ("pixels", "value", "meant"),
    [
        (LABELS, 2, CUP),
        (LABELS, [1, 2], DISC),
        (LABELS, 0, ~DISC),
        (LABELS, ">0", DISC),
        (TRIMAP, [0, 128], DISC),
        (TRIMAP, "<=128", DISC),
        (SOFT, ">=128", SOFT >= 128),
        (COLOURS, "#ffff00", CUP),
        (COLOURS[..., [0, 0, 0]], 255, DISC),
        (LABELS, 7, CUP & ~CUP),
    ],
)
def test_value_says_what_is_meant(pixels, value, meant):
    np.testing.assert_array_equal(read(pixels, value), meant)


def test_value_of_a_palette_is_its_entry():
    image = Image.fromarray(LABELS)
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    file = io.BytesIO()
    image.save(file, "PNG")
    np.testing.assert_array_equal(decode_mask(file.getvalue(), "m", INFO, 2), CUP)
    with pytest.raises(UnclearMask, match="palette image"):
        decode_mask(file.getvalue(), "m", INFO)


@pytest.mark.parametrize("value", [True, "two", [], [1, "2"], {"a": 1}, ">= many", "#ff00"])
def test_a_value_that_is_none(value):
    with pytest.raises(ValueError, match=r"m.png: value .* must be a number, a list of numbers"):
        read(LABELS, value)


def test_a_value_that_the_mask_cannot_have():
    with pytest.raises(UnclearMask, match="is in colour: value must be like"):
        read(COLOURS, 255)
    with pytest.raises(UnclearMask, match="not in colour"):
        read(LABELS, "#ff0000")


def test_numbers_of_any_shape():
    values = np.array([[[0, np.nan, 0.5]]], np.float32)
    assert marked_values(values, "map").tolist() == [[[False, False, True]]]
    assert not marked_values(values * 0, "map").any() and marked_values(np.full((2, 3, 4), 3), "map").all()
    with pytest.raises(UnclearMask, match="map holds 3 values"):
        marked_values(np.array([0.0, 0.25, 0.5]), "map")


def test_the_region_of_each_latent_is_its_steps_or_the_records():
    def png(mask):
        file = io.BytesIO()
        Image.fromarray(mask.astype(U8) * 255).save(file, "PNG")
        return file.getvalue()

    disc, cup, none = png(DISC), png(CUP), png(DISC & False)
    for masks, steps, K, expected in (
        ((disc,), (cup, disc), 4, [CUP, DISC, DISC, DISC]),
        ((disc,), (cup, disc), 1, [CUP]),
        ((disc,), (), 3, [DISC] * 3),
        ((), (cup,), 2, [CUP, CUP]),
        ((), (), 2, [None, None]),
        ((disc,), (cup, none), 2, [CUP, None]),
        ((disc,), (cup,), 0, []),
    ):
        found = regions_of(SimpleNamespace(id="r", masks=masks, step_masks=steps), K, INFO)
        for one, right in zip(found, expected, strict=True):
            assert (one is None) == (right is None)
            if right is not None:
                np.testing.assert_array_equal(one, right)
    assert regions_of(SimpleNamespace(id="a question"), 2, INFO) == [None, None]
    with pytest.raises(ValueError, match="mask of r, step 2"):
        regions_of(SimpleNamespace(id="r", step_masks=(cup, b"x")), 2, INFO)
