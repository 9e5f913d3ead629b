"""The loop against itself written the long way: uncached, literal, one row at a time, one group at a time."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from vital_jax.latent import interpret
from vital_jax.latent.loop import embed, grow, prefill
from vital_jax.models.attention import Causal
from vital_jax.models.backbone import Prefix
from vital_jax.models.lora import merge_lora
from vital_jax.pipeline.segments import LATENT, PADDING, Segment, Suffix

# Float32 on a CPU with sums taken in another order: a few units in the seventh digit of numbers of order one to ten.
CLOSE = dict(rtol=1e-5, atol=1e-5)


def variables(params):
    return {"params": params["base"], "lora": params["lora"]}


@pytest.fixture(scope="module")
def setup():
    vital = toy.method()
    return vital, toy.params(vital), whole(toy.batch())


def whole(batch):
    """Answers without padding, so that every column can be compared."""
    return {**batch, "answer_mask": np.ones_like(batch["answer_mask"])}


class Thoughts(NamedTuple):
    """VITAL's columns: a row's own latents first, and the states that predict its answer."""

    u: jax.Array
    z: jax.Array
    z0: jax.Array
    h: jax.Array


def forced(vital, v, prompt, z0, batch, K=4, fused=True):
    """The columns of VITAL after prompts; z0 [B, G, D], and the batch's arrays with or without a group axis."""
    columns = interpret.run(vital.model, v, prompt, z0, toy.suffix(vital, K), batch, fused=fused)
    u, z, _ = columns.steps("latent")
    return Thoughts(u, z, columns.z0, columns.reads["answer"])


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def run(vital, params, batch, max_steps=4, fused=True):
    """Prefill and teacher-force a batch, G = 1."""
    v = variables(params)
    z0, prompt = prefill(vital.model, v, embed(vital.model, v, batch), batch["next_position"])
    return forced(vital, v, prompt, z0[:, None], batch, max_steps, fused)


@functools.partial(jax.jit, static_argnums=0)
def read_prompt(vital, params, batch):
    """z_0 and the prompt of a batch."""
    v = variables(params)
    return prefill(vital.model, v, embed(vital.model, v, batch), batch["next_position"])


def full_passes(vital, params, row):
    """One row without any cache: K + 1 full passes over embeddings that grow by one, then the answer. Returns z_1..z_K and h."""
    return _full_passes(vital, params, row, int(row["lengths"][0]), int(row["latent_steps"][0]))


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _full_passes(vital, params, row, n, K):
    model, v = vital.model, variables(params)
    prefix = embed(model, v, row)
    x, positions = prefix.x[:, :n], prefix.positions[:, :, :n]
    deepstack = prefix.deepstack[:, :, :n]
    words = model.apply(v, row["answer"][:, :-1], method="embed_tokens")
    z = []

    def states(x):
        extra = x.shape[1] - n
        later = jnp.broadcast_to(row["next_position"][0] + jnp.arange(extra), (3, 1, extra))
        deep = jnp.pad(deepstack, [(0, 0), (0, 0), (0, extra), (0, 0)])
        full = jnp.concatenate([positions, later], axis=-1)
        mask = Causal(jnp.asarray([x.shape[1]]))
        return model.apply(v, x[:, None], full[:, :, None], mask, method="decode", deepstack=deep)[0][:, 0]

    for _ in range(K):
        x = jnp.concatenate([x, states(x)[:, -1:]], axis=1)
        z.append(x[:, -1])
    h = states(jnp.concatenate([x, words], axis=1))[:, n:]
    return h[:, :K], h[:, max(K - 1, 0) :]


@pytest.mark.slow
def test_cached_rows_equal_uncached_full_passes(setup):
    vital, params, batch = setup
    got = run(vital, params, batch, 4, False)
    for i, K in enumerate(batch["latent_steps"]):
        z, h = full_passes(vital, params, toy.row(batch, i))
        np.testing.assert_allclose(got.z[i, 0, :K], z[0], **CLOSE)
        np.testing.assert_allclose(got.h[i, 0], h[0], **CLOSE)


