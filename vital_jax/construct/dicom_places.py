"""DICOM files as slices: tags read with care, frames of an enhanced file as slices of their own, and the slices of a series in order.

A header is used for what can be read of it. A malformed value ("0,7\\0,7" for a spacing) counts as not stated, and only what needs it
is refused, by the name of the tag. Enhanced multi-frame files (PS3.3 C.7.6.16) keep what belongs to one frame in groups of their own; a
frame's header has these values where a file of a single slice has them, so that nothing else needs to know of frames.

A mask of a series marks places in the patient. So slices that do not say where they lie, that lie at another angle than the most (a
localizer), or that share their place with another (time points, echoes) are left out by name: nothing says which of them the mask was
drawn on.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vital_jax.construct.nifti import Stack
from vital_jax.construct.source import Rejected

_RADIOLOGICAL = (1, 0, 0, 0, 1, 0)  # columns run to the patient's left, rows to the back
_PLACE = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
_ASPECTS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
_ANGLE = 0.02  # least difference of direction cosines that is another angle: one degree
_SAME = 0.01  # millimeters: slices closer than that are at one place
# What tells the slices at one place apart, the most telling first.
_TELLING = (
    "TemporalPositionIdentifier", "TemporalPositionIndex", "StackID", "EchoNumbers", "EchoTime", "DiffusionBValue", "TriggerTime",
    "ConvolutionKernel", "ImageType", "AcquisitionNumber", "AcquisitionTime", "InstanceNumber",
)  # fmt: skip
_GROUPS = (
    "PixelMeasuresSequence", "PlanePositionSequence", "PlaneOrientationSequence", "FrameVOILUTSequence", "FrameContentSequence",
    "PixelValueTransformationSequence", "CTImageFrameTypeSequence", "MRImageFrameTypeSequence", "PETFrameTypeSequence",
    "MREchoSequence", "MRDiffusionSequence", "SegmentIdentificationSequence", "DerivationImageSequence",
)  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """One image of a DICOM file.

    Attributes:
      file: what rejections call it. path: the file; frame: which of its frames, from 0, or None where it is the only image.
      header: a pydicom data set without pixels.
    """

    file: str
    path: Path
    header: Any
    frame: int | None = None

    def whole(self) -> tuple[Any, int | None]:
        """The data set with its pixels, and the frame in it. Raises: Rejected, unreadable-image."""
        name = self.file.partition("#")[0]
        if self.frame is None:
            return read(self.path, name), None
        state = self.path.stat()
        return _whole(self.path, name, state.st_mtime_ns, state.st_size), self.frame


def one_line(error: Exception) -> str:
    """An error's text, short and on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def read(path: Path, file: str, pixels: bool = True) -> Any:
    """The data set in a file. Raises: Rejected, unreadable-image; ImportError: pydicom is not installed."""
    try:
        import pydicom
    except ImportError as error:
        raise ImportError("DICOM files are read by pydicom; pip install 'vital_jax[data]'") from error
    try:
        header = pydicom.dcmread(path, stop_before_pixels=not pixels)
        int(header.Rows), int(header.Columns)
        return header
    except Exception as error:  # pydicom fails in many ways on damaged files
        raise Rejected("unreadable-image", file, f"no DICOM image, or damaged ({one_line(error)})") from error


@lru_cache(maxsize=1)
def _whole(path: Path, file: str, time: int, size: int) -> Any:
    """The frames of a file follow each other; it is read once for all of them, and again where it changed."""
    return read(path, file)


def open_slices(path: Path, file: str) -> list[Slice]:
    """The images in a file: one, or every frame of an enhanced file.

    Raises:
      Rejected: unreadable-image, burned-in-text, or multi-frame for frames without a place of their own (a cine loop).
    """
    header = read(path, file, pixels=False)
    shape, frames = (int(header.Rows), int(header.Columns)), numbers(header, "NumberOfFrames") or (1,)
    if str(text(header, "BurnedInAnnotation")).upper() == "YES":
        raise Rejected(
            "burned-in-text", file, "says that its pixels carry writing, which may name the patient; mask it first"
        )
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if 0 in shape or (frames[0] > 1 and not groups):
        reason = f"holds {frames[0]:g} frames of {shape} without a place of their own"
        raise Rejected("multi-frame", file, f"{reason}; export the ones you mean as single images")
    if not groups:
        return [Slice(file, path, header)]
    if len(groups) != frames[0]:
        reason = f"holds {frames[0]:g} frames and describes {len(groups)}; it is damaged"
        raise Rejected("unreadable-image", file, reason)
    shared = next(iter(header.get("SharedFunctionalGroupsSequence") or ()), {})
    return [Slice(f"{file}#{n + 1}", path, _frame(header, shared, group), n) for n, group in enumerate(groups)]


