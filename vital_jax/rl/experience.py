"""What a step learns from: answers of the policy of the moment, rewarded, compared within their groups, and read again.

    every M mu steps   G answers to each of the prompts that the step owns, chunk by chunk on the trainer's mesh; rewards of a chunk are
                       worked out while the next one decodes, and where flat groups are resampled, further waves of prompts follow
    every step         one of that rollout's M mini-batches, with the log-probabilities that the update compares with

A step owns a reserved block of prompts, `waves` times as many as it learns from, so which prompts a step asks depends on its number
alone. A rollout is a function of (weights, step, seed): one that was not saved is drawn again as it was. Updates move the weights, so in
the middle of them a checkpoint holds the rollout at hand; and it holds the reference, the trees that the run started from.
"""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vital_jax.latent.decode import Decoded
from vital_jax.latent.loop import Variables
from vital_jax.methods.base import Method
from vital_jax.pipeline.batch import Layout, Row, collate
from vital_jax.pipeline.feed import Feed
from vital_jax.rl import completions
from vital_jax.rl.advantages import Advantages, Normalisation, advantages
from vital_jax.rl.objective import Objective
from vital_jax.rl.replay import ROLLOUT, Replayed, drawn, replay
from vital_jax.rl.rollout import Rollout, Sampler, policy
from vital_jax.rl.scorer import Scorer
from vital_jax.training.partition import flatten, merge, unflatten
from vital_jax.training.sharding import place_batch, row_share

Rows = dict[str, np.ndarray]
Metrics = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How rollouts and updates follow on one another.

    Attributes:
      batch: B, prompts of an update. mini_batches: M, of a rollout. epochs: mu, how often each of them is learned from.
      waves: times M B prompts that a rollout may ask for, where flat groups are resampled. chunk: prompts of one decoding program; 0: M B.
      sync_every: steps after which the reference moves to `sync_mix` of the policy and the rest of itself; 0: never.
    """

    batch: int
    mini_batches: int = 1
    epochs: int = 1
    waves: int = 1
    chunk: int = 0
    sync_every: int = 0
    sync_mix: float = 0.6

    @property
    def prompts(self) -> int:
        """N, the prompts that a rollout is learned from."""
        return self.batch * self.mini_batches

    @property
    def steps(self) -> int:
        """Updates on one rollout."""
        return self.mini_batches * self.epochs

    @property
    def rows(self) -> int:
        """Prompts of one decoding program."""
        return self.chunk or self.prompts

    def syncs(self, step: int) -> bool:
        """Whether the reference moves before the rollout of this step."""
        every = self.sync_every
        return bool(every) and step > 0 and step // every > (step - self.steps) // every


def empty(objective: Objective, N: int, G: int, U: int) -> Rows:
    """Zeros for what updates read of N prompts' rollouts; in a batch, `rollout_` stands before each name."""
    columns: dict[str, type] = {"mode": np.int32, "tokens": np.int32, "mask": bool, "sampler": np.float32}
    columns |= {"old": np.float32} if objective.old == "replay" else {}
    columns |= {"old_entropy": np.float32} if objective.top_entropy < 1 else {}
    columns |= {"ref": np.float32} if objective.kl != "none" else {}
    found: Rows = {name: np.zeros((N, G, U), dtype) for name, dtype in columns.items()}
    return {**found, "advantage": np.zeros((N, G), np.float32)}


