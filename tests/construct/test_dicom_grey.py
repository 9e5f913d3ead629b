"""The grey of DICOM slices: padding, windows that cannot be used, CT without its unit, pixels that are no squares, part decoders."""

import struct

import numpy as np
import pydicom
import pytest
from dicoms import HU, SHAPE, SQUARE, manifest, png, read_all, save, slice_of
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGExtended12Bit

from vital_jax.construct.dicom import Dicom, render
from vital_jax.construct.source import Rejected

R = np.random.default_rng(0)
PICTURE = np.linspace(100, 900, SHAPE[0] * SHAPE[1]).reshape(SHAPE)
PAD = np.indices(SHAPE).sum(0) < 12


def read_one(root, ds, mask=SQUARE, **row):
    save(ds, root / "a.dcm")
    png(root / "m.png", mask)
    manifest(root, {"id": "1", "image": "a.dcm", "masks": [{"target": "liver", "file": "m.png"}], **row})
    return read_all(Dicom(root))


# --- padding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "value", "tags"),
    [
        (np.int16, -32768, {"PixelPaddingValue": -32768}),
        (np.int16, -2000, {"PixelPaddingValue": 63536}),  # written as unsigned
        (np.uint16, 65535, {"PixelPaddingValue": 65535}),
        (np.uint16, 33536, {"PixelPaddingValue": -32000}),  # written as signed
        (np.uint16, 64123, {"PixelPaddingValue": 64000, "PixelPaddingRangeLimit": 65535}),
        (np.uint16, 64123, {"PixelPaddingValue": 65535, "PixelPaddingRangeLimit": 64000}),
    ],
)
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_counts_for_no_window(dtype, value, tags, kind):
    plain = PICTURE.astype(dtype)
    padded = np.where(PAD, dtype(value), plain)
    common = {"Modality": "MR", "PhotometricInterpretation": kind}
    (good, low_high), (found, window) = (
        render(slice_of(pixels, **common, **more), "x") for pixels, more in ((plain, {}), (padded, tags))
    )
    assert (found[PAD] == 0).all() and np.abs(found[~PAD].astype(int) - good[~PAD]).max() <= 25
    assert np.ptp(found[~PAD]) > 240 and window[0] >= low_high[0] and window[1] == pytest.approx(low_high[1], rel=0.01)


def test_a_picture_of_padding_alone_is_shown_as_stored():
    pixels, _ = render(
        slice_of(PICTURE.astype(np.int16), Modality="MR", PixelPaddingValue=0, PixelPaddingRangeLimit=999), "x"
    )
    assert np.ptp(pixels) == 255


@pytest.mark.parametrize(("ground", "tissue"), [(-32768, PICTURE), (-2000, PICTURE - 1000), (0, PICTURE - 500)])
def test_ground_that_no_tag_names_is_black_where_values_go_below_zero(ground, tissue):
    around = np.hypot(*np.indices(SHAPE) - np.array([12, 16])[:, None, None]) > 11
    pixels = np.where(around, ground, tissue).astype(np.int16)
    found, window = render(slice_of(pixels, Modality="MR"), "x")
    low, high = np.percentile(pixels[~around], (0.5, 99.5))
    assert window == pytest.approx((low, high), abs=1) and (found[around] == 0).all() and np.ptp(found[~around]) == 255


# --- windows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0, -5, 0.5])
def test_unusable_windows_are_passed_over_and_counted_out(width):
    good = render(slice_of(HU, WindowCenter=300, WindowWidth=1000), "x")
    both = {"WindowCenter": [40, 300], "WindowWidth": [width, 1000]}
    found = render(slice_of(HU, **both), "x")
    assert found[1] == good[1] == (-200, 800)
    np.testing.assert_array_equal(found[0], good[0])
    with pytest.raises(Rejected, match="has 1 usable windows; number 1"):
        render(slice_of(HU, **both), "x", 1)
    later = {"WindowCenter": [40, 70, 300], "WindowWidth": [400, width, 1000]}
    np.testing.assert_array_equal(render(slice_of(HU, **later), "x", 1)[0], good[0])


