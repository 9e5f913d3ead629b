"""The one loop of the small trainings here: minutes long, from start to end, with a line every fifty steps.

What is worth resuming goes through `train.py`; these would take longer to restore than to repeat.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vital_jax.training.optimizer import make_optimizer
from vital_jax.training.step import init_state, make_train_step


def fit(
    name: str,
    loss: Callable,
    normalizers: Callable,
    trainable: Mapping[str, Any],
    batches: Iterator[Mapping[str, np.ndarray]],
    steps: int,
    learning_rate: float,
    seed: int,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Trains for `steps` batches with the optimizer of `training` (AdamW, warmup, cosine).

    Args:
      name: as the lines call it. loss, normalizers: as `make_train_step` takes them, of batches with one leading micro-batch.
      trainable: the start, float32. batches: of arrays [B, ...].
    Returns: the trained parameters, and the last step's metrics.
    """
    optimizer = make_optimizer(steps=steps, learning_rate=learning_rate)
    step = make_train_step(loss, normalizers, optimizer, seed)
    state = init_state(jax.tree.map(jnp.asarray, trainable), optimizer)
    for number in range(1, steps + 1):
        state, report = step(state, {}, {key: x[None] for key, x in next(batches).items()})
        if number % 50 == 0 or number == steps:
            report = {key: float(value) for key, value in report.items()}
            shown = ", ".join(
                f"{key} {value:.3f}" for key, value in report.items() if key not in ("finite", "grad_norm")
            )
            print(f"{name} {number}/{steps}: {shown}", file=sys.stderr)
    return state["trainable"], report
