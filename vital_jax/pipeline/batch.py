"""The batch: records as arrays of fixed shapes, the only thing a model ever sees.

`batch_spec` is the one schema. What a loader makes, what a compiler is shown, what a model is initialised with and what docs/batch.md lists
all derive from it. A row holds a prompt with its images, the columns of a method's suffix (`segments.py`) and what the method is supervised
with beside them; `collate` stacks rows. The letters are those of vital_jax/__init__.py.

A layout's numbers are budgets: a sample that exceeds one is an error that says what it needs. Nothing is ever truncated, because a cut
prompt or a missing image patch trains on, silently, as something else.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy as np

from vital_jax.pipeline.families import Geometry, read_geometry
from vital_jax.pipeline.images import MAX_PIXELS, Grid, ImageConfig, decode, image_size, patchify
from vital_jax.pipeline.patches import count_patches
from vital_jax.pipeline.prompts import Prompter
from vital_jax.pipeline.segments import Segment, Suffix, arrays_of, steps_taken

if TYPE_CHECKING:  # a server that builds rows from requests needs no record store
    from vital_jax.pipeline.records import Record

Row = dict[str, np.ndarray | np.generic]  # one sample's arrays by name
TRAIN_K = ("per_sample", "phase_max")


class Batch(TypedDict, total=False):
    """Arrays by name, [B, ...] each; see `batch_spec`. A suffix adds the arrays of its segments, of which VITAL's stand here."""

    tokens: Any
    lengths: Any
    positions: Any
    next_position: Any
    patches: Any
    patch_index: Any
    patch_weight: Any
    patch_coords: Any
    patch_segment: Any
    patch_target: Any
    latent_steps: Any
    answer: Any
    answer_mask: Any
    chain: Any
    chain_mask: Any
    roi: Any
    roi_global: Any
    roi_mask: Any
    roi_steps: Any
    roi_steps_mask: Any
    record_steps: Any
    index: Any


@dataclass(frozen=True)
class Layout:
    """The shapes of a row.

    Attributes:
      prefix: S. patches: P, a multiple of merge_size squared.
      suffix: the columns behind the prompt, their literal texts bound to tokens.
      chain: C, the end token included: the sentence of each latent step is a target of its own; 0 leaves these targets out.
      roi: E; 0 leaves region features out.
      step_regions: with region features, those of each step too.
      record_steps: how many steps the record itself has, for losses that need it where a row takes more.
    """

    prefix: int = 0
    patches: int = 0
    suffix: Suffix = field(default_factory=Suffix)
    chain: int = 0
    roi: int = 0
    step_regions: bool = False
    record_steps: bool = False

    def __post_init__(self) -> None:
        for name in ("prefix", "patches", "chain", "roi"):
            if getattr(self, name) < 0:
                raise ValueError(f"layout: {name} is negative: {getattr(self, name)}")

    @property
    def latents(self) -> Segment | None:
        """The first latent segment."""
        return next(iter(self.suffix.of_kind("latent")), None)

    @property
    def steps(self) -> int:
        """K, the steps whose sentences are targets."""
        return 0 if self.latents is None else self.latents.budget // self.latents.per_step


class Field(NamedTuple):
    """One array of a row. full: what a row that fills every budget holds there."""

    shape: tuple[int, ...]
    dtype: type
    meaning: str
    full: int = 0


def batch_spec(layout: Layout, geometry: Geometry, patch_width: int, width: int = 0) -> dict[str, Field]:
    """Every array of a row, by name.

    Args:
      geometry: how the backbone's images lie in patches. patch_width: numbers in one flattened patch.
      width: D, for layouts with given or recorded vectors.
    """
    S, P, C, K, E = layout.prefix, layout.patches, layout.chain, layout.steps, layout.roi
    i, f = np.int32, np.float32
    spec = {
        "tokens": Field((S,), i, "the prompt, right-padded with 0"),
        "lengths": Field((), i, "its real columns", S),
        "positions": Field((3, S), i, "M-RoPE time, row, column; 0 on padding"),
        "next_position": Field((), i, "largest position + 1", S),
        "patches": Field((P, patch_width), f, "normalised pixels; 0 on padding"),
    }
    for name, x in geometry.plan([], P, "an empty row")._asdict().items():
        spec[name] = Field(x.shape, x.dtype.type, geometry.arrays[name], int(name == "patch_segment"))
    target = P // geometry.merge_size**2
    spec["patch_target"] = Field((target,), i, "column of tokens each merged patch lands on; S on padding")
    for segment in layout.suffix.segments:
        for name, (shape, dtype, meaning) in arrays_of(segment, width).items():
            full = segment.budget if name == f"{segment.name}_steps" else int(dtype is bool)
            spec[name] = Field(shape, dtype, meaning, full)
    if C and K:
        spec["chain"] = Field((K, C), i, "text of each step for the text decoder, end token included; 0 on padding")
        spec["chain_mask"] = Field((K, C), bool, "its tokens; all false on unused steps", 1)
    if E:
        spec["roi"] = Field((E,), f, "region feature")
        spec["roi_global"] = Field((E,), f, "feature of the whole image")
        spec["roi_mask"] = Field((), bool, "whether there is a region feature", 1)
    if E and layout.step_regions:
        spec["roi_steps"] = Field((K, E), f, "feature of each step's own region, or of the record's")
        spec["roi_steps_mask"] = Field((K,), bool, "whether there is either", 1)
    if layout.record_steps:
        spec["record_steps"] = Field((), i, "steps of the record itself, at most K", K)
    spec["index"] = Field((), i, "record number")
    return spec


