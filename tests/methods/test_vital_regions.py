"""VITAL's targets where steps have regions of their own, and where a row runs more latents than its record has steps."""

import numpy as np
import pytest
import toy
from givenlatents import BASE, K, fresh_latents, normalizers, only_visual
from longhand import project

from vital_jax.methods import base
from vital_jax.methods.base import losses

# Float32 with sums of some hundred terms in another order, against float64.
CLOSE = dict(rtol=2e-5, atol=2e-6)


@pytest.fixture(scope="module")
def scaffold():
    return toy.draw(toy.method().abstract()["scaffold"])


def regions_of_steps(batch, seed=5):
    """The batch with an own region for each of K steps."""
    roi = np.random.default_rng(seed).normal(size=(len(batch["roi"]), K, toy.ROI)).astype(np.float32)
    roi /= np.linalg.norm(roi, axis=-1, keepdims=True)
    return {**batch, "roi_steps": roi, "roi_steps_mask": np.repeat(batch["roi_mask"][:, None], K, axis=1)}


def test_every_step_regresses_its_own_region(scaffold, held):
    """Equation 6 with another target for each step; only steps with a region count, in the mean and in the number of rows."""
    batch = regions_of_steps(toy.batch())
    vital, z = toy.method(decoder=None, visual_target="own_region"), fresh_latents()
    batch["roi_steps_mask"][1] = np.arange(K) < 1  # has no region of its own, but its first step has
    batch["roi_steps_mask"][3] = np.arange(K) != 1
    held(z)
    distances, cosines = [], []
    for i, counted in enumerate([[0], [0], [0, 1, 2], [0, 2, 3]]):
        y = project(scaffold["visual_projector"], z[i, counted], vital.projector, vital.output_norm)
        target = batch["roi_steps"][i, counted].astype(np.float64)
        distances.append(np.abs(y - target).sum(-1).mean())
        cosines.append(np.mean([a @ b / np.linalg.norm(a) for a, b in zip(y, target, strict=True)]))
    got = only_visual(vital, scaffold, batch)
    np.testing.assert_allclose(got, (np.mean(distances), np.mean(cosines)), **CLOSE)
    same = {**batch, "roi_steps": np.repeat(batch["roi"][:, None], K, axis=1)}
    same["roi_steps_mask"] = np.repeat(batch["roi_mask"][:, None], K, axis=1)
    np.testing.assert_array_equal(
        only_visual(vital, scaffold, same), only_visual(toy.method(decoder=None), scaffold, batch)
    )


def text_and_visual(vital, scaffold, batch):
    """Both losses of the scaffold with held latents, as numbers."""
    params = {"base": BASE, "scaffold": scaffold}
    got = losses(vital, params, batch, normalizers(batch, vital), toy.phase(K), toy.suffix(vital, K))[0]
    return float(got["text"]), float(got["visual"])


@pytest.mark.parametrize("visual_target", ["shared", "per_step", "own_region"])
def test_a_row_that_stays_is_taught_its_last_step_again(scaffold, held, visual_target):
    """Rows of 1, 2, 3 and 4 steps run four latents: the same as data in which the last step is written out again."""
    counts = np.array([1, 2, 3, 4])
    batch = regions_of_steps(toy.batch(steps=counts)) | {"record_steps": counts}
    held(fresh_latents(steps=np.full(4, K)), own=np.full(4, K))
    at = np.minimum(np.arange(K), counts[:, None] - 1)
    rows = np.arange(4)[:, None]
    names = ("chain", "chain_mask", "roi_steps", "roi_steps_mask")
    again = {**batch, **{name: batch[name][rows, at] for name in names}}
    stay, free = (toy.method(visual_target=visual_target, beyond=way) for way in ("stay", "free"))
    got, expected = text_and_visual(stay, scaffold, batch), text_and_visual(free, scaffold, again)
    plain = text_and_visual(free, scaffold, batch)
    assert got[0] == expected[0] != plain[0]
    if visual_target == "per_step":
        # Equation 8 ends at the record's last step and stays at the region.
        targets = stay.visual_targets(batch, counts, K)
        for i, path in enumerate([[1, 1, 1, 1], [0, 1, 1, 1], [0, 0.5, 1, 1], [0, 1 / 3, 2 / 3, 1]]):
            mixed = np.stack([a * batch["roi"][i] + (1 - a) * batch["roi_global"][i] for a in path])
            mixed /= np.linalg.norm(mixed, axis=-1, keepdims=True)
            np.testing.assert_allclose(targets[i], mixed, rtol=1e-5, atol=1e-6)
        assert got[1] != plain[1]
    else:
        assert got[1] == expected[1]
        assert (got[1] == plain[1]) == (visual_target == "shared")


@pytest.mark.parametrize("visual_target", ["shared", "per_step", "own_region"])
def test_a_row_at_its_own_number_of_steps_has_nothing_beyond(scaffold, held, visual_target):
    batch = toy.batch()
    held(fresh_latents())
    batch = regions_of_steps(batch) | {"record_steps": batch["latent_steps"]}
    got = [
        text_and_visual(toy.method(visual_target=visual_target, beyond=way), scaffold, batch)
        for way in ("free", "stay")
    ]
    assert got[0] == got[1]


@pytest.mark.parametrize("visual_target", ["shared", "per_step", "own_region"])
def test_no_steps_give_no_nan(scaffold, held, visual_target):
    """A record that states no steps at all, in a row without latents and in one of four."""
    batch = toy.batch()
    counts = np.zeros(4, np.int32)
    batch = regions_of_steps(batch) | {"record_steps": counts, "chain_mask": np.zeros_like(batch["chain_mask"])}
    vital = toy.method(visual_target=visual_target, beyond="stay")
    for own in (counts, np.full(4, K)):
        held(fresh_latents(), own=own)
        assert np.isfinite(text_and_visual(vital, scaffold, batch)).all()


def test_the_layout_asks_for_what_the_switches_need():
    budgets = base.Budgets(5, 6, roi=toy.ROI)
    for options, regions, steps in (
        ({}, False, False),
        ({"visual_target": "own_region"}, True, False),
        ({"beyond": "stay"}, False, True),
    ):
        layout = toy.method(**options).layout(toy.phase(K), budgets)
        assert (layout.step_regions, layout.record_steps) == (regions, steps)
    layout = toy.method(visual_target="own_region").layout(toy.phase(K, visual=0.0), budgets)
    assert not layout.step_regions
