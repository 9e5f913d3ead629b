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

from vital_jax.methods import vital
from vital_jax.methods.vital import Vital
from vital_jax.models.config import VisionConfig
from vital_jax.run import setup
from vital_jax.training.optimizer import make_optimizer
from vital_jax.training.partition import flatten, split, unflatten
from vital_jax.training.sharding import batch_sharding, shardings
from vital_jax.training.step import State, abstract_state, make_train_step


def optimizer_of(config: Any, phase: Any) -> optax.GradientTransformation:
    """The optimizer of a phase. Raises: ValueError as `make_optimizer`."""
    return make_optimizer(steps=phase.steps, **config.optim)


def weights_of(phase: Any) -> dict[str, float]:
    """The weights of a phase's losses."""
    return {"text": phase.text, "visual": phase.visual}


def train_step(config: Any, method: Vital, phase: Any, state: State) -> Callable:
    """The jitted step of a phase, for states that lie as this one does; see `make_train_step`."""
    loss = vital.make_loss(method, phase.latent_steps, weights_of(phase))
    placement = jax.tree.map(lambda x: x.sharding, state)
    return make_train_step(
        loss, vital.normalizers, optimizer_of(config, phase), config.seed, placement, dict(config.compiler)
    )


def shapes_on(config: Any, method: Vital, mesh: Mesh) -> dict[str, Any]:
    """The whole tree's shapes, types and shardings as `setup.load_params` makes them.

    Raises: ValueError as `setup.kept_params`, or naming a leaf without a sharding.
    """
    shapes = setup.kept_params(config, method)
    placed = flatten(shardings(shapes, mesh, setup.sharding_rows(config.mesh.base), allow_unused=True))
    on = lambda path, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed[path])  # noqa: E731
    return unflatten({path: on(path, leaf) for path, leaf in flatten(shapes).items()})


def abstract_training(config: Any, method: Vital, mesh: Mesh, index: int) -> tuple[State, dict[str, Any]]:
    """(state, frozen) of phase `index` as shapes with shardings. Raises: ValueError as `shapes_on` and `init_state`."""
    trainable, frozen = split(shapes_on(config, method, mesh), setup.tables(config)[index])
    return abstract_state(trainable, optimizer_of(config, config.phases[index])), frozen


def full_rows(
    vision: VisionConfig, rows: int, S: int, P: int, T: int, K: int, C: int = 0, E: int = 0
) -> dict[str, np.ndarray]:
    """A batch [rows, ...] in which every budget is full (pipeline/batch.py), of zeros but for what says how much there is.

    Args:
      S, P, T, K, C, E: prefix tokens, patches, answer tokens, latent steps, tokens of a chain and width of the region feature.
    """
    i, f = np.int32, np.float32
    return {
        "tokens": np.zeros((rows, S), i),
        "lengths": np.full(rows, S, i),
        "positions": np.zeros((rows, 3, S), i),
        "next_position": np.full(rows, S, i),
        "patches": np.broadcast_to(f(0), (rows, P, vision.patch_width)),
        "patch_index": np.zeros((rows, P, 4), i),
        "patch_weight": np.zeros((rows, P, 4), f),
        "patch_coords": np.zeros((rows, P, 2), i),
        "patch_segment": np.ones((rows, P), i),
        "patch_target": np.zeros((rows, P // vision.merge**2), i),
        "answer": np.zeros((rows, T), i),
        "answer_mask": np.ones((rows, T), bool),
        "latent_steps": np.full(rows, K, i),
        "chain": np.zeros((rows, K, C), i),
        "chain_mask": np.ones((rows, K, C), bool),
        "roi": np.zeros((rows, E), f),
        "roi_global": np.zeros((rows, E), f),
        "roi_mask": np.full(rows, E > 0),
        "index": np.zeros(rows, i),
    }


def abstract_batch(batch: dict[str, np.ndarray], micro_batches: int, mesh: Mesh) -> dict[str, Any]:
    """A batch [B, ...] as `train.py` places it: shapes [A, B / A, ...], split by rows."""
    placed = batch_sharding(mesh, micro_batches=True)

    def shape(x: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            (micro_batches, len(x) // micro_batches, *x.shape[1:]), jnp.dtype(x.dtype), sharding=placed
        )

    return {name: shape(x) for name, x in batch.items()}
