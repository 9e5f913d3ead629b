"""The state that `train.py` steps: drawn or restored when a run starts, carried over when a phase begins, whole when it is saved.

A phase trains some leaves and freezes the rest; leaves that another phase trains are no part of its optimizer and still belong in its
checkpoints, beside the state, under `OTHER_PHASES`.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from vital_jax.methods.base import Method
from vital_jax.run import plan, program, setup
from vital_jax.run.lesson import Supervised
from vital_jax.training.checkpoint import OTHER_PHASES, Checkpoints, abstract, check_compatible, init_from
from vital_jax.training.config import phase_at
from vital_jax.training.partition import merge, split
from vital_jax.training.step import State, init_state, start_phase

EXPERIENCE = "experience"  # in a checkpoint: the rollout at hand, and the reference


def begin(
    config: Any,
    method: Method,
    mesh: Mesh,
    checkpoints: Checkpoints,
    meta: Callable[..., Mapping[str, Any]],
    step: int,
    taught: Supervised,
) -> tuple[State, dict[str, Any]]:
    """(state, frozen) after `step` steps: of the checkpoint, of the run that `config.init_from` names, or drawn from the seed.

    Args: meta: (phase, step) -> this run's record, which the checkpoint's has to fit. taught: takes up what the checkpoint holds of it.
    Raises: ValueError as `check_compatible`, `plan.check_resume` and `Checkpoints.restore`; as `setup.load_params` and `init_from`.
    """
    index = phase_at(config.phases, max(step - 1, 0))[0]  # the phase whose state the checkpoint holds
    if step:
        saved = checkpoints.read_meta()
        check_compatible(setup.whole_meta(saved), meta(index, step))
        plan.check_resume(saved, config, index)
    trainable, frozen = split(setup.load_params(config, method, mesh), setup.tables(config)[index])
    if config.init_from and not step:
        trainable, other = init_from(config.init_from, trainable)
        check_compatible(setup.whole_meta(other), meta(0, 0))
    state = init_state(trainable, program.optimizer_of(config, config.phases[index]))
    if not step:
        return state, frozen
    # The drawn start goes before the saved state comes: never two of them.
    target = abstract(whole(config, state, frozen, taught))
    del trainable, state
    state, _ = checkpoints.restore(target)
    if jax.process_index() == 0:
        print(f"resuming {config.workdir} after step {step}", file=sys.stderr)
    taught.restore(state.pop(EXPERIENCE, {}))
    return state, setup.overlay(frozen, state.pop(OTHER_PHASES, {}))


def enter_phase(
    config: Any, index: int, state: State, frozen: Mapping[str, Any], step: int
) -> tuple[State, dict[str, Any]]:
    """(state, frozen) with which phase `index` begins after `step` steps: the same parameters, parted by its own table."""
    phase, optimizer = config.phases[index], program.optimizer_of(config, config.phases[index])
    trainable, rest = split(merge(state["trainable"], frozen), setup.tables(config)[index])
    if jax.tree.structure(trainable) == jax.tree.structure(state["trainable"]):
        return start_phase(state, optimizer, phase.reset_optimizer), rest
    return init_state(trainable, optimizer, step), rest


def whole(config: Any, state: State, frozen: Mapping[str, Any], taught: Supervised) -> State:
    """What a checkpoint holds: the state, what this phase freezes and another one trains, and what is at hand to learn from."""
    ever = setup.trained(setup.tables(config), merge(state["trainable"], frozen))
    carried = taught.carried(state)
    return {**state, OTHER_PHASES: setup.of_other_phases(frozen, ever), **({EXPERIENCE: carried} if carried else {})}
