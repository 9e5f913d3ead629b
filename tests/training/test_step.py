"""The step: exact accumulation over ragged micro-batches, no gradient of the frozen part, and a state that stays finite."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vital_jax.training.optimizer import PhaseState, make_optimizer
from vital_jax.training.sharding import make_mesh, place_batch, shard
from vital_jax.training.step import init_state, make_train_step, start_phase

ROWS, TOKENS, WIDTH = 8, 5, 3


def trainable():
    key = jax.random.split(jax.random.key(0), 2)
    return {"lora": {"a": jax.random.normal(key[0], (4, WIDTH)), "b": jax.random.normal(key[1], (WIDTH,))}}


def frozen():
    return {"base": {"kernel": jax.random.normal(jax.random.key(3), (7, 4)), "table": jnp.arange(7, dtype=jnp.int32)}}


def batch(micro_batches):
    """Ragged: row i supervises i % TOKENS tokens, and one row none."""
    draw = np.random.default_rng(1)
    rows = {
        "x": draw.normal(size=(ROWS, TOKENS, 7)).astype(np.float32),
        "y": draw.normal(size=(ROWS, TOKENS, WIDTH)).astype(np.float32),
        "mask": np.arange(TOKENS)[None] < (np.arange(ROWS) % TOKENS)[:, None],
        "weight": np.zeros(ROWS, np.float32),
    }
    return {name: value.reshape(micro_batches, ROWS // micro_batches, *value.shape[1:]) for name, value in rows.items()}


def normalizers(batch):
    return {"tokens": jnp.sum(batch["mask"]).astype(jnp.float32), "weight": jnp.sum(batch["weight"])}


def loss(trainable, frozen, batch, rng, norms):
    hidden = batch["x"] @ (frozen["base"]["kernel"] * (1 + frozen["base"]["table"][:, None]))
    error = jnp.sum((hidden @ trainable["lora"]["a"] + trainable["lora"]["b"] - batch["y"]) ** 2, -1)
    task = jnp.sum(error * batch["mask"]) / norms["tokens"]
    unused = jnp.sum(batch["weight"]) / norms["weight"]
    draw = jax.random.uniform(rng)
    return task + unused, {"task": task, "draw": draw, "draw_max": draw}


def one_step(micro_batches, optimizer=None, **changes):
    optimizer = optimizer or optax.sgd(0.1)
    step = make_train_step(loss, normalizers, optimizer)
    return step(init_state(trainable(), optimizer), frozen(), {**batch(micro_batches), **changes})


def test_accumulation_is_exact_on_ragged_rows():
    whole, metrics = one_step(1)
    for micro_batches in (2, 4, 8):
        parts, others = one_step(micro_batches)
        # the same sums in another order, in float32
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), whole["trainable"], parts["trainable"])
        for name in ("loss", "task", "grad_norm"):
            np.testing.assert_allclose(metrics[name], others[name], rtol=2e-6)


def test_of_a_maximum_the_largest_counts():
    draws = [
        float(jax.random.uniform(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), i))) for i in range(4)
    ]
    _, metrics = one_step(4)
    np.testing.assert_allclose([metrics["draw"], metrics["draw_max"]], [sum(draws), max(draws)], rtol=1e-6)


def test_the_gradient_is_that_of_the_token_mean():
    """By hand, in float64: the mean over all supervised tokens of the step."""
    rows = {name: value[0].astype(np.float64) for name, value in batch(1).items()}
    a, b = (np.asarray(trainable()["lora"][name], np.float64) for name in "ab")
    hidden = rows["x"] @ (np.asarray(frozen()["base"]["kernel"], np.float64) * np.arange(1, 8)[:, None])
    residual = (hidden @ a + b - rows["y"]) * rows["mask"][..., None]
    count = rows["mask"].sum()
    new, metrics = one_step(4)
    np.testing.assert_allclose(metrics["loss"], (residual**2).sum() / count, rtol=1e-6)
    np.testing.assert_allclose(new["trainable"]["lora"]["b"], b - 0.1 * 2 * residual.sum((0, 1)) / count, rtol=1e-5)
    gradient = 2 * np.einsum("btd,btw->dw", hidden, residual) / count
    np.testing.assert_allclose(new["trainable"]["lora"]["a"], a - 0.1 * gradient, rtol=1e-5)


def test_the_frozen_part_gets_no_gradient():
    """Its leaves may even be integers; no array of the kernel's shape is ever added up or differentiated."""
    optimizer = make_optimizer(1e-3, 10)
    state = init_state(trainable(), optimizer)
    program = jax.make_jaxpr(make_train_step(loss, normalizers, optimizer))(state, frozen(), batch(2))

    def outputs(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name, [v.aval.shape for v in equation.outvars]
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from outputs(inner)

    made = [name for name, shapes in outputs(program.jaxpr) if {(7, 4), (4, 7)} & set(shapes)]
    assert made == ["mul"], "only the forward pass makes an array of the frozen kernel's shape"
    assert not any(leaf.shape == (7, 4) for leaf in jax.tree.leaves(state))


def test_a_zero_normalizer_is_no_division_by_zero():
    _, metrics = one_step(2)
    assert np.isfinite(metrics["loss"]) and metrics["finite"] == 1.0


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_step_that_is_not_finite_is_reported_and_changes_nothing(poison):
    optimizer = make_optimizer(0.1, 10, warmup=0.0)
    y = batch(2)["y"]
    y[1, -1] = poison
    new, metrics = one_step(2, optimizer, y=y)
    assert metrics["finite"] == 0.0 and not np.isfinite(metrics["loss"])
    before = init_state(trainable(), optimizer)
    jax.tree.map(np.testing.assert_array_equal, new["trainable"], before["trainable"])
    jax.tree.map(np.testing.assert_array_equal, new["opt_state"], before["opt_state"])
    assert int(new["step"]) == 1


def test_randomness_is_a_function_of_seed_step_and_micro_batch():
    optimizer = optax.sgd(0.0)
    draws = {}
    for seed in (0, 1):
        step = make_train_step(loss, normalizers, optimizer, seed)
        for at in (0, 1):
            _, metrics = step(init_state(trainable(), optimizer, at), frozen(), batch(2))
            draws[seed, at] = float(metrics["draw"])
    assert len(set(draws.values())) == 4
    expected = sum(
        float(jax.random.uniform(jax.random.fold_in(jax.random.fold_in(jax.random.key(1), 1), i))) for i in range(2)
    )
    assert draws[1, 1] == pytest.approx(expected, rel=1e-6)


def test_ten_steps_with_donation_lower_the_loss_and_count():
    optimizer = make_optimizer(0.05, 10, warmup=0.1)
    step = make_train_step(loss, normalizers, optimizer)
    state = init_state(trainable(), optimizer)
    losses = []
    for _ in range(10):
        old, (state, metrics) = state, step(state, frozen(), batch(2))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[1] and int(state["step"]) == 10
    assert old["trainable"]["lora"]["a"].is_deleted(), "the state passed in is donated"


def test_masters_are_float32_and_something_must_train():
    with pytest.raises(ValueError, match=r"lora/a \(bfloat16\)"):
        init_state({"lora": {"a": jnp.zeros(2, jnp.bfloat16)}}, optax.sgd(0.1))
    with pytest.raises(ValueError, match="nothing is trainable"):
        init_state({}, optax.sgd(0.1))


def test_phases_reset_or_keep_the_optimizer():
    optimizer = make_optimizer(0.05, 3, warmup=0.0)
    state, _ = one_step(1, optimizer)
    count = lambda s, kind: next(int(p.count) for p in s["opt_state"] if isinstance(p, kind))  # noqa: E731
    kept, reset = start_phase(state, optimizer, False), start_phase(state, optimizer, True)
    assert count(kept, optax.ScaleByAdamState) == 1 and count(kept, PhaseState) == 0
    assert count(reset, optax.ScaleByAdamState) == 0 and int(reset["step"]) == 1


def test_counts_are_on_the_mesh_like_the_parameters():
    mesh = make_mesh()
    optimizer = make_optimizer(0.05, 10)
    state = init_state(shard(trainable(), mesh, ((".*", P()),)), optimizer)
    for fresh in (state, start_phase(state, optimizer, True), start_phase(state, optimizer, False)):
        assert {leaf.sharding for leaf in jax.tree.leaves(fresh)} == {NamedSharding(mesh, P())}


def test_eight_devices_give_the_result_of_one_and_keep_the_shardings():
    """Here the compiler left to itself would hand `a` back split over `tensor`, as the frozen kernel is."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    optimizer = make_optimizer(0.05, 10, warmup=0.0)
    alone, expected = one_step(2, optimizer)
    with jax.set_mesh(mesh):
        placed = shard(trainable(), mesh, (("lora/a", P()), ("lora/b", P())))
        base = shard(frozen(), mesh, ((".*/kernel", P(None, "tensor")), (".*/table", P())))
        state = init_state(placed, optimizer)
        shardings = jax.tree.map(lambda x: x.sharding, state)
        step = make_train_step(loss, normalizers, optimizer, shardings=shardings)
        new, metrics = step(state, base, place_batch(batch(2), mesh, micro_batches=True))
    assert jax.tree.map(lambda x: x.sharding, new) == shardings
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=2e-6)
    # partial sums of eight devices in another order, in float32, through Adam's division
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), new["trainable"], alone["trainable"])


def test_options_reach_the_compiler_of_this_program():
    step = make_train_step(loss, normalizers, optax.sgd(0.1), compiler={"xla_of_nobody": "1"})
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option: 'xla_of_nobody'"):
        step(init_state(trainable(), optax.sgd(0.1)), frozen(), batch(1))


def test_phases_that_differ_in_their_length_alone_are_one_program():
    params = trainable()
    texts = {
        make_train_step(loss, normalizers, optimizer).lower(init_state(params, optimizer), frozen(), batch(1)).as_text()
        for optimizer in (make_optimizer(0.05, steps) for steps in (3, 70))
    }
    assert len(texts) == 1
