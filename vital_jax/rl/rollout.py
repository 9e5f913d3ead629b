"""Answers of the model in training: G to each prompt over one prefill, by the trainer's own process and on its own mesh.

The distribution that tokens are drawn from is the policy that is trained: scores divided by the temperature, without banned tokens. Cuts
(top-k, top-p, min-p) and penalties make another one, under which a replay would be wrong; they are refused. Control tokens are banned: an
image token that a model writes is taken for an image where the text is read again.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from vital_jax.latent.choose import Decoding, row_keys
from vital_jax.latent.decode import Decoded, Plan, respond
from vital_jax.latent.engine import Engine, Reply
from vital_jax.latent.loop import Variables, variables_of
from vital_jax.latent.script import columns
from vital_jax.models.backbone import Backbone
from vital_jax.models.lora import merge_lora
from vital_jax.rl.builtin import Reply as Judged


class Rollout(NamedTuple):
    """What was drawn for N prompts and what it earned, on the host."""

    numbers: np.ndarray  # [N] int32, of the records
    mode: np.ndarray  # [N, G, U] int32, what each column is
    tokens: np.ndarray  # [N, G, U] int32
    sampler: np.ndarray  # [N, G, U] float32, log-probabilities as they were drawn
    answer: np.ndarray  # [N, G] int32, the column at which the answer begins
    complete: np.ndarray  # [N, G] bool, whether the answer ended by itself
    rewards: np.ndarray  # [N, G, R] float32, of each reward function

    @property
    def decoded(self) -> Decoded:
        """As decoding hands it out, without states."""
        none = np.zeros((*self.answer.shape, 0, 0), np.float32)
        state = none.reshape(*self.answer.shape, 0)
        return Decoded(self.tokens, self.sampler, self.mode, self.answer, self.complete, none, none, state)


_NEUTRAL = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "stops": ()}


def check_sampling(decoding: Decoding) -> None:
    """Refuses, by name, what would draw from another distribution than the one that is trained. Raises: ValueError."""
    if not decoding.temperature:
        raise ValueError("rollouts need a temperature above 0: G greedy answers to a prompt are all the same")
    for name, neutral in _NEUTRAL.items():
        if (value := getattr(decoding, name)) != neutral:
            raise ValueError(
                f"rollouts with {name}={value}: tokens would be drawn from another distribution than the policy that is trained; "
                f"leave it at {neutral} (temperature and banned tokens are a part of the policy)"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """Draws rollouts.

    Attributes:
      engine: what asks the model. decoding: temperature, ends and the answer's budget. groups: G. seed: of the draws.
      latent_steps: K of use.
    Raises: ValueError as `check_sampling`, or for a method that takes latent steps.
    """

    engine: Engine
    decoding: Decoding
    groups: int
    seed: int = 0
    latent_steps: int = 0

    def __post_init__(self) -> None:
        check_sampling(self.decoding)
        if self.groups < 2:
            raise ValueError(f"groups={self.groups}: answers are compared within a group, which takes two at least")
        if any(segment.budget for segment in self.plan.suffix.of_kind("latent")):
            raise ValueError(
                "grouped reinforcement learning trains what a method writes; this one thinks in latent steps"
            )

    @functools.cached_property
    def plan(self) -> Plan:
        """What is written: the method's columns in use."""
        return self.engine.plan(self.latent_steps, self.decoding.length)._replace(drawn=True)

    @functools.cached_property
    def banned(self) -> np.ndarray:
        """[V] bool, tokens that are never drawn."""
        return self.engine.banned(self.plan)

    @property
    def columns(self) -> int:
        """U, the most columns of an answer with what is written before it."""
        return columns(self.plan.suffix)[0]

    def judged(self, reply: Reply) -> Judged:
        """A reply as rewards see it."""
        limit = sum(segment.budget for segment in self.plan.suffix.segments if not segment.fixed)
        return Judged(reply.text, reply.written, limit, reply.complete, reply.chain)

    def draw(self, variables: Variables, prompts: Mapping[str, Any], numbers: np.ndarray) -> Decoded:
        """G answers to each prompt, as arrays that may still be in the making.

        Args:
          prompts: rows [B, ...] on the mesh. numbers: [B], unlike for every prompt of the run: draws depend on seed and number alone, not
            on what else is in the batch.
        """
        B = len(numbers)
        sampling = self.decoding.rows(B, self.groups, row_keys(self.seed, np.asarray(numbers, np.uint32), self.groups))
        rows = {name: x for name, x in prompts.items() if name != "index"}
        found = respond(self.engine.model, variables, rows, self.plan, sampling, None, self.banned)
        return found._replace(z0=found.z0[..., :0])  # nobody reads it, and it is wide


def policy(model: Backbone, params: Mapping[str, Any], merge: bool = False) -> Variables:
    """What rollouts are drawn with.

    Args: merge: add the adapters into the base once, in the base's own precision, in place of a product for every token. What rounding
      moves is then a difference between sampler and replay, which every step reports.
    Raises: ValueError as `merge_lora`.
    """
    variables = variables_of(params)
    if not merge or "lora" not in variables:
        return variables
    lora = variables.pop("lora")
    return {**variables, "params": _merged(model, variables["params"], lora)}


@functools.partial(jax.jit, static_argnums=0)
def _merged(model: Backbone, base: Mapping[str, Any], lora: Mapping[str, Any]) -> dict[str, Any]:
    assert model.lora is not None
    return merge_lora(dict(base), dict(lora), model.lora)