def _frame(header: Any, shared: Mapping, group: Mapping) -> Any:
    """The header of one frame, as that of a file that holds it alone."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.dataset import Dataset

    found = Dataset()
    for tag in header.keys() - {tag_for_keyword(f"{name}FunctionalGroupsSequence") for name in ("PerFrame", "Shared")}:
        found[tag] = header.get_item(tag)  # not converted: a malformed value fails where it is asked for
    for part in (shared, group):
        for name in _GROUPS:
            for item in part.get(name) or ():
                for tag in list(item.keys()):
                    found[tag] = item.get_item(tag)
    found.NumberOfFrames = 1
    if text(found, "FrameType"):
        found.ImageType = found.FrameType
    return found


# --- tags ---------------------------------------------------------------------------------------------------------


def numbers(header: Any, tag: str, count: int = 0) -> tuple[float, ...]:
    """A tag's finite numbers; none where it is absent, malformed, or has not `count` of them (0: any number)."""
    try:
        value = header.get(tag)
        found = () if value is None else tuple(float(v) for v in np.ravel(value))
    except Exception:  # pydicom converts a value when it is asked for, and fails in many ways
        return ()
    return found if np.isfinite(found).all() and len(found) == (count or len(found)) else ()


def text(header: Any, tag: str) -> str:
    """A tag's value as text; empty where it is absent or malformed."""
    try:
        return str(header.get(tag) or "")
    except Exception:  # as in `numbers`
        return ""


def spacing(header: Any) -> tuple[float, ...]:
    """Millimeters in the patient from row to row and column to column; empty where not known."""
    found = numbers(header, "PixelSpacing", 2)
    return found if found and min(found) > 0 else ()


def aspect(header: Any) -> tuple[float, float]:
    """How far pixels lie apart from row to row and column to column, in whatever unit; (1, 1) where nothing is stated."""
    pairs = (numbers(header, tag, 2) for tag in _ASPECTS)
    return next((pair for pair in pairs if pair and min(pair) > 0), (1.0, 1.0))


def orientation(header: Any) -> str:
    """The image-space convention, as in `Sample`."""
    directions = numbers(header, "ImageOrientationPatient", 6)
    return "radiological" if tuple(round(v) for v in directions) == _RADIOLOGICAL else "image"


# --- places -------------------------------------------------------------------------------------------------------


def geometry(slice_: Slice) -> np.ndarray:
    """[4, 3] from (row, column, 1) to millimeters towards the patient's right, front and head. Raises: Rejected, no-affine."""
    found = {tag: numbers(slice_.header, tag, count) for tag, count in _PLACE.items()}
    lacking = [f"{tag} is {'malformed' if tag in slice_.header else 'absent'}" for tag in _PLACE if not found[tag]]
    if not lacking:
        along_row, along_column = np.array(found["ImageOrientationPatient"]).reshape(2, 3)
        between_rows, between_columns = found["PixelSpacing"]
        if np.linalg.norm(np.cross(along_row, along_column)) > 0.5 and min(between_rows, between_columns) > 0:
            toward = np.stack(
                [along_column * between_rows, along_row * between_columns, found["ImagePositionPatient"]], axis=1
            )
            return np.concatenate([np.diag([-1, -1, 1]) @ toward, [[0, 0, 1]]])
        lacking = ["its directions or spacing are zero"]
    reason = f"does not say where it lies in the patient ({', '.join(lacking)})"
    raise Rejected("no-affine", slice_.file, f"{reason}, so no volume can mark it")


