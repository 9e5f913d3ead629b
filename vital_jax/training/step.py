"""One optimizer step: micro-batches under one scan, sums normalised over the whole step, gradients of what trains.

A loss that is a mean over each micro-batch, averaged again over micro-batches, weighs a token by how many others share
its micro-batch: with ragged answers, accumulation then changes the loss. Here every loss is a sum divided by counts of
the WHOLE step (all micro-batches, all devices), so that A micro-batches of B rows give the gradient of one batch of A*B
rows.

State is a dict: `trainable` (float32 masters), `opt_state`, `step` (optimizer steps done). The step's randomness is a
function of (seed, step, micro-batch) alone, so a resumed run draws what the uninterrupted one would have drawn.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vital_jax.training.optimizer import restart_schedule
from vital_jax.training.partition import flatten
from vital_jax.training.sharding import moment_sharding

State = dict[str, Any]
LossFn = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def _mesh_of(trainable: Mapping[str, Any]) -> Mesh | None:
    sharding = jax.tree.leaves(trainable)[0].sharding
    return sharding.mesh if isinstance(sharding, NamedSharding) else None


def _placements(opt_state: optax.OptState, trainable: Mapping[str, Any]) -> optax.OptState:
    """The shardings of an optimizer's state beside parameters on a mesh: moments as `moment_sharding`, counts a copy each."""
    moments, everywhere = jax.tree.map(moment_sharding, trainable), NamedSharding(_mesh_of(trainable), PartitionSpec())
    structure = jax.tree.structure(trainable)
    like = lambda node: jax.tree.structure(node) == structure  # noqa: E731
    return jax.tree.map(lambda node: moments if like(node) else everywhere, opt_state, is_leaf=like)


def _fresh(optimizer: optax.GradientTransformation, trainable: Mapping[str, Any]) -> optax.OptState:
    if (mesh := _mesh_of(trainable)) is None:
        return optimizer.init(trainable)
    placed = _placements(jax.eval_shape(optimizer.init, trainable), trainable)
    if mesh.size > 1:
        return jax.jit(optimizer.init, out_shardings=placed)(trainable)
    # Left on one device, a restored count would pin itself there.
    return jax.tree.map(jax.device_put, optimizer.init(trainable), placed)


def _check(trainable: Mapping[str, Any]) -> None:
    flat = flatten(trainable)
    if not flat:
        raise ValueError("nothing is trainable: mark at least one row of the parameter table 'trainable'")
    if wrong := [f"{path} ({leaf.dtype})" for path, leaf in flat.items() if leaf.dtype != jnp.float32]:
        more = " ..." if len(wrong) > 5 else ""
        raise ValueError(f"trainable parameters are float32 masters; cast these first: {', '.join(wrong[:5])}{more}")


def init_state(trainable: Mapping[str, Any], optimizer: optax.GradientTransformation, step: int = 0) -> State:
    """The state before step `step`. On a mesh moments are split over it (`moment_sharding`) and counts replicated.

    Raises: ValueError when nothing is trainable, or naming a leaf that is not float32.
    """
    _check(trainable)
    count, mesh = jnp.asarray(step, jnp.int32), _mesh_of(trainable)
    count = count if mesh is None else jax.device_put(count, NamedSharding(mesh, PartitionSpec()))
    return {"trainable": trainable, "opt_state": _fresh(optimizer, trainable), "step": count}


def abstract_state(trainable: Mapping[str, Any], optimizer: optax.GradientTransformation) -> State:
    """`init_state` of shapes with shardings on a mesh: nothing is allocated. Raises: as `init_state`."""
    _check(trainable)
    shapes = jax.eval_shape(optimizer.init, trainable)
    shaped = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(_mesh_of(trainable), PartitionSpec()))
    moments = jax.tree.map(shaped, shapes, _placements(shapes, trainable))
    return {"trainable": trainable, "opt_state": moments, "step": count}


