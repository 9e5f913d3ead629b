"""VITAL's numbers stay what they were: losses, gradients, twenty steps and diagnostics of the toy, frozen before methods had a contract.

`vital_reference.npz` was made by this package at commit 5b0b317, where the method had a loop of its own, on the toy with projector dropout
.1: `plain` without and `dropout` with the key 7; `steps`, twenty optimizer steps on batches of seeds 0 to 19.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
import toy

from vital_jax.methods import base
from vital_jax.training.optimizer import make_optimizer
from vital_jax.training.partition import flatten
from vital_jax.training.step import init_state, make_train_step

K = 4


@pytest.fixture(scope="module")
def frozen():
    with np.load(Path(__file__).parent / "vital_reference.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def setup():
    """(loss, normalisers, trainable, frozen parameters) of a phase with K = 4."""
    vital = toy.method(projector_dropout=0.1)
    params, phase, suffix = toy.params(vital), toy.phase(K), toy.suffix(vital, K)
    loss = base.make_loss(vital, phase, suffix)
    norms = lambda batch: vital.normalizers(batch, phase, suffix)  # noqa: E731
    return loss, norms, {name: params[name] for name in ("lora", "scaffold")}, {"base": params["base"]}, (vital, phase)


def relative(got, expected):
    return float(np.max(np.abs(np.asarray(got) - expected)) / max(np.max(np.abs(expected)), 1e-12))


@pytest.mark.parametrize(("kind", "key"), [("plain", None), ("dropout", 7)])
def test_the_first_steps_losses_and_gradients(frozen, setup, kind, key):
    loss, norms, trainable, base_, _ = setup
    batch, key = toy.batch(), None if key is None else jax.random.key(key)
    step = jax.jit(jax.value_and_grad(lambda t, b: loss(t, base_, b, key, norms(b)), has_aux=True))
    (value, metrics), grads = step(trainable, batch)
    assert relative(value, frozen[f"{kind}/loss"]) < 1e-6
    compared = 0
    for name, expected in frozen.items():
        if name.startswith(f"{kind}/metric/"):
            np.testing.assert_allclose(metrics[name.removeprefix(f"{kind}/metric/")], expected, rtol=1e-6, atol=1e-6)
            compared += 1
    assert compared == len(metrics) == 6
    for path, leaf in flatten(grads).items():
        if kind == "dropout":
            assert relative(leaf, frozen[f"dropout/grad/{path}"]) < 1e-5, path


def test_twenty_steps(frozen, setup):
    loss, norms, trainable, base_, _ = setup
    settings = dict(
        learning_rate=1e-3, schedule="cosine", warmup=0.05, weight_decay=0.01, clip=1.0, rates=((".*", 1.0),)
    )
    optimizer = make_optimizer(steps=20, **settings)
    state = init_state(jax.tree.map(jax.numpy.array, trainable), optimizer)
    step = make_train_step(loss, norms, optimizer, seed=3)
    for number in range(20):
        batch = {name: np.asarray(value)[None] for name, value in toy.batch(seed=number).items()}
        state, report = step(state, base_, batch)
        for name in ("loss", "task", "text", "visual", "grad_norm"):
            close = 1e-6 if number == 0 and name != "grad_norm" else 1e-5 if number == 0 else 1e-4
            assert relative(report[name], frozen[f"steps/{name}"][number]) < close, (number, name)


@pytest.mark.slow
def test_the_diagnostics(frozen, setup):
    *_, (vital, phase) = setup
    params, suffix = toy.params(vital), toy.suffix(vital, K)
    found = jax.jit(lambda p, b: base.diagnose(vital, p, b, phase, suffix))(params, toy.batch())
    expected = {name.removeprefix("diagnose/"): value for name, value in frozen.items() if name.startswith("diagnose/")}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)
