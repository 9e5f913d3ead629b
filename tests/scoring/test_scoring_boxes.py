"""Boxes: values worked out by hand, and the exact union against one that is drawn cell by cell."""

import numpy as np
import pytest

from vital_jax.scoring.boxes import iou, matched_iou, union_iou

UNIT, HALF, RIGHT = (0, 0, 1, 1), (0, 0, 0.5, 1), (0.5, 0, 1, 1)


def test_pairs():
    found = iou([UNIT, HALF, (2, 2, 3, 3)], [UNIT, RIGHT])
    assert found == pytest.approx(np.array([[1, 0.5], [0.5, 0], [0, 0]]))
    assert iou([(0, 0, 2, 2)], [(1, 1, 3, 3)])[0, 0] == pytest.approx(1 / 7)
    assert iou([], [UNIT]).shape == (0, 1)


def test_a_box_without_area_agrees_with_nothing():
    for box in ((1, 0, 0, 1), (1, 1, 0, 0), (0.5, 0.5, 0.5, 0.5)):
        assert iou([box], [UNIT, box]).tolist() == [[0, 0]]
        assert matched_iou([box], [UNIT]) == union_iou([box], [UNIT]) == 0
    for wrong in ([(0, 0, 1)], (0, 0, 1, 1), [(0, 0, 1, float("nan"))]):
        with pytest.raises(ValueError, match="boxes must be finite numbers"):
            iou(wrong, [UNIT])


def test_lists_are_matched_one_to_one_the_best_pair_first():
    assert matched_iou([HALF, UNIT], [UNIT, HALF]) == 1.0
    # HALF meets UNIT with 0.5; the second HALF has nothing left.
    assert matched_iou([HALF, HALF], [UNIT]) == pytest.approx(0.25)
    assert matched_iou([UNIT], [UNIT, RIGHT]) == pytest.approx(0.5)
    # The best pair first, 0.8; what is left of the other two is 0.
    a, b, c = (0, 0, 10, 1), (0, 0, 8, 1), (8, 0, 10, 1)
    assert matched_iou([a, b], [b, c]) == pytest.approx((1 + 0.2) / 2)
    assert matched_iou([], []) == 1.0 and matched_iou([], [UNIT]) == 0.0 == matched_iou([UNIT], [])


def test_the_union_counts_covered_area_once():
    assert union_iou([HALF, HALF], [UNIT]) == pytest.approx(0.5)
    assert union_iou([HALF, RIGHT], [UNIT]) == pytest.approx(1.0)
    assert union_iou([], []) == 1.0 and union_iou([], [UNIT]) == 0.0


def test_the_union_is_that_of_drawn_masks():
    rng = np.random.default_rng(0)
    for _ in range(20):
        lists, masks = [], []
        for n in rng.integers(1, 5, 2):
            ends = np.sort(rng.integers(0, 16, (n, 2, 2)), axis=1)
            boxes, mask = ends.reshape(n, 4), np.zeros((16, 16), bool)
            for x0, y0, x1, y1 in boxes:
                mask[y0:y1, x0:x1] = True
            lists.append(boxes)
            masks.append(mask)
        either = (masks[0] | masks[1]).sum()
        assert union_iou(*lists) == pytest.approx((masks[0] & masks[1]).sum() / either if either else 1.0)
