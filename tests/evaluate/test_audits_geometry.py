"""Latents whose shape is known: orthogonal, collapsed, and rows with steps of their own."""

import numpy as np
import pytest

from vital_jax.evaluate.geometry import effective_rank, shape_of


@pytest.mark.parametrize("K", [1, 2, 4])
def test_orthogonal_vectors_have_full_rank_and_equal_ones_rank_one(K):
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(16, K)))
    assert effective_rank(7 * q.T) == pytest.approx(K)
    assert effective_rank(np.tile(q[:, :1].T, (K, 1)) * np.arange(1, K + 1)[:, None]) == pytest.approx(1)


def test_rank_by_hand_and_of_nothing():
    # Singular values 3 and 1: shares 3/4 and 1/4.
    share = np.array([0.75, 0.25])
    assert effective_rank(np.diag([3.0, 1.0])) == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert np.isnan(effective_rank(np.zeros((2, 3))))
    assert effective_rank(np.stack([np.eye(3), np.ones((3, 3))])) == pytest.approx([3, 1])


def test_every_number_counts_the_rows_that_have_it():
    r = np.random.default_rng(1)
    steps = np.array([1, 2, 3, 3, 2, 1])
    own = np.arange(3) < steps[:, None]
    z = r.normal(size=(6, 3, 8)) * own[..., None]
    z0, images = 2 * np.ones((6, 8)), ["a", "a", "b", "b", "c", "c"]
    found = shape_of(z, own, z0, np.array([3.0, 5.0]), images)
    cos = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    assert found["cosine"]["z_1 z_2"]["n"] == 4 and found["cosine"]["z_2 z_3"]["n"] == 2
    assert found["cosine"]["z_1 z_2"]["value"] == pytest.approx(np.mean([cos(z[i, 0], z[i, 1]) for i in (1, 2, 3, 4)]))
    assert {k: one["n"] for k, one in found["rank"].items()} == {"2": 2, "3": 2}
    assert found["rank"]["3"]["value"] == pytest.approx(np.mean([effective_rank(z[i]) for i in (2, 3)]))
    assert found["rank"]["3"]["low"] is None  # both rows are of image b
    assert found["length"]["z_0"]["value"] == pytest.approx(2 * 8**0.5) and found["length"]["z_0"]["sd"] == 0
    assert found["length"]["z_2"]["n"] == 4
    assert (found["length"]["token embeddings"]["value"], found["length"]["token embeddings"]["sd"]) == (4, 1)
    # z_0 is the same for all: one direction, and nothing once its mean is taken off.
    assert "z_0" not in found["data_rank"]
    assert found["data_rank"]["z_1"]["most"] == 6 and 1 < found["data_rank"]["z_1"]["value"] < 6


def test_the_mean_direction_alone_is_rank_one_until_it_is_taken_off():
    r = np.random.default_rng(2)
    z = 100 * np.ones((12, 1, 6)) + r.normal(size=(12, 1, 6))
    found = shape_of(z, np.ones((12, 1), bool), z[:, 0], np.ones(3), list(range(12)))["data_rank"]["z_1"]
    assert found["value"] < 1.5 and found["centred"] > 4
