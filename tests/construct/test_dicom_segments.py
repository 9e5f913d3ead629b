"""DICOM segmentations as masks: names of segments, places of frames, fractions; and what does not fit is refused by name."""

import numpy as np
import pydicom
import pytest
from dicoms import manifest, read_all, save, slice_of
from pydicom.pixels.utils import pack_bits
from pydicom.uid import SegmentationStorage, generate_uid
from test_dicom_series import BALL, DEPTH, FIRST, SIZE, SPACING, item, plane

from vital_jax.construct.dicom import Dicom
from vital_jax.construct.dicom_places import open_slices
from vital_jax.construct.dicom_segments import Segmentation
from vital_jax.construct.targets import load_targets

FRAME_OF_REFERENCE = generate_uid()
TOP, LEFT = 3, 1  # where the segmentation's grid begins: frames of 31 x 41 single bits begin within bytes
HIGH, WIDE = 31, 41
SPOT = np.zeros_like(BALL)
SPOT[2:6, 6:20, 25:36] = True


def code(meaning, **more):
    return item(CodeValue="1", CodingSchemeDesignator="99T", CodeMeaning=meaning, **more)


LIVER = {"SegmentLabel": "Liver"}
KIDNEY = {
    "SegmentLabel": "Segment_2",
    "SegmentedPropertyTypeCodeSequence": [code("Kidney", SegmentedPropertyTypeModifierCodeSequence=[code("Left")])],
}


def segmentation(regions, labels=(LIVER, KIDNEY), kind="BINARY", **tags):
    """A SEG of [Z, SIZE, SIZE] regions, a frame for each slice that holds something, on a grid of its own."""
    cuts = [np.asarray(region)[:, TOP : TOP + HIGH, LEFT : LEFT + WIDE] for region in regions]
    frames = [(n, z) for n, cut in enumerate(cuts, 1) for z in range(len(cut)) if cut[z].any()]
    pixels = np.stack([cuts[n - 1][z] for n, z in frames]).astype(np.uint8)
    ds = slice_of(pixels[0], Modality="SEG", SOPClassUID=SegmentationStorage, FrameOfReferenceUID=FRAME_OF_REFERENCE)
    ds.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        del ds[name]
    ds.SegmentationType, ds.NumberOfFrames, ds.PixelData = kind, len(frames), pixels.tobytes()
    if kind == "BINARY":
        ds.BitsAllocated = ds.BitsStored = 1
        ds.HighBit, ds.PixelData = 0, pack_bits(pixels)
    ds.SegmentSequence = [item(SegmentNumber=n, **label) for n, label in enumerate(labels, 1)]
    ds.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=SPACING, SliceThickness=5)],
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        )
    ]
    corner = [-10 + SPACING[1] * LEFT, -20 + SPACING[0] * TOP]
    ds.PerFrameFunctionalGroupsSequence = [
        item(
            SegmentIdentificationSequence=[item(ReferencedSegmentNumber=n)],
            PlanePositionSequence=[item(ImagePositionPatient=[*corner, FIRST + 3 * z])],
        )
        for n, z in frames
    ]
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds


@pytest.fixture
def series(tmp_path):
    for z in range(DEPTH):
        save(plane(z, FrameOfReferenceUID=FRAME_OF_REFERENCE, SOPInstanceUID=f"1.2.3.{z}"), tmp_path / f"ct/{z:02}.dcm")
    return tmp_path


def read(root, ds=None, *masks, image="ct"):
    """{target: {number of slice: sample}}, and (code, file) of what is left out."""
    if ds is not None:
        save(ds, root / "seg.dcm")
    manifest(root, {"id": "s", "image": image, "masks": masks or [{"file": "seg.dcm"}], "site": "abdomen"})
    samples, rejected = read_all(Dicom(root, max_slices=0))
    found = {}
    for sample in samples:
        number = sample.id.split("/")[1].partition("-")[2]
        found.setdefault(sample.target, {})[int(number or 0)] = sample
    return found, rejected


def check(samples, region):
    marked = [z for z in range(DEPTH) if region[z].sum() >= 100]
    assert sorted(samples) == marked
    for z in marked:
        np.testing.assert_array_equal(samples[z].region, region[z])


def test_segments_lie_where_they_say_under_their_own_names(series):
    found, rejected = read(series, segmentation([BALL, SPOT]))
    assert rejected == [] and sorted(found) == ["left kidney", "liver"]
    check(found["liver"], BALL)
    check(found["left kidney"], SPOT)
    assert [name for name, _ in found["liver"][4].neighbours] == ["left kidney"]


