"""From records on disk to the batches of a phase: which records, in which order, in which shapes.

A phase's order is a pure function of (seed, phase, records, buckets), so step s of a resumed run is the step s it would have been, on any
number of hosts. Nothing about the data is stored in a checkpoint.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from vital_jax.pipeline.batch import Encoder, Layout, collate
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

    def __call__(self, index: int, bucket: int) -> dict[str, np.ndarray]:
        layout = self.layouts[bucket]
        roi, whole = None, np.zeros(layout.roi, np.float32)
        if self.features is not None and layout.roi:
            feature, valid = self.features[index]
            roi, whole = (feature if valid else None), np.array(self.features.whole[index])
        row = self.encoder.encode(self.source[index], layout, index, roi)
        return {**row, "roi_global": whole}


@dataclass(frozen=True)
class Feed:
    """One split of a record folder as batches.

    Attributes:
      source: the records. encoder: turns them into rows.
      features: their region features, or None where lambda_2 is zero.
      buckets: (S, P) budgets, ascending; a record takes the first it fits.
      answer, chain: T and C. workers: loader processes; 0 uses threads of this one.
      limit: keep to the first so many records; 0 takes all.
    """

    source: RecordSource
    encoder: Encoder
    features: RoiFeatures | None
    buckets: tuple[Bucket, ...]
    answer: int
    chain: int
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
        answer: int,
        chain: int,
        workers: int = 0,
        limit: int = 0,
    ) -> "Feed":
        """Opens a split. `features` names the sidecar beside the records. Raises as `RecordSource` and `RoiFeatures`."""
        source = RecordSource(records, split)
        sidecar = RoiFeatures(Path(records) / features / split, source.ids) if features else None
        return cls(source, encoder, sidecar, tuple(map(tuple, buckets)), answer, chain, workers, limit)

    @cached_property
    def sizes(self) -> np.ndarray:
        """(S, P, T, C) each record needs, [n, 4]: measured once, and kept beside the records."""
        return sizes_of(self.source, self.encoder)

    def check(self, numbers: Sequence[int]) -> None:
        """Raises ValueError naming the first of these records that is larger than every budget, and what it needs."""
        largest = np.array([*np.max(self.buckets, axis=0), self.answer, self.chain])
        for number in numbers:
            need = self.sizes[number]
            fits = any(all(need[:2] <= bucket) for bucket in self.buckets)
            if not fits or need[2] > self.answer or (self.chain and need[3] > self.chain):
                raise ValueError(
                    f"record {self.source.ids[number]!r} needs (S, P, T, C) = {need.tolist()}, the largest budgets are "
                    f"{largest.tolist()}: raise data.buckets, data.answer or data.chain, or lower data.max_pixels"
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

    def layout(self, bucket: int, latent_steps: int, train_k: str, cap: bool = False) -> Layout:
        """The layout of a bucket in a program of K = `latent_steps`."""
        S, P = self.buckets[bucket]
        roi = self.features.info["width"] if self.features is not None else 0
        return Layout(S, P, self.answer, latent_steps, self.chain, roi, train_k, cap)

    def maker(self, latent_steps: int, train_k: str, cap: bool = False) -> Callable[[int, int], dict[str, np.ndarray]]:
        """(record number, bucket) -> row."""
        layouts = tuple(self.layout(bucket, latent_steps, train_k, cap) for bucket in range(len(self.buckets)))
        return _MakeRow(self.source, self.encoder, layouts, self.features)

    def phase(
        self,
        max_steps: int,
        latent_steps: int,
        train_k: str,
        batch: int,
        steps: int,
        seed: int,
        start: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(step in phase, this process's rows of its batch) from `start` on.

        Args:
          max_steps: only records with at most so many steps (0: all). latent_steps: K; where it is smaller, records keep
            their first K steps. train_k: as `Layout`. batch: rows per step over all processes.
          steps: of the whole phase. seed: of its order.
        Raises: ValueError as `plan_batches`; RuntimeError naming a record that cannot be encoded.
        """
        plan = plan_batches(self.sizes[:, :2], self.select(max_steps), self.buckets, batch, steps, seed)
        maker = self.maker(latent_steps, train_k, latent_steps < max_steps)
        return step_dataset(
            plan, maker, collate, start, process_index, process_count, num_threads=2, workers=self.workers
        )
