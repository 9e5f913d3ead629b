"""From volumes with labels to samples: which slices, in which window, with which targets.

A slice is kept for a target that has at least `min_area` pixels in it (VITAL A.1: 100). Slices beside each other show nearly the same, so
at most `max_slices` of them, evenly spread over the target's extent, are taken per target and volume. Eight is the default because it
makes about 33 thousand samples of the Decathlon's ten tasks (estimated from BiomedParse's mask tables, 60 hippocampus volumes and 484
brains with four targets each), and the paper reports 33,963; `max_slices=0` with a `stride` takes every so many-th slice instead.

An affine can be wrong: programs that lost one write a default, which mirrors the patient as often as not, and nothing but the organs shows
it. So organs that lie on one side of the body are looked up in every stack that has them.

Facts that a clinician may want to change (CT windows, what labels mean) are in `data/volumes.json`. Memory is that of one volume and its
labels, whatever the size of the corpus. Research only, not a medical device.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from vital_jax.construct.hounsfield import RELATIVE, SHIFT, SHIFTED, intensity, told
from vital_jax.construct.nifti import Stack
from vital_jax.construct.sample import Sample, png
from vital_jax.construct.shapes import without_specks
from vital_jax.construct.source import Rejected
from vital_jax.construct.targets import DATA, Targets, load_targets

PERCENTILES = (0.5, 99.5)
SQUARE = 1.05  # pixels whose sides differ by more than this factor are resampled to squares
CLEAR = 0.1  # share of the image's width by which an organ must be off the middle to say on which side it lies
BELOW = 0.1  # of all values but 0: as many negative ones are tissue
SHARED = 0.1  # of a volume's values: as many equal ones are background
_ENOUGH = 1 << 22  # voxels that percentiles are taken from


@cache
def load_tables(path: Path = DATA / "volumes.json") -> dict:
    """Reads and checks the tables of windows, Decathlon tasks and label sets.

    Raises:
      ValueError: not such tables.
    """
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
        named = {name for _, name in tables["window_of_target"]} | set(tables["window_of_site"].values())
        unknown = named - tables["windows"].keys()
        version, _, _, _ = (
            tables["format_version"],
            tables["window_of_site"]["default"],
            tables["tasks"],
            tables["label_sets"],
        )
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not tables of volumes ({error!r})") from error
    if version != 1 or unknown:
        raise ValueError(
            f"{path}: table format {version}, this vital_jax reads 1; windows without a row: {sorted(unknown)}"
        )
    return tables


def ct_window(target: str, site: str) -> tuple[float, float]:
    """(lowest, highest) Hounsfield unit that is shown for a target at a site."""
    tables = load_tables()
    sites = tables["window_of_site"]
    name = next((name for pattern, name in tables["window_of_target"] if fnmatchcase(target, pattern)), "")
    level, width = tables["windows"][name or sites.get(site, sites["default"])]
    return level - width / 2, level + width / 2


def sampled(stack: Stack, channel: int | None = None) -> np.ndarray:
    """[N] float32 finite real values, from every slice, of a volume that may be too large to look at whole."""
    voxels = stack.voxels if channel is None else stack.voxels[..., channel]
    step = -(-voxels.size // _ENOUGH)
    values = np.concatenate([plane[:: max(1, step)].ravel() for plane in voxels]) if step > 1 else voxels.ravel()
    values = values * np.float32(stack.slope) + np.float32(stack.intercept)
    return values[np.isfinite(values)]


def below_zero(values: np.ndarray) -> bool:
    """Whether tissue lies below zero too (z-scored, scaled to [-1, 1]): a tenth of all values but 0. Resampling leaves a few."""
    return bool((values < 0).sum() >= BELOW * max(1, np.count_nonzero(values)))


def background_of(values: np.ndarray) -> float | None:
    """The one value that is no tissue where tissue may lie below it: what a tenth of such a volume shares.

    None where tissue is above zero, for there background is what is 0 or less; and where nothing is shared.
    """
    if not below_zero(values):
        return None
    found, counts = np.unique(values, return_counts=True)
    return float(found[counts.argmax()]) if counts.max() >= SHARED * values.size else None


def percentile_window(stack: Stack, channel: int | None = None) -> tuple[float, float]:
    """(lowest, highest) value shown where values have no unit of their own: `PERCENTILES` of a whole volume's foreground.

    Foreground is what is above zero, which is where MRI keeps air and what was cut away. In a volume with tissue `below_zero` it is what is
    not `background_of`. A volume without foreground is taken whole.

    Raises:
      Rejected: no-contrast (without a file), where all of it is equal.
    """
    values = sampled(stack, channel)
    shown = values[values != background_of(values)] if below_zero(values) else values[values > 0]
    shown = shown if shown.size else values
    low, high = np.percentile(shown, PERCENTILES) if shown.size else (0.0, 0.0)
    if low == high and shown.size:
        low, high = values.min(), values.max()
    if low == high:
        raise Rejected("no-contrast", "", "all values of the volume are equal")
    return float(low), float(high)


def square_size(shape: tuple[int, int], rows: float, columns: float) -> tuple[int, int]:
    """The (height, width) in which pixels that lie `rows` apart from row to row and `columns` from column to column are squares."""
    fine, (height, width) = min(rows, columns), shape
    if max(rows, columns) <= SQUARE * fine:
        return height, width
    return max(1, round(height * rows / fine)), max(1, round(width * columns / fine))


@dataclass(frozen=True)
class Channel:
    """One image that is made of a volume.

    Attributes:
      index: into the last axis of a 4-D volume; None for 3-D.
      modality: of this channel. targets: those asked about in it; empty: all.
    """

    index: int | None
    modality: str
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labels:
    """One label map.

    Attributes:
      file: what rejections call it.
      values: [Z, H, W] unsigned integers.
      targets: which values make up each target.
      ignored: the value of what nobody looked at, which may be anything; None: there is none.
    """

    file: str
    values: np.ndarray
    targets: Mapping[str, Sequence[int]]
    ignored: int | None = None

    @cached_property
    def areas(self) -> np.ndarray:
        """[Z, V] pixels of each value (V: one more than the highest) in each slice."""
        high = int(self.values.max()) + 1
        return np.stack([np.bincount(plane.ravel(), minlength=high) for plane in self.values])

    def check(self) -> None:
        """Raises: Rejected (unknown-label), where a value other than 0 belongs to no target."""
        known = {0, self.ignored, *(value for values in self.targets.values() for value in values)}
        unknown = sorted(set(np.nonzero(self.areas.sum(0))[0].tolist()) - known)
        if unknown:
            shown = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
            raise Rejected("unknown-label", self.file, f"holds label values that no table names: {shown}")

    @cached_property
    def unsure(self) -> np.ndarray:
        """[Z] whether a slice holds what nobody looked at, so that a target may go on there."""
        return np.zeros(len(self.areas), bool) if self.ignored is None else self._pixels([self.ignored]) > 0

    def left_out(self) -> Rejected | None:
        """What says that slices are left out for that."""
        if not self.unsure.any():
            return None
        share = f"{self.unsure.sum()} of {len(self.unsure)} slices hold its ignore label"
        return Rejected("partly-marked", self.file, f"{share}, where a target may go on unmarked; they are left out")

    def area(self, target: str) -> np.ndarray:
        """[Z] pixels of a target in each slice; 0 where that is unsure."""
        return np.where(self.unsure, 0, self._pixels(self.targets[target]))

    def _pixels(self, values: Sequence[int]) -> np.ndarray:
        return self.areas[:, [value for value in values if value < self.areas.shape[1]]].sum(1)

    def mask(self, target: str, z: int) -> np.ndarray:
        """[H, W] bool."""
        return np.isin(self.values[z], self.targets[target])


def mirrored(labels: Sequence[Labels]) -> str:
    """What shows that a stack is mirrored, in words; empty where nothing does.

    An organ of the table's 'sides' shows it where its middle lies on the wrong side by `CLEAR` of the width; one on its right side by as
    much outweighs all, since a crop can put an organ anywhere.
    """
    wrong = []
    for side, names in load_tables()["sides"].items():
        for label in labels:
            for target in label.targets.keys() & names:
                columns = sum(label.mask(target, z).sum(0) for z in np.nonzero(label.area(target))[0])
                if np.sum(columns):
                    # Half a pixel: columns are counted by their middles.
                    off = (np.average(np.arange(len(columns)), weights=columns) + 0.5) / len(columns) - 0.5
                    off = off if side == "left" else -off
                    if off >= CLEAR:
                        return ""
                    if off <= -CLEAR:
                        wrong.append(target)
    return f"{', '.join(sorted(wrong))} on the wrong side of the body" if wrong else ""


@dataclass(frozen=True)
class Case:
    """A volume and what is known about it.

    Attributes:
      id: unique in its source. file: what rejections call it.
      stack: the volume. labels: where a target is in two of them, the first counts.
      channels: the images to make.
      site, group, licence: as in a sample; group without the source's name.
    """

    id: str
    file: str
    stack: Stack
    labels: Sequence[Labels]
    channels: Sequence[Channel]
    site: str
    group: str
    licence: str = ""


@dataclass(frozen=True)
class Shown:
    """How a channel is shown.

    Attributes:
      stack: the volume, in the unit of the window. window: (lowest, highest) value shown for a target.
      intensity: as in `Sample`. background: as `background_of`; shown black.
    """

    stack: Stack
    window: Callable[[str], tuple[float, float]]
    intensity: str = ""
    background: float | None = None


@dataclass(frozen=True, kw_only=True)
class Cutter:
    """How samples are cut out of volumes.

    Attributes:
      min_area: least pixels of a target in a slice, counted on the stored grid.
      max_slices: most slices per target, volume and channel; 0: all.
      stride: of the slices that are large enough, only each so many-th is a candidate.
      complete: every target of a volume's tables is marked wherever it can be seen, so that an unmarked one is absent.
      targets: another table than the built-in one.
    """

    min_area: int = 100
    max_slices: int = 8
    stride: int = 1
    complete: bool = False
    targets: Targets = field(default_factory=load_targets)

    def __post_init__(self):
        if self.min_area < 1 or self.max_slices < 0 or self.stride < 1:
            given = f"min_area {self.min_area}, max_slices {self.max_slices}, stride {self.stride}"
            raise ValueError(f"{given}: the first and last must be at least 1, max_slices at least 0")

    def pick(self, area: np.ndarray) -> list[int]:
        """The slices that are kept, given a target's area [Z] in each."""
        found = np.nonzero(area >= self.min_area)[0][:: self.stride]
        if self.max_slices and len(found) > self.max_slices:
            # The middles of equal stretches: the first and last slices show least of a target.
            found = found[((np.arange(self.max_slices) + 0.5) * len(found) / self.max_slices).astype(int)]
        return found.tolist()

    def cut(self, case: Case, source: str) -> Iterator[Sample | Rejected]:
        """A case's samples, slice by slice from feet to head; targets that give none as rejections, and notes on the unit of a CT's values.

        Raises:
          Rejected: unknown-label (where no label map is left), unknown-modality, empty-mask, no-contrast, or unreadable-volume for a
            channel that the volume lacks.
        """
        homes, failed = self._homes(case)
        yield from failed
        areas = {target: home.area(target) for target, home in homes.items()}
        areas = {target: area for target, area in areas.items() if area.any()}
        if not areas and not failed:
            raise Rejected("empty-mask", case.labels[0].file if case.labels else case.file, "no voxel is labelled")
        kept = {target: self.pick(area) for target, area in areas.items()}
        for target, slices in kept.items():
            if not slices:
                reason = f"{target}: at most {areas[target].max()} pixels in a slice, {self.min_area} are needed"
                yield Rejected("small-mask", homes[target].file, reason)
        for channel in case.channels:
            shown = self._shown(case, channel)
            if shown.intensity:
                code, reason = told(shown.intensity)
                yield Rejected(code, case.file, reason)
            asked = [target for target in kept if not channel.targets or target in channel.targets]
            for z in sorted({z for target in asked for z in kept[target]}):
                here = [target for target in asked if z in kept[target]]
                present = tuple(target for target, area in areas.items() if area[z])
                absent = tuple(target for target in homes if target not in present) if self.complete else ()
                yield from self._slice(case, source, channel, shown, z, here, present, absent, homes)

    def _homes(self, case: Case) -> tuple[dict[str, Labels], list[Rejected]]:
        """Which label map each target is taken from; and what is left out, by its reason: maps with values that no table names, slices
        that are partly marked, and targets that the table of targets lacks. Raises: Rejected, unknown-label, where that leaves no map."""
        homes, failed, whole = {}, [], 0
        for labels in case.labels:
            try:
                labels.check()
                whole += 1
                failed += [reason for reason in (labels.left_out(),) if reason]
            except Rejected as reason:
                failed.append(reason)
                continue
            for target in labels.targets:
                try:
                    self.targets.row(target)
                    homes.setdefault(target, labels)
                except ValueError:
                    if labels.area(target).any():
                        reason = f"target {target!r} has no row in {self.targets.path.name}"
                        failed.append(Rejected("unknown-target", labels.file, reason))
        if failed and not whole:
            raise failed[0]
        return homes, failed

    def _shown(self, case: Case, channel: Channel) -> "Shown":
        """How a channel is shown, by its values."""
        voxels = case.stack.voxels
        channels = voxels.shape[3] if voxels.ndim == 4 else None
        if channels and channel.index is None:
            raise Rejected(
                "unreadable-volume", case.file, f"has {channels} channels, and nothing says which one to show"
            )
        if channel.index is not None and not 0 <= channel.index < (channels or 0):
            reason = f"{channel.modality} should be channel {channel.index}, but it has {channels or 'no'} channels"
            raise Rejected("unreadable-volume", case.file, reason)
        try:
            family = self.targets.family(channel.modality)
        except ValueError as error:
            raise Rejected("unknown-modality", case.file, str(error)) from error
        values = sampled(case.stack, channel.index)
        found = intensity(values) if family == "CT" else RELATIVE
        if found != RELATIVE:
            shift = SHIFT if found == SHIFTED else 0
            stack = replace(case.stack, intercept=case.stack.intercept - shift)
            return Shown(stack, lambda target: ct_window(target, case.site), found)
        try:
            window = percentile_window(case.stack, channel.index)
        except Rejected as error:
            raise Rejected(error.code, case.file, error.reason) from error
        return Shown(case.stack, lambda target: window, RELATIVE if family == "CT" else "", background_of(values))

    def _slice(self, case, source, channel, shown, z, here, present, absent, homes) -> Iterator[Sample]:
        """The samples of one slice; those that share a window, and so an image, follow each other."""
        plane, window = shown.stack.plane(z, channel.index), shown.window
        _, rows, columns = case.stack.spacing
        height, width = plane.shape
        size = square_size(plane.shape, rows, columns)
        regions = {target: without_specks(homes[target].mask(target, z), self.min_area) for target in present}
        masks = {target: png(region.astype(np.uint8) * 255, size) for target, region in regions.items()}
        images = {}
        for target in sorted(here, key=window):
            low, high = window(target)
            if (low, high) not in images:
                grey = np.clip((np.nan_to_num(plane, nan=low) - low) / (high - low), 0, 1)
                if shown.background is not None:
                    grey[connected(plane == np.float32(shown.background))] = 0
                images[low, high] = png(np.rint(grey * 255).astype(np.uint8), size, Image.Resampling.BICUBIC)
            name = case.id if channel.index is None else f"{case.id}-{channel.modality}"
            yield Sample(
                id=f"{source}/{name}/{z}/{target}",
                image=images[low, high],
                mask=masks[target],
                target=target,
                target_type=self.targets.row(target)["type"],
                modality=channel.modality,
                site=case.site,
                group=f"{source}/{case.group}",
                source=source,
                licence=case.licence,
                present=present,
                absent=absent,
                neighbours=tuple(
                    (other, masks[other])
                    for other in present
                    if other != target and homes[other].area(other)[z] >= self.min_area
                ),
                orientation="radiological",
                window=(low, high),
                intensity=shown.intensity,
                spacing=(rows * height / size[0], columns * width / size[1]),
            )


def connected(equal: np.ndarray) -> np.ndarray:
    """Those of the pixels [H, W] that lie in patches of three by three or hang together with one: tissue has that value here and there."""
    return ndimage.binary_propagation(ndimage.binary_opening(equal, np.ones((3, 3))), mask=equal)
