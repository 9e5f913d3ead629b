"""From records on disk to the batches of a phase: which records, in which order, in which shapes.

A phase's order is a pure function of (seed, phase, records, buckets), so step s of a resumed run is the step s it would have been, on any
number of hosts. Nothing about the data is stored in a checkpoint.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from vital_jax.pipeline.batch import Encoder, Layout, Row, collate
from vital_jax.pipeline.features import RoiFeatures
from vital_jax.pipeline.loader import plan_batches, step_dataset
from vital_jax.pipeline.records import RecordSource
from vital_jax.pipeline.sizes import sizes_of

Bucket = tuple[int, int]  # (S, P)


@dataclass(frozen=True)
class _MakeRow:
    """(record number, bucket) -> row. A class of plain parts, so that worker processes can receive it."""

    source: RecordSource
    encoder: Encoder
    layouts: tuple[Layout, ...]
    features: RoiFeatures | None

    def __call__(self, index: int, bucket: int) -> Row:
        layout, roi, whole = self.layouts[bucket], None, None
        steps: Sequence[np.ndarray] = ()
        if self.features is not None and layout.roi:
            feature, valid = self.features[index]
            roi, whole = (feature if valid else None), np.array(self.features.whole[index])
            steps = list(self.features.of_steps(index))
        return self.encoder.encode(self.source[index], layout, index, roi, whole, steps)


@dataclass(frozen=True)
class Feed:
    """One split of a record folder as batches.

    Attributes:
      source: the records. encoder: turns them into rows.
      features: their region features, or None where lambda_2 is zero.
      buckets: (S, P) budgets, ascending; a record takes the first it fits.
      answer, chain, written: T, C and W. workers: loader processes; 0 uses threads of this one.
      limit: keep to the first so many records; 0 takes all.
    """

    source: RecordSource
    encoder: Encoder
    features: RoiFeatures | None
    buckets: tuple[Bucket, ...]
    answer: int
    chain: int
    written: int = 0
    workers: int = 0
    limit: int = 0

    @classmethod
    def open(
        cls,
        records: str | Path,
        split: str,
        encoder: Encoder,
        features: str | None,
        buckets: Sequence[Bucket],
        **numbers: int,
    ) -> "Feed":
        """Opens a split.

        Args: features: the name of the sidecar beside the records. numbers: answer, chain, written, workers, limit.
        Raises: as `RecordSource` and `RoiFeatures`.
        """
        source = RecordSource(records, split)
        sidecar = RoiFeatures(Path(records) / features / split, source.ids) if features else None
        return cls(source, encoder, sidecar, tuple((S, P) for S, P in buckets), **numbers)

    @cached_property
    def sizes(self) -> np.ndarray:
        """(S, P, T, C, W) each record needs, [n, 5]: measured once, and kept beside the records."""
        return sizes_of(self.source, self.encoder)

    def check(self, numbers: Iterable[int], layout: Layout) -> None:
        """Raises ValueError naming the first of these records that is larger than every budget, and what it needs."""
        written = [s.budget for s in layout.suffix.segments if s.source.startswith("chain") and s.budget]
        # What is not in the layout has no limit.
        inner = {
            "T": layout.suffix["answer"].budget if "answer" in layout.suffix else None,
            "C": layout.chain or None,
            "W": min(written, default=None),
        }
        room = np.array([np.iinfo(int).max if budget is None else budget for budget in inner.values()])
        for number in numbers:
            need = self.sizes[number]
            if any(all(need[:2] <= bucket) for bucket in self.buckets) and all(need[2:] <= room):
                continue
            largest = dict(zip("SP", np.max(self.buckets, axis=0).tolist(), strict=True)) | inner
            budgets = ", ".join(f"{name} {budget}" for name, budget in largest.items() if budget is not None)
            raise ValueError(
                f"record {self.source.ids[number]!r} needs (S, P, T, C, W) = {need.tolist()}, the largest budgets are {budgets}: "
                "raise data.buckets, data.answer, data.chain or data.written, or lower data.max_pixels"
            )

    def select(self, max_steps: int) -> np.ndarray:
        """Numbers of the records with at most this many latent steps (all, where none are taken). Raises: ValueError for none."""
        steps = np.array([row["latent_steps"] or 0 for row in self.source.index])[: self.limit or None]
        chosen = np.flatnonzero(steps <= max_steps) if max_steps else np.arange(len(steps))
        if not len(chosen):
            raise ValueError(
                f"{self.source.folder}: no record of split {self.source.split!r} has at most {max_steps} latent steps"
            )
        return chosen

    def maker(self, layout: Layout) -> Callable[[int, int], Row]:
        """(record number, bucket) -> row. layout: of a phase; its prompt budgets are the bucket's."""
        layouts = tuple(replace(layout, prefix=S, patches=P) for S, P in self.buckets)
        return _MakeRow(self.source, self.encoder, layouts, self.features)

    def phase(
        self,
        layout: Layout,
        max_steps: int,
        *,
        batch: int,
        steps: int,
        seed: int,
        start: int = 0,
        part: tuple[int, int] = (0, 1),
        waves: int = 1,
    ) -> Generator[tuple[int, dict[str, np.ndarray]], None, None]:
        """(step in phase, this process's rows of its batch) from `start` on; `close()` ends what makes them.

        Args:
          layout: of the phase. max_steps: only records with at most so many steps (0: all).
          batch: rows per step over all processes. steps: of the whole phase. seed: of its order.
          part: which part of the rows is made here, of how many.
          waves: neighbouring parts that a batch falls into and of which each is split by itself, so that the rows of the first one are the
            same however many parts there are.
        Raises: ValueError as `plan_batches`; RuntimeError naming a record that cannot be encoded.
        """
        rows, bucket = plan_batches(self.sizes[:, :2], self.select(max_steps), self.buckets, batch, steps, seed)
        if waves > 1:
            if batch % (waves * part[1]):
                raise ValueError(f"a batch of {batch} rows does not fall into {waves} waves of {part[1]} equal parts")
            rows = rows.reshape(steps, waves, part[1], -1).swapaxes(1, 2).reshape(steps, batch)
        return step_dataset(
            (rows, bucket), self.maker(layout), collate, start, *part, num_threads=2, workers=self.workers
        )