def test_narrow_windows_of_functions_that_allow_them():
    values = np.linspace(0, 10, 256).reshape(16, 16).astype(np.uint16)
    tags = {"Modality": "MR", "WindowCenter": 5, "WindowWidth": 0.5}
    for function in ("LINEAR_EXACT", "SIGMOID"):
        assert render(slice_of(values, **tags, VOILUTFunction=function), "x")[1] == (4.75, 5.25)
    assert render(slice_of(values, **tags), "x")[1] == tuple(
        np.percentile(values, (0.5, 99.5))
    )  # LINEAR needs 1, so percentiles
    pixels, window = render(slice_of(values, **{**tags, "WindowWidth": 1}), "x")
    assert window == (4.5, 5.5) and set(np.unique(pixels)) == {0, 255}


def malformed(path, tag, value):
    """Puts text where a decimal string is expected, which pydicom does not write."""
    ds = pydicom.dcmread(path)
    ds.add_new(tag, "LO", value)
    data = pydicom.filebase.DicomBytesIO()
    ds.save_as(data, enforce_file_format=True)
    code = struct.pack("<HH", pydicom.tag.Tag(tag).group, pydicom.tag.Tag(tag).elem)
    path.write_bytes(data.getvalue().replace(code + b"LO", code + b"DS"))


def test_a_malformed_window_costs_no_other(tmp_path):
    save(slice_of(HU), tmp_path / "a.dcm")
    for tag, value in ((0x00281050, "40,5\\\\300"), (0x00281051, "400\\\\1000")):
        malformed(tmp_path / "a.dcm", tag, value.replace("\\\\", "\\"))
    assert render(pydicom.dcmread(tmp_path / "a.dcm"), "a")[1] == (-200, 800)


def test_a_malformed_intercept_is_named(tmp_path):
    save(slice_of(HU), tmp_path / "a.dcm")
    malformed(tmp_path / "a.dcm", 0x00281052, "-1024,0")
    with pytest.raises(Rejected, match="RescaleIntercept is malformed"):
        render(pydicom.dcmread(tmp_path / "a.dcm"), "a")


# --- CT without its unit ------------------------------------------------------------------------------------------

ROWS, COLUMNS = np.indices((64, 64))
BODY, BALL = np.hypot(ROWS - 32, COLUMNS - 32) < 28, np.hypot(ROWS - 28, COLUMNS - 22) < 9
CT = (np.where(BALL, 110, np.where(BODY, 40, -1000)) + R.normal(0, 8, ROWS.shape)).round().clip(-1024)


@pytest.mark.parametrize("tags", [{"WindowCenter": 60, "WindowWidth": 150}, {}])
def test_a_lost_intercept_is_mended(tmp_path, tags):
    good, stated, lost = (
        read_one(tmp_path, slice_of(values, **tags, **more), BALL * 255)
        for values, more in (
            (CT.astype(np.int16), {}),
            ((CT + 1024).astype(np.uint16), {"RescaleSlope": 1, "RescaleIntercept": -1024}),
            ((CT + 1024).astype(np.uint16), {"RescaleSlope": 1, "RescaleIntercept": 0}),
        )
    )
    empty = read_one(
        tmp_path, slice_of((CT + 1024).astype(np.uint16), **tags, RescaleSlope="", RescaleIntercept=""), BALL * 255
    )
    assert empty[0][0].image == lost[0][0].image and empty[1] == lost[1]
    assert good[1] == stated[1] == [] and lost[1] == [("shifted-hounsfield", "a.dcm")]
    for (sample,), _ in (stated, lost):
        assert (sample.image, sample.window) == (good[0][0].image, good[0][0].window)
    assert (stated[0][0].intensity, lost[0][0].intensity) == ("", "shifted")


