"""The programs of a run, from its configuration: one place for `train.py`, which runs them, and for `vital fit`, which only compiles them.

Everything here takes arrays or their shapes alike. Shapes come from the models' config.json and the configuration: no weights are read.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vital_jax.methods.base import Losses, Method, Phase, diagnose, make_loss
from vital_jax.models.families import family_of
from vital_jax.pipeline.batch import Layout, batch_spec, full_batch
from vital_jax.pipeline.segments import Suffix
from vital_jax.run import setup
from vital_jax.training.optimizer import make_optimizer
from vital_jax.training.partition import flatten, split, unflatten
from vital_jax.training.sharding import batch_sharding, place_batch, shardings
from vital_jax.training.step import LossFn, State, abstract_state, make_train_step

Normalizers = Callable[..., Losses]


def optimizer_of(config: Any, phase: Any) -> optax.GradientTransformation:
    """The optimizer of a phase. Raises: ValueError as `make_optimizer`."""
    return make_optimizer(steps=phase.steps, **config.optim)


def objective(method: Method, phase: Phase, suffix: Suffix) -> tuple[LossFn, Normalizers]:
    """(loss, normalizers) of a phase, as `make_train_step` takes them: the weighted sum of the method's losses, and their counts."""
    return make_loss(method, phase, suffix), lambda batch: method.normalizers(batch, phase, suffix)


def train_step(config: Any, phase: Any, loss: LossFn, normalizers: Normalizers, state: State) -> jax.stages.Wrapped:
    """The jitted step of a phase of the configuration, for states that lie as this one does; see `make_train_step`."""
    placement = jax.tree.map(lambda x: x.sharding, state)
    return make_train_step(
        loss, normalizers, optimizer_of(config, phase), config.seed, placement, dict(config.compiler)
    )


def diagnosis(method: Method, phase: Phase, suffix: Suffix) -> jax.stages.Wrapped:
    """The jitted (params, batch) -> numbers that tell whether the latents carry anything; see `base.diagnose`."""
    return jax.jit(lambda params, batch: diagnose(method, params, batch, phase, suffix))


def shapes_on(config: Any, method: Method, mesh: Mesh) -> dict[str, Any]:
    """The whole tree's shapes, types and shardings as `setup.load_params` makes them.

    Raises: ValueError as `setup.kept_params`, or naming a leaf without a sharding.
    """
    shapes = setup.kept_params(config, method)
    placed = flatten(shardings(shapes, mesh, setup.sharding_rows(config.mesh.base), allow_unused=True))

    def on(path: str, x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed[path])

    return unflatten({path: on(path, leaf) for path, leaf in flatten(shapes).items()})


def abstract_training(config: Any, method: Method, mesh: Mesh, index: int) -> tuple[State, dict[str, Any]]:
    """(state, frozen) of phase `index` as shapes with shardings. Raises: ValueError as `shapes_on` and `init_state`."""
    trainable, frozen = split(shapes_on(config, method, mesh), setup.tables(config)[index])
    return abstract_state(trainable, optimizer_of(config, config.phases[index])), frozen


def full_rows(method: Method, layout: Layout, rows: int) -> dict[str, np.ndarray]:
    """A batch [rows, ...] of this layout in which every budget is full."""
    config = method.model.config
    geometry = family_of(config).geometry(config)
    return full_batch(batch_spec(layout, geometry, config.vision.patch_width, config.decoder.width), rows)


def placed_batch(batch: dict[str, np.ndarray], micro_batches: int, mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch [B, ...] on the mesh: arrays [A, B / A, ...], split by rows. Raises: as `place_batch`."""
    A = micro_batches
    micro = {name: x.reshape(A, len(x) // A, *x.shape[1:]) for name, x in batch.items()}
    return place_batch(micro, mesh, micro_batches=True)


def abstract_batch(batch: dict[str, np.ndarray], micro_batches: int, mesh: Mesh) -> dict[str, Any]:
    """A batch [B, ...] as `placed_batch` places it: shapes [A, B / A, ...], split by rows."""
    placed = batch_sharding(mesh, micro_batches=True)

    def shape(x: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            (micro_batches, len(x) // micro_batches, *x.shape[1:]), jnp.dtype(x.dtype), sharding=placed
        )

    return {name: shape(x) for name, x in batch.items()}
