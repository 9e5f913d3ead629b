"""Folders of images and masks with a `manifest.jsonl`: the simplest thing a segmentation data set can be turned into.

One manifest line is one image:

    {"id": "17", "modality": "CT", "site": "liver", "image": "images/17.png", "group": "patient-3",
     "masks": [{"target": "tumor", "file": "masks/17_tumor.png"}, ...]}

`group` is what must not be torn apart when data are split (a patient, a case); without it every image is its own group.
`source` and `licence` are optional. Lines without `masks` (volumes, whose slices another reader cuts) are counted and
passed over. Masks without a foreground, or too small to learn from, are counted and passed over too.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from vital_jax.construct.targets import Targets, load_targets
from vital_jax.pipeline.images import decode, decode_mask

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One target in one image: what every source of training data gives.

    Attributes:
      id: unique; also the seed of everything that is drawn for this sample.
      image, mask: encoded files; the mask on the image's stored pixel grid.
      target, target_type: what the mask shows.
      modality, site: as in the targets table; site may be empty.
      group: what must stay on one side of a split, unique over all sources.
      source, licence: where it is from; licence may be empty.
      present: every target that has a mask in this image, whatever became of that mask.
      absent: targets that the source guarantees not to be in the image.
      neighbours: (target, encoded mask) of the other marked targets of the image.
    """

    id: str
    image: bytes
    mask: bytes
    target: str
    target_type: str
    modality: str
    site: str
    group: str
    source: str
    licence: str = ""
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    neighbours: tuple[tuple[str, bytes], ...] = ()

    @property
    def picture(self) -> Image.Image:
        """The upright RGB image."""
        return _decode(self.image)[0]

    @property
    def info(self) -> dict:
        """What `pipeline.images.decode` says about the image."""
        return _decode(self.image)[1]

    @cached_property
    def region(self) -> np.ndarray:
        """[H, W] bool, where the target is in `picture`."""
        return decode_mask(self.mask, "the mask", self.info)

    @cached_property
    def others(self) -> dict[str, np.ndarray]:
        """[H, W] bool per neighbour, where it is in `picture`; one with nothing in its mask is left out."""
        regions = {name: decode_mask(mask, f"the mask of {name}", self.info) for name, mask in self.neighbours}
        return {name: region for name, region in regions.items() if region.any()}


@lru_cache(maxsize=1)
def _decode(data: bytes) -> tuple[Image.Image, dict]:
    """The targets of one image follow each other; it is decoded once for all of them."""
    return decode(data, "the image")


@dataclass
class MaskFolder:
    """Iterates over the samples of a folder; `counts` and a log line tell what was passed over.

    Args:
      root: the folder that holds `manifest.jsonl`.
      min_area: least foreground of a mask in pixels (VITAL A.1 keeps 100 and more).
      complete: every target of the folder is marked wherever it can be seen, so that an unmarked one is absent.
      licence: of the whole folder, where lines do not state one.
      targets: another table than the built-in one.

    Raises (while iterating):
      FileNotFoundError: no manifest, or a file it names is absent.
      ValueError: a line is not what the format says, a path leaves the folder, a target or modality is unknown, or an
        image or mask cannot be decoded; the message names the file and line.
    """

    root: Path
    min_area: int = 100
    complete: bool = False
    licence: str = ""
    targets: Targets = field(default_factory=load_targets)
    counts: Counter = field(default_factory=Counter, init=False)

    def __post_init__(self):
        self.root = Path(self.root).resolve()

    def __iter__(self) -> Iterator[Sample]:
        self.counts.clear()
        rows = list(self._rows())
        names = sorted({mask["target"] for _, row in rows for mask in row["masks"]}) if self.complete else []
        for where, row in rows:
            yield from self._samples(where, row, names)
        _LOG.info(self.summary())

    def summary(self) -> str:
        """One line: how many samples, and what was passed over and why."""
        passed = ", ".join(f"{number} {what}" for what, number in self.counts.items() if what != "samples")
        return f"{self.root.name}: {self.counts['samples']} samples; passed over: {passed or 'nothing'}"

    def _rows(self) -> Iterator[tuple[str, dict]]:
        manifest = self.root / "manifest.jsonl"
        if not manifest.is_file():
            raise FileNotFoundError(f"{manifest}: not found; a folder of masks needs one line per image there")
        seen = set()
        for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), 1):
            where = f"{manifest}:{number}"
            try:
                row = json.loads(line)
                missing = {"id", "modality", "site", "image"} - row.keys()
            except (json.JSONDecodeError, AttributeError) as error:
                raise ValueError(f"{where}: not a JSON object ({error})") from error
            if missing:
                raise ValueError(f"{where}: {', '.join(sorted(missing))} missing")
            if "masks" not in row:
                self.counts["volumes (a reader of volumes cuts their slices)"] += 1
                continue
            if row["id"] in seen:
                raise ValueError(f"{where}: id {row['id']!r} comes twice")
            if not all(isinstance(mask, dict) and {"target", "file"} <= mask.keys() for mask in row["masks"]):
                raise ValueError(f"{where}: every mask needs a target and a file")
            seen.add(row["id"])
            yield where, row

    def _samples(self, where: str, row: dict, names: list[str]) -> Iterator[Sample]:
        image, image_name = self._read(row["image"], where)
        present = tuple(mask["target"] for mask in row["masks"])
        if len(set(present)) < len(present):
            raise ValueError(f"{where}: a target has two masks; unite them")
        if not present:
            self.counts["images without a mask"] += 1
        self.targets.family(row["modality"])
        source = row.get("source", self.root.name)
        files = [self._read(mask["file"], where) for mask in row["masks"]]
        marked = tuple((name, data) for name, (data, _) in zip(present, files, strict=True))
        for mask, (data, mask_name) in zip(row["masks"], files, strict=True):
            sample = Sample(
                id=f"{self.root.name}/{row['id']}/{mask['target']}",
                image=image,
                mask=data,
                target=mask["target"],
                target_type=self.targets.row(mask["target"])["type"],
                modality=row["modality"],
                site=row["site"],
                group=f"{self.root.name}/{row.get('group', row['id'])}",
                source=source,
                licence=row.get("licence", self.licence),
                present=present,
                absent=tuple(name for name in names if name not in present),
                neighbours=tuple(pair for pair in marked if pair[0] != mask["target"]),
            )
            try:
                area = int(sample.region.sum())
            except ValueError as error:
                raise ValueError(f"{where}: {image_name} with {mask_name}: {error}") from error
            if area == 0:
                self.counts["empty masks"] += 1
            elif area < self.min_area:
                self.counts[f"masks under {self.min_area} pixels"] += 1
            else:
                self.counts["samples"] += 1
                yield sample

    def _read(self, name: str, where: str) -> tuple[bytes, str]:
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root):
            raise ValueError(f"{where}: {name!r} leads out of the folder")
        if not path.is_file():
            raise FileNotFoundError(f"{where}: {path} not found")
        return path.read_bytes(), name
