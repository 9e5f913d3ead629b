"""DICOM Segmentation objects (PS3.3 C.8.20): what their segments are called, and which pixels of a slice each marks.

Every frame marks one segment in one plane. A frame that says where it lies in the patient (ImagePositionPatient, ImageOrientationPatient,
PixelSpacing) marks the slices that run through it, by the nearest pixel, so that its grid need not be that of the slices; where it or the
image does not, it marks the image that its DerivationImageSequence names, on that image's grid. A label map (its values are the numbers of
segments) is read too. Where values are fractions, more than half counts: the file says what they are fractions of.

Nothing is placed on trust. Another frame of reference, no frame in any slice, or a frame that lies elsewhere than the image it names are
refused by name.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from vital_jax.construct.dicom_grey import stored_values
from vital_jax.construct.dicom_places import Slice, geometry, numbers, open_slices, section, text
from vital_jax.construct.marked import target_name
from vital_jax.construct.nifti import Stack
from vital_jax.construct.source import Rejected
from vital_jax.construct.targets import Targets

CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # Segmentation, Label Map Segmentation
_THIN = 0.1  # millimeters that a frame is taken to be thick, where nothing says more


def is_segmentation(header: Any) -> bool:
    """Whether a data set is a Segmentation object rather than an image."""
    return text(header, "SOPClassUID") in CLASSES


class Segmentation:
    """The segments of a file.

    Args:
      path: the file. file: what rejections call it.

    Raises (as do its methods):
      Rejected: unreadable-mask, not such a file or damaged; no-affine, a frame that says neither its place nor its image.
    """

    def __init__(self, path: Path, file: str):
        self.file = file
        try:
            self._frames = open_slices(path, file)
        except Rejected as reason:
            raise Rejected("unreadable-mask", reason.file, reason.reason) from reason
        header = self._frames[0].header
        if not is_segmentation(header):
            kind = text(header, "Modality") or "unstated"
            raise Rejected("unreadable-mask", file, f"is a DICOM file of modality {kind}; one that marks is a SEG")
        self._kind = text(header, "SegmentationType").upper()
        (self._most,) = numbers(header, "MaximumFractionalValue", 1) or (255.0,)
        segments = {int(item.SegmentNumber): _names(item) for item in header.get("SegmentSequence") or ()}
        self._names = {number: names for number, names in segments.items() if number}  # 0 is a label map's background
        self._numbers = [numbers(frame.header, "ReferencedSegmentNumber", 1) for frame in self._frames]
        self._places = self._placed()

    # --- what it is called --------------------------------------------------------------------------------------------

    def meant(self, mask: Mapping[str, Any], targets: Targets, site: str) -> dict[str, list[int]]:
        """Target -> the numbers of its segments, for a manifest's mask.

        Without a target all segments are meant, each under the first of its names that the table knows, or else its label; with one, those
        of that name, or the only one. `value` chooses segments by their numbers.

        Raises:
          Rejected: unclear-mask, where that chooses none.
        """
        chosen = mask.get("value", list(self._names))
        chosen = chosen if isinstance(chosen, list) else [chosen]
        told = ", ".join(f"{number} ({names[0]})" for number, names in self._names.items())
        if lacking := [number for number in chosen if number not in self._names]:
            raise Rejected("unclear-mask", self.file, f"has no segment {lacking[0]!r}; it has {told or 'none'}")
        named: dict[str, list[int]] = {}
        for number in chosen:
            named.setdefault(_called(self._names[number], targets, site), []).append(number)
        if "target" not in mask:
            return named
        target = target_name(targets, mask["target"], site)
        if "value" in mask or len(chosen) == 1:
            return {target: chosen}
        if target not in named:
            reason = f"has the segments {told}, and none is {target}"
            raise Rejected("unclear-mask", self.file, f'{reason}; name the numbers of those that are meant as "value"')
        return {target: named[target]}

    # --- where it lies ------------------------------------------------------------------------------------------------

    def check(self, slices: Sequence[Slice], image: str) -> None:
        """Refuses a segmentation of something else than the slices of `image`.

        Raises:
          Rejected: affine-mismatch.
        """

        def refuse(reason: str) -> None:
            raise Rejected("affine-mismatch", self.file, reason)

        theirs = {text(slice_.header, "FrameOfReferenceUID") for slice_ in slices} - {""}
        if theirs and (ours := text(self._frames[0].header, "FrameOfReferenceUID")) and ours not in theirs:
            refuse(f"has another frame of reference than {image}: it marks another scan, or the patient was moved")
        fits, named = any(_through(self._heights(slice_)).any() for slice_ in slices), defaultdict(list)
        for slice_ in slices:
            named[text(slice_.header, "SOPInstanceUID")].append(slice_)
        for number, frame in enumerate(self._frames):
            here = [slice_ for uid, _ in _sources(frame) for slice_ in named[uid] if _drawn_on(frame, slice_)]
            fits |= bool(here)
            if len(here) == 1 and (away := np.abs(self._heights(here[0])[number]).min()) > 1:
                refuse(
                    f"frame {number + 1} lies {away:.3g} thicknesses away from {here[0].file}, which it was drawn on"
                )
        if not fits:
            refuse(f"none of its frames lies in a slice of {image}")

    def region(self, chosen: Sequence[int], slice_: Slice) -> np.ndarray:
        """[H, W] bool: what segments mark in a slice. Raises: Rejected, size-mismatch, no-decoder or unreadable-mask."""
        marked = np.zeros((int(slice_.header.Rows), int(slice_.header.Columns)), bool)
        heights = self._heights(slice_)
        for number in np.flatnonzero(_through(heights)):
            if self._holds(number, chosen):
                stack = Stack(self._values(number, chosen)[None], 1.0, 0.0, self._places[number])
                marked |= section(stack, slice_)
        for number in np.flatnonzero(np.isnan(heights).any(1)):
            if self._holds(number, chosen) and _drawn_on(self._frames[number], slice_):
                values = self._values(number, chosen)
                if values.shape != marked.shape:
                    reason = f"its frames are {values.shape} pixels, and {slice_.file}, which it names, {marked.shape}"
                    raise Rejected("size-mismatch", self.file, reason)
                marked |= values
        return marked

    def _holds(self, number: int, chosen: Sequence[int]) -> bool:
        return self._kind == "LABELMAP" or (*self._numbers[number], None)[0] in chosen

    def _values(self, number: int, chosen: Sequence[int]) -> np.ndarray:
        """[H, W] bool: what a frame marks."""
        try:
            whole, frame = self._frames[number].whole()
            values = stored_values(whole, self.file, frame)
        except Rejected as reason:
            code = "unreadable-mask" if reason.code == "unreadable-image" else reason.code
            raise Rejected(code, self.file, reason.reason) from reason
        if self._kind == "LABELMAP":
            return np.isin(values, chosen)
        return 2.0 * values > self._most if self._kind == "FRACTIONAL" else values != 0

    def _heights(self, slice_: Slice) -> np.ndarray:
        """[F, 4] how far the corners of a slice lie above each frame, in thicknesses; NaN where one of both has no place."""
        try:
            place = geometry(slice_)
        except Rejected:
            return np.full((len(self._frames), 4), np.nan)
        rows, columns = int(slice_.header.Rows) - 1, int(slice_.header.Columns) - 1
        corners = place @ np.array([(0, 0, 1), (rows, 0, 1), (0, columns, 1), (rows, columns, 1)]).T
        return self._inverse[:, 0] @ corners

    def _placed(self) -> np.ndarray:
        """[F, 4, 4] from (height, row, column) in a frame to millimeters; NaN where it has no place."""
        places = np.full((len(self._frames), 4, 4), np.nan)
        for number, frame in enumerate(self._frames):
            try:
                places[number, :, 1:] = place = geometry(frame)
            except Rejected as reason:
                if not _sources(frame):
                    why = f"{reason.reason.partition(', so')[0]}, nor on which image it was drawn"
                    raise Rejected("no-affine", frame.file, why) from reason
                continue
            normal = np.cross(place[:3, 1], place[:3, 0])
            places[number, :, 0] = *(normal / np.linalg.norm(normal)), 0
        thick = _thicknesses(self._frames, places)
        places[:, :, 0] *= thick[:, None]
        self._inverse = np.full_like(places, np.nan)
        placed = ~np.isnan(places[:, 0, 0])
        self._inverse[placed] = np.linalg.inv(places[placed])
        return places


def _thicknesses(frames: Sequence[Slice], places: np.ndarray) -> np.ndarray:
    """[F] millimeters from frame to frame: what is stated, or less where frames overlap."""
    normal = np.nan_to_num(places[:, :3, 0])
    heights = np.unique(np.round((normal[0] * places[:, :3, 3]).sum(1), 2)) if np.ptp(normal, 0).max() < 1e-3 else ()
    gaps = np.diff(heights) if len(heights) > 1 else []
    stated = [
        [v for tag in ("SpacingBetweenSlices", "SliceThickness") for v in numbers(f.header, tag, 1)] for f in frames
    ]
    return np.array([min((v for v in (*each, *gaps) if v > 0), default=_THIN) for each in stated])


def _through(heights: np.ndarray) -> np.ndarray:
    """[F] whether a slice runs through each frame, by `_heights`."""
    return (heights.min(1) <= 0.5) & (heights.max(1) >= -0.5)


def _sources(frame: Slice) -> list[tuple[str, tuple[float, ...]]]:
    """The images that a frame was drawn on: (SOPInstanceUID, numbers of frames or none)."""
    items = frame.header.get("SourceImageSequence") or ()
    return [(text(item, "ReferencedSOPInstanceUID"), numbers(item, "ReferencedFrameNumber")) for item in items]


def _drawn_on(frame: Slice, slice_: Slice) -> bool:
    own = text(slice_.header, "SOPInstanceUID")
    return any(uid == own and (not n or slice_.frame is None or slice_.frame + 1 in n) for uid, n in _sources(frame))


def _names(segment: Any) -> list[str]:
    """What a segment may be called, the most telling first: its label, then its coded type, each with its side and without a number at
    the end ("Lesion 2")."""
    coded = _codes(segment, "SegmentedPropertyTypeCodeSequence")
    place = _codes(segment, "AnatomicRegionSequence")
    sides = [
        m
        for code in (*coded, *place)
        for name in _MODIFIERS
        for m in (text(c, "CodeMeaning") for c in _codes(code, name))
    ]
    names = [text(segment, "SegmentLabel"), *(text(code, "CodeMeaning") for code in coded)]
    names = [each for name in names if name for each in (name, re.sub(r"[\s_#-]*\d+$", "", name)) if each]
    return [each for name in names for each in (*(f"{side} {name}" for side in sides), name)] or ["unnamed segment"]


def _called(names: Sequence[str], targets: Targets, site: str) -> str:
    """The first name that the table knows, as it has it; the last, which is plain, where it knows none."""
    for name in names:
        with suppress(ValueError):
            return targets.canonical(name, site)
    return names[-1]


_MODIFIERS = ("SegmentedPropertyTypeModifierCodeSequence", "AnatomicRegionModifierSequence")


def _codes(item: Any, tag: str) -> list[Any]:
    return list(item.get(tag) or ())