def test_fused_last_step_equals_literal_steps(setup):
    vital, params, batch = setup
    literal, fused = (run(vital, params, batch, 4, f) for f in (False, True))
    for name in ("u", "z", "z0", "h"):
        np.testing.assert_allclose(getattr(fused, name), getattr(literal, name), err_msg=name, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("max_steps", [1, 2])
def test_fused_equals_literal_in_the_earlier_phases(setup, max_steps):
    vital, params, _ = setup
    batch = whole(toy.batch(K=max_steps))
    literal, fused = (run(vital, params, batch, max_steps, f) for f in (False, True))
    np.testing.assert_allclose(fused.z, literal.z, **CLOSE)
    np.testing.assert_allclose(fused.h, literal.h, **CLOSE)


def test_rows_of_unequal_steps_equal_each_row_alone(setup):
    vital, params, batch = setup
    got = run(vital, params, batch)
    assert sorted(batch["latent_steps"]) == [1, 2, 3, 4]
    for i, K in enumerate(batch["latent_steps"]):
        alone = run(vital, params, toy.row(batch, i), int(K))
        np.testing.assert_allclose(got.z[i, 0, :K], alone.z[0, 0], **CLOSE)
        np.testing.assert_allclose(got.h[i], alone.h[0], **CLOSE)
        assert not np.any(got.z[i, 0, K:]) and not np.any(got.u[i, 0, K:])


def test_inputs_are_the_previous_outputs(setup):
    vital, params, batch = setup
    got = run(vital, params, batch, 4, False)
    row = int(np.argmax(batch["latent_steps"]))
    np.testing.assert_array_equal(got.u[row, 0, 0], got.z0[row, 0])
    np.testing.assert_array_equal(got.u[row, 0, 1:], got.z[row, 0, :-1])


def scalar(thought):
    """A loss that touches every output."""
    weight = jnp.cos(jnp.arange(thought.h.size)).reshape(thought.h.shape)
    return jnp.sum(jnp.sin(thought.z)) + jnp.sum(weight * thought.h)


@functools.partial(jax.jit, static_argnums=(0, 3))
def gradient(vital, params, batch, fused=True):
    """Of `scalar` in the adapters."""
    return jax.grad(lambda lora: scalar(run(vital, {**params, "lora": lora}, batch, 4, fused)))(params["lora"])


@pytest.mark.slow
def test_fused_gradients_equal_literal_gradients(setup):
    literal, fused = (gradient(*setup, f) for f in (False, True))
    for a, b in zip(jax.tree.leaves(fused), jax.tree.leaves(literal), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.max(jnp.abs(b))))


@pytest.mark.slow
def test_loop_gradients_equal_gradients_through_full_passes(setup):
    vital, params, batch = setup
    row = toy.row(batch, 3)
    assert row["latent_steps"][0] == 4

    def long(lora):
        z, h = full_passes(vital, {**params, "lora": lora}, row)
        weight = jnp.cos(jnp.arange(h.size)).reshape(h.shape)
        return jnp.sum(jnp.sin(z)) + jnp.sum(weight * h)

    slow, quick = jax.jit(jax.grad(long))(params["lora"]), gradient(vital, params, row)
    for a, b in zip(jax.tree.leaves(quick), jax.tree.leaves(slow), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.max(jnp.abs(b))))
    assert all(float(jnp.max(jnp.abs(g))) > 0 for g in jax.tree.leaves(slow))


def test_remat_changes_nothing(setup):
    """What is computed again is rounded in another order: by 1.2e-6 of a gradient's largest entry in the worst one (measured)."""
    vital, params, batch = setup
    full = toy.method(model=toy.backbone(remat="full"))
    grads = [gradient(method, params, batch, True) for method in (vital, full)]
    for a, b in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-6 * float(jnp.max(jnp.abs(b))))