def full_batch(spec: Mapping[str, Field], rows: int) -> dict[str, np.ndarray]:
    """A batch [rows, ...] in which every budget is full, of zeros but for what says how much there is."""

    def fill(one: Field) -> np.ndarray:
        return np.broadcast_to(np.asarray(one.full, one.dtype), (rows, *one.shape))

    return {name: fill(one) for name, one in spec.items()}


def table(spec: Mapping[str, Field]) -> str:
    """The schema as Markdown."""
    rows = [f"| `{name}` | {list(one.shape)} | {np.dtype(one.dtype)} | {one.meaning} |" for name, one in spec.items()]
    return "\n".join(["| array | shape of a row | type | meaning |", "|---|---|---|---|", *rows])


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

    def __post_init__(self) -> None:
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

    def measure_text(self, record: "Record") -> tuple[int, int, int]:
        """The tokens of a record's answer and of its longest chain step, end tokens included, and of its whole chain written out."""
        name = _name(record)
        chain = self.chain_prompter or self.prompter
        steps = [len(chain.encode_text(text, name=f"{name} chain step {k + 1}")) for k, text in enumerate(record.chain)]
        answer = len(self.prompter.encode_text(record.answer, name=f"{name} answer"))
        return answer, max(steps, default=0), len(self._lines(record.chain, name))

    def encode(
        self,
        record: "Record",
        layout: Layout,
        index: int,
        roi: np.ndarray | None = None,
        roi_global: np.ndarray | None = None,
        roi_steps: Sequence[np.ndarray] = (),
    ) -> Row:
        """One row of the batch, the arrays of `batch_spec`.

        Args:
          record: its metadata's `window`, where it is [low, high], serves images deeper than 8 bits.
          layout: the budgets.
          index: the record's number in its data set.
          roi, roi_global: [E] the features of the region and of the whole image, or None where the record has none.
          roi_steps: [E] of the region of each step, none where the record has no such regions.

        Raises:
          ValueError: an image cannot be read or a budget is too small; the message names the record and what it needs.
        """
        name = _name(record)
        window = record.metadata.get("window")
        images = [decode(data, f"{name} image {i}", window)[0] for i, data in enumerate(record.images)]
        grids = [self.image_config.grid(image.height, image.width) for image in images]
        row = self.geometry.plan(grids, layout.patches, name)._asdict()
        row |= self._prompt(record, grids, layout, name) | self._columns(record, layout, name)
        patches, start = np.zeros((layout.patches, self.image_config.patch_dim), np.float32), 0
        for image in images:
            own, _ = patchify(image, self.image_config)
            patches[start : start + len(own)] = own
            start += len(own)
        if layout.chain and layout.steps:
            row |= self._chain(record, layout, name)
        if layout.roi:
            row |= {"roi_mask": np.bool_(roi is not None)}
            for key, feature in (("roi", roi), ("roi_global", roi_global)):
                row[key] = _feature(feature, layout.roi, name)
            if layout.step_regions:
                steps = [_feature(feature, layout.roi, name) for feature in roi_steps[: layout.steps]]
                steps += [row["roi"]] * (layout.steps - len(steps))
                row["roi_steps"] = np.reshape(steps, (layout.steps, layout.roi)).astype(np.float32)
                row["roi_steps_mask"] = (np.arange(layout.steps) < len(roi_steps)) | row["roi_mask"]
        if layout.record_steps:
            row["record_steps"] = np.int32(min(_steps_of(record, layout.steps), layout.steps))
        return row | {"patches": patches, "index": np.int32(index)}

    def _tokens(self, record: "Record", grids: Sequence[Grid], name: str) -> np.ndarray:
        # Records are one turn; a question of an evaluation may follow on others.
        return self.prompter.encode(record.question, grids, self.system, name, getattr(record, "earlier", ()))

    def _prompt(self, record: "Record", grids: Sequence[Grid], layout: Layout, name: str) -> Row:
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

    def _columns(self, record: "Record", layout: Layout, name: str) -> Row:
        """The arrays of the suffix's segments."""
        row: Row = {}
        for segment in layout.suffix.segments:
            if segment.kind == "latent":
                own = _steps_of(record, segment.budget // segment.per_step)
                try:
                    row[f"{segment.name}_steps"] = np.int32(steps_taken(segment, own))
                except ValueError as error:
                    raise ValueError(f"{name}: the reasoning {error}") from error
            elif segment.kind == "tokens" and not segment.fixed:
                ids = self._written(record, segment, name)
                what, unit = (
                    ("answer", "answer tokens (T)")
                    if segment.source == "answer"
                    else ("written chain", f"tokens (segment {segment.name!r})")
                )
                _fits(len(ids), segment.budget, f"{name}: the {what}", unit)
                row[segment.name] = _pad(ids, segment.budget)
                row[f"{segment.name}_mask"] = np.arange(segment.budget) < len(ids)
        return row

    def _written(self, record: "Record", segment: Segment, name: str) -> np.ndarray:
        """A record's tokens in a segment: its answer with the end token, or steps of its chain, each on a line of its own."""
        if segment.source == "answer":
            return self.prompter.encode_text(record.answer, name=f"{name} answer")
        return self._lines(segment.steps(record.chain), name)

    def _lines(self, steps: Sequence[str], name: str) -> np.ndarray:
        parts = [self.prompter.encode_text(f"{step}\n", end=False, name=f"{name} chain") for step in steps]
        return np.concatenate([np.empty(0, np.int32), *parts])

    def _chain(self, record: "Record", layout: Layout, name: str) -> Row:
        """The sentence of each step as the text decoder's tokens, a target of its own."""
        K, C = layout.steps, layout.chain
        steps = record.chain[:K] if layout.latents is not None and layout.latents.cut else record.chain
        _fits(len(steps), K, f"{name}: the chain", "latent steps (K)")
        chain, lengths = np.zeros((K, C), np.int32), np.zeros(K, np.int32)
        for k, text in enumerate(steps):
            ids = (self.chain_prompter or self.prompter).encode_text(text, name=f"{name} chain step {k + 1}")
            _fits(len(ids), C, f"{name}: chain step {k + 1}", "chain tokens (C)")
            chain[k], lengths[k] = _pad(ids, C), len(ids)
        return {"chain": chain, "chain_mask": np.arange(C) < lengths[:, None]}


def collate(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Stacks rows of one layout to a batch.

    Raises:
      ValueError: no rows, or rows of different layouts.
    """
    if not rows:
        raise ValueError("collate needs at least one row")
    for row in rows[1:]:
        shapes, others = ({key: np.shape(x) for key, x in one.items()} for one in (rows[0], row))
        different = [key for key in shapes | others if shapes.get(key) != others.get(key)]
        if different:
            raise ValueError(f"rows of different layouts cannot form a batch: {', '.join(different)} differ in shape")
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _steps_of(record: "Record", default: int) -> int:
    """The steps of a record's chain, or what it states instead; the default where it states nothing."""
    own = len(record.chain) or record.metadata.get("latent_steps")
    return default if own is None else own


def _feature(feature: np.ndarray | None, width: int, name: str) -> np.ndarray:
    """A region feature, zeros for None. Raises: ValueError for another shape or a number that is not finite."""
    if feature is not None and (np.shape(feature) != (width,) or not np.isfinite(feature).all()):
        raise ValueError(f"{name}: region feature of shape {np.shape(feature)} must be {width} finite numbers")
    return np.zeros(width, np.float32) if feature is None else np.asarray(feature, np.float32)


def _name(record: "Record") -> str:
    return f"record {record.id!r}"


def _fits(needed: int, budget: int, what: str, unit: str) -> None:
    if needed > budget:
        raise ValueError(f"{what} needs {needed} {unit}, the budget is {budget}; use a layout that holds {needed}")


def _pad(values: np.ndarray, length: int) -> np.ndarray:
    """Zeros to the right along the last axis."""
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])])
