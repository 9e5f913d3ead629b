"""DICOM: a real slice against the standard's formula, every display setting, series marked by a volume, names that must not leak."""

import shutil
from io import BytesIO

import nibabel
import numpy as np
import pydicom
import pytest
from dicoms import HU, SHAPE, SQUARE, manifest, png, read_all, save, slice_of
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLSLossless, generate_uid

from vital_jax.construct.dicom import Dicom, anonymous, render
from vital_jax.construct.source import Rejected


@pytest.fixture
def root(tmp_path):
    """One CT slice in Hounsfield units with a mask of 144 pixels."""
    root = tmp_path / "ward"
    save(slice_of(HU, WindowCenter=40, WindowWidth=400), root / "Doe_Jane.dcm")
    png(root / "square.png", SQUARE)
    manifest(root, {"id": "MRN-00417", "image": "Doe_Jane.dcm", "masks": [{"target": "liver", "file": "square.png"}]})
    return root


# --- grey ---------------------------------------------------------------------------------------------------------


def linear(values, center, width):
    """PS3.3 C.11.2.1.2.1, by hand, onto 0..255."""
    share = (values - (center - 0.5)) / (width - 1) + 0.5
    return np.rint(np.clip(share, 0, 1) * 255)


def test_the_real_slice_is_shown_by_its_first_window(real, tmp_path):
    shutil.copyfile(real("biomedparse_demo") / "examples/CT_lung_nodule.dcm", tmp_path / "a.dcm")
    disc = np.hypot(*(np.indices((512, 512)) - np.array([205, 95])[:, None, None])) < 9
    png(tmp_path / "a.png", disc * 255)
    row = {"id": "a", "site": "lung", "image": "a.dcm", "masks": [{"target": "nodule", "file": "a.png"}]}
    manifest(tmp_path, row)
    (sample,), rejected = read_all(Dicom(tmp_path))
    assert rejected == [] and Dicom.claims(tmp_path)
    assert (sample.window, sample.spacing) == ((-1200.0, 400.0), (0.513671875, 0.513671875))
    assert (sample.orientation, sample.modality) == ("radiological", "CT")
    ds = pydicom.dcmread(tmp_path / "a.dcm")
    hounsfield = ds.pixel_array.astype(float) - 1024
    shown = np.asarray(Image.open(BytesIO(sample.image)))
    np.testing.assert_array_equal(shown, linear(hounsfield, -400, 1600))
    assert len(np.unique(shown)) > 5 and shown.dtype == np.uint8
    # The nodule is soft tissue in air; the heart is on the image's right, the table below.
    grey = np.asarray(sample.picture.convert("L")).astype(float)
    assert grey[sample.region].mean() > 90 + grey[190:225, 120:150].mean()
    assert grey[150:280, 260:380].mean() > 60 + grey[150:280, 60:180].mean()
    # The second window of this file is two units wide: nearly black and white.
    (second,), _ = read_all(Dicom(tmp_path, window=1))
    assert second.window == (-1.0, 1.0) and np.isin(np.asarray(second.picture), (0, 255)).mean() > 0.98
    assert read_all(Dicom(tmp_path, window=2)) == ([], [("bad-window", "a.dcm")])
    with pytest.raises(ValueError, match="window -1"):
        Dicom(tmp_path, window=-1)


def test_the_window_fills_eight_bits_whatever_is_stored():
    for values in (HU, (HU + 1000).astype(np.uint16)):
        slope = {"RescaleSlope": 1, "RescaleIntercept": -1000} if values.dtype == np.uint16 else {}
        pixels, window = render(slice_of(values, WindowCenter=[40, 300], WindowWidth=[400, 1000], **slope), "x", 0)
        np.testing.assert_array_equal(pixels, linear(HU.astype(float), 40, 400))
        assert window == (-160, 240) and (pixels.min(), pixels.max()) == (0, 255)
        pixels, window = render(slice_of(values, WindowCenter=[40, 300], WindowWidth=[400, 1000], **slope), "x", 1)
        np.testing.assert_array_equal(pixels, linear(HU.astype(float), 300, 1000))


def test_other_window_functions():
    exact = render(slice_of(HU, WindowCenter=0, WindowWidth=500, VOILUTFunction="LINEAR_EXACT"), "x")[0]
    np.testing.assert_array_equal(exact, np.rint(np.clip(HU / 500 + 0.5, 0, 1) * 255))
    sigmoid = render(slice_of(HU, WindowCenter=0, WindowWidth=500, VOILUTFunction="SIGMOID"), "x")[0]
    np.testing.assert_array_equal(sigmoid, np.rint(255 / (1 + np.exp(-4.0 * HU / 500))))


