"""VITAL's losses on given latents: what comes after the loop is tested without it, so that nothing large is compiled."""

import jax.numpy as jnp
import numpy as np
import pytest
import toy

from vital_jax.latent.interpret import Columns
from vital_jax.methods import base
from vital_jax.methods.base import losses

K = 4


def normalizers(batch, vital=None):
    """Of VITAL, by default of the toy's."""
    vital = vital or toy.method()
    return vital.normalizers(batch, toy.phase(K), toy.suffix(vital, K))


def fresh_latents(seed=3, rows=4, steps=None):
    """z [rows, K, D] as the loop hands them out: zero beyond a row's own steps."""
    z = np.random.default_rng(seed).normal(size=(rows, K, toy.WIDTH)).astype(np.float32)
    steps = 1 + np.arange(rows) % K if steps is None else steps
    return np.where((np.arange(K) < steps[:, None])[..., None], z, 0)


@pytest.fixture
def held(monkeypatch):
    """Puts given latents [B, K, D], a row's first step in front, in the loop's place; row i has 1 + i modulo K of them."""

    def hold(z, K=K, own=None):
        z = np.asarray(z)
        own = np.minimum(1 + np.arange(len(z)) % 4, K) if own is None else np.asarray(own)
        right = np.stack([np.roll(row, K - n, axis=0) for row, n in zip(z[:, :K], own, strict=True)])[:, None]
        real = {"latent": jnp.asarray(np.arange(K) >= K - own[:, None])[:, None]}
        h = {"answer": jnp.zeros((len(z), 1, 5, toy.WIDTH))}
        columns = Columns(h["answer"][:, :, 0], {"latent": jnp.asarray(right)}, h, {"latent": right / 2}, real, {})
        monkeypatch.setattr(base, "read", lambda *args: columns)

    return hold


def only_visual(vital, scaffold, batch, max_steps=K, key=None):
    """The visual loss and its metric with held latents; neither decoder nor text parameters are handed in."""
    params = {"base": BASE, "scaffold": {"visual_projector": scaffold["visual_projector"]}}
    phase = toy.phase(max_steps, text=0.0)
    got, metrics, _ = losses(vital, params, batch, normalizers(batch, vital), phase, toy.suffix(vital, max_steps), key)
    return got["visual"], metrics["roi_cosine"]


# A backbone's parameters as far as the loss itself reads them.
BASE = {"language_model": {"lm_head": jnp.ones((toy.VOCAB, toy.WIDTH))}}
