"""The loss of an update as the train step takes it: rollouts read again, and one of the policy losses on what comes out.

A batch holds prompts [B, ...] and, beside the arrays of the replay, those of `FIELDS`. The loss is a sum over its rows, divided by counts
of the whole step (`training/step.py`): micro-batches and devices add up to one gradient.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from vital_jax.methods.base import Method
from vital_jax.rl import objective as objectives
from vital_jax.rl.objective import Objective
from vital_jax.rl.replay import ROLLOUT, replay
from vital_jax.training.partition import merge

Norms = dict[str, jax.Array]
# What an update reads beside the replayed columns, "rollout_" before each: mask [B, G, U], the drawn tokens that count; advantage [B, G];
# log-probabilities [B, G, U] of the sampler (as it recorded them), old (the policy before the update) and ref (the reference).
FIELDS = ("mask", "advantage", "sampler", "old", "old_entropy", "ref")


def fields(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a batch holds of `FIELDS`, by their short names."""
    return {name: batch[f"{ROLLOUT}_{name}"] for name in FIELDS if f"{ROLLOUT}_{name}" in batch}


def make_loss(
    method: Method, objective: Objective, temperature: float, banned: np.ndarray
) -> tuple[Callable[..., tuple[jax.Array, Norms]], Callable[..., Norms]]:
    """(loss, normalizers) as `make_train_step` takes them. temperature, banned: of the rollouts."""

    def loss(
        trainable: Mapping[str, Any], frozen: Mapping[str, Any], batch: Mapping[str, jax.Array], key: Any, norms: Norms
    ) -> tuple[jax.Array, Norms]:
        found, held = replay(method, merge(trainable, frozen), batch, temperature, banned), fields(batch)
        old, mask, advantage = held.pop("old", None), held.pop("mask"), held.pop("advantage")
        return objectives.policy_loss(
            objective, found.log_probs, old, advantage, mask, norms, entropy=found.entropy, **held
        )

    def normalizers(batch: Mapping[str, jax.Array]) -> Norms:
        held = fields(batch)
        return objectives.normalizers(objective, held["mask"], held.get("old_entropy"))

    return loss, normalizers
