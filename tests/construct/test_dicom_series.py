"""Series of DICOM slices: what a volume can mark, what is left out and said so, and enhanced files, whose frames are slices."""

import json
import shutil

import nibabel
import numpy as np
import pytest
from dicoms import SERIES, manifest, read_all, save, slice_of
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage, generate_uid

from vital_jax.construct.dicom import Dicom

DEPTH, SIZE = 10, 48
Z, ROWS, COLUMNS = np.indices((DEPTH, SIZE, SIZE))
BALL = (COLUMNS - 16) ** 2 + (ROWS - 20) ** 2 + (3 * (Z - 5)) ** 2 < 144
BODY = np.hypot(ROWS - 24, COLUMNS - 24) < 22
CT = (np.where(BALL, 110, np.where(BODY, 30, -1000)) + np.random.default_rng(0).normal(0, 6, Z.shape)).astype(np.int16)
SPACING, FIRST = [0.8, 0.8], -50.0


def plane(z, pixels=None, **tags):
    place = {"ImagePositionPatient": [-10, -20, FIRST + 3 * z], "PixelSpacing": SPACING, "InstanceNumber": int(z) + 1}
    return slice_of(CT[z] if pixels is None else pixels, WindowCenter=40, WindowWidth=400, **{**place, **tags})


def mask_of(region, path):
    """A region [Z, H, W] as a volume in the patient's millimeters: x runs to the right and y to the front."""
    affine = np.diag([-SPACING[1], -SPACING[0], 3.0, 1.0])
    affine[:3, 3] = 10, 20, FIRST
    nibabel.save(nibabel.Nifti1Image(region.transpose(2, 1, 0).astype(np.uint8), affine), path)


@pytest.fixture
def series(tmp_path):
    for z in range(DEPTH):
        save(plane(z), tmp_path / f"ct/{z:02}.dcm")
    mask_of(BALL, tmp_path / "liver.nii.gz")
    line(tmp_path)
    return tmp_path


def line(root, image="ct", mask=(), **row):
    manifest(
        root, {"id": "s", "image": image, "masks": [{"target": "liver", "file": "liver.nii.gz", **dict(mask)}], **row}
    )


def read(root):
    """{slice's number: sample}, and (code, file) of what is left out."""
    samples, rejected = read_all(Dicom(root, max_slices=0))
    return {int(sample.id.split("-")[-1].split("/")[0]): sample for sample in samples}, rejected


def check(samples, slices):
    """Every sample shows its own slice of the volume, with the mask where the ball is."""
    assert list(samples) == list(range(len(slices)))[slice(*_kept(slices))]
    for number, sample in samples.items():
        z = slices[number]
        np.testing.assert_array_equal(sample.region, BALL[z])
        grey = np.asarray(sample.picture)[..., 0].astype(int)
        assert (
            grey[sample.region].mean() > 30 + grey[BODY[0] & ~BALL[z]].mean() and sample.orientation == "radiological"
        )


def _kept(slices):
    marked = [number for number, z in enumerate(slices) if BALL[z].sum() >= 100]
    return marked[0], marked[-1] + 1


def test_a_whole_series(series):
    samples, rejected = read(series)
    assert rejected == []
    check(samples, range(DEPTH))


