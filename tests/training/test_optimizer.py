"""AdamW against torch's, schedules against transformers', and which leaves decay or learn at another rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vital_jax.training.optimizer import NO_DECAY, PhaseState, make_optimizer, restart_schedule, scale_by_phase
from vital_jax.training.partition import flatten

PARAMS = {
    "lora": {"q_proj": {"a": np.linspace(-1, 1, 6).reshape(2, 3), "b": np.linspace(2, -2, 4).reshape(2, 2)}},
    "scaffold": {"projector": {"kernel": np.linspace(0.5, 3, 6).reshape(3, 2), "bias": np.array([0.3, -0.7])}},
}


def parameters():
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)


def gradients(step):
    """Deterministic, and large enough at odd steps for the global norm to exceed the clip."""
    return jax.tree.map(lambda x: jnp.sin(x * (step + 1)) * (3.0 if step % 2 else 0.05), parameters())


def rates_of(*settings, **named):
    """step -> the rate at which the optimizer's last link descends there."""
    link = scale_by_phase(*settings, **named)
    return lambda step: -link.update(jnp.float32(1), link.init(None)._replace(count=jnp.int32(step)))[0]


@pytest.mark.parametrize(
    "name, kind", [("cosine", "cosine"), ("linear", "linear"), ("constant", "constant_with_warmup")]
)
@pytest.mark.parametrize("steps", [7, 20, 101])
def test_schedules_are_those_of_the_hugging_face_trainer(name, kind, steps):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ours = rates_of(2e-5, steps, name, 0.05)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-5)
    warmup = transformers.TrainingArguments(output_dir="unused", warmup_steps=0.05).get_warmup_steps(steps)
    theirs = transformers.get_scheduler(kind, optimizer, warmup, steps)
    for step in range(steps):
        # float32 on our side: half a unit in the last place of the peak
        np.testing.assert_allclose(ours(step), theirs.get_last_lr()[0], rtol=0, atol=2e-5 * 6e-8 * 4)
        optimizer.step()
        theirs.step()


def test_a_phase_of_one_step_still_learns():
    assert float(rates_of(1.0, 1)(0)) == 1.0


@pytest.mark.parametrize(
    "arguments, message",
    [(dict(schedule="cosin"), "constant, cosine, linear"), (dict(warmup=5), "share"), (dict(steps=0), "at least one")],
)
def test_schedules_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        rates_of(**{"learning_rate": 1.0, "steps": 10, **arguments})


def test_ten_steps_equal_torch_adamw_with_parameter_groups():
    """Decay on kernels only, half the rate on the scaffold, clipping by the global norm: torch's AdamW is the oracle."""
    torch = pytest.importorskip("torch")
    steps = 10
    rates = (("lora/.*", 1.0), ("scaffold/.*", 0.5))
    optimizer = make_optimizer(0.01, steps, "linear", 0.2, weight_decay=0.1, rates=rates)
    params = parameters()
    state = optimizer.init(params)

    flat = {path: torch.nn.Parameter(torch.tensor(np.asarray(leaf))) for path, leaf in flatten(parameters()).items()}
    groups = [
        {
            "params": [p],
            "lr": 0.01 * (0.5 if "scaffold" in path else 1.0),
            "weight_decay": 0.0 if "bias" in path else 0.1,
        }
        for path, p in flat.items()
    ]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    schedule = rates_of(1.0, steps, "linear", 0.2)
    peaks = [group["lr"] for group in reference.param_groups]

    for step in range(steps):
        grads = gradients(step)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for path, gradient in flatten(grads).items():
            flat[path].grad = torch.tensor(np.asarray(gradient))
        torch.nn.utils.clip_grad_norm_(list(flat.values()), 1.0)
        for group, peak in zip(reference.param_groups, peaks, strict=True):
            group["lr"] = peak * float(schedule(step))
        reference.step()
    for path, leaf in flatten(params).items():
        # torch's clip divides by (norm + 1e-6), and both round in float32 over ten steps
        np.testing.assert_allclose(leaf, flat[path].detach().numpy(), rtol=2e-6, atol=2e-7, err_msg=path)


def test_decay_spares_norms_biases_and_log_scales():
    import re

    spared = ["base/norm/scale", "scaffold/projector/bias", "feedback/gamma", "scaffold/log_sigma", "bias"]
    decayed = [
        "lora/language_model/layers/self_attn/q_proj/a",
        "base/lm_head",
        "base/mlp/kernel",
        "scaffold/bias_proj/kernel",
    ]
    assert all(re.fullmatch(NO_DECAY, path) for path in spared)
    assert not any(re.fullmatch(NO_DECAY, path) for path in decayed)


def test_a_rate_of_zero_stands_still_and_unmatched_leaves_are_refused():
    optimizer = make_optimizer(0.1, 5, "constant", 0.0, rates=(("lora/.*", 1.0), ("scaffold/.*", 0.0)))
    params = parameters()
    updates, _ = optimizer.update(gradients(1), optimizer.init(params), params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates["scaffold"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(updates["lora"]))
    with pytest.raises(ValueError, match="scaffold/projector"):
        make_optimizer(0.1, 5, rates=(("lora/.*", 1.0),)).init(params)


def test_a_new_phase_restarts_the_schedule_and_keeps_the_moments():
    optimizer = make_optimizer(0.1, 4, "linear", 0.0, weight_decay=0.0)
    params = parameters()
    state = optimizer.init(params)
    for step in range(4):
        _, state = optimizer.update(gradients(step), state, params)
    done, _ = optimizer.update(gradients(0), state, params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(done)), "the linear schedule has ended at zero"
    again = restart_schedule(state, make_optimizer(0.1, 7, "linear", 0.0, weight_decay=0.0), params)
    moved, _ = optimizer.update(gradients(0), again, params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(moved))
    adam = lambda s: next(part for part in s if isinstance(part, optax.ScaleByAdamState))  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, adam(again), adam(state))
    phase = next(part for part in again if isinstance(part, PhaseState))
    assert (int(phase.count), int(phase.rising), int(phase.falling)) == (0, 0, 7), "the new phase's length"