def test_monochrome1_is_turned_and_tables_are_looked_up():
    plain = render(slice_of(HU, WindowCenter=40, WindowWidth=400), "x")[0]
    turned = render(slice_of(HU, WindowCenter=40, WindowWidth=400, PhotometricInterpretation="MONOCHROME1"), "x")[0]
    np.testing.assert_array_equal(turned, 255 - plain)
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4, 100, 12], [0, 1000, 3000, 4095]
    values = np.array([[99, 100, 101], [102, 103, 9000]], np.uint16)
    pixels, window = render(slice_of(values, VOILUTSequence=[table], WindowCenter=40, WindowWidth=400), "x")
    np.testing.assert_array_equal(pixels, np.rint(np.array([[0, 0, 1000], [3000, 4095, 4095]]) / 4095 * 255))
    assert window == ()


def test_without_a_window():
    pixels, window = render(slice_of(HU), "x", site="lung")
    assert window == (-1350.0, 150.0)
    np.testing.assert_array_equal(pixels, np.rint(np.clip((HU + 1350.0) / 1500, 0, 1) * 255))
    assert render(slice_of(HU, WindowCenter=40, WindowWidth=0), "x", site="lung")[1] == (-1350.0, 150.0)
    pixels, window = render(slice_of(HU, Modality="MR"), "x", site="lung")
    np.testing.assert_allclose(window, np.percentile(HU, (0.5, 99.5)))
    assert (pixels == 0).sum() and (pixels == 255).sum()
    with pytest.raises(Rejected, match="no-contrast"):
        render(slice_of(np.zeros(SHAPE, np.int16), Modality="MR"), "x")


def test_colour_stays_colour():
    colours = np.random.default_rng(0).integers(0, 255, (*SHAPE, 3)).astype(np.uint8)
    ds = slice_of(colours, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, Modality="US")
    pixels, window = render(ds, "x")
    np.testing.assert_array_equal(pixels, colours)
    assert window == ()


# --- sources ------------------------------------------------------------------------------------------------------


def test_no_name_of_a_patient_goes_on(root):
    source = Dicom(root, licence="CC0-1.0")
    (sample,), rejected = read_all(source)
    assert rejected == []
    assert (sample.id, sample.group) == (f"ward/{anonymous('MRN-00417')}/liver", f"ward/{anonymous('MRN-00417')}")
    assert (sample.source, sample.licence, sample.spacing) == ("ward", "CC0-1.0", (0.5, 0.5))
    told = repr([sample, source.units()[0].id]).encode() + sample.image + sample.mask
    for name in (b"MRN", b"00417", b"Doe", b"Jane"):
        assert name not in told
    assert len(anonymous("x")) == 16 and anonymous("x") != anonymous("y")
    # The same patient is the same group under another id; a group that the manifest states comes first, hashed too.
    row = {"id": "2", "image": "Doe_Jane.dcm", "masks": [{"target": "liver", "file": "square.png"}]}
    manifest(root, row, row | {"id": "3", "group": 0})
    first, second = read_all(source)[0]
    assert first.group == sample.group and second.group == f"ward/{anonymous('0')}"


def test_a_slice_marked_by_a_volume_and_by_an_image(root):
    # 40 x 30 x 5 voxels of 1 mm, in the volume's own axes; DICOM's y runs to the back and its x to the left.
    marked = np.zeros((40, 30, 5), np.uint8)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = [-25.1, 5.1, 28]
    marked[20:30, 5:14, 2] = 1
    nibabel.save(nibabel.Nifti1Image(marked, affine), root / "liver.nii.gz")
    masks = [{"target": "liver", "file": "liver.nii.gz"}, {"target": "spleen", "file": "square.png"}]
    manifest(root, {"id": "1", "image": "Doe_Jane.dcm", "masks": masks})
    (liver, spleen), rejected = read_all(Dicom(root, min_area=10))
    assert rejected == [] and spleen.region.sum() == 144
    rows, columns = np.indices(SHAPE)
    right, front = -(-10 + 0.5 * columns), -(-20 + 0.5 * rows)
    x, y = np.rint(right + 25.1), np.rint(front - 5.1)
    np.testing.assert_array_equal(liver.region, (x >= 20) & (x < 30) & (y >= 5) & (y < 14))
    assert liver.neighbours[0][0] == "spleen" and 60 < liver.region.sum() < SHAPE[0] * SHAPE[1] / 2