CORONAL = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "ImagePositionPatient": [9, -20, 30]}
ODD = {
    "localizer": ("localizer", CORONAL | {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
    "axial localizer": (
        "localizer",
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImagePositionPatient": [-10, -20, 99]},
    ),
    "another angle": ("localizer", CORONAL),
    "no position": ("no-affine", {"ImagePositionPatient": None}),
    "no orientation": ("no-affine", {"ImageOrientationPatient": None}),
    "orientation of zeros": ("no-affine", {"ImageOrientationPatient": [0] * 6}),
    "no spacing": ("no-affine", {"PixelSpacing": None}),
    "burned in": ("burned-in-text", {"BurnedInAnnotation": "YES"}),
    "cine": ("multi-frame", {"NumberOfFrames": 2}),
}


@pytest.mark.parametrize("kind", ODD)
def test_one_odd_slice_is_left_out_and_named(series, kind):
    code, tags = ODD[kind]
    save(plane(5, **tags), series / "ct/odd.dcm")
    samples, rejected = read(series)
    assert rejected == [(code, "ct/odd.dcm")]
    check(samples, range(DEPTH))


def test_a_slice_of_the_series_without_a_place_costs_only_itself(series):
    save(plane(4, ImagePositionPatient=None), series / "ct/04.dcm")
    samples, rejected = read(series)
    assert rejected == [("no-affine", "ct/04.dcm")]
    check(samples, [0, 1, 2, 3, 5, 6, 7, 8, 9])


def test_several_time_points_are_named_and_one_can_be_chosen(series):
    for z in range(DEPTH):
        save(
            plane(z, np.roll(CT[z], 9, 1), TemporalPositionIdentifier=2, InstanceNumber=50 + z),
            series / f"ct/late{z}.dcm",
        )
    assert read(series) == ({}, [("several-at-one-place", "ct")])
    with pytest.raises(
        ValueError, match=r"20 slices share 10 places \(ct/00.dcm, ct/late0.dcm, ...\), told apart by Temporal.*select"
    ):
        list(Dicom(series).read(Dicom(series).units()[0]))
    line(series, select={"TemporalPositionIdentifier": 2})
    samples, rejected = read(series)
    assert rejected == [] and len(samples) == 7
    np.testing.assert_array_equal(samples[5].region, BALL[5])
    line(series, select={"EchoNumbers": 3})
    assert read(series) == ({}, [("missing-file", "ct")])
    line(series, select=[1])
    assert read(series)[1] == [("bad-line", "manifest.jsonl:1")]


def test_a_place_with_two_slices_is_left_out_and_a_copy_is_not_one(series):
    save(plane(0, np.roll(CT[0], 9, 1)), series / "ct/again.dcm")
    shutil.copyfile(series / "ct/05.dcm", series / "ct/copy.dcm")
    samples, rejected = read(series)
    assert rejected == [("duplicate-id", "ct/copy.dcm"), ("several-at-one-place", "ct")]
    check(samples, range(1, DEPTH))


def test_a_mask_of_several_values_needs_one(series):
    mask_of(BALL.astype(int) + (BALL & (COLUMNS < 16)), series / "liver.nii.gz")
    assert read(series) == ({}, [("unclear-mask", "liver.nii.gz")])
    line(series, mask={"value": [1, 2]})
    check(read(series)[0], range(DEPTH))
    line(series, mask={"value": 1})
    np.testing.assert_array_equal(read(series)[0][5].region, BALL[5] & (COLUMNS[5] >= 16))
    line(series, image="ct/05.dcm", mask={"value": 1})
    (sample,), rejected = read_all(Dicom(series))
    assert rejected == [] and sample.region.sum() == (BALL[5] & (COLUMNS[5] >= 16)).sum()


# --- enhanced -----------------------------------------------------------------------------------------------------


def item(**tags):
    found = Dataset()
    for name, value in tags.items():
        setattr(found, name, value)
    return found


def enhanced(order, **changes):
    """An Enhanced CT of the slices in this order; `changes` {frame: tags of its plane} make some of them odd."""
    ds = plane(0)
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = EnhancedCTImageStorage
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "WindowCenter", "WindowWidth"):
        del ds[name]
    ds.NumberOfFrames, ds.PixelData = len(order), b"".join((CT[z] + 1024).astype(np.uint16).tobytes() for z in order)
    ds.PixelRepresentation = 0
    ds.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=SPACING)],
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
            PixelValueTransformationSequence=[item(RescaleIntercept=-1024, RescaleSlope=1, RescaleType="HU")],
        )
    ]
    ds.PerFrameFunctionalGroupsSequence = [
        item(
            FrameContentSequence=[item(TemporalPositionIndex=1)],
            PlanePositionSequence=[item(ImagePositionPatient=[-10, -20, FIRST + 3 * int(z)])],
            FrameVOILUTSequence=[item(WindowCenter=40, WindowWidth=400)],
        )
        for z in order
    ]
    for frame, tags in changes.items():
        group = ds.PerFrameFunctionalGroupsSequence[int(frame.removeprefix("frame"))]
        for name, value in tags.items():
            setattr(group, name, value)
    return ds


def test_an_enhanced_file_is_a_series_of_its_frames(series):
    wanted, _ = read(series)
    for image in ("ct.dcm", "more"):
        ds = enhanced(np.random.default_rng(1).permutation(DEPTH))
        save(ds, series / (image if image.endswith("dcm") else "more/one.dcm"))
        line(series, image=image)
        samples, rejected = read(series)
        assert rejected == []
        check(samples, range(DEPTH))
        for number, sample in samples.items():
            assert (sample.image, sample.window, sample.spacing) == (wanted[number].image, (-160, 240), (0.8, 0.8))


def test_frames_that_no_volume_can_mark_are_named(series):
    scout = [item(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])]
    order = [*range(DEPTH), 0, 0]
    save(
        enhanced(order, frame10={"PlaneOrientationSequence": scout}, frame11={"PlanePositionSequence": []}),
        series / "ct.dcm",
    )
    line(series, image="ct.dcm")
    samples, rejected = read(series)
    assert sorted(rejected) == [("localizer", "ct.dcm#11"), ("no-affine", "ct.dcm#12")]
    check(samples, range(DEPTH))


def test_an_enhanced_file_of_several_times_is_named_and_one_can_be_chosen(series):
    late = {f"frame{n}": {"FrameContentSequence": [item(TemporalPositionIndex=2)]} for n in range(DEPTH, 2 * DEPTH)}
    save(enhanced([*range(DEPTH), *range(DEPTH)], **late), series / "ct.dcm")
    line(series, image="ct.dcm")
    assert read(series) == ({}, [("several-at-one-place", "ct.dcm")])
    line(series, image="ct.dcm", select={"TemporalPositionIndex": 2})
    check(read(series)[0], range(DEPTH))


def test_an_enhanced_file_of_one_frame_and_a_damaged_one(series):
    save(enhanced([5]), series / "ct.dcm")
    line(series, image="ct.dcm")
    (sample,), rejected = read_all(Dicom(series))
    assert rejected == [] and (sample.region == BALL[5]).all() and sample.spacing == (0.8, 0.8)
    ds = enhanced(range(DEPTH))
    ds.NumberOfFrames = 12
    save(ds, series / "ct.dcm")
    assert read(series) == ({}, [("unreadable-image", "ct.dcm")])


def test_series_stay_apart_and_names_do_not_go_on(series):
    ds = enhanced(range(DEPTH))
    save(ds, series / "more/one.dcm")
    save(plane(0, SeriesInstanceUID=generate_uid()), series / "more/two.dcm")
    line(series, image="more")
    assert read(series) == ({}, [("mixed-series", "more")])
    assert ds.SeriesInstanceUID == SERIES
    line(series, image="ct")
    told = json.dumps([repr(sample) for sample in read(series)[0].values()])
    assert "MRN" not in told and "Doe" not in told
