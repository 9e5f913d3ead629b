"""DICOM images with masks, by a manifest: single slices, or folders that hold the slices of one series.

    {"id": "7", "modality": "CT", "site": "lung", "image": "7.dcm", "masks": [{"target": "nodule", "file": "7.png"}]}
    {"id": "8", "modality": "CT", "site": "liver", "image": "series8", "masks": [{"target": "liver", "file": "8.nii.gz"}]}

A mask is an image on the slice's pixel grid, or a NIfTI volume in the same patient's millimeters, which may lie on another grid. Values
become grey by the file's own display settings: modality look-up, then one of its windows (or its VOI look-up table), whose width fills the
eight bits, for files store more than is shown. Where a file has no window, CT is shown in its site's window and everything else between
percentiles. MONOCHROME1 is inverted, as its files mean it. A slice that was taken as radiologists look at it (patient's left on the
right, front up) says so in `orientation`; any other is left as stored.

Nothing that tells who the patient is goes on: no tag is copied, and the ids and groups of samples are hashes, of the manifest's id and of
its `group` or else the file's PatientID. A hash of a short number can be undone by trying all numbers, and writing in the pixels is
only found where the file admits it (such files are rejected): de-identify before you share. Rejections name files as the manifest does.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from vital_jax.construct.marked import Mask, cut, inside, line_kinds, load, manifest_units, refuse, target_name
from vital_jax.construct.nifti import Stack, read_stack
from vital_jax.construct.sample import Sample
from vital_jax.construct.source import Rejected, Unit
from vital_jax.construct.targets import Targets, load_targets
from vital_jax.construct.volumes import PERCENTILES, Cutter, ct_window

_RADIOLOGICAL = (1, 0, 0, 0, 1, 0)  # columns run to the patient's left, rows to the back
_FAR = 1e9  # a value beyond every window


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
        """The files in a unit's folder; none where it is a file, or somewhere else."""
        try:
            folder = inside(self.root, unit.facts["row"]["image"], unit.facts["where"])
        except Rejected:
            return []
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        return [path for path in files if path.is_file() and path.name[0] != "."]

    def read(self, unit: Unit) -> Iterator[Sample | Rejected]:
        """The samples of one slice or series; a slice or mask that cannot be used as a `Rejected`.

        Raises:
          Rejected: as `MaskFolder.read`; no-decoder, burned-in-text, multi-frame, mixed-series, bad-window or no-affine.
        """
        refuse(unit)
        row, where = unit.facts["row"], unit.facts["where"]
        path = inside(self.root, row["image"], where)
        if path.is_dir():
            yield from self._series(unit, row, where)
            return
        slice_ = _open(path, row["image"])
        masks = []
        for mask in row["masks"]:
            try:
                masks.append(Mask(mask["target"], mask["file"], self._mask(mask["file"], where, slice_, row["image"])))
            except Rejected as reason:
                masks.append(Mask(mask["target"], mask["file"], reason))
        yield from self._cut(unit.id, row, slice_, row["image"], masks)

    def _mask(self, file: str, where: str, slice_: Any, image: str) -> bytes:
        if _is_volume(file):
            return _png(_section(self._volume(file, where), slice_, image) * np.uint8(255))
        return load(self.root, file, where, "unreadable-mask")

    def _volume(self, file: str, where: str) -> Stack:
        stack = read_stack(inside(self.root, file, where), file, code="unreadable-mask")
        if stack.voxels.ndim != 3:
            raise Rejected("unreadable-mask", file, "has several channels; a mask has one")
        return stack

    def _series(self, unit: Unit, row: dict, where: str) -> Iterator[Sample | Rejected]:
        """The samples of a folder of slices, from one end to the other. One slice is held at a time, and one volume per mask."""
        slices = []
        for path in self._slices(unit):
            try:
                slices.append((f"{row['image']}/{path.name}", _open(path, f"{row['image']}/{path.name}", pixels=False)))
            except Rejected as reason:
                yield reason
        if not slices:
            raise Rejected("missing-file", row["image"], "no DICOM file in this folder")
        if len(found := {header.get("SeriesInstanceUID") for _, header in slices}) > 1:
            raise Rejected(
                "mixed-series", row["image"], f"slices of {len(found)} series; give each a folder and a line"
            )
        slices.sort(key=lambda pair: _height(pair[1], pair[0]))
        regions, files = {}, {}
        for mask in row["masks"]:
            target = target_name(self.targets, mask["target"], row["site"])
            try:
                if not _is_volume(mask["file"]):
                    raise Rejected("unreadable-mask", mask["file"], "the mask of a series must be a NIfTI volume")
                if target in files:
                    raise Rejected("duplicate-id", mask["file"], f"a second mask of {target!r}; unite them")
                files[target] = mask["file"]
                stack = self._volume(mask["file"], where)
                # One bit per pixel: all masks of a series fit beside each other.
                regions[target] = [np.packbits(_section(stack, header, file)) for file, header in slices]
            except Rejected as reason:
                yield reason
        cutter, kept = Cutter(min_area=self.min_area, max_slices=self.max_slices), {}
        areas = {
            target: np.array([int(np.bitwise_count(bits).sum()) for bits in rows]) for target, rows in regions.items()
        }
        for target, area in areas.items():
            kept[target] = set(cutter.pick(area))
            if not area.any():
                yield Rejected("empty-mask", files[target], f"marks nothing in the slices of {row['image']}")
            elif not kept[target]:
                yield Rejected(
                    "small-mask", files[target], f"at most {area.max()} pixels in a slice, {self.min_area} are needed"
                )
        told = set()
        for number in sorted(set().union(*kept.values())):
            image, header = slices[number]
            shape = (int(header.Rows), int(header.Columns))
            masks = [
                Mask(
                    target,
                    files[target],
                    _png(np.unpackbits(rows[number])[: shape[0] * shape[1]].reshape(shape) * np.uint8(255)),
                )
                for target, rows in regions.items()
                if areas[target][number]
            ]
            try:
                for item in self._cut(f"{unit.id}-{number}", row, _open(self.root / image, image), image, masks):
                    if isinstance(item, Sample):
                        if number in kept[item.target]:
                            yield item
                    # A mask that is too small here is large enough in other slices, and what a mask lacks it lacks in all.
                    elif item.code != "small-mask" and item.file not in told:
                        told.add(item.file)
                        yield item
            except Rejected as reason:
                yield reason

    def _cut(self, name: str, row: dict, slice_: Any, file: str, masks: Sequence[Mask]) -> Iterator[Sample | Rejected]:
        pixels, window = render(slice_, file, self.window, row["site"])
        patient = row.get("group", slice_.get("PatientID") or slice_.get("StudyInstanceUID") or row["id"])
        fields = {
            "id": f"{self.name}/{name}",
            "modality": row["modality"],
            "site": row["site"],
            "group": f"{self.name}/{anonymous(str(patient))}",
            "source": row.get("source", self.name),
            "licence": row.get("licence", self.licence),
            "window": window,
            "spacing": tuple(float(v) for v in slice_.get("PixelSpacing") or ()),
            "orientation": _orientation(slice_),
        }
        yield from cut(fields, _png(pixels), file, masks, self.min_area, self.targets)


