"""The regions of the training set that a latent is nearest to (paper section 3.3: retrieval in the encoder's feature space).

A record folder with region features beside it (`vital data features`) is the bank: rows are memory-mapped, the index says what each is of,
info.json which encoder made it. Nothing is copied or built again.

The search is exact: cosines of blocks of rows with blocks of queries, of which only the best are kept. 60,000 regions of 1,152 floats are
read in a second; an approximate index would need a package and a word about what it misses.
"""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vital_jax.construct.pages import records_folder
from vital_jax.explain.case import Similar
from vital_jax.pipeline.features import RoiFeatures
from vital_jax.pipeline.images import decode
from vital_jax.pipeline.masks import decode_mask
from vital_jax.pipeline.records import RecordSource

BLOCK = 4096  # rows of the bank whose cosines are held at once
QUERIES = 1024  # and with how many queries: 16 MB
SIDE = 80  # longest side of a thumbnail in pixels: about 2 kB
_FRAME = (255, 220, 0)


@dataclass(frozen=True, eq=False)
class Bank:
    """Regions to search among.

    Attributes:
      source: their records. features: [n, E] beside them. step and text of a `Similar` come from the records' chains.
    """

    source: RecordSource
    features: RoiFeatures

    @classmethod
    def open(cls, folder: str | Path, encoder: str, fingerprint: str, hook: str, split: str = "train") -> "Bank":
        """The bank of a record folder.

        Args:
          folder: a record folder, or an OUT of `vital data build`. encoder: the name of the encoder that the model projects to.
          fingerprint: of `hub.encoders.identity`. hook: where its features are read. split: which records.
        Raises: FileNotFoundError for no record folder, or one without features of this split; ValueError naming both encoders where
          only others made features; as `RecordSource` and `RoiFeatures`.
        """
        folder = records_folder(folder)
        source = RecordSource(folder, split)
        made = sorted(path.parent for path in folder.glob(f"roi-*/{split}/info.json"))
        way_out = f"`vital data features {folder} --encoder FOLDER --hook {hook}` makes them"
        if not made:
            raise FileNotFoundError(f"{folder}: no region features of split {split!r}, so no bank; {way_out}")
        found = [RoiFeatures(path, source.ids) for path in made]
        for features in found:
            if (features.info["fingerprint"], features.info["hook"]) == (fingerprint, hook):
                return cls(source, features)
        there = ", ".join(f"{one.info['encoder']} ({one.info['fingerprint']}, {one.info['hook']})" for one in found)
        raise ValueError(
            f"{folder}: its region features are of {there}, but the model projects to {encoder} ({fingerprint}, {hook}), "
            f"so they cannot be compared; {way_out} for that encoder"
        )

    @cached_property
    def rows(self) -> np.ndarray:
        """Numbers of the records that are searched: the first of each region, for all questions about one region have the same feature."""
        seen: dict[bytes, int] = {}
        for number in np.flatnonzero(self.features.valid):
            seen.setdefault(hashlib.blake2b(self.features.roi[number].tobytes(), digest_size=16).digest(), int(number))
        return np.array(list(seen.values()), np.int64)

    @cached_property
    def _groups(self) -> np.ndarray:
        index = self.source.index
        return np.array([str(index[number]["metadata"].get("group") or index[number]["id"]) for number in self.rows])

    def nearest(
        self, queries: np.ndarray, top: int, apart: Sequence[Hashable] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best regions of each query by cosine.

        Args:
          queries: [Q, E]. top: how many. apart: per query the group (patient, image) whose regions do not count, by its metadata.
        Returns: record numbers [Q, t] int64 and cosines [Q, t] float32, t = min(top, regions); -1 beside a cosine of -inf where a query
          has fewer. Equals in the order of their records.
        Raises: ValueError for queries of another width.
        """
        width = self.features.info["width"]
        if queries.ndim != 2 or queries.shape[1] != width:
            raise ValueError(f"{self.features.folder}: queries are {list(queries.shape)}, the bank's width is {width}")
        top = min(top, len(self.rows))
        parts = [
            self._best(queries[start : start + QUERIES], top, None if apart is None else apart[start : start + QUERIES])
            for start in range(0, len(queries), QUERIES)
        ]
        numbers, cosines = (np.concatenate(part) for part in zip(*parts, strict=True)) if parts else (np.empty((0, top)),) * 2  # fmt: skip
        return numbers.astype(np.int64), cosines.astype(np.float32)

    def _best(self, queries: np.ndarray, top: int, apart: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
        unit = _unit(queries)
        best = np.full((len(queries), top), -np.inf, np.float32)
        place = np.full((len(queries), top), -1, np.int64)
        for start in range(0, len(self.rows), BLOCK):
            chosen = self.rows[start : start + BLOCK]
            cosine = unit @ _unit(self.features.roi[chosen]).T
            if apart is not None:
                own = self._groups[start : start + BLOCK] == np.array([str(group) for group in apart])[:, None]
                cosine = np.where(own, -np.inf, cosine)
            both = np.concatenate([best, cosine], axis=1)
            numbers = np.concatenate([place, np.broadcast_to(chosen, cosine.shape)], axis=1)
            order = np.argsort(-both, axis=1, kind="stable")[:, :top]
            best, place = np.take_along_axis(both, order, 1), np.take_along_axis(numbers, order, 1)
        return np.where(np.isfinite(best), place, -1), best

    def similar(
        self, queries: np.ndarray, steps: Sequence[int], top: int, apart: Sequence[Hashable] | None = None
    ) -> list[tuple[Similar, ...]]:
        """Of each query the `top` nearest regions as they are shown; steps: the latent step of each query, from 1. Raises: as `nearest`."""
        numbers, cosines = self.nearest(queries, top, apart)
        return [
            tuple(self._similar(int(n), float(c), step) for n, c in zip(*row, strict=True) if n >= 0)
            for *row, step in zip(numbers, cosines, steps, strict=True)
        ]

    def _similar(self, number: int, cosine: float, step: int) -> Similar:
        chain, picture = self._shown(number)
        step = max(1, min(step, len(chain)))
        metadata = self.source.index[number]["metadata"]
        label = ", ".join(filter(None, (metadata.get("target_name", ""), metadata.get("modality", ""))))
        text = chain[step - 1] if chain else ""
        return Similar(self.source.index[number]["id"], step, cosine, text, label, picture)

    @cached_property
    def _shown(self):
        return lru_cache(maxsize=4096)(lambda number: _chain_and_picture(self.source[number]))


def _chain_and_picture(record) -> tuple[tuple[str, ...], bytes]:
    """A record's sentences, and its first image as a thumbnail with a box around the region."""
    image, info = decode(record.images[0], f"record {record.id!r}", record.metadata.get("window"))
    scale = SIDE / max(image.size)
    small = image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.BOX)
    if record.masks:
        mask = decode_mask(record.masks[0], f"mask of {record.id}", info)
        ends = [np.flatnonzero(mask.any(axis)) for axis in (0, 1)]
        if all(map(len, ends)):
            (x0, x1), (y0, y1) = ((scale * line[0] - 1, scale * (line[-1] + 1)) for line in ends)
            ImageDraw.Draw(small).rectangle((x0, y0, x1, y1), outline=_FRAME)
    file = BytesIO()
    small.save(file, "JPEG", quality=70)
    return record.chain, file.getvalue()


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