def test_a_segmentation_beside_its_slices_is_none_of_them_and_no_image(series):
    save(segmentation([BALL, SPOT]), series / "ct/seg.dcm")
    found, rejected = read(series, None, {"file": "ct/seg.dcm"})
    assert rejected == []
    check(found["liver"], BALL)
    assert read(series, segmentation([BALL], [LIVER]), image="ct")[1] == [("unreadable-image", "ct/seg.dcm")]
    assert read(series, None, image="seg.dcm") == ({}, [("unreadable-image", "seg.dcm")])


def test_which_segments_are_meant(series):
    ds = segmentation([BALL, SPOT], labels=({"SegmentLabel": "Lesion 1"}, {"SegmentLabel": "Lesion 2"}))
    check(read(series, ds)[0]["lesion"], BALL | SPOT)
    mask = {"target": "spleen", "file": "seg.dcm"}
    check(read(series, ds, mask | {"value": 2})[0]["spleen"], SPOT)
    check(read(series, ds, mask | {"value": [1, 2]})[0]["spleen"], BALL | SPOT)
    for wrong in ({}, {"value": 3}, {"value": ">=1"}):
        assert read(series, ds, mask | wrong) == ({}, [("unclear-mask", "seg.dcm")])
    with pytest.raises(ValueError, match=r"segments 1 \(Lesion 1\), 2 \(Lesion 2\), and none is spleen"):
        Segmentation(series / "seg.dcm", "seg.dcm").meant(mask, load_targets(), "abdomen")
    check(read(series, segmentation([BALL], [{"SegmentLabel": "my drawing"}]), mask)[0]["spleen"], BALL)
    assert {code for code, _ in read(series, segmentation([BALL], [{"SegmentLabel": "my drawing"}]))[1]} == {
        "unknown-target"
    }


def test_more_than_half_of_a_fraction_counts(series):
    shares = np.where(BALL, 51, np.where(np.roll(BALL, 5, 2), 50, 0))
    ds = segmentation([shares], kind="FRACTIONAL", MaximumFractionalValue=100, SegmentationFractionalType="PROBABILITY")
    check(read(series, ds)[0]["liver"], BALL)


def test_a_label_map_names_segments_by_its_values(series):
    ds = segmentation([np.where(BALL, 1, np.where(SPOT, 2, 0))], kind="LABELMAP")
    ds.SegmentSequence.append(item(SegmentNumber=0, SegmentLabel="Background"))
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
    for group in ds.PerFrameFunctionalGroupsSequence:
        del group.SegmentIdentificationSequence
    found, rejected = read(series, ds)
    assert rejected == []
    check(found["liver"], BALL)
    check(found["left kidney"], SPOT & ~BALL)


def test_frames_without_a_place_lie_on_the_images_they_name(tmp_path):
    marked = np.zeros((1, SIZE, SIZE), bool)
    marked[0, 6:20, 8:30] = True
    picture = np.random.default_rng(0).integers(0, 255, (HIGH, WIDE), np.uint8)
    place = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))
    save(slice_of(picture, SOPInstanceUID="1.2.7", Modality="US", **place), tmp_path / "us.dcm")
    ds = segmentation([marked], [LIVER])
    (group,) = ds.PerFrameFunctionalGroupsSequence
    del group.PlanePositionSequence
    assert read(tmp_path, ds, image="us.dcm") == ({}, [("no-affine", "seg.dcm#1")])
    source = item(ReferencedSOPInstanceUID="1.2.7", ReferencedSOPClassUID=SegmentationStorage)
    group.DerivationImageSequence = [item(SourceImageSequence=[source])]
    found, rejected = read(tmp_path, ds, image="us.dcm")
    assert rejected == []
    np.testing.assert_array_equal(found["liver"][0].region, marked[0, TOP : TOP + HIGH, LEFT : LEFT + WIDE])
    source.ReferencedSOPInstanceUID = "1.2.8"
    assert read(tmp_path, ds, image="us.dcm") == ({}, [("affine-mismatch", "seg.dcm")])
    source.ReferencedSOPInstanceUID = "1.2.7"
    save(slice_of(picture[:-1], SOPInstanceUID="1.2.7", Modality="US", **place), tmp_path / "us.dcm")
    assert read(tmp_path, ds, image="us.dcm") == ({}, [("size-mismatch", "seg.dcm")])


