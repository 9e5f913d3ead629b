"""A small run of grouped learning in this process: the toy backbone, records on disk, everything that `train.py` does in a step."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import toy
import toyfeed
from jax.sharding import NamedSharding, PartitionSpec

from vital_jax.latent.choose import Decoding
from vital_jax.methods.base import Budgets
from vital_jax.methods.direct import Direct
from vital_jax.pipeline.batch import Layout
from vital_jax.rl.advantages import Normalisation
from vital_jax.rl.experience import Experience, Schedule
from vital_jax.rl.objective import Objective
from vital_jax.rl.policy import make_loss
from vital_jax.rl.rewards import Reward
from vital_jax.rl.rollout import Sampler
from vital_jax.rl.scorer import Scorer
from vital_jax.run import program
from vital_jax.training.partition import split
from vital_jax.training.sharding import make_mesh
from vital_jax.training.step import init_state, make_train_step

GRPO = Objective(
    ratio="token", surrogate="clip", clip_low=0.2, clip_high=0.28, dual_clip=0.0, log_ratio_clamp=0.0,
    aggregation="token_mean", length=0, kl="k3", kl_coefficient=0.05, kl_clamp=0.0, entropy_coefficient=0.0, top_entropy=1.0,
    old="replay", sampler_weight="none", sampler_cap=2.0,
)  # fmt: skip
GROUP = Normalisation("mean", "group", "unbiased", 1e-6, "sum_then_normalise", "keep", "total", "keep")
ENDS = (toyfeed.END, *range(8))
PLAN = Schedule(4, mini_batches=2, epochs=2)
ADAM = optax.adam(3e-3)


def even(record, reply):
    """Half of all first tokens."""
    return float(reply.tokens[0] % 2 == 0)


def short(record, reply):
    return -len(reply.tokens) / reply.limit


@dataclass
class Trainer:
    """One process of a run, from its start or from what a checkpoint held; `step()` is a step of `train.py`."""

    feed: Any
    folder: Path
    schedule: Schedule = PLAN
    objective: Objective = GRPO
    normalisation: Normalisation = GROUP
    rewards: tuple = (Reward("even", 1.0, even), Reward("short", 0.1, short))
    method: Any = None
    params: dict | None = None
    table: tuple = (("base/.*", "frozen"), ("lora/.*", "trainable"))
    group: int = 4
    length: int = 4
    ends: tuple = ENDS
    optimizer: Any = ADAM
    micro_batches: int = 2
    devices: int = 1
    more: dict = field(default_factory=dict)
    number: int = 0

    def __post_init__(self):
        method = self.method or Direct(toy.backbone())
        params = self.params or toy.params(toy.method())
        self.mesh = make_mesh(data=self.devices, devices=jax.devices()[: self.devices])
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        kept = {name: jax.tree.map(np.asarray, x) for name, x in params.items() if name in ("base", "lora")}
        trainable, self.frozen = split(jax.device_put(kept, everywhere), self.table)
        engine = method.engine(toyfeed.Encoder(), self.feed.buckets, Budgets(self.length))
        sampler = Sampler(engine, Decoding(self.length, self.ends, 1.0), self.group, seed=3)
        self.experience = Experience(
            method, sampler, self.feed, Scorer(self.rewards, 2), self.schedule, self.objective, self.normalisation,
            self.micro_batches, self.mesh, self.folder, **self.more,
        )  # fmt: skip
        loss = make_loss(method, self.objective, 1.0, sampler.banned)
        self.train_step = make_train_step(*loss, self.optimizer)
        with jax.set_mesh(self.mesh):
            self.state = init_state(trainable, self.optimizer)

    def block(self):
        """The prompts that the step at hand owns."""
        plan = self.schedule
        order = dict(batch=plan.waves * plan.prompts, steps=99, seed=0, start=self.number // plan.steps)
        blocks = self.feed.phase(Layout(), 0, **order, waves=plan.waves)
        found = next(blocks)[1]
        blocks.close()
        return found

    def step(self):
        """(metrics, the update's batch)."""
        with jax.set_mesh(self.mesh):
            batch, said = self.experience(self.state, self.frozen, self.block(), self.number)
            placed = program.placed_batch(batch, self.micro_batches, self.mesh)
            self.state, report = self.train_step(self.state, self.frozen, placed)
        self.number += 1
        return {**jax.device_get(report), **said}, batch

    def saved(self):
        """A checkpoint, on the host."""
        return jax.tree.map(np.array, {**self.state, "experience": self.experience.carried(self.state)})

    def restore(self, saved):
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        state = jax.device_put(jax.tree.map(np.array, saved), everywhere)
        self.experience.restore(state.pop("experience"))
        self.state, self.number = state, int(state["step"])
        return self
