"""What every source of training data gives, so that the factory needs no knowledge of any of them.

A source lists its units without opening an image. A unit is the least part that is read alone: an image with its masks, or a volume with
its labels. Because units are listed in one order, the same on every machine, work can be divided over processes and machines, a run that
was killed goes on, and one broken file costs nothing but itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vital_jax.construct.sample import Sample
from vital_jax.pipeline.records import Record

# Codes of what is said about a unit whose samples are used all the same: shown and listed as rejects are, and not counted as set aside.
NOTES = ("exif-turned", "shifted-hounsfield", "not-hounsfield")


@dataclass(frozen=True)
class Unit:
    """One image with its masks, or one volume with its labels.

    Attributes:
      id: unique within its source, stable over machines and days.
      files: paths relative to the source's root; the first is the image.
      facts: JSON values that the source needs to read it.
    """

    id: str
    files: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


class Rejected(ValueError):
    """A unit, or a part of one, that cannot become training data: a code to count by, the file, and the reason in one line."""

    def __init__(self, code: str, file: str | Path, reason: str):
        super().__init__(f"{file}: {reason} [{code}]")
        self.code, self.file, self.reason = code, str(file), reason

    def __reduce__(self):
        """Exceptions are rebuilt from `args`, which hold the line alone; it has to survive the way between processes."""
        return Rejected, (self.code, self.file, self.reason)


class Source(Protocol):
    """A folder of images with masks, volumes with labels, or questions.

    Attributes:
      name: of the folder; the first part of every sample's id. kind: of the reader. licence: of the data, may be empty.
    """

    name: str
    kind: str
    root: Path
    licence: str

    def units(self) -> Sequence[Unit]:
        """All units in a fixed order. Raises: ValueError or FileNotFoundError where the folder itself is not what the reader takes."""
        ...

    def read(self, unit: Unit) -> Iterator[Sample | Record | Rejected]:
        """A unit's samples (finished records where there is nothing to ask, as in VQA data); a part that cannot be used as a `Rejected`.

        Raises: Rejected, where nothing of the unit can be used.
        """
        ...
