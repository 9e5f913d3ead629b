"""The NumPy half of the model families: how an image becomes patches, and where its tokens stand. One row each, as in models/families.py.

Everything that depends on an image's size is worked out here, so that no grid ever reaches a traced function.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from vital_jax.pipeline.images import Grid, ImageConfig
from vital_jax.pipeline.patches import PatchPlan, plan


class Geometry(Protocol):
    """How the images of one architecture lie in patches and positions.

    Attributes: title, what people call the family; arrays, the plan's arrays in a batch by name with what they mean, in the order in which
      its tower takes them; image_token_id; merge_size, the side of the square of patches that becomes one token.
    """

    title: ClassVar[str]
    arrays: ClassVar[Mapping[str, str]]

    @property
    def image_token_id(self) -> int: ...

    @property
    def merge_size(self) -> int: ...

    @classmethod
    def from_config(cls, table: Mapping[str, Any], where: str) -> "Geometry":
        """From config.json; `where` is its name in errors. Raises: ValueError naming a key that is missing."""

    @staticmethod
    def image_config(folder: str | Path, max_pixels: int) -> ImageConfig:
        """How the folder's images become pixels. Raises: as `ImageConfig.from_folder`."""

    def plan(self, grids: Sequence[Grid], budget: int, name: str) -> NamedTuple:
        """The plan of a row's images (see `patches.plan`), arrays of `budget` patches, zero on padding."""

    def positions(self, ids: np.ndarray, grids: Sequence[Grid]) -> tuple[np.ndarray, int]:
        """Positions [3, S'] int32 of a prompt [S'] and the next free one (see `rope_index`)."""


@dataclass(frozen=True)
class LearnedGrid:
    """Qwen3-VL: patch positions are resampled from a learned square grid of `num_grid` entries a side."""

    title: ClassVar[str] = "Qwen3-VL"
    arrays: ClassVar[Mapping[str, str]] = {
        "patch_index": "entries of the position grid; 0 on padding",
        "patch_weight": "their bilinear weights; 0 on padding",
        "patch_coords": "row and column; 0 on padding",
        "patch_segment": "image number from 1; 0 on padding",
    }
    image_token_id: int
    merge_size: int
    num_grid: int

    @classmethod
    def from_config(cls, table: Mapping[str, Any], where: str) -> "LearnedGrid":
        """See `Geometry`."""
        vision = table.get("vision_config", {})
        needed = ("num_position_embeddings", "spatial_merge_size")
        if missing := [key for key in needed if key not in vision]:
            raise ValueError(f"{where}: no {' and no '.join(missing)} in vision_config; expected a {cls.title} folder")
        if "image_token_id" not in table:
            raise ValueError(f"{where}: no image_token_id; expected a {cls.title} folder")
        return cls(table["image_token_id"], vision["spatial_merge_size"], isqrt(vision["num_position_embeddings"]))

    @staticmethod
    def image_config(folder: str | Path, max_pixels: int) -> ImageConfig:
        """See `Geometry`."""
        return ImageConfig.from_folder(folder, max_pixels)

    def plan(self, grids: Sequence[Grid], budget: int, name: str) -> PatchPlan:
        """See `Geometry`."""
        return plan(grids, budget, self.merge_size, self.num_grid, name)

    def positions(self, ids: np.ndarray, grids: Sequence[Grid]) -> tuple[np.ndarray, int]:
        """See `Geometry`."""
        return rope_index(ids, grids, self.image_token_id, self.merge_size)


FAMILIES: dict[str, type[Geometry]] = {"qwen3_vl": LearnedGrid}
TITLES = " or ".join(family.title for family in FAMILIES.values())  # for sentences that say what is supported


def read_geometry(table: Mapping[str, Any], where: str) -> Geometry:
    """The geometry of a config.json; `where` is its name in errors. Raises: ValueError for a family not in the table, or naming a key."""
    if (kind := table.get("model_type")) not in FAMILIES:
        raise ValueError(f"{where}: model_type={kind!r} is not read as a backbone; use one of {', '.join(FAMILIES)}")
    return FAMILIES[kind].from_config(table, where)


def rope_index(ids: np.ndarray, grids: Sequence[Grid], image_token_id: int, merge_size: int) -> tuple[np.ndarray, int]:
    """M-RoPE positions of a prompt (Qwen2-VL, section 2.1; transformers' `Qwen3VLModel.get_rope_index`).

    Text advances all three axes together. An image's tokens share one time and take their row and column as offsets
    from it; the text behind it goes on after the longer side.

    Args:
      ids: [S'] without padding.
      grids: (1, rows, columns) of each image, in patches.

    Returns:
      positions [3, S'] int32 (time, row, column) and the next free position, one more than the largest.

    Raises:
      ValueError: the image tokens are not those of the grids.
    """
    pads = np.flatnonzero(ids == image_token_id)
    shapes = [(rows // merge_size, columns // merge_size) for _, rows, columns in grids]
    expected = sum(rows * columns for rows, columns in shapes)
    if len(pads) != expected:
        raise ValueError(f"the prompt holds {len(pads)} image tokens, its grids {list(grids)} make {expected}")
    positions = np.empty((3, len(ids)), np.int32)
    column = position = used = 0
    for shape in shapes:
        first, size = pads[used], shape[0] * shape[1]
        if pads[used + size - 1] != first + size - 1:
            raise ValueError(f"the image tokens at column {first} are not {size} in a row")
        positions[:, column:first] = np.arange(position, position := position + first - column)
        positions[0, first : first + size] = position
        positions[1:, first : first + size] = position + np.indices(shape).reshape(2, -1)
        column, position, used = first + size, position + max(shape), used + size
    positions[:, column:] = np.arange(position, position := position + len(ids) - column)
    return positions, int(position)
