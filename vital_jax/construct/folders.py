"""Folders of images and masks with a `manifest.jsonl`: the simplest thing a segmentation data set can be turned into.

One manifest line is one image:

    {"id": "17", "modality": "CT", "site": "liver", "image": "images/17.png", "group": "patient-3",
     "masks": [{"target": "tumor", "file": "masks/17_tumor.png"}, ...]}

A target may be called by any name that the table of targets knows for it; samples carry the table's own (`Targets.canonical`). A mask of
more than two values says which are meant ("value": 2, [1, 2], ">=128" or "#ff0000"), and one that draws a ring may say whether what it
encloses is ("outline": true); see `pipeline.masks` and `construct.shapes`.
`group` is what must not be torn apart when data are split (a patient, a case); without it every image is its own group.
`split` (train, val or test) is the side of the data set's own split, which is kept. `source` and `licence` are optional. Lines without
`masks` (volumes) and lines whose image is a DICOM file or a folder are for other readers.

The folder can be read in two ways. As a `Source`, unit by unit, what cannot be used is set aside with its reason and the rest goes on.
Iterated, it gives all samples of a folder that is in order: the first bad line is an error, and only masks without a foreground, too
small to learn from, or of a ring where the target is none, are counted and passed over.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from vital_jax.construct import marked
from vital_jax.construct.sample import Sample
from vital_jax.construct.source import NOTES, Rejected, Unit
from vital_jax.construct.splits import official
from vital_jax.construct.targets import Targets, load_targets

_LOG = logging.getLogger(__name__)


@dataclass
class MaskFolder:
    """A `Source` of the images with masks that a folder's manifest lists.

    Args:
      root: the folder that holds `manifest.jsonl`.
      min_area: least foreground of a mask in pixels (VITAL A.1 keeps 100 and more).
      complete: every target of the folder is marked wherever it can be seen, so that an unmarked one is absent.
      licence: of the whole folder, where lines do not state one.
      targets: another table than the built-in one.
      name: another name than the folder's, where two sources would have the same.

    Attributes:
      counts: after iterating, samples and what was passed over; also a line in the log.

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
    name: str = ""
    counts: Counter = field(default_factory=Counter, init=False)
    kind: ClassVar[str] = "manifest"

    def __post_init__(self):
        self.root = Path(self.root).resolve()
        self.name = self.name or self.root.name

    @classmethod
    def claims(cls, root: Path) -> bool:
        """Whether the folder has a manifest with a line for this reader."""
        return cls.kind in marked.line_kinds(root)

    def units(self) -> "list[Unit]":
        """One per line. Raises: FileNotFoundError, no manifest."""
        units = marked.manifest_units(self.root, self.kind)
        if self.complete:
            rows = [unit.facts.get("row", {"masks": []}) for unit in units]
            marks = [{marked.target_name(self.targets, m["target"], row["site"]) for m in row["masks"]} for row in rows]
            names = sorted(set().union(*marks))
            for unit, here in zip(units, marks, strict=True):
                unit.facts["absent"] = [name for name in names if name not in here]
        return units

    def read(self, unit: "Unit") -> "Iterator[Sample | Rejected]":
        """The samples of one line; a mask that cannot be used as a `Rejected`.

        Raises:
          Rejected: bad-line, duplicate-id, path-escape, missing-file, unknown-modality or unreadable-image.
        """
        marked.refuse(unit)
        row, where = unit.facts["row"], unit.facts["where"]
        image = marked.load(self.root, row["image"], where, "unreadable-image")
        masks = []
        for mask in row["masks"]:
            try:
                data = marked.load(self.root, mask["file"], where, "unreadable-mask")
            except ValueError as reason:
                data = reason
            masks.append(marked.Mask(mask["target"], mask["file"], data, mask.get("value"), mask.get("outline")))
        fields = {
            "id": f"{self.name}/{row['id']}",
            "modality": row["modality"],
            "site": row["site"],
            "group": f"{self.name}/{row.get('group', row['id'])}",
            "source": row.get("source", self.name),
            "licence": row.get("licence", self.licence),
            "absent": tuple(unit.facts.get("absent", ())),
            "split": official(row.get("split", "")),
        }
        yield from marked.cut(fields, image, row["image"], masks, self.min_area, self.targets)

    def __iter__(self) -> Iterator[Sample]:
        self.counts.clear()
        units = self.units()
        for unit in units:
            if "rejected" in unit.facts:
                _, where, reason = unit.facts["rejected"]
                raise ValueError(f"{self.root / where}: {reason}")
        if volumes := sum("masks" not in row for _, row in marked.json_lines(self.root / marked.MANIFEST)):
            self.counts["volumes (a reader of volumes cuts their slices)"] = volumes
        for unit in units:
            yield from self._samples(unit)
        _LOG.info(self.summary())

    def _samples(self, unit: "Unit") -> Iterator[Sample]:
        def error(reason: Rejected) -> Exception:
            kind = FileNotFoundError if reason.code == "missing-file" else ValueError
            told = "" if reason.file == unit.facts["where"] else f"{row['image']} with {reason.file}: "
            return kind(f"{self.root / unit.facts['where']}: {told}{reason.reason}")

        row = unit.facts["row"]
        if not row["masks"]:
            self.counts["images without a mask"] += 1
        passed = {
            "empty-mask": "empty masks",
            "small-mask": f"masks under {self.min_area} pixels",
            "ring-mask": "rings",
        }
        try:
            for item in self.read(unit):
                if isinstance(item, Sample):
                    self.counts["samples"] += 1
                    yield item
                elif item.code in passed:
                    self.counts[passed[item.code]] += 1
                elif item.code in NOTES:
                    _LOG.warning("%s", error(item))
                else:
                    raise item
        except Rejected as reason:
            raise error(reason) from reason

    def summary(self) -> str:
        """One line: how many samples, and what was passed over and why."""
        passed = ", ".join(f"{number} {what}" for what, number in self.counts.items() if what != "samples")
        return f"{self.root.name}: {self.counts['samples']} samples; passed over: {passed or 'nothing'}"