def shifted(ds, by):
    for group in ds.PerFrameFunctionalGroupsSequence:
        place = group.PlanePositionSequence[0]
        place.ImagePositionPatient = [*place.ImagePositionPatient[:2], place.ImagePositionPatient[2] + by]
    return ds


def drawn_on(ds, *uids):
    """Names the images that the first frames were drawn on."""
    for group, uid in zip(ds.PerFrameFunctionalGroupsSequence, uids, strict=False):
        source = item(ReferencedSOPInstanceUID=uid, ReferencedSOPClassUID=SegmentationStorage)
        group.DerivationImageSequence = [item(SourceImageSequence=[source])]
    return ds


FIRST_MARKED = int(np.flatnonzero(BALL.any((1, 2)))[0])
MISFITS = {
    "another scan": ({"FrameOfReferenceUID": "1.2.99"}, 0, (), "another frame of reference"),
    "beyond the series": ({}, 500, (), "none of its frames lies in a slice of ct"),
    "upside down": ({}, 0, (f"1.2.3.{DEPTH - 1}",), "frame 1 lies .* thicknesses away from ct/09.dcm"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_what_does_not_fit_is_refused_by_name(series, kind):
    tags, by, uids, reason = MISFITS[kind]
    ds = drawn_on(shifted(segmentation([BALL], [LIVER], **tags), by), *uids)
    assert read(series, ds) == ({}, [("affine-mismatch", "seg.dcm")])
    with pytest.raises(ValueError, match=reason):
        slices = [open_slices(path, f"ct/{path.name}")[0] for path in sorted((series / "ct").iterdir())]
        Segmentation(series / "seg.dcm", "seg.dcm").check(slices, "ct")
    check(read(series, drawn_on(segmentation([BALL], [LIVER]), f"1.2.3.{FIRST_MARKED}"))[0]["liver"], BALL)


def test_other_objects_are_no_masks(series):
    assert read(series, plane(0)) == ({}, [("unreadable-mask", "seg.dcm")])
    (series / "seg.dcm").write_bytes(b"no DICOM")
    assert read(series) == ({}, [("unreadable-mask", "seg.dcm")])
    ds = segmentation([BALL], [LIVER])
    ds.PixelData = ds.PixelData[:100]
    assert ("unreadable-mask", "seg.dcm") in read(series, ds)[1]


def test_one_slice_of_a_series_and_a_ring_as_drawn(series):
    found, rejected = read(
        series, segmentation([BALL, SPOT]), {"target": "liver", "file": "seg.dcm"}, image="ct/05.dcm"
    )
    assert rejected == []
    np.testing.assert_array_equal(found["liver"][0].region, BALL[5])
    ring = BALL & (np.hypot(*np.indices((SIZE, SIZE)) - np.array([20, 16])[:, None, None]) > 9.5)
    mask = {"target": "liver", "file": "seg.dcm"}
    assert read(series, segmentation([ring], [LIVER]), mask)[0]["liver"][5].region.sum() == BALL[5].sum()
    found, rejected = read(series, segmentation([ring], [LIVER]), mask | {"outline": False})
    assert rejected == []
    check(found["liver"], ring)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_what_highdicom_writes(series, kind):
    highdicom = pytest.importorskip("highdicom")
    slices = [pydicom.dcmread(path) for path in sorted((series / "ct").iterdir())]
    for ds in slices:
        ds.SliceThickness = 3
        for name in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID"):
            setattr(ds, name, "")
        ds.SeriesNumber, ds.ReferringPhysicianName, ds.PositionReferenceIndicator = 1, "", ""
    codes = pydicom.sr.codedict.codes.SCT
    names = [("Liver", codes.Liver), ("Segment_2", codes.Kidney)]
    described = [
        highdicom.seg.SegmentDescription(number, label, codes.Organ, meaning, "MANUAL")
        for number, (label, meaning) in enumerate(names, 1)
    ]
    values = np.where(BALL, 1, np.where(SPOT, 2, 0)).astype(np.uint8)
    if kind == "FRACTIONAL":
        values = np.float32(0.7) * np.stack([values == 1, values == 2], -1)
    uids = (highdicom.UID(), 1, highdicom.UID(), 1)
    highdicom.seg.Segmentation(slices, values, kind, described, *uids, "maker", "model", "1", "serial").save_as(
        series / "seg.dcm"
    )
    found, rejected = read(series)
    assert rejected == [] and sorted(found) == ["kidney", "liver"]
    check(found["liver"], BALL)
    check(found["kidney"], SPOT & ~BALL)
