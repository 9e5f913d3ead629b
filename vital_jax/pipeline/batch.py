"""The batch: records as arrays of fixed shapes, the only thing a model ever sees.

One row, without B; `collate` stacks rows. The letters are those of vital_jax/__init__.py: S prefix tokens, P patches,
T answer tokens, K latent steps, C chain tokens, E width of the region feature; m = merge_size squared.

    tokens         [S] int32               the prompt, right-padded with 0
    lengths        [] int32                its real columns
    positions      [3, S] int32            M-RoPE time, row, column; 0 on padding
    next_position  [] int32                largest position + 1
    patches        [P, patch_dim] float32  normalised pixels; 0 on padding
    patch_index    [P, 4] int32            entries of the position grid; 0 on padding
    patch_weight   [P, 4] float32          their bilinear weights; 0 on padding
    patch_coords   [P, 2] int32            row and column; 0 on padding
    patch_segment  [P] int32               image number from 1; 0 on padding
    patch_target   [P/m] int32             column of tokens each merged patch lands on; S on padding
    answer         [T] int32               tokens, end token included; 0 on padding
    answer_mask    [T] bool                supervised tokens
    latent_steps   [] int32                K_i, the steps this row takes
    chain          [K, C] int32            text of each step, end token included; 0 on padding
    chain_mask     [K, C] bool             its tokens; all false on unused steps
    roi            [E] float32             region feature
    roi_mask       [] bool                 whether there is one
    index          [] int32                record number

A layout's numbers are budgets: a sample that exceeds one is an error that says what it needs. Nothing is ever
truncated, because a cut prompt or a missing image patch trains on, silently, as something else.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vital_jax.pipeline.families import Geometry, read_geometry
from vital_jax.pipeline.images import MAX_PIXELS, Grid, ImageConfig, decode, image_size, patchify
from vital_jax.pipeline.patches import count_patches
from vital_jax.pipeline.prompts import Prompter

if TYPE_CHECKING:  # a server that builds rows from requests needs no record store
    from vital_jax.pipeline.records import Record

TRAIN_K = ("per_sample", "phase_max")


@dataclass(frozen=True)
class Layout:
    """The shapes of a batch, and how many latent steps a row takes.

    Attributes:
      prefix: S. patches: P, a multiple of merge_size squared.
      answer: T, the end token included; 0 leaves answers out (prompts for sampling).
      latent_steps: K, the most steps a row may take; 0 means no latents, whatever the records hold.
      chain: C, the end token included; 0 leaves chains out (no text supervision).
      roi: E; 0 leaves region features out.
      train_k: `per_sample` (K_i is the record's own number of steps, or K where it states none) or `phase_max` (every
        row takes K steps; chains supervise only the steps they have). The latter also serves evaluation at a fixed K.
      cap: a record with more steps than K keeps its first K (Table 3's ablation); without it, it is an error.
    """

    prefix: int
    patches: int
    answer: int
    latent_steps: int = 0
    chain: int = 0
    roi: int = 0
    train_k: str = "per_sample"
    cap: bool = False

    def __post_init__(self):
        for name in ("prefix", "patches", "answer", "latent_steps", "chain", "roi"):
            if getattr(self, name) < 0:
                raise ValueError(f"layout: {name} is negative: {getattr(self, name)}")
        if self.train_k not in TRAIN_K:
            raise ValueError(f"layout: unknown train_k={self.train_k!r}; use one of {TRAIN_K}")


@dataclass(frozen=True)
class Encoder:
    """Turns records into rows.

    Attributes:
      prompter: the backbone's tokens. image_config, geometry: its patches, and where they lie.
      chain_prompter: the text decoder's tokens; by default the backbone's, whose vocabulary Qwen3-1.7B shares.
      system: a system message for every prompt; None leaves it to the chat template.
    """

    prompter: Prompter
    image_config: ImageConfig
    geometry: Geometry
    chain_prompter: Prompter | None = None
    system: str | None = None

    def __post_init__(self):
        if self.prompter.merge_size != self.image_config.merge_size:
            raise ValueError(
                f"{self.prompter.folder}: config.json merges {self.prompter.merge_size} patches a side, the image "
                f"processor {self.image_config.merge_size}; take both files from one checkpoint"
            )

    @classmethod
    def from_folder(
        cls, folder: str | Path, max_pixels: int = MAX_PIXELS, added: Sequence[str] = (), **options: Any
    ) -> "Encoder":
        """The encoder of a backbone's folder, with tokens `added` (see `Prompter`); `options` are `chain_prompter` and `system`.

        Raises:
          FileNotFoundError, ValueError: a file of the folder is missing or unusable; the message names it.
        """
        prompter = Prompter(folder, added)
        where = prompter.folder / "config.json"
        geometry = read_geometry(json.loads(where.read_text(encoding="utf-8")), str(where))
        return cls(prompter, geometry.image_config(folder, max_pixels), geometry, **options)

    def measure(self, record: "Record") -> tuple[int, int]:
        """The prefix tokens and patches a record needs, for choosing budgets.

        Reads image headers only. An EXIF turn exchanges an image's sides, which leaves both counts as they are.
        """
        name = _name(record)
        sizes = [image_size(data, f"{name} image {i}") for i, data in enumerate(record.images)]
        grids = [self.image_config.grid(*size) for size in sizes]
        return len(self._tokens(record, grids, name)), count_patches(grids)

    def measure_text(self, record: "Record") -> tuple[int, int]:
        """The answer tokens and the tokens of the longest chain step a record needs, end tokens included."""
        name = _name(record)
        chain = self.chain_prompter or self.prompter
        steps = [len(chain.encode_text(text, name=f"{name} chain step {k + 1}")) for k, text in enumerate(record.chain)]
        return len(self.prompter.encode_text(record.answer, name=f"{name} answer")), max(steps, default=0)

    def encode(
        self, record: "Record", layout: Layout, index: int, roi: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """One row of the batch.

        Args:
          record: its metadata's `window`, where it is [low, high], serves images deeper than 8 bits.
          layout: the budgets.
          index: the record's number in its data set.
          roi: [E] the region feature, or None where the record has none.

        Raises:
          ValueError: an image cannot be read or a budget is too small; the message names the record and what it needs.
        """
        name = _name(record)
        window = record.metadata.get("window")
        images = [decode(data, f"{name} image {i}", window)[0] for i, data in enumerate(record.images)]
        grids = [self.image_config.grid(image.height, image.width) for image in images]
        row = self.geometry.plan(grids, layout.patches, name)._asdict()
        row |= self._prompt(record, grids, layout, name) | self._text(record, layout, name)
        patches, start = np.zeros((layout.patches, self.image_config.patch_dim), np.float32), 0
        for image in images:
            own, _ = patchify(image, self.image_config)
            patches[start : start + len(own)] = own
            start += len(own)
        if roi is not None and (np.shape(roi) != (layout.roi,) or not np.isfinite(roi).all()):
            raise ValueError(f"{name}: region feature of shape {np.shape(roi)} must be {layout.roi} finite numbers")
        return row | {
            "patches": patches,
            "roi": np.zeros(layout.roi, np.float32) if roi is None else np.asarray(roi, np.float32),
            "roi_mask": np.bool_(roi is not None),
            "index": np.int32(index),
        }

    def _tokens(self, record: "Record", grids: Sequence[Grid], name: str) -> np.ndarray:
        # Records are one turn; a question of an evaluation may follow on others.
        return self.prompter.encode(record.question, grids, self.system, name, getattr(record, "earlier", ()))

    def _prompt(self, record: "Record", grids: Sequence[Grid], layout: Layout, name: str) -> dict[str, np.ndarray]:
        ids = self._tokens(record, grids, name)
        _fits(len(ids), layout.prefix, f"{name}: the prompt", "prefix tokens (S)")
        positions, next_position = self.geometry.positions(ids, grids)
        target = np.full(layout.patches // self.image_config.merge_size**2, layout.prefix, np.int32)
        columns = np.flatnonzero(ids == self.prompter.image_token_id)
        target[: len(columns)] = columns
        return {
            "tokens": _pad(ids, layout.prefix),
            "lengths": np.int32(len(ids)),
            "positions": _pad(positions, layout.prefix),
            "next_position": np.int32(next_position),
            "patch_target": target,
        }

    def _text(self, record: "Record", layout: Layout, name: str) -> dict[str, np.ndarray]:
        K, C = layout.latent_steps, layout.chain
        answer = np.empty(0, np.int32)
        if layout.answer:
            answer = self.prompter.encode_text(record.answer, name=f"{name} answer")
        _fits(len(answer), layout.answer, f"{name}: the answer", "answer tokens (T)")
        chain, lengths = np.zeros((K, C), np.int32), np.zeros(K, np.int32)
        steps = self._latent_steps(record, layout, name)
        for k, text in enumerate(record.chain[: K if layout.cap else None] if K and C else ()):
            ids = (self.chain_prompter or self.prompter).encode_text(text, name=f"{name} chain step {k + 1}")
            _fits(len(ids), C, f"{name}: chain step {k + 1}", "chain tokens (C)")
            chain[k], lengths[k] = _pad(ids, C), len(ids)
        return {
            "answer": _pad(answer, layout.answer),
            "answer_mask": np.arange(layout.answer) < len(answer),
            "latent_steps": np.int32(steps),
            "chain": chain,
            "chain_mask": np.arange(C) < lengths[:, None],
        }

    def _latent_steps(self, record: "Record", layout: Layout, name: str) -> int:
        """K_i. A fixed K below a record's own number of steps is refused only where it would drop supervised steps."""
        K, own = layout.latent_steps, len(record.chain) or record.metadata.get("latent_steps", layout.latent_steps)
        if not K:
            return 0
        own = min(own, K) if layout.cap else own
        if layout.train_k == "phase_max":
            if layout.cap:
                return K
            _fits(len(record.chain) if layout.chain else 0, K, f"{name}: the chain", "latent steps (K)")
            return K
        if own < 1:  # K = 0 is a program of its own: in this one, the answer is read from the last latent
            raise ValueError(f"{name}: {own} latent steps in a layout with latents; give it a layout of latent_steps=0")
        _fits(own, K, f"{name}: the reasoning", "latent steps (K)")
        return own


def collate(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Stacks rows of one layout to a batch.

    Raises:
      ValueError: no rows, or rows of different layouts.
    """
    if not rows:
        raise ValueError("collate needs at least one row")
    for row in rows[1:]:
        different = [key for key in rows[0] | row if np.shape(rows[0].get(key)) != np.shape(row.get(key))]
        if different:
            raise ValueError(f"rows of different layouts cannot form a batch: {', '.join(different)} differ in shape")
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _name(record: "Record") -> str:
    return f"record {record.id!r}"


def _fits(needed: int, budget: int, what: str, unit: str) -> None:
    if needed > budget:
        raise ValueError(f"{what} needs {needed} {unit}, the budget is {budget}; use a layout that holds {needed}")


def _pad(values: np.ndarray, length: int) -> np.ndarray:
    """Zeros to the right along the last axis."""
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])])