@pytest.fixture
def series(tmp_path):
    """Twelve slices 3 mm apart, stored in no order; a liver in seven of them, on a coarser, turned grid."""
    root = tmp_path / "ward"
    for place, z in enumerate(np.random.default_rng(3).permutation(12)):
        values = np.full(SHAPE, z * 10, np.int16)
        corner = [-10, -20, 30 + 3 * int(z)]
        save(
            slice_of(values, ImagePositionPatient=corner, WindowCenter=60, WindowWidth=121), root / f"ct/{place:02}.dcm"
        )
    marked = np.zeros((20, 20, 12), np.uint8)
    marked[4:12, 2:9, 3:10] = 1
    affine = np.array([[0, -2.0, 0, 12], [1.5, 0, 0, -2], [0, 0, 3.0, 30], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(marked, affine), root / "liver.nii.gz")
    manifest(root, {"id": "s", "image": "ct", "masks": [{"target": "liver", "file": "liver.nii.gz"}]})
    return root


def test_a_series_in_order_with_few_slices_per_target(series):
    (unit,) = Dicom(series).units()
    assert unit.files == (*(f"ct/{number:02}.dcm" for number in range(12)), "liver.nii.gz")
    samples, rejected = read_all(Dicom(series, min_area=20, max_slices=0))
    assert rejected == []
    assert [int(sample.id.split("-")[1].split("/")[0]) for sample in samples] == list(range(3, 10))
    for number, sample in zip(range(3, 10), samples, strict=True):
        assert np.unique(np.asarray(sample.picture)) == linear(np.array(number * 10.0), 60, 121)
        assert sample.orientation == "radiological" and sample.spacing == (0.5, 0.5)
    rows, columns = np.indices(SHAPE)
    right, front = 10 - 0.5 * columns, 20 - 0.5 * rows
    i, j = np.rint((front + 2) / 1.5), np.rint((12 - right) / 2)
    for sample in samples:
        np.testing.assert_array_equal(sample.region, (i >= 4) & (i < 12) & (j >= 2) & (j < 9))
    assert len({sample.group for sample in samples}) == 1
    few, _ = read_all(Dicom(series, min_area=20, max_slices=2))
    assert [sample.id for sample in few] == [samples[1].id, samples[5].id]
    assert read_all(Dicom(series, min_area=5000)) == ([], [("small-mask", "liver.nii.gz")])


def test_a_broken_slice_or_mask_costs_only_itself(series):
    whole, _ = read_all(Dicom(series, min_area=20, max_slices=0))
    heights = {path: pydicom.dcmread(path).ImagePositionPatient[2] for path in (series / "ct").iterdir()}
    in_order = sorted(heights, key=heights.get)
    data = in_order[5].read_bytes()
    in_order[5].write_bytes(data[:-100])
    samples, rejected = read_all(Dicom(series, min_area=20, max_slices=0))
    assert [s.image for s in samples] == [s.image for s in whole if s.id != whole[2].id]
    assert rejected == [("unreadable-image", f"ct/{in_order[5].name}")]
    in_order[5].write_bytes(b"no DICOM")
    samples, rejected = read_all(Dicom(series, min_area=20, max_slices=0))
    assert len(samples) == 6 and rejected == [("unreadable-image", f"ct/{in_order[5].name}")]
    in_order[5].write_bytes(data)
    masks = [
        {"target": name, "file": file}
        for name, file in {"liver": "liver.nii.gz", "spleen": "square.png", "unicorn": "liver.nii.gz", "aorta": "no.nii",
                           "left kidney": "far.nii.gz", "stomach": "cut.nii.gz"}.items()
    ]  # fmt: skip
    png(series / "square.png", SQUARE)
    shutil.copyfile(series / "liver.nii.gz", series / "cut.nii.gz")
    (series / "cut.nii.gz").write_bytes((series / "cut.nii.gz").read_bytes()[:-9])
    far = np.diag([1.0, 1, 1, 1])
    far[:3, 3] = 900
    nibabel.save(nibabel.Nifti1Image(np.ones((9, 9, 9), np.uint8), far), series / "far.nii.gz")
    manifest(series, {"id": "s", "image": "ct", "masks": masks})
    samples, rejected = read_all(Dicom(series, min_area=20))
    assert [sample.mask for sample in samples] == [sample.mask for sample in whole]
    assert sorted(rejected) == [
        ("empty-mask", "far.nii.gz"),
        ("missing-file", "no.nii"),
        ("unknown-target", "liver.nii.gz"),
        ("unreadable-mask", "cut.nii.gz"),
        ("unreadable-mask", "square.png"),
    ]


def test_slices_of_two_series_and_a_folder_of_none(series):
    save(slice_of(HU, SeriesInstanceUID=generate_uid()), series / "ct/other.dcm")
    assert read_all(Dicom(series)) == ([], [("mixed-series", "ct")])
    shutil.rmtree(series / "ct")
    (series / "ct").mkdir()
    assert read_all(Dicom(series)) == ([], [("missing-file", "ct")])


def compressed():
    ds = slice_of(HU)
    ds.file_meta.TransferSyntaxUID = JPEGLSLossless
    ds.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xf7not a real stream"])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return ds


BROKEN = {
    "unreadable-image": lambda r: (r / "Doe_Jane.dcm").write_bytes(b"no DICOM at all"),
    "missing-file": lambda r: (r / "Doe_Jane.dcm").unlink(),
    "no-decoder": lambda r: save(compressed(), r / "Doe_Jane.dcm"),
    "burned-in-text": lambda r: save(slice_of(HU, BurnedInAnnotation="YES"), r / "Doe_Jane.dcm"),
    "multi-frame": lambda r: save(slice_of(HU, NumberOfFrames=2), r / "Doe_Jane.dcm"),
    "size-mismatch": lambda r: png(r / "square.png", SQUARE.T),
    "empty-mask": lambda r: png(r / "square.png", SQUARE * 0),
    "unreadable-mask": lambda r: (r / "square.png").write_bytes((r / "square.png").read_bytes()[:50]),
}


@pytest.mark.parametrize("code", BROKEN)
def test_broken_files(root, code, monkeypatch):
    if code == "no-decoder":
        # Whatever is installed here, the user's machine may lack it.
        monkeypatch.setattr(pydicom.pixels.decoders.base.Decoder, "is_available", property(lambda self: False))
    BROKEN[code](root)
    samples, rejected = read_all(Dicom(root))
    assert samples == []
    assert rejected == [(code, "square.png" if "mask" in code or "size" in code else "Doe_Jane.dcm")]


def test_the_reason_names_the_package_to_install(root):
    save(compressed(), root / "Doe_Jane.dcm")
    (unit,) = Dicom(root).units()
    if pydicom.pixels.get_decoder(JPEGLSLossless).is_available:
        pytest.skip("a decoder for JPEG-LS is installed")
    with pytest.raises(
        Rejected, match=r"JPEG-LS Lossless.*pip install 'pylibjpeg>=[\d.]+' 'pylibjpeg-libjpeg>=[\d.]+'"
    ):
        next(iter(Dicom(root).read(unit)))


@pytest.mark.filterwarnings("ignore:A value of '0' for")
def test_a_file_of_no_frames_by_its_header_holds_one(root):
    save(slice_of(HU, NumberOfFrames=0), root / "Doe_Jane.dcm")
    assert [sample.region.shape for sample in read_all(Dicom(root))[0]] == [SHAPE]


def test_a_truncated_slice_and_one_without_place(root):
    path = root / "Doe_Jane.dcm"
    path.write_bytes(path.read_bytes()[:-100])
    assert read_all(Dicom(root)) == ([], [("unreadable-image", "Doe_Jane.dcm")])
    save(slice_of(HU, ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None), path)
    (sample,), _ = read_all(Dicom(root))
    assert (sample.spacing, sample.orientation) == ((), "image")
    nibabel.save(nibabel.Nifti1Image(np.ones((9, 9, 9), np.uint8), np.diag([2.0, 2, 2, 1])), root / "all.nii.gz")
    manifest(root, {"id": "1", "image": "Doe_Jane.dcm", "masks": [{"target": "liver", "file": "all.nii.gz"}]})
    assert read_all(Dicom(root)) == ([], [("no-affine", "Doe_Jane.dcm")])
    manifest(root, {"id": "1", "image": "../Doe_Jane.dcm", "masks": []})
    assert read_all(Dicom(root)) == ([], [("path-escape", "manifest.jsonl:1")])
