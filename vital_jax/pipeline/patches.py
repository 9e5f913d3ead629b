"""The patch plan: all that the vision tower must know about image sizes, as arrays of one fixed budget.

No grid size ever reaches a traced function. What depends on it is worked out here, once per image: where each patch
lies (for the 2-D rope), which image it belongs to (for attention), and which four entries of the learned square grid of
positions make up its own position, with what weights. A handful of budgets is then a handful of programs, whatever
images come.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vital_jax.pipeline.images import Grid


class PatchPlan(NamedTuple):
    """The plan of one row, under the batch's names (pipeline/batch.py). Padding is zero throughout."""

    patch_index: np.ndarray  # [P, 4] int32 entries of the flattened position grid
    patch_weight: np.ndarray  # [P, 4] float32 their bilinear weights
    patch_coords: np.ndarray  # [P, 2] int32 row and column
    patch_segment: np.ndarray  # [P] int32 number of the image in the row, from 1


def count_patches(grids: Sequence[Grid]) -> int:
    """P of these grids together."""
    return sum(t * rows * columns for t, rows, columns in grids)


def plan(grids: Sequence[Grid], budget: int, merge_size: int, num_grid: int, name: str) -> PatchPlan:
    """Plans the patches of a row's images, one image after the other, padded to the budget.

    Args:
      grids: (1, rows, columns) of each image, in patches.
      budget: P, a multiple of merge_size squared.
      merge_size: side of the square of patches that becomes one token.
      num_grid: side of the learned grid of positions.
      name: the sample, as errors call it.

    Raises:
      ValueError: more patches than the budget, a budget that splits a token, or a grid that no still image has.
    """
    if budget % merge_size**2:
        raise ValueError(f"patch budget {budget} is not a multiple of {merge_size**2}, the patches of one token")
    for t, rows, columns in grids:
        if t != 1 or min(rows, columns) < 1 or rows % merge_size or columns % merge_size:
            raise ValueError(
                f"{name}: ({t}, {rows}, {columns}) is no grid of a still image merged {merge_size}x{merge_size}"
            )
    needed = count_patches(grids)
    if needed > budget:
        raise ValueError(f"{name}: images need {needed} patches, the budget is {budget}; raise it or lower max_pixels")
    padded = PatchPlan(
        np.zeros((budget, 4), np.int32),
        np.zeros((budget, 4), np.float32),
        np.zeros((budget, 2), np.int32),
        np.zeros(budget, np.int32),
    )
    start = 0
    for segment, (_, rows, columns) in enumerate(grids, start=1):
        row, column = _merge_block_order(rows, columns, merge_size)
        row_taps, row_weights = _taps(row, rows, num_grid)
        column_taps, column_weights = _taps(column, columns, num_grid)
        here = slice(start, start := start + rows * columns)
        padded.patch_index[here] = (row_taps[:, :, None] * num_grid + column_taps[:, None]).reshape(-1, 4)
        padded.patch_weight[here] = (row_weights[:, :, None] * column_weights[:, None]).reshape(-1, 4)
        padded.patch_coords[here] = np.stack([row, column], axis=-1)
        padded.patch_segment[here] = segment
    return padded


def _merge_block_order(rows: int, columns: int, merge: int) -> np.ndarray:
    """[2, rows x columns] row and column of each patch: block by block, row by row within a block."""
    blocks = np.indices((rows, columns)).reshape(2, rows // merge, merge, columns // merge, merge)
    return blocks.swapaxes(2, 3).reshape(2, -1)


def _taps(index: np.ndarray, size: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Two neighbours on an axis of `side` entries and their weights [n, 2], with the ends of both axes aligned.

    In float32 throughout, like the model this must agree with: in float64 the floor of a position that is nearly whole
    may differ.
    """
    source = index.astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
    floor = np.floor(source)
    neighbours = np.arange(2, dtype=np.float32)
    taps = np.minimum(floor[:, None] + neighbours, side - 1).astype(np.int32)
    distance = np.abs(source[:, None] - floor[:, None] - neighbours)
    return taps, np.maximum(1 - distance, 0)
