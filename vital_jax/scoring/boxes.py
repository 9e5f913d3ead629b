"""How well boxes agree: IoU of pairs, of two lists matched greedily, and of the areas that two lists cover.

A box is (x_min, y_min, x_max, y_max) in one unit for both sides, fractions of the image in this project. One whose ends are exchanged has
no area: a model may write such a box, and it agrees with nothing.
"""

from collections.abc import Sequence

import numpy as np

Boxes = np.ndarray | Sequence[Sequence[float]]


def _boxes(boxes: Boxes) -> np.ndarray:
    array = np.asarray(boxes, np.float64).reshape(-1, 4) if not len(boxes) else np.asarray(boxes, np.float64)
    if array.ndim != 2 or array.shape[1] != 4 or not np.isfinite(array).all():
        raise ValueError(f"boxes must be finite numbers (x_min, y_min, x_max, y_max), got {boxes!r}")
    return array


def _area(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.prod(np.maximum(high - low, 0.0), axis=-1)


def iou(a: Boxes, b: Boxes) -> np.ndarray:
    """Intersection over union of every pair, [n, 4] and [m, 4] -> [n, m] float64; 0 where neither has an area.

    Raises: ValueError for boxes that are no four finite numbers each.
    """
    a, b = _boxes(a)[:, None], _boxes(b)[None]
    both = _area(np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:]))
    # Where one is turned inside out, the ends of the intersection need not be.
    both = np.minimum(both, np.minimum(_area(a[..., :2], a[..., 2:]), _area(b[..., :2], b[..., 2:])))
    either = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def matched_iou(predicted: Boxes, gold: Boxes) -> float:
    """Mean IoU of two lists, [n, 4] and [m, 4], matched greedily: the pair that agrees best goes first, each box is used once.

    The mean is over max(n, m), so that a box too many counts as 0 just as a missing one does; 1 where both lists are empty.
    Raises: as `iou`.
    """
    left = iou(predicted, gold)
    most, total = max(left.shape), 0.0
    if not most:
        return 1.0
    for _ in range(min(left.shape)):
        row, column = np.unravel_index(left.argmax(), left.shape)
        total += left[row, column]
        left[row], left[:, column] = -1.0, -1.0
    return float(total / most)


def union_iou(predicted: Boxes, gold: Boxes) -> float:
    """IoU of the areas that two lists of boxes cover, [n, 4] and [m, 4]; 1 where neither covers any.

    Exact: the plane is cut at every end of a box, and each cell lies inside a box or outside. Raises: as `iou`.
    """
    lists = [_boxes(predicted), _boxes(gold)]
    xs, ys = (np.unique(np.concatenate([boxes[:, [axis, axis + 2]].ravel() for boxes in lists])) for axis in (0, 1))
    cells = np.diff(xs)[:, None] * np.diff(ys)[None]

    def covered(boxes: np.ndarray) -> np.ndarray:
        x0, y0, x1, y1 = (boxes[:, [place]] for place in range(4))
        across, down = (x0 <= xs[:-1]) & (xs[1:] <= x1), (y0 <= ys[:-1]) & (ys[1:] <= y1)
        return np.any(across[:, :, None] & down[:, None, :], axis=0)

    ours, theirs = map(covered, lists)
    either = cells[ours | theirs].sum()
    return float(cells[ours & theirs].sum() / either) if either else 1.0