def anonymous(text: str) -> str:
    """16 hexadecimal digits that stand for an identifier, the same on every machine."""
    return blake2b(text.encode(), digest_size=8).hexdigest()


# --- files --------------------------------------------------------------------------------------------------------


def _open(path: Path, file: str, pixels: bool = True) -> Any:
    """The data set in a file. Raises: Rejected, unreadable-image, burned-in-text or multi-frame."""
    try:
        import pydicom
    except ImportError as error:
        raise ImportError("DICOM files are read by pydicom; pip install 'vital_jax[data]'") from error
    try:
        slice_ = pydicom.dcmread(path, stop_before_pixels=not pixels)
        frames, shape = int(slice_.get("NumberOfFrames") or 1), (int(slice_.Rows), int(slice_.Columns))
    except Exception as error:  # pydicom fails in many ways on damaged files
        raise Rejected("unreadable-image", file, f"no DICOM image, or damaged ({_line(error)})") from error
    if frames > 1 or 0 in shape:
        raise Rejected(
            "multi-frame", file, f"holds {frames} frames of {shape}; export the ones you mean as single images"
        )
    if str(slice_.get("BurnedInAnnotation", "")).upper() == "YES":
        raise Rejected(
            "burned-in-text", file, "says that its pixels carry writing, which may name the patient; mask it first"
        )
    return slice_


