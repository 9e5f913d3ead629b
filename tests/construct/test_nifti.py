"""NIfTI volumes: one landmark in many orientations, files that lie or are damaged, and label maps that do not fit."""

import gzip

import numpy as np
import pytest

from vital_jax.construct import nifti
from vital_jax.construct.msd import Volumes
from vital_jax.construct.nifti import read_labels, read_stack
from vital_jax.construct.source import Rejected

nib = pytest.importorskip("nibabel")
SHAPE, SPACING = (10, 14, 6), (2.0, 2.0, 5.0)  # towards right, front and head


@pytest.fixture
def body():
    """[X, Y, Z] int16 towards right, front and head: a bright blob at the patient's left, front and head, and noise."""
    values = np.random.default_rng(0).integers(0, 50, SHAPE).astype(np.int16)
    values[1:3, 10:13, 4] = 1000
    return values


def write(path, values, codes="RAS", affine=None, kind=None):
    """Writes the body with its axes turned to `codes`; `affine` replaces the one that says so."""
    image = (kind or nib.Nifti1Image)(values, np.diag([*SPACING, 1]) @ shift(-9, -13, 30))
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes))
    image = image.as_reoriented(turn)
    if affine is not None:
        image = type(image)(np.asarray(image.dataobj), affine, image.header)
    nib.save(image, path)
    return path


def shift(x, y, z):
    affine = np.eye(4)
    affine[:3, 3] = x, y, z
    return affine


def refused(code, *arguments, **options):
    with pytest.raises(Rejected) as caught:
        read_stack(*arguments, **options)
    assert caught.value.code == code, caught.value
    return str(caught.value)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "LAS", "ASL", "ILP"])
def test_landmark_is_on_the_right_and_in_the_upper_half_whatever_the_array_order(tmp_path, body, codes):
    stack = read_stack(write(tmp_path / "a.nii.gz", body, codes), "a")
    planes = np.stack([stack.plane(z) for z in range(6)])
    assert planes.shape == (6, 14, 10) and stack.spacing == pytest.approx((5, 2, 2))
    z, row, column = (v.mean() for v in np.nonzero(planes > 500))
    assert z == 4 and row < 7 and column > 5
    # Rows run from front to back and columns from the patient's right to the left.
    np.testing.assert_array_equal(planes, body[::-1, ::-1].transpose(2, 1, 0))
    # The blob's corner is where it was in the patient.
    np.testing.assert_allclose(stack.affine @ [4, 1, 7, 1], [2 * (2 - 9), 2 * (12 - 13), 5 * (4 + 30), 1])


def test_oblique_volumes_are_turned_to_the_nearest_axes(tmp_path, body):
    angle, tilt = np.radians(20), np.radians(-10)
    around, over = np.eye(4), np.eye(4)
    around[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    over[1:3, 1:3] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    affine = around @ over @ np.diag([*SPACING, 1])
    stack = read_stack(write(tmp_path / "a.nii", body, affine=affine), "a")
    np.testing.assert_array_equal(stack.plane(4), body[::-1, ::-1, 4].T)
    assert stack.spacing == pytest.approx((5, 2, 2))


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".nii", nib.Nifti1Image), (".nii", nib.Nifti2Image), (".nii.gz", nib.Nifti2Image)]
)
def test_plain_packed_and_second_version_read_the_same(tmp_path, body, suffix, kind):
    stack = read_stack(write(tmp_path / f"a{suffix}", body, kind=kind), "a")
    np.testing.assert_array_equal(stack.plane(4), body[::-1, ::-1, 4].T)


def test_stored_values_are_scaled(tmp_path, body):
    image = nib.Nifti1Image(body.astype(np.float64) / 4 - 1000, np.diag([*SPACING, 1]))
    image.header.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a.nii.gz")
    stack = read_stack(tmp_path / "a.nii.gz", "a")
    assert stack.voxels.dtype == np.int16 and stack.slope != 1
    np.testing.assert_allclose(stack.plane(4), body[::-1, ::-1, 4].T / 4 - 1000, atol=0.01)


def test_file_without_directions_needs_them_from_outside(tmp_path, body):
    identity = write(tmp_path / "identity.nii.gz", body, "LPS", affine=np.eye(4))
    absent, broken = tmp_path / "absent.nii", tmp_path / "broken.nii"
    data = bytearray(write(tmp_path / "whole.nii", body, "LPS").read_bytes())
    # nibabel writes no such headers: the codes of both transforms, and the third row of the one that counts.
    absent.write_bytes(data[:252] + bytes(4) + data[256:])
    broken.write_bytes(data[:312] + bytes(16) + data[328:])
    for path in (absent, identity, broken):
        assert "give orientation" in refused("no-affine", path, path.name)
        for given in ({"orientation": "LPS"}, {"fallback": "LPS"}):
            np.testing.assert_array_equal(read_stack(path, "a", **given).plane(4), body[::-1, ::-1, 4].T)
    assert read_stack(absent, "a", fallback="LPS").spacing == pytest.approx((5, 2, 2))


