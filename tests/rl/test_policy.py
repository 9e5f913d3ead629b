"""An update on rollouts: the same gradient however a step is dealt out, and ratios of one where nothing has changed yet."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
import toy
import toyfeed
from jax.sharding import NamedSharding, PartitionSpec

from vital_jax.latent.choose import Decoding
from vital_jax.latent.loop import variables_of
from vital_jax.methods.base import Budgets
from vital_jax.methods.text_cot import TextCot
from vital_jax.rl.objective import Objective
from vital_jax.rl.policy import make_loss
from vital_jax.rl.replay import drawn, replay
from vital_jax.rl.rollout import Sampler
from vital_jax.training.sharding import make_mesh, place_batch
from vital_jax.training.step import init_state, make_train_step

G, B = 3, 8
GRPO = Objective(
    ratio="token", surrogate="clip", clip_low=0.2, clip_high=0.28, dual_clip=3.0, log_ratio_clamp=20.0,
    aggregation="token_mean", length=0, kl="k3", kl_coefficient=0.04, kl_clamp=0.0, entropy_coefficient=0.01, top_entropy=1.0,
    old="replay", sampler_weight="token", sampler_cap=2.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def case():
    """(method, trainable, frozen, sampler, batch [B, ...]): ragged chains and answers, two groups dropped, one row masked."""
    params, method = toy.params(toy.method()), TextCot(toy.backbone(), lead_in="7")
    engine = method.engine(toyfeed.Encoder(), ((14, 16),), Budgets(4, written=4))
    sampler = Sampler(engine, Decoding(4, (toyfeed.END, 3, 4, 5, 6), 1.0), G)
    prompts = {name: x for name, x in toy.batch(B).items() if name not in ("chain", "chain_mask", "roi")}
    found = sampler.draw(variables_of(params), prompts, np.arange(B))
    batch = prompts | {"rollout_mode": np.asarray(found.modes), "rollout_tokens": np.asarray(found.tokens)}
    r = np.random.default_rng(0)
    mask = np.array(drawn(batch))
    mask[[2, 5]] = mask[0, 1] = False
    batch |= {"rollout_mask": mask, "rollout_advantage": r.normal(size=(B, G)).astype(np.float32)}
    batch["rollout_sampler"] = np.asarray(found.log_probs)
    old = jax.jit(lambda p, b: replay(method, p, b, 1.0, sampler.banned))(params, batch).log_probs
    batch |= {"rollout_old": np.asarray(old), "rollout_ref": np.asarray(old) + 0.1 * mask}
    return method, {"lora": jax.tree.map(np.asarray, params["lora"])}, {"base": params["base"]}, sampler, batch


def step(case, micro_batches, devices=1, objective=GRPO):
    """(gradient, metrics) of one step."""
    method, trainable, frozen, sampler, batch = case
    mesh = make_mesh(data=devices, devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        everywhere = NamedSharding(mesh, PartitionSpec())
        own, frozen = jax.device_put((trainable, frozen), everywhere)
        placed = {n: x.reshape(micro_batches, B // micro_batches, *x.shape[1:]) for n, x in batch.items()}
        optimizer = optax.sgd(1.0)
        run = make_train_step(*make_loss(method, objective, 1.0, sampler.banned), optimizer)
        state, metrics = run(init_state(own, optimizer), frozen, place_batch(placed, mesh, micro_batches=True))
    return jax.tree.map(lambda new, old: np.asarray(old) - np.asarray(new), state["trainable"], trainable), metrics


@pytest.fixture(scope="module")
def whole(case):
    return step(case, 1)


@pytest.mark.parametrize(("micro_batches", "devices"), [(4, 1), (2, 4)])
def test_micro_batches_and_devices_give_the_same_gradient(case, whole, micro_batches, devices):
    parts, metrics = step(case, micro_batches, devices)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(whole[0]))
    assert largest > 1e-4
    for a, b in zip(jax.tree.leaves(whole[0]), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * largest, rtol=0)
    for name, value in whole[1].items():
        np.testing.assert_allclose(value, metrics[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_at_equal_weights_every_ratio_is_one(whole):
    """Of the update to the policy before it, and of the replay to the sampler; masked tokens do not count."""
    _, metrics = whole
    for name in ("ratio", "ratio_max", "sampler_ratio", "sampler_ratio_max"):
        np.testing.assert_allclose(metrics[name], 1, atol=1e-5, err_msg=name)
    assert metrics["sampler_gap"] < 1e-5 and metrics["approximate_kl"] < 1e-5
    np.testing.assert_allclose(metrics["kl"], np.exp(0.1) - 1 - 0.1, rtol=1e-3)


def test_dropped_groups_and_forced_tokens_move_nothing(case, whole):
    method, trainable, frozen, sampler, batch = case
    r = np.random.default_rng(1)
    other = {**batch, "rollout_advantage": batch["rollout_advantage"].copy()}
    other["rollout_advantage"][[2, 5]] = np.nan
    for name in ("old", "sampler", "ref"):
        noise = np.where(batch["rollout_mask"], 0, r.normal(size=batch["rollout_mask"].shape))
        other[f"rollout_{name}"] = (batch[f"rollout_{name}"] + noise).astype(np.float32)
    again, _ = step((method, trainable, frozen, sampler, other), 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), whole[0], again)


def test_an_objective_without_a_reference_reads_none(case):
    method, trainable, frozen, sampler, batch = case
    plain = dataclasses.replace(GRPO, kl="none", kl_coefficient=0.0, sampler_weight="none", entropy_coefficient=0.0)
    less = {name: x for name, x in batch.items() if name not in ("rollout_ref", "rollout_sampler")}
    gradient, metrics = step((method, trainable, frozen, sampler, less), 2, objective=plain)
    assert any(np.any(g) for g in jax.tree.leaves(gradient)) and "kl" not in metrics and metrics["entropy"] > 0
