"""Rollouts read again, teacher-forced: what the policy of the moment thinks of every token that was drawn.

The columns are those that decoding recorded, so a chain that ended by its budget and one that wrote its lead-in itself are replayed as
they were. Each prompt is prefilled once; its G continuations stand on the G axis over that prefix. Scores become the distribution that
tokens were drawn from (temperature, banned tokens), so that at equal weights every ratio is one. There is no dropout: a ratio would measure
it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from vital_jax.latent.choose import drawn_from
from vital_jax.latent.loop import variables_of
from vital_jax.latent.loss import token_log_probs
from vital_jax.methods.base import Method, read
from vital_jax.pipeline.batch import Batch
from vital_jax.pipeline.segments import TOKEN, Segment, Suffix

ROLLOUT = "rollout"  # the segment, and how its arrays in a batch begin


class Replayed(NamedTuple):
    """log_probs, entropy: [B, G, U] float32; zero where no token was drawn (forced ones, padding)."""

    log_probs: jax.Array
    entropy: jax.Array


def recorded(columns: int) -> Suffix:
    """The suffix that replays rollouts of U columns."""
    return Suffix((Segment("recorded", ROLLOUT, columns, supervised=True),))


def drawn(batch: Mapping[str, Any]) -> Any:
    """[..., B, G, U] bool: the tokens that the model drew itself."""
    return batch[f"{ROLLOUT}_mode"] == TOKEN


def replay(
    method: Method, params: Mapping[str, Any], batch: Mapping[str, jax.Array], temperature: float, banned: np.ndarray
) -> Replayed:
    """The log-probability and entropy at every token that was drawn.

    Args:
      batch: prompts [B, ...] with `rollout_mode` and `rollout_tokens` [B, G, U]. temperature, banned [V]: of the rollouts.
    """
    _, G, U = batch[f"{ROLLOUT}_mode"].shape
    model, variables = method.model, variables_of(params)
    columns = read(method, params, cast(Batch, batch), recorded(U), groups=G)
    h = model.apply(variables, columns.reads[ROLLOUT], method="head_input")
    head = model.apply(variables, method="head")
    scaled = lambda scores: drawn_from(scores, temperature, banned)  # noqa: E731
    return Replayed(*token_log_probs(h, head, batch[f"{ROLLOUT}_tokens"], drawn(batch), scaled))