def test_an_orientation_that_is_none_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="orientation 'XYZ': three letters"):
        Volumes(tmp_path, orientation="XYZ")


def test_given_orientation_replaces_what_the_file_says_and_a_fallback_does_not(tmp_path, body):
    path = write(tmp_path / "a.nii.gz", body, "LAS")
    np.testing.assert_array_equal(read_stack(path, "a", orientation="RAS").plane(4), body[:, ::-1, 4].T)
    np.testing.assert_array_equal(read_stack(path, "a", fallback="RAS").plane(4), body[::-1, ::-1, 4].T)
    for letters in ("LP", "LPX", "LRS", "lps"):
        with pytest.raises(ValueError, match="three letters"):
            read_stack(path, "a", orientation=letters)


def test_damaged_files_are_refused_by_name(tmp_path, body, monkeypatch):
    whole = write(tmp_path / "a.nii.gz", body).read_bytes()
    inside = bytearray(whole)
    inside[-8] ^= 1  # the check sum, which stands behind the last value
    for name, data in {
        "short.nii.gz": whole[: len(whole) // 2],
        "sum.nii.gz": bytes(inside),
        "text.nii.gz": b"not a volume",
        "empty.nii": b"",
        "plain.nii": gzip.decompress(whole)[:-100],
        "picture.nii.gz": gzip.compress(b"\x89PNG" * 200),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert name in refused("unreadable-volume", tmp_path / name, name)
    refused("missing-file", tmp_path / "none.nii.gz", "none.nii.gz")
    nib.save(nib.Nifti1Image(body[:, :, 0], np.diag([*SPACING, 1])), tmp_path / "flat.nii")
    refused("unreadable-volume", tmp_path / "flat.nii", "flat.nii")
    nib.save(nib.Nifti1Image(body.astype(np.complex64), np.diag([*SPACING, 1])), tmp_path / "complex.nii")
    refused("unreadable-volume", tmp_path / "complex.nii", "complex.nii")
    monkeypatch.setattr(nifti, "MAX_BYTES", 100)
    refused("too-large", tmp_path / "a.nii.gz", "a.nii.gz")


@pytest.fixture
def image(tmp_path, body):
    return read_stack(write(tmp_path / "image.nii.gz", body, "LPS"), "image")


def labels_refused(code, path, image):
    with pytest.raises(Rejected) as caught:
        read_labels(path, path.name, image)
    assert caught.value.code == code and path.name in str(caught.value), caught.value


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_labels_follow_their_own_affine(tmp_path, body, image, dtype):
    path = write(tmp_path / "labels.nii.gz", (body > 500).astype(dtype) * 3, "PSR")
    labels = read_labels(path, "labels", image)
    assert labels.dtype in (np.uint8, np.uint16)
    for z in range(6):
        np.testing.assert_array_equal(labels[z] == 3, image.plane(z) > 500)


def test_labels_that_do_not_fit_are_refused(tmp_path, body, image):
    mask = (body > 500).astype(np.float32)
    labels_refused("unknown-label", write(tmp_path / "half.nii.gz", mask * 0.5), image)
    labels_refused("unknown-label", write(tmp_path / "minus.nii.gz", -mask), image)
    labels_refused(
        "unknown-label", write(tmp_path / "nan.nii.gz", np.where(mask > 0, np.nan, 0).astype(np.float32)), image
    )
    labels_refused("size-mismatch", write(tmp_path / "small.nii.gz", mask[:-1]), image)
    moved = np.diag([*SPACING, 1]) @ shift(-9, -13, 33)
    labels_refused("affine-mismatch", write(tmp_path / "moved.nii.gz", mask, affine=moved), image)
    (tmp_path / "bad.nii.gz").write_bytes(b"bad")
    labels_refused("unreadable-mask", tmp_path / "bad.nii.gz", image)
    labels_refused("no-affine", write(tmp_path / "lost.nii.gz", mask, affine=np.eye(4)), image)


def test_labels_of_an_image_with_given_directions_are_read_with_the_same(tmp_path, body):
    image = read_stack(write(tmp_path / "a.nii.gz", body, "LPS", affine=np.eye(4)), "a", fallback="LPS")
    path = write(tmp_path / "l.nii.gz", (body > 500).astype(np.uint8), "LPS", affine=np.eye(4))
    np.testing.assert_array_equal(read_labels(path, "l", image)[4] > 0, image.plane(4) > 500)