def _values(slice_: Any, file: str) -> np.ndarray:
    """[H, W] or [H, W, 3] stored values. Raises: Rejected, no-decoder or unreadable-image."""
    from pydicom.pixels import get_decoder, pixel_array

    try:
        syntax = slice_.file_meta.TransferSyntaxUID
        decoder = get_decoder(syntax)
    except (AttributeError, NotImplementedError) as error:
        raise Rejected("no-decoder", file, f"unknown transfer syntax ({_line(error)}); save it uncompressed") from error
    if not decoder.is_available:
        lacking = next(
            (text for text in decoder.missing_dependencies if text.startswith("pylibjpeg")), "requires pydicom"
        )
        packages = " ".join(f"'{name}'" for name in re.findall(r"[\w-]+>=[\d.]+", lacking))
        raise Rejected(
            "no-decoder", file, f"compressed as {syntax.name}; pip install {packages}, or save it uncompressed"
        )
    try:
        return pixel_array(slice_)
    except Exception as error:
        raise Rejected("unreadable-image", file, f"its pixels cannot be read ({_line(error)})") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# --- grey ---------------------------------------------------------------------------------------------------------


def render(slice_: Any, file: str, window: int = 0, site: str = "") -> tuple[np.ndarray, tuple[float, ...]]:
    """A slice as it is shown (DICOM PS3.3 C.11.1, C.11.2).

    Args:
      slice_: a pydicom data set with pixels. file: what a rejection calls it.
      window: which of the file's windows or VOI tables. site: decides CT's window where the file has none.

    Returns:
      [H, W] or, for colour, [H, W, 3] uint8; and the (lowest, highest) value shown, empty for colour and VOI tables.

    Raises:
      Rejected: no-decoder, unreadable-image or bad-window.
    """
    stored = _values(slice_, file)
    kind = str(slice_.get("PhotometricInterpretation", ""))
    if stored.ndim == 3 and stored.dtype == np.uint8 and stored.shape[2] == 3:
        return stored, ()
    if stored.ndim != 2 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise Rejected(
            "unreadable-image",
            file,
            f"{kind or 'unstated'} pixels of shape {stored.shape}; convert to grey or 8-bit RGB",
        )
    try:
        share, shown = _shares(slice_, stored, window, site)
    except Rejected as reason:
        raise Rejected(reason.code, file, reason.reason) from reason
    except Exception as error:  # tags that contradict each other make pydicom fail in many ways
        raise Rejected("bad-window", file, f"its display settings cannot be applied ({_line(error)})") from error
    pixels = np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)
    return 255 - pixels if kind == "MONOCHROME1" else pixels, shown