def test_merged_adapters_equal_unmerged(setup):
    vital, params, batch = setup
    merged = {**params, "base": merge_lora(params["base"], params["lora"], toy.LORA)}
    without = run(vital, {**merged, "lora": jax.tree.map(jnp.zeros_like, params["lora"])}, batch)
    np.testing.assert_allclose(run(vital, params, batch).h, without.h, **CLOSE)
    plain = run(vital, {**params, "lora": jax.tree.map(jnp.zeros_like, params["lora"])}, batch)
    assert np.max(np.abs(plain.h - without.h)) > 0.1


@pytest.mark.slow
def test_a_call_with_three_groups_equals_three_calls(setup):
    vital, params, batch = setup
    v = variables(params)
    z0, prompt = read_prompt(vital, params, batch)
    r = np.random.default_rng(5)
    starts = z0[:, None] + jnp.asarray(r.normal(size=(4, 3, toy.WIDTH)), jnp.float32)
    answers, steps = r.integers(0, 50, (4, 3, 5)), r.integers(1, 5, (4, 3))
    arrays = {"answer": answers, "answer_mask": np.ones_like(answers, bool), "latent_steps": steps}
    run_groups = jax.jit(forced, static_argnums=0)
    together = run_groups(vital, v, prompt, starts, arrays)
    for g in range(3):
        cut = slice(g, g + 1)
        alone = run_groups(vital, v, prompt, starts[:, cut], {name: x[:, cut] for name, x in arrays.items()})
        np.testing.assert_allclose(together.h[:, cut], alone.h, **CLOSE)
        np.testing.assert_allclose(together.z[:, cut], alone.z, **CLOSE)


def test_recorded_latents_replay_in_one_parallel_pass(setup):
    """Latents put back as recorded columns come out as they did in the loop: the replay that policy optimisation needs."""
    vital, params, batch = setup
    v = variables(params)
    looped = run(vital, params, batch)
    z0, prompt = read_prompt(vital, params, batch)
    mode = np.where(np.arange(4) < batch["latent_steps"][:, None], LATENT, PADDING)
    recorded = {"span_mode": mode, "span_tokens": np.zeros((4, 4), np.int32), "span_inputs": looped.u[:, 0]}
    suffix = Suffix((Segment("recorded", "span", 4), Segment("tokens", "answer", 5, source="answer")))
    columns = interpret.run(vital.model, v, prompt, z0[:, None], suffix, {**batch, **recorded})
    own = (mode == LATENT)[:, None, :, None]
    np.testing.assert_allclose(np.where(own, columns.states["span"], 0), looped.z, **CLOSE)
    np.testing.assert_allclose(columns.reads["answer"][:, 0], looped.h[:, 0], **CLOSE)


def test_a_row_without_latents_beside_rows_with_them_is_read_from_its_prompt(setup):
    vital, params, _ = setup
    batch = whole(toy.batch(steps=[0, 3, 0, 4]))
    for fused in (True, False):
        got = run(vital, params, batch, 4, fused)
        for i in (0, 2):
            alone = run(vital, params, {name: x[i : i + 1] for name, x in batch.items()}, 0)
            np.testing.assert_allclose(got.h[i], alone.h[0], **CLOSE)
            np.testing.assert_allclose(got.h[i, 0, 0], got.z0[i, 0], **CLOSE)
            assert not np.any(got.z[i])


