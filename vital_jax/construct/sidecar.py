"""The region features of a whole split: part by part, resumable, in step with a progress line.

A part is a fixed range of records, extracted from these records alone with encoder calls of one size. So its file holds the same bytes
whoever makes it and whenever: a run that was killed and one that was not end in the same sidecar. A record whose image or mask cannot be
used costs its part, not the run: the other parts are made, and the run after the repair makes only that one.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vital_jax.construct.roi import Encode, record_rows
from vital_jax.pipeline.features import PART_RECORDS, FeatureParts, FeatureSpec
from vital_jax.pipeline.records import RecordSource

_EVERY = 10.0  # seconds between two lines


class RateLine:
    """Says how far a long work is, with images per second and the time left by what this run has done so far.

    Lines go to whoever asked for the work, for it runs within `train.py` too; `progress.Progress` owns its terminal, and
    `distill.progress.ReplyLine` counts replies.

    Args:
      what: begins every line. total: items of the whole work. done: of these, before this run.
      say: takes a line. every: seconds between two lines at least.
    """

    def __init__(self, what: str, total: int, done: int, say: Callable[[str], None], every: float = _EVERY):
        self.what, self.total, self.done, self.say, self.every = what, total, done, say, every
        self.items, self.images = 0, 0
        self.start = self.said = time.monotonic()

    def watch(self, encode: Encode) -> Encode:
        """The same encoder, its images counted; those that fill up a last batch count too."""

        def counted(images):
            self.images += len(images)
            return encode(images)

        return counted

    def step(self, items: int = 1) -> None:
        """Counts finished items and speaks up when it is time."""
        self.items += items
        if time.monotonic() - self.said >= self.every:
            self.said = time.monotonic()
            self.say(self.line())

    def line(self) -> str:
        """For example "train: 1,024 of 61,411, 5.1 images/s, about 2 h 10 min left"."""
        spent = max(time.monotonic() - self.start, 1e-9)
        done = self.done + self.items
        left = spent / self.items * (self.total - done) if self.items else None
        end = "" if left is None or done == self.total else f", about {duration(left)} left"
        return f"{self.what}: {done:,} of {self.total:,}, {self.images / spent:.3g} images/s{end}"


def duration(seconds: float) -> str:
    """Seconds in words of two units at most."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


class Extraction(NamedTuple):
    """What a run left: the sidecar's folder, or None where parts are missing; how many; what is wrong with which record."""

    folder: Path | None
    missing: int
    faults: list[str]


def batch_for(records: int, devices: int, batch_size: int | None = None) -> int:
    """Images per encoder call: what is asked for, or 8 a device, but no more than records could need; a multiple of the devices."""
    most = min(batch_size or 8 * devices, 2 * records)
    return -(-most // devices) * devices


def write_sidecar(
    source: RecordSource,
    spec: FeatureSpec,
    encode: Encode,
    size: int,
    batch_size: int,
    share: tuple[int, int] = (0, 1),
    say: Callable[[str], None] = print,
    part_records: int = PART_RECORDS,
) -> Extraction:
    """Extracts the features of one split beside its records, or what is missing of them.

    Args:
      source: the records. spec: the rule, the encoder's name and its grid.
      encode, size, batch_size: as for `construct.roi.extract_many`.
      share: (i, n): only the i-th of n ranges of parts, from 0. A run with a share never joins the parts: copy all machines' parts into
        one folder and run without it.
      say: takes lines of progress. part_records: records of a part; the same on all machines.

    Raises:
      FileExistsError, ValueError, RuntimeError: as `FeatureParts`, `extract_many`.
    """
    parts = FeatureParts(source.folder, spec, source.ids, source.split, part_records)
    mine, todo, faults = parts.share(share), parts.missing(share), []
    total, left = (sum(len(parts.records(number)) for number in numbers) for numbers in (mine, todo))
    progress = RateLine(f"region features of {source.split}, records", total, total - left, say)
    encode = progress.watch(encode)
    for number in todo:
        rows, wrong = [], []
        records = (source[i] for i in parts.records(number))
        rule = dict(grid=spec.grid, size=size, threshold=spec.threshold, margin=spec.margin)
        for row in record_rows(records, encode, batch_size, **rule, faults=wrong):
            rows.append(row)
            progress.step()
        faults += wrong
        if not wrong:
            parts.write(number, rows)
    say(progress.line())
    missing = len(parts.missing())
    whole = not missing and share[1] == 1
    return Extraction(parts.finish() if whole else None, missing, faults)
