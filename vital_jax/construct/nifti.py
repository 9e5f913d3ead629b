"""NIfTI volumes as stacks of axial slices, turned by what the file says about the patient and never by array order.

A stack runs from feet to head; in each slice rows run from front to back and columns from the patient's right to the left. So the patient's
left is on the image's right and the front is up, which is how radiologists look at slices. Volumes that were acquired at an angle are
turned by exchanging and flipping axes only, to the nearest such stack: nothing is interpolated.

Volumes of ITK (.mha, .nrrd in one file) are read the same way by SimpleITK, where it is installed.

Memory: a gzipped file cannot be read in part, so its values are held once, in the stored type (a 512 x 512 x 400 CT: 200 MiB); a plain
file is mapped, and only the slices that are used are read. Scaling to real values happens slice by slice.
"""

import gzip
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vital_jax.construct.source import Rejected

ITK = (".mha", ".nrrd")
ENDINGS = (".nii.gz", ".nii", *ITK)  # of volumes
MAX_BYTES = 4 << 30  # of stored values; the largest volume of the public corpora has half a GiB
_STACK = ("S", "P", "L")  # what the stack's axes run towards
_AXES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


@dataclass(frozen=True)
class Stack:
    """A volume's axial slices.

    Attributes:
      voxels: [Z, H, W] or [Z, H, W, C] (C channels), stored values, a view of what was read.
      slope, intercept: real value = slope * stored + intercept.
      affine: [4, 4] from (z, row, column) to millimeters towards the patient's right, front and head.
      orientation: the directions that were given from outside; empty where the file's own were used.
    """

    voxels: np.ndarray
    slope: float
    intercept: float
    affine: np.ndarray
    orientation: str = ""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimeters from slice to slice, row to row and column to column."""
        return tuple(float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))

    def plane(self, z: int, channel: int | None = None) -> np.ndarray:
        """[H, W] float32 real values of one slice."""
        stored = self.voxels[z] if channel is None else self.voxels[z, ..., channel]
        return np.asarray(stored, np.float32) * np.float32(self.slope) + np.float32(self.intercept)


def check_orientation(letters: str) -> None:
    """Refuses what cannot be directions. letters: as in `read_stack`, or "". Raises: ValueError naming them."""
    if letters and (len(letters) != 3 or {_AXES.get(v, (3,))[0] for v in letters} != {0, 1, 2}):
        raise ValueError(
            f"orientation {letters!r}: three letters are needed, one of R/L, A/P and S/I each, such as LPS"
        )


def read_stack(
    path: Path, name: str, *, orientation: str = "", fallback: str = "", code: str = "unreadable-volume"
) -> Stack:
    """Reads a single-file NIfTI-1 or NIfTI-2 volume, gzipped or not, or one of ITK.

    Args:
      path: the file. name: what rejections call it.
      orientation: three letters, what the array's axes run towards ("LPS"); replaces the file's own directions.
      fallback: the same, but only for a file that states none.
      code: of the rejection where the file cannot be read.

    Raises:
      Rejected: missing-file; `code`; too-large, over `MAX_BYTES`; no-affine, where no directions are stated (no affine at all, or the
        identity, which is what programs write that lost it) and none are given.
      ValueError: `orientation` or `fallback` is not such letters.
      ImportError: nibabel, or SimpleITK for a volume of ITK, is not installed.
    """
    for letters in (orientation, fallback):
        check_orientation(letters)
    found = (_load_itk if path.name.lower().endswith(ITK) else _load)(path, name, code)
    affine, given = found.affine, orientation or ("" if found.stated else fallback)
    if given:
        affine = np.eye(4)
        affine[:3, :3] = 0
        for axis, (letter, zoom) in enumerate(zip(given, found.zooms, strict=False)):
            world, sign = _AXES[letter]
            affine[world, axis] = sign * float(zoom)
    elif not found.stated:
        reason = "states no directions (its affine is absent or the identity), so left and right are unknown"
        raise Rejected("no-affine", name, f"{reason}; give orientation, such as LPS, if you know them")

    from nibabel import orientations as turns

    turn = turns.ornt_transform(turns.io_orientation(affine), turns.axcodes2ornt(_STACK))
    turned = affine @ turns.inv_ornt_aff(turn, found.voxels.shape[:3])
    return Stack(turns.apply_orientation(found.voxels, turn), found.slope, found.intercept, turned, given)


def read_labels(path: Path, name: str, image: Stack) -> np.ndarray:
    """Reads the label map of a volume.

    Args:
      image: the volume; the labels must lie on its grid.

    Returns:
      [Z, H, W] unsigned integers, 8 or 16 bits.

    Raises:
      Rejected: as `read_stack` (with unreadable-mask); size-mismatch; affine-mismatch, where it lies elsewhere in the patient than its
        image; unknown-label, where a value is no whole number from 0 to 65,535.
    """
    stack = read_stack(path, name, orientation=image.orientation, code="unreadable-mask")
    voxels = stack.voxels
    if voxels.shape != image.voxels.shape[:3]:
        ours, theirs = (" x ".join(map(str, shape)) for shape in (voxels.shape, image.voxels.shape[:3]))
        raise Rejected("size-mismatch", name, f"{ours} voxels (slices x rows x columns), but its image has {theirs}")
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in voxels.shape], [1], indexing="ij")).reshape(4, -1)
    apart = np.linalg.norm((stack.affine - image.affine) @ corners, axis=0).max()
    if apart > max(image.spacing):
        reason = f"lies up to {apart:.1f} mm away from its image, more than a voxel; one of the two affines is wrong"
        raise Rejected("affine-mismatch", name, reason)
    return whole_numbers(stack, name)


def whole_numbers(stack: Stack, name: str) -> np.ndarray:
    """The values of a label map.

    Programs that save a map as they save an image scale it (a slope of 2/65535 for labels up to 2), and what is read back is a label only
    to within a step of the stored values. So a value may miss its label by half the slope, but two stored values may not have one label.

    Returns:
      [Z, H, W] unsigned integers, 8 or 16 bits.

    Raises:
      Rejected: unknown-label, where a value is no whole number from 0 to 65,535.
    """
    voxels, slope, offset = stack.voxels, float(stack.slope), float(stack.intercept)
    if voxels.dtype in (np.uint8, np.uint16) and (slope, offset) == (1, 0):
        return voxels
    near = 1e-3 + (abs(slope) / 2 if slope != 1 else 0)
    labels, stored = np.empty(voxels.shape, np.uint16), {}
    for z, plane in enumerate(voxels):
        found, places = np.unique(plane, return_inverse=True)
        values = found.astype(np.float64) * slope + offset
        meant = np.rint(values)
        wrong = values[~((np.abs(values - meant) <= near) & (meant >= 0) & (meant <= 65535))]
        if voxels.dtype.kind != "f":
            wrong = np.append(wrong, values[[stored.setdefault(m, v) != v for m, v in zip(meant, found, strict=True)]])
        if wrong.size:
            raise Rejected(
                "unknown-label", name, f"holds the value {wrong[0]:.6g}; labels are whole numbers from 0 to 65535"
            )
        labels[z] = meant[places].reshape(plane.shape)
    return labels


def _states_directions(image) -> bool:
    stated = int(image.header["sform_code"]) or int(image.header["qform_code"])
    affine = image.affine
    whole = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9
    return bool(stated and whole and not np.allclose(affine, np.eye(4)))


class _Found(NamedTuple):
    """A file as it is: stored values [X, Y, Z] or [X, Y, Z, C], what makes them real ones, the affine and whether it states directions, and
    millimeters along X, Y and Z."""

    voxels: np.ndarray
    slope: float
    intercept: float
    affine: np.ndarray
    stated: bool
    zooms: Sequence[float]


def _load(path: Path, name: str, code: str) -> _Found:
    try:
        import nibabel
    except ImportError as error:
        raise ImportError("volumes are read by nibabel; pip install 'vital_jax[data]'") from error
    if not path.is_file():
        raise Rejected("missing-file", name, "not found")
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            start = stream.read(352)
            stream.seek(0)
            kind = {b"n+1\0": nibabel.Nifti1Image, b"n+2\0": nibabel.Nifti2Image}.get(start[344:348])
            if start[4:8] == b"n+2\0":
                kind = nibabel.Nifti2Image
            if kind is None:
                raise Rejected(code, name, "not a NIfTI volume in a single file (.nii or .nii.gz)")
            image = kind.from_stream(stream)
            size = int(np.prod([int(v) for v in image.shape], dtype=object)) * image.get_data_dtype().itemsize
            if size > MAX_BYTES:
                raise Rejected(
                    "too-large", name, f"{size / 2**30:.1f} GiB of values; at most {MAX_BYTES >> 30} GiB are read"
                )
            voxels = image.dataobj.get_unscaled()
            # The check sum stands behind the last value: only a reader that goes to the end sees it.
            while packed and stream.read(1 << 20):
                pass
    except Rejected:
        raise
    except Exception as error:  # nibabel, gzip and zlib each fail in their own ways on a damaged file
        raise Rejected(code, name, f"cannot be read ({' '.join(str(error).split())})") from error
    voxels = _checked(voxels, name, code)
    slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    return _Found(voxels, slope, intercept, image.affine, _states_directions(image), image.header.get_zooms())


def _checked(voxels: np.ndarray, name: str, code: str) -> np.ndarray:
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim not in (3, 4) or 0 in voxels.shape or voxels.dtype.kind not in "iuf":
        raise Rejected(code, name, f"{voxels.dtype} values of shape {voxels.shape}; a volume of numbers is needed")
    return voxels


def check_readable(ending: str) -> None:
    """Raises: ImportError, where what reads volumes of an ending is not installed."""
    if ending in ITK and not find_spec("SimpleITK"):
        raise ImportError(f"{ending} is read by SimpleITK; pip install SimpleITK, or save the volumes as .nii.gz")


def _load_itk(path: Path, name: str, code: str) -> _Found:
    if not path.is_file():
        raise Rejected("missing-file", name, "not found")
    with path.open("rb") as file:
        start = file.read(1 << 16)
    nrrd = start.startswith(b"NRRD")
    header = start.partition(b"\n\n")[0] if nrrd else start
    # A header may name another file, anywhere, as the one that holds the values.
    if (
        re.search(rb"^data ?file:", header, re.M | re.I)
        if nrrd
        else not re.search(rb"^ElementDataFile\s*=\s*LOCAL", header, re.M)
    ):
        raise Rejected(code, name, "holds no values of its own; save the volume in one file")
    check_readable(path.suffix.lower())
    import SimpleITK

    try:
        reader = SimpleITK.ImageFileReader()
        reader.SetImageIO("NrrdImageIO" if nrrd else "MetaImageIO")
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        if (size := int(np.prod(reader.GetSize(), dtype=object)) * reader.GetNumberOfComponents()) > MAX_BYTES:
            raise Rejected("too-large", name, f"{size} values; at most {MAX_BYTES >> 30} GiB are read")
        image = reader.Execute()
        voxels = SimpleITK.GetArrayFromImage(image)
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
    except Rejected:
        raise
    except Exception as error:  # SimpleITK tells all faults by one type, and numpy those of another number of axes
        raise Rejected(code, name, f"cannot be read ({' '.join(str(error).split())[-200:]})") from error
    stated = re.search(rb"^space:" if nrrd else rb"^(TransformMatrix|Rotation|Orientation)\s*=", header, re.M | re.I)
    voxels = _checked(np.moveaxis(voxels, (0, 2), (2, 0)), name, code)
    return _Found(voxels, 1.0, 0.0, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, bool(stated), image.GetSpacing())