def section(stack: Stack, slice_: Slice) -> np.ndarray:
    """[H, W] bool: where a volume is not zero in a slice's plane, by the nearest voxel; False outside the volume."""
    turn = np.linalg.inv(stack.affine) @ geometry(slice_)
    rows, columns = np.indices((int(slice_.header.Rows), int(slice_.header.Columns)))
    places = [np.rint(turn[axis, 0] * rows + turn[axis, 1] * columns + turn[axis, 2]).astype(int) for axis in range(3)]
    within = np.all(
        [(place >= 0) & (place < size) for place, size in zip(places, stack.voxels.shape, strict=True)], axis=0
    )
    marked = np.zeros(within.shape, bool)
    marked[within] = stack.voxels[tuple(place[within] for place in places)] != 0
    return marked


def in_order(slices: Sequence[Slice], file: str) -> tuple[list[Slice], list[Rejected]]:
    """The slices of a series that a volume can mark, from one end to the other, and what is left out.

    Args:
      slices: of one series. file: what a rejection calls it.

    Raises:
      Rejected: no-affine or several-at-one-place, where nothing is left.
    """
    placed, left_out = [], []
    for slice_ in slices:
        try:
            placed.append((geometry(slice_)[:3], slice_))
        except Rejected as reason:
            left_out.append(reason)
    if not placed:
        raise left_out[0]
    placed, turned = _one_angle(placed)
    left_out += turned
    places = defaultdict(list)
    for place, slice_ in placed:
        normal = np.cross(place[:, 1], place[:, 0])
        places[round(float(normal @ place[:, 2] / np.linalg.norm(normal)) / _SAME)].append(slice_)
    kept, doubled = [], []
    for height in sorted(places):
        here, same = places[height], [*places[height], *places.get(height - 1, ()), *places.get(height + 1, ())]
        first = {text(s.header, "SOPInstanceUID") or s.file if s.frame is None else s.file: s for s in reversed(same)}
        if len(first) == 1:
            kept.append(here[0])
            left_out += [Rejected("duplicate-id", s.file, f"is a copy of {here[0].file}; left out") for s in here[1:]]
        else:
            doubled.append(here)
    if doubled:
        named = ", ".join(s.file for s in doubled[0][:3])
        reason = f"{sum(map(len, doubled))} slices share {len(doubled)} places ({named}, ...), told apart by {_told_apart(doubled)}"
        way_out = 'leave those that the masks were drawn on, or name them: "select": {"TAG": value}'
        left_out.append(
            Rejected("several-at-one-place", file, f"{reason}; left out, for nothing says which is marked; {way_out}")
        )
        if not kept:
            raise left_out[-1]
    return kept, left_out


def _one_angle(placed: Sequence[tuple[np.ndarray, Slice]]) -> tuple[list[tuple[np.ndarray, Slice]], list[Rejected]]:
    """Those that lie at the angle of the most, localizers not counted, and the others."""
    angles: list[list[tuple[np.ndarray, Slice]]] = []
    scouts = [pair for pair in placed if "LOCALIZER" in text(pair[1].header, "ImageType")]
    if len(scouts) == len(placed):
        scouts = []
    scouted = {pair[1].file for pair in scouts}
    for pair in placed:
        if pair[1].file in scouted:
            continue
        directions = pair[0][:, :2] / np.linalg.norm(pair[0][:, :2], axis=0)
        for group in angles:
            first = group[0][0][:, :2] / np.linalg.norm(group[0][0][:, :2], axis=0)
            if np.abs(directions - first).max() < _ANGLE:
                group.append(pair)
                break
        else:
            angles.append([pair])
    most = max(angles, key=len)
    reason = f"is a localizer, or lies at another angle than the {len(most)} other slices of its series; left out"
    others = [pair for group in angles if group is not most for pair in group]
    return most, [Rejected("localizer", slice_.file, reason) for _, slice_ in [*scouts, *others]]


def _told_apart(doubled: Sequence[Sequence[Slice]]) -> str:
    """The first tag of `_TELLING` that differs at every place."""
    for tag in _TELLING:
        if all(len({text(slice_.header, tag) for slice_ in here}) > 1 for here in doubled):
            return tag
    return "nothing in their headers"
