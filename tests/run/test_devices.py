"""One device and eight compute the same training loss and gradients, whichever way the base is laid out."""

import jax
import numpy as np
import pytest
import toy

from vital_jax.methods import base as methods
from vital_jax.run.setup import sharding_rows
from vital_jax.training.partition import merge, split
from vital_jax.training.sharding import make_mesh, place_batch, shard

pytestmark = pytest.mark.slow
TABLE = (("base/.*", "frozen"), ("lora/.*", "trainable"), ("scaffold/.*", "trainable"))


@pytest.fixture(scope="module")
def alone():
    method = toy.method()
    params = toy.params(method)
    phase, suffix = toy.phase(), toy.suffix(method)
    loss = methods.make_loss(method, phase, suffix)

    @jax.jit
    def step(trainable, frozen, batch):
        def whole(trainable):
            return loss(trainable, frozen, batch, None, method.normalizers(batch, phase, suffix))[0]

        return jax.value_and_grad(whole)(trainable)

    batch = toy.batch(rows=8)
    trainable, frozen = split(params, TABLE)
    return step, params, batch, step(trainable, frozen, batch)


@pytest.mark.parametrize("base, mesh", [("fsdp", (2, 2, 2)), ("replicated", (4, 2, 1))])
def test_eight_devices_equal_one(alone, base, mesh):
    step, params, batch, (loss, grads) = alone
    mesh = make_mesh(*mesh)
    with jax.set_mesh(mesh):
        placed = shard(params, mesh, sharding_rows(base), allow_unused=True)
        assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(placed["base"])) == (base == "fsdp")
        assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(placed["scaffold"]["text_decoder"]))
        trainable, frozen = split(placed, TABLE)
        assert jax.tree.structure(merge(trainable, frozen)) == jax.tree.structure(placed)
        eight_loss, eight_grads = step(trainable, frozen, place_batch(batch, mesh))
    np.testing.assert_allclose(eight_loss, loss, rtol=1e-5)
    for got, want in zip(*map(jax.tree.leaves, (eight_grads, grads)), strict=True):
        # Eight devices multiply other shapes and add in another order; four recurrent steps and their backward pass amplify
        # float32's last digit to about 5e-5 of a leaf's largest entry (seen), where a wrong layout is wrong in the first digit.
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * float(np.max(np.abs(want))))
