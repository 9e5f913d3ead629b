"""The patch plan against transformers' vision utilities: indices exactly, weights to the last bit of float32."""

import numpy as np
import pytest

from vital_jax.pipeline.patches import count_patches, plan

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("transformers.vision_utils")
GRIDS = {
    "one": [(1, 16, 16)],
    "single token": [(1, 2, 2)],
    "rows": [(1, 2, 120)],
    "columns": [(1, 94, 2)],
    "as the learned grid": [(1, 48, 48)],
    "larger than the learned grid": [(1, 50, 98)],
    "several": [(1, 6, 10), (1, 10, 6), (1, 6, 10), (1, 2, 2)],
}


@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("side", [48, 8, 5])
@pytest.mark.parametrize("name", GRIDS)
def test_plan_equals_transformers(name, side, merge):
    grids = GRIDS[name]
    total = count_patches(grids)
    got = plan(grids, total + 8, merge, side, "sample")
    index, weight = theirs.get_vision_interpolation_indices_and_weights(
        torch.tensor(grids), side, mode="bilinear", align_corners=True, spatial_merge_size=merge
    )
    coords = theirs.get_vision_position_ids(torch.tensor(grids), merge)
    np.testing.assert_array_equal(got.patch_index[:total], index.numpy())
    np.testing.assert_array_equal(got.patch_weight[:total].view(np.uint32), weight.numpy().view(np.uint32))
    np.testing.assert_array_equal(got.patch_coords[:total], coords.numpy())
    sizes = [rows * columns for _, rows, columns in grids]
    np.testing.assert_array_equal(got.patch_segment[:total], np.repeat(np.arange(len(grids)) + 1, sizes))
    assert all(not array[total:].any() for array in got)
    assert [array.dtype for array in got] == [np.int32, np.float32, np.int32, np.int32]
    assert [array.shape for array in got] == [(total + 8, 4), (total + 8, 4), (total + 8, 2), (total + 8,)]


def test_every_side_length_picks_transformers_neighbours():
    """Positions that are nearly whole numbers fall to another neighbour in float64: all lengths up to the cap's longest."""
    for length in range(2, 300, 2):
        got = plan([(1, 2, length)], 2 * length, 2, 48, "sample")
        index, _ = theirs.get_vision_interpolation_indices_and_weights(
            torch.tensor([[1, 2, length]]), 48, mode="bilinear", align_corners=True, spatial_merge_size=2
        )
        np.testing.assert_array_equal(got.patch_index, index.numpy())


def test_resample_equals_interpolate():
    """Gathered and weighted, the plan is torch's bilinear resize of the grid.

    Both compute positions up to 47 in float32, in another order: 4e-6, times differences between neighbours of up to 6.
    """
    table = torch.randn(48, 48, 7, generator=torch.Generator().manual_seed(0))
    got = plan([(1, 22, 34)], 22 * 34, 1, 48, "sample")
    ours = np.einsum("pcd,pc->pd", table.reshape(-1, 7).numpy()[got.patch_index], got.patch_weight)
    expected = torch.nn.functional.interpolate(
        table.permute(2, 0, 1)[None], (22, 34), mode="bilinear", align_corners=True
    )
    np.testing.assert_allclose(ours, expected[0].permute(1, 2, 0).reshape(-1, 7).numpy(), rtol=0, atol=2.4e-5)


def test_full_budget_and_no_image():
    assert plan([(1, 4, 4)], 16, 2, 48, "sample").patch_segment.all()
    assert not plan([], 16, 2, 48, "sample").patch_weight.any()


def test_errors_name_the_sample():
    with pytest.raises(ValueError, match="record 'a': images need 288 patches, the budget is 256"):
        plan([(1, 16, 16), (1, 4, 8)], 256, 2, 48, "record 'a'")
    with pytest.raises(ValueError, match=r"record 'a': \(1, 3, 4\) is no grid"):
        plan([(1, 3, 4)], 256, 2, 48, "record 'a'")
    with pytest.raises(ValueError, match=r"record 'a': \(2, 4, 4\) is no grid"):
        plan([(2, 4, 4)], 256, 2, 48, "record 'a'")
    with pytest.raises(ValueError, match="not a multiple of 4"):
        plan([(1, 2, 2)], 255, 2, 48, "record 'a'")
