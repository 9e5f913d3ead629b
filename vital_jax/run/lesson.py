"""What a run learns from: its records as they are, or answers of its own to their questions. `train.py` is the same page for both.

    batches(index, start, part)                -> (step in phase, rows), of a phase
    objective(index)                           -> (loss, normalizers) of its train step
    experience(state, frozen, rows, step)      -> (the step's batch, what there is to say of it)
    carried(state), restore(...)               -> what a checkpoint holds of it beside the state

A recipe with `config.rl` learns by grouped reinforcement (rl/); every other one from its records.
"""

import contextlib
import dataclasses
import math
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vital_jax.latent.choose import Decoding
from vital_jax.latent.engine import Reply
from vital_jax.latent.script import columns
from vital_jax.methods.base import Method
from vital_jax.pipeline.batch import Layout
from vital_jax.pipeline.feed import Feed
from vital_jax.pipeline.records import Record
from vital_jax.pipeline.segments import TOKEN, Tokens
from vital_jax.rl.advantages import TOTAL, Normalisation
from vital_jax.rl.choices import choose, unknown
from vital_jax.rl.experience import Experience, Schedule, empty
from vital_jax.rl.objective import Objective
from vital_jax.rl.policy import make_loss
from vital_jax.rl.replay import ROLLOUT, recorded
from vital_jax.rl.rewards import Reward, load
from vital_jax.rl.rollout import Sampler
from vital_jax.rl.scorer import Scorer
from vital_jax.run import program, setup
from vital_jax.training.config import steps_in_use
from vital_jax.training.sharding import ROWS
from vital_jax.training.step import LossFn, State

Rows = dict[str, np.ndarray]
Batches = Generator[tuple[int, Rows], None, None]


class Supervised(contextlib.ExitStack):
    """Records with their answers, chains and region features."""

    def __init__(self, config: Any, method: Method, feed: Feed, layouts: Sequence[Layout]):
        super().__init__()
        self.config, self.method, self.feed, self.layouts = config, method, feed, layouts
        self.losses: tuple[str, ...] = method.losses  # on the terminal's line
        self.held_out: tuple[str, ...] = ()  # names of what `worth` returns

    def batches(self, index: int, start: int, part: tuple[int, int]) -> Batches:
        """(step in phase, this process's rows of its batch) from step `start` of phase `index` on."""
        phase, config = self.config.phases[index], self.config
        order = dict(batch=config.batch, steps=phase.steps, seed=config.seed + index, start=start, part=part)
        return self.feed.phase(self.layouts[index], phase.max_steps, **order)

    def objective(self, index: int) -> tuple[LossFn, program.Normalizers]:
        """(loss, normalizers) of a phase, as `make_train_step` takes them."""
        return program.objective(self.method, setup.phases_of(self.config)[index], self.layouts[index].suffix)

    def experience(
        self, state: State, frozen: Mapping[str, Any], rows: Rows, step: int
    ) -> tuple[Rows, dict[str, float]]:
        """The batch of the update after `step` from this process's rows."""
        return rows, {}

    def worth(self, record: Record, reply: Reply) -> dict[str, float]:
        """What a decoded answer to a held-out question is worth, beside being exact."""
        return {}

    def carried(self, state: State) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {}

    def restore(self, found: Mapping[str, Any]) -> None:
        """Takes up what `carried` gave."""


