"""DICOM images with masks, by a manifest: single slices, or folders that hold the slices of one series.

    {"id": "7", "modality": "CT", "site": "lung", "image": "7.dcm", "masks": [{"target": "nodule", "file": "7.png"}]}
    {"id": "8", "modality": "CT", "site": "liver", "image": "series8", "masks": [{"target": "liver", "file": "8.nii.gz"}]}

    {"id": "9", "modality": "CT", "site": "chest", "image": "series9", "masks": [{"file": "9-seg.dcm"}]}

The image of a line may also be an enhanced multi-frame file, which is read as a series of its frames. A mask is an image on the slice's
pixel grid, a NIfTI volume in the same patient's millimeters, which may lie on another grid, or a DICOM segmentation, whose segments have
names of their own (`dicom_segments`). Which slices of a series can be marked
is told by `dicom_places`, and "select": {"TemporalPositionIdentifier": 1} chooses some by a tag; how they are shown is told by
`dicom_grey`. Pixels that are no squares are resampled to squares, images and masks. A slice that was taken as radiologists look at it
(patient's left on the right, front up) says so in `orientation`; any other is left as stored.

Nothing that tells who the patient is goes on: no tag is copied, and the ids and groups of samples are hashes, of the manifest's id and of
its `group` or else the file's PatientID. A hash of a short number can be undone by trying all numbers, and writing in the pixels is
only found where the file admits it (such files are rejected): de-identify before you share. Rejections name files as the manifest does.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vital_jax.construct.dicom_grey import grey_of, render, stored_values
from vital_jax.construct.dicom_places import Slice, aspect, in_order, open_slices, orientation, section, spacing, text
from vital_jax.construct.dicom_segments import Segmentation, is_segmentation
from vital_jax.construct.hounsfield import told
from vital_jax.construct.marked import (
    Mask,
    cut,
    inside,
    is_dicom,
    line_kinds,
    load,
    manifest_units,
    refuse,
    target_name,
)
from vital_jax.construct.nifti import ENDINGS, Stack, read_stack, whole_numbers
from vital_jax.construct.sample import Sample, png
from vital_jax.construct.source import NOTES, Rejected, Unit
from vital_jax.construct.targets import Targets, load_targets
from vital_jax.construct.volumes import Cutter, square_size
from vital_jax.pipeline.masks import marked_values

__all__ = ["Dicom", "anonymous", "render"]
Mark = Callable[[Slice], np.ndarray]  # [H, W] bool


@dataclass
class Dicom:
    """A `Source` of the DICOM lines of a folder's manifest.

    Args:
      root: the folder that holds `manifest.jsonl`.
      window: which of a file's windows (or VOI tables) is used, from 0.
      min_area: least foreground of a mask in pixels.
      max_slices: most slices per target and series, as for volumes; 0: all.
      licence: of the whole folder, where lines do not state one.
      targets: another table than the built-in one.
      name: another name than the folder's, where two sources would have the same.

    Raises (by `read`):
      ImportError: pydicom is not installed.
    """

    root: Path
    window: int = 0
    min_area: int = 100
    max_slices: int = 8
    licence: str = ""
    targets: Targets = field(default_factory=load_targets)
    name: str = ""
    kind: ClassVar[str] = "dicom"

    def __post_init__(self):
        self.root = Path(self.root).resolve()
        self.name = self.name or self.root.name
        if self.window < 0:
            raise ValueError(f"{self.root}: window {self.window}: which of a file's windows, counted from 0")

    @classmethod
    def claims(cls, root: Path) -> bool:
        """Whether the folder has a manifest with a line for this reader."""
        return cls.kind in line_kinds(root)

    def units(self) -> Sequence[Unit]:
        """One per line, under the hash of its id, with every slice of a series. Raises: FileNotFoundError, no manifest."""
        units = []
        for unit in manifest_units(self.root, self.kind):
            if "rejected" not in unit.facts:
                slices = [f"{unit.files[0]}/{path.name}" for path in self._slices(unit)]
                unit = replace(unit, id=anonymous(unit.id), files=(*(slices or unit.files[:1]), *unit.files[1:]))
            units.append(unit)
        return units

    def _slices(self, unit: Unit) -> list[Path]:
        """The files in a unit's folder but for its masks; none where it is a file, or somewhere else."""
        row = unit.facts["row"]
        try:
            folder = inside(self.root, row["image"], unit.facts["where"])
        except Rejected:
            return []
        masks = {self.root / mask["file"] for mask in row["masks"]}
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        return [path for path in files if path.is_file() and path.name[0] != "." and path not in masks]

    def read(self, unit: Unit) -> Iterator[Sample | Rejected]:
        """The samples of one slice or series; a slice or mask that cannot be used as a `Rejected`.

        Raises:
          Rejected: as `MaskFolder.read`; no-decoder, burned-in-text, multi-frame, mixed-series, bad-window, no-affine or
            several-at-one-place.
        """
        refuse(unit)
        row, where = unit.facts["row"], unit.facts["where"]
        path = inside(self.root, row["image"], where)
        slices = [] if path.is_dir() else _images(path, row["image"])
        if path.is_dir() or len(slices) > 1:
            yield from self._series(unit, row, where, slices)
            return
        masks = []
        for mask in row["masks"]:
            said = (mask.get("value"), mask.get("outline"))
            try:
                marks = self._marks(mask, row, where, slices)
                for target, mark in marks.items():
                    masks.append(Mask(target, mask["file"], png(mark(slices[0]) * np.uint8(255)), None, said[1]))
                if not marks:
                    data = load(self.root, mask["file"], where, "unreadable-mask")
                    masks.append(Mask(mask["target"], mask["file"], data, *said))
            except Rejected as reason:
                if "target" in mask:
                    masks.append(Mask(mask["target"], mask["file"], reason))
                else:
                    yield reason
        yield from self._cut(unit.id, row, slices[0], masks)

    def _marks(self, mask: dict, row: dict, where: str, slices: Sequence[Slice]) -> dict[str, Mark]:
        """Per target what marks it in a slice, where the mask is a volume or a segmentation; nothing where it is an image."""
        file, site = mask["file"], row["site"]
        if _is_volume(file):
            return {
                target_name(self.targets, mask["target"], site): partial(
                    section, self._volume(file, where, mask.get("value"))
                )
            }
        if not is_dicom(file):
            return {}
        found = Segmentation(inside(self.root, file, where), file)
        found.check(slices, row["image"])
        meant = found.meant(mask, self.targets, site)
        return {target: partial(found.region, numbers) for target, numbers in meant.items()}

    def _volume(self, file: str, where: str, value: Any) -> Stack:
        """What a mask marks, as a stack of booleans."""
        stack = read_stack(inside(self.root, file, where), file, code="unreadable-mask")
        if stack.voxels.ndim != 3:
            raise Rejected("unreadable-mask", file, "has several channels; a mask has one")
        try:
            values = whole_numbers(stack, file)
        except Rejected:
            values = np.stack([stack.plane(z) for z in range(len(stack.voxels))])
        try:
            return replace(stack, voxels=marked_values(values, "the mask", value), slope=1.0, intercept=0.0)
        except ValueError as error:
            raise Rejected("unclear-mask", file, str(error)) from error

    def _opened(self, unit: Unit, row: dict) -> Iterator[Slice | Rejected]:
        """The slices in the files of a folder."""
        for path in self._slices(unit):
            try:
                yield from _images(path, f"{row['image']}/{path.name}")
            except Rejected as reason:
                yield reason

    def _series(self, unit: Unit, row: dict, where: str, slices: list[Slice]) -> Iterator[Sample | Rejected]:
        """The samples of a folder of slices or of a file of frames, from one end to the other. One slice is held at a time (of a file of
        frames all), and one volume per mask."""
        for found in self._opened(unit, row):
            if isinstance(found, Rejected):
                yield found
            else:
                slices.append(found)
        if not slices:
            raise Rejected("missing-file", row["image"], "no DICOM file in this folder")
        for tag, value in row.get("select", {}).items():
            slices = [slice_ for slice_ in slices if text(slice_.header, tag) == str(value)]
            if not slices:
                raise Rejected("missing-file", row["image"], f"no slice has {tag} {value!r}, which select asks for")
        if len(series := {text(slice_.header, "SeriesInstanceUID") for slice_ in slices}) > 1:
            reason = f"slices of {len(series)} series; give each a folder and a line"
            raise Rejected("mixed-series", row["image"], reason)
        slices, left_out = in_order(slices, row["image"])
        yield from left_out
        regions, owners = {}, {}
        for mask in row["masks"]:
            try:
                marks = self._marks(mask, row, where, slices)
                if not marks:
                    reason = "the mask of a series must be a NIfTI volume or a DICOM segmentation"
                    raise Rejected("unreadable-mask", mask["file"], reason)
                for target, mark in marks.items():
                    if target in owners:
                        raise Rejected("duplicate-id", mask["file"], f"a second mask of {target!r}; unite them")
                    owners[target] = mask
                    marked = (mark(slice_) for slice_ in slices)
                    # One bit per pixel, and nothing where nothing is marked: all masks of a series fit beside each other.
                    regions[target] = [
                        np.packbits(region) if region.any() else np.zeros(0, np.uint8) for region in marked
                    ]
            except Rejected as reason:
                yield reason
        cutter, kept = Cutter(min_area=self.min_area, max_slices=self.max_slices), {}
        areas = {
            target: np.array([int(np.bitwise_count(bits).sum()) for bits in rows]) for target, rows in regions.items()
        }
        for target, area in areas.items():
            kept[target] = set(cutter.pick(area))
            if not area.any():
                yield Rejected("empty-mask", owners[target]["file"], f"marks nothing in the slices of {row['image']}")
            elif not kept[target]:
                yield Rejected(
                    "small-mask",
                    owners[target]["file"],
                    f"at most {area.max()} pixels in a slice, {self.min_area} are needed",
                )
        seen = set()
        for number in sorted(set().union(*kept.values())):
            slice_ = slices[number]
            shape = (int(slice_.header.Rows), int(slice_.header.Columns))
            masks = [
                Mask(
                    target,
                    owners[target]["file"],
                    png(np.unpackbits(rows[number])[: shape[0] * shape[1]].reshape(shape) * np.uint8(255)),
                    outline=owners[target].get("outline"),
                )
                for target, rows in regions.items()
                if areas[target][number]
            ]
            try:
                for item in self._cut(f"{unit.id}-{number}", row, slice_, masks):
                    if isinstance(item, Sample):
                        if number in kept[item.target]:
                            yield item
                    # A mask that is too small here is large enough in other slices, and what a mask lacks it lacks in all.
                    elif item.code != "small-mask" and (item.code if item.code in NOTES else item.file) not in seen:
                        seen.add(item.code if item.code in NOTES else item.file)
                        yield item
            except Rejected as reason:
                yield reason

    def _cut(self, name: str, row: dict, slice_: Slice, masks: Sequence[Mask]) -> Iterator[Sample | Rejected]:
        header = slice_.header
        whole, frame = slice_.whole()
        grey = grey_of(header, stored_values(whole, slice_.file, frame), slice_.file, self.window, row["site"])
        if grey.intensity:
            code, reason = told(grey.intensity)
            yield Rejected(code, slice_.file, reason)
        patient = row.get("group", text(header, "PatientID") or text(header, "StudyInstanceUID") or row["id"])
        shape = grey.pixels.shape[:2]
        size = square_size(shape, *aspect(header))
        fields = {
            "id": f"{self.name}/{name}",
            "modality": row["modality"],
            "site": row["site"],
            "group": f"{self.name}/{anonymous(str(patient))}",
            "source": row.get("source", self.name),
            "licence": row.get("licence", self.licence),
            "window": grey.window,
            "intensity": grey.intensity,
            "spacing": tuple(v * (old / new) for v, old, new in zip(spacing(header), shape, size, strict=False)),
            "orientation": orientation(header),
        }
        yield from cut(fields, png(grey.pixels), slice_.file, masks, self.min_area, self.targets, size)


def anonymous(text: str) -> str:
    """16 hexadecimal digits that stand for an identifier, the same on every machine."""
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _images(path: Path, file: str) -> list[Slice]:
    """As `open_slices`. Raises: Rejected, unreadable-image, for a file that marks images and is none."""
    slices = open_slices(path, file)
    if is_segmentation(slices[0].header):
        raise Rejected(
            "unreadable-image", file, "is a segmentation, not an image; name it as a mask of the image's line"
        )
    return slices


def _is_volume(file: str) -> bool:
    return file.lower().endswith(ENDINGS)