def start_phase(state: State, optimizer: optax.GradientTransformation, reset: bool) -> State:
    """The state for a new phase with the same trainable leaves.

    Args:
      optimizer: of the new phase, with the same settings but for its steps.
      reset: start it afresh; otherwise Adam's moments are kept and only the schedule starts again.
    """
    if reset:
        return {**state, "opt_state": _fresh(optimizer, state["trainable"])}
    return {**state, "opt_state": restart_schedule(state["opt_state"], optimizer, state["trainable"])}


def make_train_step(
    loss_fn: LossFn,
    normalizer_fn: Callable[[Mapping[str, jax.Array]], Mapping[str, jax.Array]],
    optimizer: optax.GradientTransformation,
    seed: int = 0,
    shardings: State | None = None,
    compiler: Mapping[str, str] | None = None,
) -> Callable[[State, Any, Mapping[str, jax.Array]], tuple[State, dict[str, jax.Array]]]:
    """The jitted `train_step(state, frozen, batch) -> (state, metrics)`; the state passed in is donated.

    Args:
      loss_fn: (trainable, frozen, micro_batch, rng, norms) -> (loss, metrics). The loss and every metric are sums over
        the micro-batch divided by `norms`, so that adding them over micro-batches is exact. Of a metric whose name
        ends in `_max`, at least 0, the largest is kept. Computing in bfloat16 is its business; gradients arrive in float32.
      normalizer_fn: (batch) -> dict of scalars over the whole [A, B, ...] batch. A zero is replaced by one: an empty
        sum stays zero.
      optimizer: of the phase.
      seed: of dropout and the like; rng = fold_in(fold_in(key(seed), step), micro-batch).
      shardings: of the state (`jax.tree.map(lambda x: x.sharding, state)`), which the new state keeps. Without them the
        compiler chooses, and a choice that differs costs the donation and a second compilation.
      compiler: options of XLA for this program, by name.
    Returns: the step. Batch leaves are [A, B, ...] (A micro-batches). Metrics: those of loss_fn, `loss`, `grad_norm`
      (before clipping) and `finite`: 0 where the loss or the gradient is NaN or infinite. Such a step changes neither
      parameters nor moments, so that the state stays fit to be saved; its number still counts, so that the same data is
      not met again.
    """

    def train_step(state, frozen, batch):
        trainable = state["trainable"]
        norms = jax.tree.map(lambda n: jnp.where(n == 0, jnp.ones_like(n), n), dict(normalizer_fn(batch)))
        key = jax.random.fold_in(jax.random.key(seed), state["step"])

        @jax.jit  # its trace serves twice: for the shapes of the sums, and in the scan
        def micro_step(index, micro_batch):
            (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
                trainable, frozen, micro_batch, jax.random.fold_in(key, index), norms
            )
            return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (loss, metrics)), grads

        def accumulate(total, numbered):
            part = micro_step(*numbered)
            (loss, metrics), grads = jax.tree.map(jnp.add, total, part)
            largest = {
                name: jnp.maximum(total[0][1][name], part[0][1][name]) for name in metrics if name.endswith("_max")
            }
            return ((loss, metrics | largest), grads), None

        micro_batches = jax.tree.leaves(batch)[0].shape[0]
        numbered = (jnp.arange(micro_batches), batch)
        shapes = jax.eval_shape(micro_step, *jax.tree.map(lambda x: x[0], numbered))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        ((loss, metrics), grads), _ = jax.lax.scan(accumulate, zeros, numbered)

        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates, opt_state = optimizer.update(grads, state["opt_state"], trainable)
        new = {"trainable": optax.apply_updates(trainable, updates), "opt_state": opt_state}
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, {name: state[name] for name in new})
        report = {**metrics, "loss": loss, "grad_norm": grad_norm, "finite": finite.astype(jnp.float32)}
        return {**kept, "step": state["step"] + 1}, report

    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=dict(compiler or {}))