class Grouped(Supervised):
    """Groups of the policy's own answers, and what they are worth.

    Raises: ValueError as `settings` and `Sampler`.
    """

    def __init__(self, config: Any, method: Method, feed: Feed, layouts: Sequence[Layout], mesh: Mesh):
        super().__init__(config, method, feed, layouts)
        rl, folder = config.rl, Path(config.workdir)
        own = settings(config)
        groups = math.prod(mesh.shape[axis] for axis in ROWS)
        if own.schedule.rows % groups:
            raise ValueError(
                f"config.rl.chunk={own.schedule.rows}: prompts of a program are split over data*fsdp = {groups}; take a multiple"
            )
        scorer = self.enter_context(Scorer(rewards_of(config), rl.threads))
        self.held_out = ("val_reward", *(f"val_reward/{reward.name}" for reward in scorer.rewards))
        self.losses = ("reward", *(["kl"] if own.objective.kl != "none" else []))
        self.schedule = own.schedule
        self.taught = Experience(
            method, sampler_of(config, method, feed), feed, scorer, own.schedule, own.objective, own.normalisation,
            config.micro_batches, mesh, folder / "rollouts", Path(rl.rollouts) if rl.rollouts else None,
            rl.merge_adapters, rl.page_every,
        )  # fmt: skip

    def batches(self, index: int, start: int, part: tuple[int, int]) -> Batches:
        """(step in phase, this process's rows of the block that its rollout owns)."""
        phase, plan, config = self.config.phases[index], self.schedule, self.config
        order = dict(batch=plan.waves * plan.prompts, steps=phase.steps // plan.steps, seed=config.seed + index)
        blocks = self.feed.phase(
            Layout(), phase.max_steps, **order, start=start // plan.steps, part=part, waves=plan.waves
        )
        with contextlib.closing(blocks):
            for number, block in blocks:
                first = number * plan.steps
                yield from ((step, block) for step in range(max(first, start), first + plan.steps))

    def objective(self, index: int) -> tuple[LossFn, program.Normalizers]:
        sampler = self.taught.sampler
        return make_loss(self.method, self.taught.objective, sampler.decoding.temperature, sampler.banned)

    def experience(
        self, state: State, frozen: Mapping[str, Any], rows: Rows, step: int
    ) -> tuple[Rows, dict[str, float]]:
        return self.taught(state, frozen, rows, step)

    def worth(self, record: Record, reply: Reply) -> dict[str, float]:
        seen = self.taught.sampler.judged(reply)
        rewards = self.taught.scorer.rewards
        each = [reward(record, seen) for reward in rewards]
        total = sum(reward.weight * value for reward, value in zip(rewards, each, strict=True))
        return dict(zip(self.held_out, (total, *each), strict=True))

    def carried(self, state: State) -> dict[str, Any]:
        return self.taught.carried(state)

    def restore(self, found: Mapping[str, Any]) -> None:
        self.taught.restore(found)


def of(config: Any, method: Method, feed: Feed, layouts: Sequence[Layout], mesh: Mesh) -> Supervised:
    """What this run learns from; a context manager."""
    return (
        Grouped(config, method, feed, layouts, mesh) if config.get("rl") else Supervised(config, method, feed, layouts)
    )


# --- a recipe's `rl` --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `config.rl` says, checked."""

    schedule: Schedule
    objective: Objective
    normalisation: Normalisation


def check(config: Any) -> None:
    """Refuses mistakes in `config.rl`, those in a file of rewards among them, before anything else is read. Raises: ValueError."""
    own, rewards = settings(config), rewards_of(config)
    for reward in rewards:
        reward.close()
    if not config.eval.answers and "val_reward" in config.checkpoint.best:
        raise ValueError(
            f"config.checkpoint.best={config.checkpoint.best!r}: config.eval.answers=0, so nothing held out is rewarded"
        )
    judged = [TOTAL, *(reward.name for reward in rewards)]
    if own.normalisation.filter_on not in judged:
        raise ValueError(unknown("config.rl.advantages.filter_on: reward", own.normalisation.filter_on, judged))


def rewards_of(config: Any) -> tuple[Reward, ...]:
    """The rewards, to be closed. Raises: ValueError as `rewards.load`."""
    return load(config.rl.rewards, Path(config.workdir) / "judge" / str(jax.process_index()))


def settings(config: Any) -> Settings:
    """The choices of `config.rl`. Raises: ValueError naming a choice that is unknown, missing, or contradicts another."""
    rl = config.rl
    names = [field.name for field in dataclasses.fields(Schedule) if field.name != "batch"]
    schedule = Schedule(config.batch, **{name: rl[name] for name in names})
    objective = choose(Objective, rl.objective.to_dict(), "config.rl.objective")
    normalisation = choose(Normalisation, rl.advantages.to_dict(), "config.rl.advantages")
    for name in ("mini_batches", "epochs", "waves", "group", "threads"):
        if rl[name] < 1:
            raise ValueError(f"config.rl.{name}={rl[name]}: at least 1")
    if (schedule.waves > 1) != ((rule := normalisation.zero_variance) == "resample"):
        raise ValueError(
            f"config.rl.waves={schedule.waves} with config.rl.advantages.zero_variance={rule!r}: more waves of prompts than one are what "
            "'resample' needs, and nothing else asks them"
        )
    if schedule.prompts % schedule.rows:
        raise ValueError(
            f"config.rl.chunk={schedule.chunk} does not divide the {schedule.prompts} prompts of a rollout"
        )
    for i, phase in enumerate(config.phases):
        if phase.steps % schedule.steps:
            raise ValueError(
                f"config.phases[{i}].steps={phase.steps}: each rollout is learned from in {schedule.steps} steps (rl.mini_batches times "
                f"rl.epochs); take a multiple"
            )
    if config.lora.dropout:
        raise ValueError(
            f"config.lora.dropout={config.lora.dropout}: with dropout an update would not be of the policy that drew; set it to 0"
        )
    if rl.merge_adapters and config.model.quantize:
        raise ValueError(
            f"config.rl.merge_adapters with config.model.quantize={config.model.quantize!r}: adapters cannot be added into a quantised "
            "base; leave one of them out"
        )
    if len({tuple(map(tuple, table)) for table in setup.tables(config)}) > 1:
        raise ValueError("config.phases: with config.rl all phases train the same leaves, those of the reference")
    return Settings(schedule, objective, normalisation)


def sampler_of(config: Any, method: Method, feed: Feed) -> Sampler:
    """What draws the run's rollouts. Raises: ValueError as `Sampler`, naming the method."""
    engine = method.engine(feed.encoder, feed.buckets, setup.budgets_of(config, None))
    decoding = Decoding(config.data.answer, engine.ends, config.rl.temperature)
    try:
        return Sampler(engine, decoding, config.rl.group, config.seed, steps_in_use(config.phases))
    except ValueError as error:
        raise ValueError(f"config.rl with method {method.name!r}: {error}") from None


def columns_of(config: Any, method: Method, tokens: Tokens, layouts: Sequence[Layout]) -> list[Layout]:
    """The layouts that a step's arithmetic counts: of the records, or of the rollouts that it replays."""
    if not config.get("rl"):
        return list(layouts)
    return [Layout(suffix=recorded(_width(config, method, tokens)))] * len(layouts)


def _width(config: Any, method: Method, tokens: Tokens) -> int:
    """U, the most columns of a rollout."""
    asking = method.asking(steps_in_use(config.phases), setup.budgets_of(config, None))
    return columns(asking.bound(tokens))[0]


def full(config: Any, method: Method, tokens: Tokens) -> tuple[LossFn, program.Normalizers, Rows]:
    """(loss, normalizers, what a batch holds beside its prompts), every answer as long as it may be; for compiling without weights."""
    own, U = settings(config), _width(config, method, tokens)
    banned = np.zeros(method.model.config.decoder.vocab, bool)
    rows = empty(own.objective, config.batch, config.rl.group, U)
    rows |= {"mode": np.full_like(rows["mode"], TOKEN), "mask": np.ones_like(rows["mask"])}
    taught = make_loss(method, own.objective, config.rl.temperature, banned)
    return *taught, {f"{ROLLOUT}_{name}": x for name, x in rows.items()}


def drawing(config: Any) -> tuple[int, int] | None:
    """(prompts, G) of a program that draws rollouts; None where none are drawn."""
    return (settings(config).schedule.rows, config.rl.group) if config.get("rl") else None


def pace(config: Any) -> tuple[int, int]:
    """(records, steps): how many records are met in how many steps."""
    if not config.get("rl"):
        return config.batch, 1
    plan = settings(config).schedule
    return plan.prompts, plan.steps


def describe(config: Any, method: Method, feed: Feed) -> list[str]:
    """The plan of a run's rollouts: tokens and memory; empty without any. Reads no weights."""
    if not config.get("rl"):
        return []
    own, sampler = settings(config), sampler_of(config, method, feed)
    plan, decoder = own.schedule, method.model.config.decoder
    G, U, (S, _) = sampler.groups, sampler.columns, max(feed.buckets)
    N, waves = plan.prompts, plan.waves
    width = np.dtype(np.float32).itemsize if config.model.dtype == "float32" else 2
    cell = 2 * decoder.layers * decoder.kv_heads * decoder.head_width * width

    def gib(size: float) -> str:
        return f"{size / 2**30:.2f} GiB"

    reference = "a copy of what trains" if own.objective.kl != "none" else "none"
    rows = plan.rows
    scores = config.batch // config.micro_batches * G * decoder.vocab * 4
    return [
        "",
        f"rollouts: {N} prompts x {G} answers of at most {U} columns for {plan.steps} steps"
        + (f", and up to {waves * N} prompts asked where groups are flat" if waves > 1 else "")
        + f": at most {N * G * U:,} tokens drawn, {plan.steps * config.batch * G * U:,} replayed in updates",
        f"rewards: {', '.join(f'{row[0]} x {row[1]:g}' for row in config.rl.rewards)}; reference: {reference}",
        f"memory of a rollout, all devices together: keys and values of {rows} prompts of {S} tokens {gib(rows * S * cell)}, of {rows * G} "
        f"answers {gib(rows * G * U * cell)}; scores of one token of each {gib(rows * G * decoder.vocab * 4)} "
        f"(in updates, a token of each answer {gib(scores)})",
    ]
