"""Answers to a few records while training runs, so that a loss curve is never all there is to look at.

It decodes as inference does (the loop, then greedy tokens; no scaffold), with the parameters of the moment.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vital_jax.latent.loop import embed, prefill, variables_of
from vital_jax.latent.sample import sample
from vital_jax.methods.vital import Vital
from vital_jax.pipeline.feed import Feed


@functools.partial(jax.jit, static_argnames=("method", "max_steps", "length", "end"))
def _decode(
    method: Vital, params: Mapping[str, Any], batch: Mapping[str, jax.Array], max_steps: int, length: int, end: int
):
    variables = variables_of(params)
    z0, prompt = prefill(method.model, variables, embed(method.model, variables, batch), batch["next_position"])
    steps = jnp.asarray(batch["latent_steps"])[:, None]
    return sample(method.model, variables, prompt, z0[:, None], steps, max_steps, length, end).tokens[:, 0]


def normalise(text: str) -> str:
    """Lower case, single spaces: what the paper's exact match compares (appendix B.4)."""
    return " ".join(text.lower().split())


def answers(
    method: Vital,
    params: Mapping[str, Any],
    feed: Feed,
    numbers: Sequence[int],
    max_steps: int,
    eval_k: str = "fixed",
    batch: int = 8,
) -> Iterator[dict[str, Any]]:
    """Greedy answers to these records, in order, at K = `max_steps` or at each record's own (`eval_k`).

    Raises: ValueError for another `eval_k`, or where a group of `batch` records fits no bucket.
    Yields: {"id", "question", "gold", "answer", "exact"}; `exact` compares after `normalise`.
    """
    prompter = feed.encoder.prompter
    for start in range(0, len(numbers), batch):
        chosen = list(numbers[start : start + batch])
        padded = chosen + chosen[-1:] * (batch - len(chosen))
        rows = {
            name: value
            for name, value in feed.rows(padded, max_steps, eval_k).items()
            if name not in ("roi", "roi_global")
        }
        tokens = jax.device_get(_decode(method, params, rows, max_steps, feed.answer, prompter.end_token_id))
        for number, ids in zip(chosen, tokens, strict=False):
            record, answer = feed.source[number], prompter.decode(ids)
            yield {
                "id": record.id,
                "question": record.question,
                "gold": record.answer,
                "answer": answer,
                "exact": normalise(answer) == normalise(record.answer),
            }
