"""AdamW with everything by parameter path: which leaves decay, and at what share of the learning rate each one learns.

The order of the transformations is AdamW's (Loshchilov and Hutter 2019, algorithm 2): clip by the global norm, Adam,
add the decay, scale by the leaf's factor, scale by the schedule. A schedule spans one phase: its count is reset when a
phase starts (`restart_schedule`), while Adam's moments may be kept, so a phase never inherits the tail of the last
phase's decay.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vital_jax.training.partition import Table, flatten, match, unflatten

# Norm scales, biases and learned log-scales: pulling these to zero changes the function, not its complexity.
NO_DECAY = r"(.*/)?(scale|bias|gamma|beta|log_\w+)"

# Of the share of the falling steps that is done, in [0, 1]: the share of the peak rate.
SCHEDULES = {
    "constant": lambda done: jnp.ones_like(done),
    "cosine": lambda done: 0.5 * (1 + jnp.cos(jnp.pi * done)),
    "linear": lambda done: 1 - done,
}


class PhaseState(NamedTuple):
    """Where in its phase a step is. Lengths are numbers of the state, not of the program: phases that differ in nothing else share one."""

    count: jax.Array  # steps done
    rising: jax.Array  # steps over which the rate rises,
    falling: jax.Array  # and those after them


def _lengths(steps: int, schedule: str, warmup: float) -> tuple[int, int]:
    """(rising, falling) of a phase. Raises: ValueError as `scale_by_phase`."""
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}: use one of {', '.join(SCHEDULES)}")
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup={warmup} is a share of the phase's steps: use a number in [0, 1)")
    if steps < 1:
        raise ValueError(f"a phase of {steps} steps has no schedule: give it at least one")
    rising = min(math.ceil(warmup * steps), steps - 1)
    return rising, steps - rising


def _rate(state: PhaseState, learning_rate: float, schedule: str) -> jax.Array:
    fallen = jnp.clip((state.count - state.rising) / state.falling, 0, 1)
    risen = state.count / jnp.maximum(state.rising, 1)
    return learning_rate * jnp.where(state.count < state.rising, risen, SCHEDULES[schedule](fallen))


def scale_by_phase(
    learning_rate: float, steps: int, schedule: str = "cosine", warmup: float = 0.05
) -> optax.GradientTransformation:
    """Descends at a learning rate that follows the steps done in the phase, which a `PhaseState` keeps.

    It rises linearly from 0 over ceil(warmup * steps) steps and then follows `schedule` to the phase's end: the
    definition of the Hugging Face trainers, so that learning rates compare. A phase of one step has no warm-up, since
    its only step would be at rate 0.

    Args:
      learning_rate: the peak. steps: of the phase. schedule: constant, cosine or linear. warmup: share of the steps, in
        [0, 1).
    Raises: ValueError for an unknown schedule, a share outside [0, 1) or a phase without steps.
    """
    lengths = _lengths(steps, schedule, warmup)

    def init(params):
        return PhaseState(*(jnp.asarray(n, jnp.int32) for n in (0, *lengths)))

    def update(updates, state, params=None):
        rate = _rate(state, learning_rate, schedule)
        return jax.tree.map(lambda u: -rate * u, updates), state._replace(count=state.count + 1)

    return optax.GradientTransformation(init, update)


def _by_path(tree: Mapping[str, Any], value_of: Any) -> dict[str, Any]:
    return unflatten({path: value_of(path) for path in flatten(tree)})


def scale_by_rates(rates: Table) -> optax.GradientTransformation:
    """Multiplies each update by its row's factor. Raises: ValueError as `match`, at init."""

    def init(params):
        match(rates, flatten(params))
        return optax.EmptyState()

    def update(updates, state, params=None):
        factors = match(rates, flatten(updates))
        return jax.tree.map(lambda u, factor: u * factor, updates, unflatten(factors)), state

    return optax.GradientTransformation(init, update)


def make_optimizer(
    learning_rate: float,
    steps: int,
    schedule: str = "cosine",
    warmup: float = 0.05,
    *,
    weight_decay: float = 0.01,
    no_decay: str = NO_DECAY,
    clip: float = 1.0,
    rates: Table = ((".*", 1.0),),
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW for one phase.

    Defaults are VITAL's (section B.2); the paper gives no schedule shape, and cosine is the field's habit.

    Args:
      learning_rate, steps, schedule, warmup: see `scale_by_phase`.
      weight_decay: decoupled; multiplied by the learning rate. no_decay: regex of whole leaf paths that are left out of
        it.
      clip: bound on the global norm of the gradients.
      rates: rows (regex, factor of the learning rate); every trainable leaf is matched by exactly one.
      b1, b2, eps: Adam's.
    Raises: ValueError as `scale_by_phase`; as `match`, when the optimizer meets its parameters.
    """
    plain = re.compile(no_decay)
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(
            weight_decay, mask=lambda params: _by_path(params, lambda path: not plain.fullmatch(path))
        ),
        scale_by_rates(rates),
        scale_by_phase(learning_rate, steps, schedule, warmup),
    )


def restart_schedule(
    opt_state: optax.OptState, optimizer: optax.GradientTransformation, params: Mapping[str, Any]
) -> optax.OptState:
    """The optimizer state for a new phase that keeps Adam's moments: only the schedule starts again, as `optimizer` has it."""
    is_schedule = lambda node: isinstance(node, PhaseState)  # noqa: E731
    schedules = lambda state: [node for node in jax.tree.leaves(state, is_leaf=is_schedule) if is_schedule(node)]  # noqa: E731
    # Compiled, so that fresh moments are never allocated.
    fresh = iter(jax.jit(lambda params: schedules(optimizer.init(params)))(params))
    restarted = lambda node: jax.tree.map(lambda old, new: jnp.full_like(old, int(new)), node, next(fresh))  # noqa: E731
    return jax.tree.map(lambda node: restarted(node) if is_schedule(node) else node, opt_state, is_leaf=is_schedule)