@dataclasses.dataclass(eq=False)
class Experience:
    """Makes the batches of a run, step after step: `experience(state, frozen, prompts, step)`.

    Attributes:
      method, sampler, feed: of the run. scorer: what answers are worth.
      schedule, objective, normalisation: the recipe's choices.
      micro_batches, mesh: as the train step takes them: a replay is the same program as the update's forward pass.
      folder: where rollouts are written. kept: where another run's are read instead of drawing any; None draws.
      merge_adapters: see `rollout.policy`. page_every: rollouts between pages; 0: none.
    """

    method: Method
    sampler: Sampler
    feed: Feed
    scorer: Scorer
    schedule: Schedule
    objective: Objective
    normalisation: Normalisation
    micro_batches: int
    mesh: Mesh
    folder: Path
    kept: Path | None = None
    merge_adapters: bool = False
    page_every: int = 1

    def __post_init__(self) -> None:
        self.part, self.parts = row_share(self.mesh)
        self.reference: dict[str, Any] = {}
        self._at, self._ended = -1, 0.0
        self.weights = {reward.name: reward.weight for reward in self.scorer.rewards}
        G, U = self.sampler.groups, self.sampler.columns
        self._rollout = empty(self.objective, self.schedule.prompts, G, U) | {
            "numbers": np.zeros(self.schedule.prompts, np.int32)
        }
        T, banned = self.sampler.decoding.temperature, self.sampler.banned

        def read(params: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> Replayed:
            return jax.lax.map(lambda rows: replay(self.method, params, rows, T, banned), batch)

        def mixed(old: Any, new: Any, share: float) -> Any:
            return jax.tree.map(lambda x, y: (1 - share) * x + share * y, old, new)

        self._replay, self._mixed = jax.jit(read), jax.jit(mixed, donate_argnums=0)

    # --- what a checkpoint holds --------------------------------------------------------------------------------------

    def carried(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """What a checkpoint holds beside the state: arrays on the mesh. state: of the run, for a reference yet to be taken."""
        everywhere = NamedSharding(self.mesh, PartitionSpec())

        def put(x: np.ndarray) -> jax.Array:
            return jax.make_array_from_callback(x.shape, everywhere, lambda index: x[index])

        found: dict[str, Any] = jax.tree.map(put, {"at": np.asarray(self._at, np.int32), "rollout": self._rollout})
        if self.objective.kl != "none":
            found["reference"] = self.reference or state["trainable"]
        return found

    def restore(self, found: Mapping[str, Any]) -> None:
        """Takes up what `carried` gave."""
        self.reference = dict(found.get("reference", {}))
        self._at, self._rollout = int(found["at"]), jax.tree.map(np.asarray, dict(found["rollout"]))

    # --- a step -------------------------------------------------------------------------------------------------------

    def __call__(
        self, state: Mapping[str, Any], frozen: Mapping[str, Any], prompts: Rows, step: int
    ) -> tuple[Rows, dict[str, float]]:
        """(this process's rows of the batch of the update after `step`, what there is to say of a new rollout).

        Args: prompts: this process's rows of the block that the rollout owns, as `Feed.phase` splits it into waves.
        Raises: RuntimeError for a step in the middle of a rollout that is not at hand.
        """
        jax.block_until_ready(state["step"])
        report, now = {}, time.monotonic()
        if self._ended:
            report["seconds/update"] = now - self._ended
        if self.objective.kl != "none" and not self.reference:
            self.reference = jax.tree.map(jnp.copy, state["trainable"])
        place = step % self.schedule.steps
        if self._at != step - place:
            if place:
                raise RuntimeError(f"step {step} learns from the rollout of step {step - place}, which is not at hand")
            if self.reference and self.schedule.syncs(step):
                self.reference = self._mixed(self.reference, state["trainable"], self.schedule.sync_mix)
            report |= self._new(merge(state["trainable"], frozen), prompts, step)
            self._at = step
        batch = self._mini_batch(place % self.schedule.mini_batches, prompts)
        self._ended = time.monotonic()
        return batch, report

    def _mini_batch(self, m: int, prompts: Rows, names: tuple[str, ...] = ()) -> Rows:
        """This process's rows of mini-batch m: prompts, and the rollout's arrays (these `names`, or all)."""
        own = self.schedule.batch // self.parts
        start = m * self.schedule.batch + self.part * own
        found = {name: x[start : start + own] for name, x in self._rollout.items()}
        rows = self._prompts(found.pop("numbers"), prompts)
        return rows | {f"{ROLLOUT}_{name}": x for name, x in found.items() if name in (names or found)}

    def _prompts(self, numbers: np.ndarray, prompts: Rows) -> Rows:
        """Prompts of these records: rows at hand, or made again."""
        at_hand = {int(number): place for place, number in enumerate(prompts["index"])}
        shape = (prompts["tokens"].shape[1], prompts["patches"].shape[1])
        bucket, make = self.feed.buckets.index(shape), self.feed.maker(Layout())

        def row(number: int) -> Row:
            place = at_hand.get(number)
            return make(number, bucket) if place is None else {name: x[place] for name, x in prompts.items()}

        return collate([row(int(number)) for number in numbers])

    # --- a rollout ----------------------------------------------------------------------------------------------------

    def _new(self, params: Mapping[str, Any], prompts: Rows, step: int) -> Metrics:
        """Draws the rollout of a step, and makes all that its updates read."""
        start = time.monotonic()
        if self.kept is not None:
            G, U = self.sampler.groups, self.sampler.columns
            drawn_all = completions.read(self.kept, step, self.feed.source, G, U, tuple(self.weights))
            report: Metrics = {}
        else:
            variables = policy(self.method.model, params, self.merge_adapters)
            drawn_all, report = self._sample(variables, prompts, step)
            del variables
        # Groups that differ come first, in the order of their prompts.
        order = np.argsort(self._judged(drawn_all).resample, kind="stable")[: self.schedule.prompts]
        rollout = Rollout(*(x[order] for x in drawn_all))
        if len(order) != self.schedule.prompts:
            raise ValueError(f"{len(order)} prompts in {self.kept} for a rollout of {self.schedule.prompts}")
        judged = self._judged(rollout)
        held = {"mode": rollout.mode, "tokens": rollout.tokens, "sampler": rollout.sampler, "numbers": rollout.numbers}
        held["advantage"] = judged.values
        held["mask"] = drawn({f"{ROLLOUT}_mode": rollout.mode}) & judged.counted[..., None]
        self._rollout |= held
        before = time.monotonic()
        self._rollout |= self._read_again(params, prompts)
        report["seconds/replay"] = time.monotonic() - before
        if self.kept is None and jax.process_index() == 0:
            self._write(rollout, judged, step)
        report["seconds/experience"] = time.monotonic() - start
        return self._said(drawn_all, rollout, judged) | report

    def _judged(self, rollout: Rollout) -> Advantages:
        """What the rewards of these groups teach."""
        rewards = {name: rollout.rewards[..., i] for i, name in enumerate(self.weights)}
        return advantages(self.normalisation, rewards, self.weights, ended=rollout.complete)

    def _sample(self, variables: Variables, prompts: Rows, step: int) -> tuple[Rollout, Metrics]:
        """Wave after wave, until enough groups teach something or the block is asked through."""
        seconds: Metrics = {"seconds/rollout": 0.0, "seconds/reward": 0.0}
        waves: list[Rollout] = []
        for wave in range(self.schedule.waves):
            waves.append(self._wave(variables, prompts, step, wave, seconds))
            found = Rollout(*(np.concatenate(parts) for parts in zip(*waves, strict=True)))
            if np.sum(~self._judged(found).resample) >= self.schedule.prompts:
                break
        tokens = float(np.sum(drawn({f"{ROLLOUT}_mode": found.mode})))
        return found, {
            **seconds,
            "waves": float(len(waves)),
            "tokens/s": tokens / max(seconds["seconds/rollout"], 1e-9),
        }

    def _wave(self, variables: Variables, prompts: Rows, step: int, wave: int, seconds: Metrics) -> Rollout:
        """One wave, all prompts in their order. A chunk is decoded while the rewards of the one before are worked out."""
        N, rows, parts = self.schedule.prompts, self.schedule.rows, self.parts
        own, n, k = self.part, N // parts, rows // parts
        chunks, start = range(N // rows), time.monotonic()
        # Prompts of the whole run, counted: draws depend on this number and on nothing else.
        first = (step // self.schedule.steps * self.schedule.waves + wave) * N
        found: list[Decoded] = []
        ahead: Decoded | None = None
        for c in (*chunks, None):
            following = None
            if c is not None:
                here = {name: x[wave * n + c * k :][:k] for name, x in prompts.items()}
                numbers = first + (np.arange(parts)[:, None] * n + c * k + np.arange(k)).reshape(-1)
                following = self.sampler.draw(variables, place_batch(here, self.mesh), numbers)
            if ahead is not None:
                found.append(Decoded(*map(_host, ahead)))
                asked = prompts["index"][wave * n + (len(found) - 1) * k :][:k]
                self._score(Decoded(*(x[own * k : (own + 1) * k] for x in found[-1])), asked, len(found))
            ahead = following
        decoded = time.monotonic()
        earned = np.stack([*self.scorer.result().values()], axis=-1).reshape(n, self.sampler.groups, -1)
        seconds["seconds/rollout"] += decoded - start
        seconds["seconds/reward"] += time.monotonic() - decoded  # beyond decoding

        def joined(name: str) -> np.ndarray:
            return _in_order(np.stack([getattr(chunk, name) for chunk in found]), parts)

        return Rollout(
            self._all(prompts["index"][wave * n : (wave + 1) * n]),
            joined("modes"),
            joined("tokens"),
            joined("log_probs"),
            joined("answer"),
            joined("complete"),
            self._all(earned.astype(np.float32)),
        )

    def _score(self, found: Decoded, numbers: np.ndarray, place: int) -> None:
        """Hands a chunk's answers to the threads that score them. numbers: of its records."""
        sampler = self.sampler
        replies = sampler.engine.replies(found, sampler.plan, sampler.decoding, len(numbers))
        records = [self.feed.source[int(number)] for number in numbers]
        self.scorer.add(
            place,
            [record for record, group in zip(records, replies, strict=True) for _ in group],
            [self.sampler.judged(reply) for group in replies for reply in group],
        )

    def _all(self, own: np.ndarray) -> np.ndarray:
        """The rows of all processes, from this one's."""
        return _host(place_batch({"rows": own}, self.mesh)["rows"])

    def _read_again(self, params: Mapping[str, Any], prompts: Rows) -> Rows:
        """What the policy and the reference think of the rollout, [N, G, U] each, by mini-batches."""
        wanted = {"old": (params, "log_probs"), "old_entropy": (params, "entropy")}
        if self.reference:
            wanted["ref"] = unflatten({**flatten(params), **flatten(self.reference)}), "log_probs"
        wanted = {name: asked for name, asked in wanted.items() if name in self._rollout}
        parts: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
        for m in range(self.schedule.mini_batches) if wanted else ():
            rows = self._mini_batch(m, prompts, ("mode", "tokens"))
            micro = {name: x.reshape(self.micro_batches, -1, *x.shape[1:]) for name, x in rows.items()}
            batch = place_batch(micro, self.mesh, micro_batches=True)
            found = {id(weights): self._replay(weights, batch) for weights, _ in wanted.values()}
            for name, (weights, field) in wanted.items():
                parts[name].append(_in_order(_host(getattr(found[id(weights)], field)), self.parts))
        return {name: np.concatenate(each) for name, each in parts.items()}

    # --- what is said of it -------------------------------------------------------------------------------------------

    def _write(self, rollout: Rollout, judged: Advantages, step: int) -> None:
        number, every = step // self.schedule.steps, self.page_every
        records = [self.feed.source[int(n)] for n in rollout.numbers]
        sampler = self.sampler
        replies = sampler.engine.replies(rollout.decoded, sampler.plan, sampler.decoding, len(records))
        found = completions.lines(rollout, replies, records, tuple(self.weights), judged.values)
        completions.write(self.folder, step, found, records, bool(every) and number % every == 0)

    def _said(self, asked: Rollout, rollout: Rollout, judged: Advantages) -> Metrics:
        """Scalars of a rollout: of all prompts that were asked, and what is learned from of them."""
        weights = np.asarray(list(self.weights.values()))
        total = asked.rewards @ weights
        length = np.sum(drawn({f"{ROLLOUT}_mode": asked.mode}), axis=-1)
        said = {
            "reward": total.mean(),
            "reward_std": total.std(axis=1).mean(),
            "flat_groups": self._judged(asked).flat.mean(),
            "counted": judged.counted.mean(),
            "prompts": len(asked.numbers),
            "unique_prompts": len(np.unique(asked.numbers)),
            "length": length.mean(),
            "length_longest": length.max(),
            "complete": asked.complete.mean(),
        }
        for i, name in enumerate(self.weights):
            said |= {f"reward/{name}": asked.rewards[..., i].mean(), f"reward_std/{name}": asked.rewards[..., i].std()}
        return {name: float(value) for name, value in said.items()}


def _host(x: Any) -> np.ndarray:
    """A whole array on the host of every process."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def _in_order(x: np.ndarray, parts: int) -> np.ndarray:
    """[C, parts k, ...], chunks in which each part has its own k rows, as [parts C k, ...], each part's rows behind one another."""
    C, rows = x.shape[:2]
    split = x.reshape(C, parts, rows // parts, *x.shape[2:])
    return np.moveaxis(split, 1, 0).reshape(C * rows, *x.shape[2:])