def test_states_of_every_layer_at_named_columns(setup):
    """Taps are transformers' hidden states: what enters every layer, and last the head's input; of all columns or the last real one."""
    vital, params, batch = setup
    v = variables(params)
    z0, prompt = read_prompt(vital, params, batch)
    suffix = toy.suffix(vital)
    given = interpret.Given(taps=(("latent", "all"), ("answer", "last")))
    columns = interpret.run(vital.model, v, prompt, z0[:, None], suffix, batch, given)
    layers = toy.DECODER.layers + 1
    assert columns.taps["latent"].shape == (layers, 4, 1, 4, toy.WIDTH)
    assert columns.taps["answer"].shape == (layers, 4, 1, 1, toy.WIDTH)
    real = np.asarray(columns.real["latent"])[..., None]
    np.testing.assert_allclose(np.where(real, columns.taps["latent"][-1], 0), columns.states["latent"], **CLOSE)
    np.testing.assert_allclose(np.where(real, columns.taps["latent"][0], 0), columns.inputs["latent"], **CLOSE)
    last = batch["answer_mask"].sum(-1) - 1
    for i, t in enumerate(last):
        np.testing.assert_allclose(columns.taps["answer"][-1, i, 0, 0], columns.states["answer"][i, 0, t], **CLOSE)
        word = vital.model.apply(v, batch["answer"][i, t], method="embed_tokens")
        np.testing.assert_allclose(columns.taps["answer"][0, i, 0, 0], word, **CLOSE)


def test_padding_is_never_seen(setup):
    """Values on padded columns, NaN included, reach neither the loss nor its gradient."""
    vital, params, batch = setup
    v = variables(params)
    prefix = embed(vital.model, v, batch)
    pad = (jnp.arange(prefix.x.shape[1]) >= prefix.lengths[:, None])[..., None]
    assert np.any(pad)

    def loss(x, deepstack):
        z0, prompt = prefill(vital.model, v, Prefix(x, deepstack, *prefix[2:]), batch["next_position"])
        return scalar(forced(vital, v, prompt, z0[:, None], batch))

    step = jax.jit(jax.value_and_grad(loss))
    clean, grad = step(prefix.x, prefix.deepstack)
    for rubbish in (37.0, jnp.nan):
        dirty, dirty_grad = step(*(jnp.where(pad, rubbish, part) for part in (prefix.x, prefix.deepstack)))
        assert dirty == clean
        np.testing.assert_array_equal(dirty_grad, grad)
    assert not np.any(np.where(pad, grad, 0)) and np.all(np.isfinite(grad))


@pytest.mark.slow
def test_k_zero_reads_the_answer_from_the_prompt(setup):
    vital, params, batch = setup
    got = run(vital, params, batch, 0)
    np.testing.assert_allclose(got.h[:, 0, 0], got.z0[:, 0], **CLOSE)
    prefix_row = toy.row(batch, 1)
    z, h = full_passes(vital, params, {**prefix_row, "latent_steps": np.array([0])})
    assert z.shape[1] == 0
    np.testing.assert_allclose(got.h[1, 0, 1:], h[0], **CLOSE)


def test_pre_norm_state_feeds_back_the_other_state(setup):
    vital, params, batch = setup
    pre = toy.method(model=toy.backbone(latent_state="pre_norm"))
    literal, fused = (run(pre, params, batch, 4, f) for f in (False, True))
    np.testing.assert_allclose(fused.h, literal.h, rtol=1e-5, atol=1e-4)
    post = run(vital, params, batch)
    v = variables(params)
    # z_0 is the same state on two sides of the norm; z_1 is not, since another vector was fed back.
    normed = lambda x: pre.model.apply(v, x, method="head_input")  # noqa: E731
    np.testing.assert_allclose(normed(literal.z0), post.z0, **CLOSE)
    assert np.max(np.abs(normed(literal.z[:, :, 0]) - post.z[:, :, 0])) > 0.1


def test_grow_keeps_what_is_there(setup):
    cache = tuple(jnp.ones((2, 1, 1, 3, 2, 4)) for _ in range(2))
    grown = grow(cache, 2)
    assert grown[0].shape == (2, 1, 1, 5, 2, 4)
    np.testing.assert_array_equal(grown[0][:, :, :, :3], cache[0])
    assert not np.any(grown[0][:, :, :, 3:])