def _shares(slice_: Any, stored: np.ndarray, window: int, site: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """[H, W] how far between the darkest and the brightest, 0..1; and the window."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    values = apply_modality_lut(stored, slice_)
    tables = slice_.get("VOILUTSequence") or ()
    windows = [
        pair
        for pair in zip(_numbers(slice_, "WindowCenter"), _numbers(slice_, "WindowWidth"), strict=False)
        if pair[1] > 0
    ]
    if not 0 <= window < max(1, len(tables or windows)):
        raise Rejected("bad-window", "", f"has {len(tables or windows)} windows; number {window} (from 0) is asked for")
    if tables:
        whole = np.rint(values).astype(np.int32)
        return apply_voi_lut(whole, slice_, window) / (2 ** int(tables[window].LUTDescriptor[2]) - 1), ()
    if windows:
        # pydicom maps onto the range of stored values; what it makes of values beyond every window is that range.
        with_ends = np.concatenate([values.ravel().astype(np.float64), [-_FAR, _FAR]])
        with np.errstate(over="ignore"):  # of a sigmoid window's ends
            mapped = apply_voi_lut(with_ends, slice_, window)
        low, high = mapped[-2:]
        center, width = windows[window]
        return ((mapped[:-2] - low) / (high - low)).reshape(values.shape), (center - width / 2, center + width / 2)
    if slice_.get("Modality") == "CT":
        low, high = ct_window("", site)
    else:
        low, high = (float(v) for v in np.percentile(values, PERCENTILES))
        if low == high:
            low, high = float(values.min()), float(values.max())
        if low == high:
            raise Rejected("no-contrast", "", "all values of the image are equal")
    return (values - low) / (high - low), (low, high)


def _numbers(slice_: Any, tag: str) -> list[float]:
    value = slice_.get(tag)
    return [] if value is None else [float(v) for v in np.ravel(value)]


def _png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# --- places -------------------------------------------------------------------------------------------------------


def _is_volume(file: str) -> bool:
    return file.lower().endswith((".nii", ".nii.gz"))


def _geometry(slice_: Any, file: str) -> np.ndarray:
    """[4, 3] from (row, column, 1) to millimeters towards the patient's right, front and head. Raises: Rejected, no-affine."""
    try:
        corner = np.array(slice_.ImagePositionPatient, float)
        along_row, along_column = np.array(slice_.ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = (float(v) for v in slice_.PixelSpacing)
    except (AttributeError, TypeError, ValueError) as error:
        raise Rejected(
            "no-affine", file, "does not say where it lies in the patient, so no volume can mark it"
        ) from error
    toward_left_and_back = np.stack([along_column * between_rows, along_row * between_columns, corner], axis=1)
    return np.concatenate([np.diag([-1, -1, 1]) @ toward_left_and_back, [[0, 0, 1]]])


def _height(slice_: Any, file: str) -> float:
    """Where a slice lies along the series; its number where it does not say."""
    try:
        geometry = _geometry(slice_, file)[:3]
        return float(np.cross(geometry[:, 1], geometry[:, 0]) @ geometry[:, 2])
    except Rejected:
        return float(slice_.get("InstanceNumber") or 0)


def _section(stack: Stack, slice_: Any, file: str) -> np.ndarray:
    """[H, W] bool: where a volume is not zero in a slice's plane, by the nearest voxel; False outside the volume."""
    turn = np.linalg.inv(stack.affine) @ _geometry(slice_, file)
    rows, columns = np.indices((int(slice_.Rows), int(slice_.Columns)))
    places = [np.rint(turn[axis, 0] * rows + turn[axis, 1] * columns + turn[axis, 2]).astype(int) for axis in range(3)]
    within = np.all(
        [(place >= 0) & (place < size) for place, size in zip(places, stack.voxels.shape, strict=True)], axis=0
    )
    marked = np.zeros(within.shape, bool)
    values = stack.voxels[tuple(place[within] for place in places)] * np.float32(stack.slope) + np.float32(
        stack.intercept
    )
    marked[within] = np.nan_to_num(values) != 0
    return marked


def _orientation(slice_: Any) -> str:
    """The image-space convention, as in `Sample`."""
    directions = _numbers(slice_, "ImageOrientationPatient")
    return "radiological" if tuple(round(v) for v in directions) == _RADIOLOGICAL else "image"