@pytest.mark.parametrize(
    ("values", "tags"),
    [
        (CT * 3 + 9000, {"WindowCenter": 60, "WindowWidth": 150}),  # a window of a unit that is lost
        (CT * 3 + 9000, {}),
        (np.clip((CT + 160) / 400 * 255, 0, 255), {}),
    ],
)
def test_values_without_the_unit_are_shown_between_percentiles(tmp_path, values, tags):
    (sample,), notes = read_one(tmp_path, slice_of(values.astype(np.uint16), **tags), BALL * 255)
    grey = np.asarray(sample.picture)[..., 0].astype(int)
    assert grey[BALL].mean() > 10 + grey[BODY & ~BALL].mean() > 20 + grey[~BODY].mean()
    assert sample.intensity == "relative" and notes == [("not-hounsfield", "a.dcm")]


def test_a_capture_keeps_a_window_that_fits_it(tmp_path):
    capture = np.clip((CT + 160) / 400 * 255, 0, 255).astype(np.uint8)
    (sample,), _ = read_one(tmp_path, slice_of(capture, WindowCenter=128, WindowWidth=256), BALL * 255)
    assert (sample.window, sample.intensity) == ((0, 256), "relative")


# --- squares ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "spacing"),
    [
        ({"PixelSpacing": [1.4, 0.7]}, (0.7, 0.7)),
        ({"PixelSpacing": None, "ImagerPixelSpacing": [0.4, 0.2]}, ()),
        ({"PixelSpacing": None, "NominalScannedPixelSpacing": [0.4, 0.2]}, ()),
        ({"PixelSpacing": None, "PixelAspectRatio": [2, 1]}, ()),
    ],
)
def test_pixels_that_are_no_squares_become_squares(tmp_path, tags, spacing):
    half = np.hypot(np.indices((40, 80))[0] * 2 - 40, np.indices((40, 80))[1] - 40) < 25  # a disc in millimeters
    picture = np.where(half, 700, 100).astype(np.uint16)
    (sample,), rejected = read_one(
        tmp_path, slice_of(picture, Modality="CR", **tags), half * 255, modality="X-Ray", site="chest"
    )
    assert rejected == [] and sample.picture.size == (80, 80) and sample.spacing == pytest.approx(spacing)
    rows, columns = np.nonzero(sample.region)
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 1 and sample.region.sum() == 2 * half.sum()
    grey = np.asarray(sample.picture)[..., 0].astype(int)
    assert grey[sample.region].mean() > 200 + grey[~sample.region].mean()


def test_nearly_square_pixels_stay(tmp_path):
    (sample,), _ = read_one(tmp_path, slice_of(HU, PixelSpacing=[0.51, 0.5]))
    assert sample.picture.size == SHAPE[::-1] and sample.spacing == (0.51, 0.5)


# --- decoders -----------------------------------------------------------------------------------------------------


def test_a_decoder_that_does_a_part_names_the_one_that_does_the_rest(tmp_path):
    ds = slice_of(HU.astype(np.uint16), BitsStored=12, HighBit=11)
    ds.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    frame = struct.pack(">HBHHBBBB", 11, 12, *SHAPE, 1, 1, 0x11, 0)
    ds.PixelData = encapsulate([b"\xff\xd8\xff\xc1" + frame + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\xff\xd9"])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    if pydicom.pixels.get_decoder(JPEGExtended12Bit).available_plugins != ("pillow",):
        with pytest.raises(Rejected, match="its pixels cannot be read") as e:  # its scan is empty
            render(ds, "a.dcm")
        assert e.value.code == "unreadable-image"
        return
    with pytest.raises(
        Rejected, match=r"JPEG Extended.*12 bits.*pip install 'pylibjpeg>=[\d.]+' 'pylibjpeg-libjpeg>=[\d.]+'"
    ) as e:
        render(ds, "a.dcm")
    assert e.value.code == "no-decoder"
