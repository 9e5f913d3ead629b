"""Files deeper than 8 bits a channel: every one must show the picture that it holds, or be refused by name."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from vital_jax.pipeline.images import decode, read

ROWS, COLUMNS = np.indices((40, 60))
PICTURE = np.clip(0.1 + 0.6 * (np.hypot(ROWS - 18, COLUMNS - 25) < 12) + COLUMNS / 300, 0, 1)
TWELVE = (PICTURE * 4095).astype(np.uint16)


def png16(pixels, kind):
    """A 16-bit PNG of a colour type (0 grey, 2 RGB, 4 grey and alpha, 6 RGBA), its rows filtered by the pixel to the left."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    step = rows.shape[1] // width
    rows = np.concatenate([rows[:, :step], rows[:, step:] - rows[:, :-step]], 1)
    data = b"".join(b"\1" + row.tobytes() for row in rows)
    chunk = lambda name, body: struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))  # noqa: E731
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff(pixels, photometric=1, end="<", orientation=1):
    """An uncompressed TIFF of [H, W] or [H, W, 3 or 4] values of any type."""
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    height, width, channels = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder(end)).tobytes()
    bits, kind = pixels.dtype.itemsize * 8, {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    at = 8 + len(data)
    lists = struct.pack(end + "H" * channels, *[bits] * channels) + struct.pack(
        end + "H" * channels, *[kind] * channels
    )
    one = channels == 1
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, bits if one else at), (259, 3, 1, 1), (262, 3, 1, photometric),
        (273, 4, 1, 8), (274, 3, 1, orientation), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(data)),
        *([(338, 3, 1, 2)] if channels == 4 else []), (339, 3, channels, kind if one else at + 2 * channels),
    ]  # fmt: skip
    short = [kind == 3 and count == 1 for _, kind, count, _ in tags]
    entries = b"".join(
        struct.pack(end + "HHI", *tag[:3])
        + struct.pack(end + ("HH" if is_short else "I"), *[tag[3], 0][: 1 + is_short])
        for tag, is_short in zip(tags, short, strict=True)
    )
    start = (b"II*\0" if end == "<" else b"MM\0*") + struct.pack(end + "I", at + len(lists))
    return start + data + lists + struct.pack(end + "H", len(tags)) + entries + struct.pack(end + "I", 0)


def shown(data):
    return np.asarray(decode(data, "film")[0])[..., 0].astype(int)


GREY = shown(png16(TWELVE, 0))
FULL = np.full_like(TWELVE, 65535)


@pytest.mark.parametrize(
    ("channels", "kind"), [([TWELVE, FULL], 4), ([TWELVE] * 3, 2), ([TWELVE, TWELVE, TWELVE, FULL], 6)]
)
def test_grey_is_shown_alike_in_every_colour_type_of_png(channels, kind):
    assert GREY.max() == 255 and np.ptp(GREY) > 200
    np.testing.assert_array_equal(shown(png16(np.stack(channels, -1), kind)), GREY)


def test_transparent_pixels_are_white_and_count_for_no_window():
    alpha, values = FULL.copy(), TWELVE.copy()
    alpha[:5], values[:5] = 0, 65000
    found = shown(png16(np.stack([values, alpha], -1), 4))
    assert (found[:5] == 255).all() and np.abs(found[5:] - GREY[5:]).max() <= 3


def test_alpha_of_twelve_bits_is_as_opaque_as_one_of_sixteen():
    for alpha in (FULL, FULL // 16):
        np.testing.assert_array_equal(shown(png16(np.stack([TWELVE, alpha], -1), 4)), GREY)
    half = shown(png16(np.stack([TWELVE, np.where(np.indices(TWELVE.shape)[0] < 5, 0, 4095).astype(np.uint16)], -1), 4))
    assert (half[:5] == 255).all() and np.abs(half[5:] - GREY[5:]).max() <= 40


def test_signed_values_of_eight_bits_keep_their_sign():
    values = np.rint(200 * PICTURE - 100).astype(np.int8)
    for end in "<>":
        np.testing.assert_array_equal(read(tiff(values, end=end), "t").values, values)
    assert np.corrcoef(shown(tiff(values)).ravel(), PICTURE.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("end", ["<", ">"])
def test_true_colours_keep_their_proportions(end):
    colours = np.stack([TWELVE, TWELVE // 2, 4095 - TWELVE], -1)
    wanted = np.rint(colours / 4095 * 255)
    for data in (png16(colours, 2), tiff(colours, 2, end), tiff(np.dstack([colours, FULL]), 2, end)):
        image, info = decode(data, "stain")
        assert info["window"] is None
        np.testing.assert_array_equal(np.asarray(image), wanted)
    deep = (colours.astype(np.uint32) * 16).astype(np.uint16)  # 16 bits that are used
    assert np.abs(np.asarray(decode(png16(deep, 2), "stain")[0]) - wanted).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int16, np.int32, np.float32])
@pytest.mark.parametrize("end", ["<", ">"])
def test_white_is_zero_is_turned_at_every_depth(dtype, end):
    if (dtype, end) == (np.uint32, ">"):
        with pytest.raises(ValueError, match="film is a TIFF of 32-bit unsigned values"):  # Pillow has no such reader
            shown(tiff(PICTURE.astype(dtype), 1, end))
        return
    most = 1 if dtype is np.float32 else min(np.iinfo(dtype).max, 4e9)
    black, white = (tiff((each * most).astype(dtype), kind, end) for each, kind in ((PICTURE, 1), (1 - PICTURE, 0)))
    assert np.corrcoef(shown(black).ravel(), PICTURE.ravel())[0, 1] > 0.99
    assert np.abs(shown(black) - shown(white)).max() <= 1


def test_unsigned_values_over_two_billion_stay_positive():
    values = (PICTURE * 0.98 * 2**32).astype(np.uint32)
    np.testing.assert_array_equal(read(tiff(values), "t").values, values)
    assert read(tiff(-np.ones((4, 5), np.int32)), "t").values.min() == -1


def test_deep_colours_turn_with_their_orientation():
    colours = np.stack([TWELVE, TWELVE // 2, TWELVE], -1)
    turned, plain = (decode(tiff(colours, 2, orientation=number), "t") for number in (3, 1))
    np.testing.assert_array_equal(np.asarray(turned[0]), np.asarray(plain[0])[::-1, ::-1])
    assert turned[1]["orientation"] == 3


def test_what_pillow_brings_down_in_silence_is_refused():
    data = b"P6 60 40 4095\n" + np.stack([TWELVE] * 3, -1).astype(">u2").tobytes()
    with pytest.raises(ValueError, match=r"p.ppm is a PPM of 12 bits per colour; save it as PNG or TIFF"):
        decode(data, "p.ppm")
    whole = png16(np.stack([TWELVE, TWELVE.T.reshape(TWELVE.shape), TWELVE], -1), 2)
    with pytest.raises(ValueError, match=r"p.png is damaged or cut short"):
        decode(whole[: len(whole) // 2], "p.png")
    file = BytesIO()
    Image.fromarray((PICTURE * 255).astype(np.uint8)).convert("RGB").save(file, "JPEG2000")
    assert decode(file.getvalue(), "j")[0].size == (60, 40)
