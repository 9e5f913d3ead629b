"""Puts a benchmark to a model: every question is looked at before the first is asked, and answers are kept batch by batch.

A question that cannot be asked (no image, a damaged one, a control token in its text) would otherwise stop a run hours in, so all images
are decoded once at the start. Questions are then grouped by the shape of their program, large shapes first. A group depends on the
questions and the batch alone, and so do its draws where answers are drawn; after a kill the groups that are answered are passed over.

Latency is a batch's seconds over its rows, reading and patching of images included, without what JAX spent on making programs, as its own
events tell. What else a program's first call costs (about a second) stays in that batch, so medians are reported.
"""

import dataclasses
import hashlib
import math
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, median
from typing import IO, Any

import jax
import numpy as np

from vital_jax.evaluate.answers import Answers
from vital_jax.evaluate.evidence import latents
from vital_jax.evaluate.items import Item
from vital_jax.evaluate.looking import Faults, Looked, look, steps_of, suits, window_of
from vital_jax.evaluate.protocols.core import Protocol
from vital_jax.evaluate.score import Row
from vital_jax.latent.choose import Decoding
from vital_jax.latent.engine import Engine, Reply, in_order
from vital_jax.latent.loop import Variables

# Of [rows, K, D] latents, the text of each step of each row.
Reader = Callable[[np.ndarray], list[list[str]]]


@dataclass(frozen=True)
class Asking:
    """How questions are put.

    Attributes:
      protocol: its prompt, system turn and second turn are used. latent_steps, eval_k: as `Engine.ask`.
      decoding: of every turn. batch: rows of a program. seed: of the draws, where the temperature is not 0.
    """

    protocol: Protocol
    latent_steps: int
    decoding: Decoding
    eval_k: str = "fixed"
    batch: int = 8
    seed: int = 0

    def settings(self) -> dict[str, Any]:
        """What the answers depend on, as JSON. Greedy ones depend on no batch and no seed."""
        made = {"protocol": self.protocol.label, "K": self.latent_steps, "eval_k": self.eval_k}
        drawn = {"temperature": self.decoding.temperature, "top_p": self.decoding.top_p}
        drawn |= {"seed": self.seed, "batch": self.batch} if self.decoding.temperature else {}
        return made | {"decoding": {"max_new_tokens": self.decoding.length, **drawn}}

    def engine(self, engine: Engine) -> Engine:
        """The engine with the protocol's system turn; a protocol without one leaves it to the model's own."""
        if not self.protocol.system:
            return engine
        return dataclasses.replace(engine, encoder=dataclasses.replace(engine.encoder, system=self.protocol.system))


@dataclass(frozen=True)
class Asked:
    """An item as the engine takes it; its images are read when they are looked at.

    Attributes:
      item: whose images are shown. question: the user's turn. earlier: (question, answer) of the turns before it.
    """

    item: Item
    question: str
    earlier: tuple[tuple[str, str], ...] = ()
    chain: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(init=False)

    def __post_init__(self):
        kept = {"window": window_of(self.item), "latent_steps": steps_of(self.item)}
        object.__setattr__(self, "metadata", {key: value for key, value in kept.items() if value is not None})

    @property
    def id(self) -> str:
        """The item's."""
        return self.item.id

    @cached_property
    def images(self) -> tuple[bytes, ...]:
        """Encoded. Raises: as `Item.pictures`."""
        return self.item.pictures()


# --- before the first question --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Questions that can be asked.

    Attributes:
      items, shapes: in the benchmark's order, and the program (S, P) of each.
      faults: (code, item's id, why) of what cannot be asked. digest: of ids, prompts and images of the rest.
    """

    items: list[Item]
    shapes: list[tuple[int, int]]
    faults: Faults
    digest: str


def check(engine: Engine, items: Sequence[Item], asking: Asking, looked: Looked | None = None) -> Plan:
    """Looks at every question and decodes every image once, unless `looked` holds what `looking.look` found.

    To its codes comes not-a-prompt (a control token in the text).
    Raises: as `looking.suits`.
    """
    protocol, engine = asking.protocol, asking.engine(engine)
    suits(items, protocol, asking.eval_k)
    looked = look(items) if looked is None else looked
    kept, shapes, faults = [], [], []
    digest = hashlib.sha256()
    for item in items:
        found = looked[item.id]
        bad = next((one for one in found if one[0]), None)
        if bad is None:
            try:
                asked = Asked(item, protocol.prompt(item))
                shapes.append(engine.shape(asked))
            except ValueError as error:
                bad = ("not-a-prompt", str(error))
        if bad:
            faults.append((bad[0], item.id, bad[1]))
            continue
        kept.append(item)
        digest.update(repr((item.id, asked.question, [one[1] for one in found], asked.metadata)).encode())
    return Plan(kept, shapes, faults, digest.hexdigest()[:16])


# --- asking ---------------------------------------------------------------------------------------------------------


def answer(
    engine: Engine,
    variables: Callable[[], Variables],
    plan: Plan,
    asking: Asking,
    answers: Answers,
    read: Reader | None = None,
    out: IO[str] | None = None,
) -> None:
    """Asks what `answers` lacks and keeps each batch's rows there.

    A row: id, prediction, K, tokens (their number), log_prob (of them all), latency (seconds), complete; the steps' texts with `read`; and
    of a protocol with two turns `first`, the first reply. There tokens, log_prob and latency are of both turns.

    Args:
      variables: as `variables_of` makes them; called when the first question is asked. out: where the progress line goes.
    Raises: ValueError where the folder holds answers to other questions; RuntimeError where memory does not hold a batch.
    """
    engine = asking.engine(engine)
    if strangers := answers.rows.keys() - {item.id for item in plan.items}:
        raise ValueError(
            f"{answers.folder}: {len(strangers)} answers belong to no question, the first {min(strangers)!r}; "
            "name another folder"
        )
    line, model = Line(len(plan.items), len(answers.rows), out or sys.stderr), None
    with Making() as making:
        for group, full in _groups(plan, asking.batch):
            left = [item for item in group if item.id not in answers.rows]
            if not left:
                continue
            model = variables() if model is None else model
            making.seconds()
            start = time.monotonic()
            try:
                turns = _turns(engine, model, left, full, asking)
            except RuntimeError as error:
                if "RESOURCE_EXHAUSTED" in str(error):
                    raise RuntimeError(
                        f"no memory for {asking.batch} rows of this size: ask with a smaller batch; what is answered is kept"
                    ) from error
                raise
            seconds = time.monotonic() - start - making.seconds()
            said = _read(turns[-1], asking.latent_steps, full, read) if read else [None] * len(left)
            rows = zip(left, zip(*turns, strict=True), said, strict=True)
            answers.append([_row(item, replies, seconds / len(left), steps) for item, replies, steps in rows])
            line.add(len(left), seconds)
    line.close()


def _groups(plan: Plan, batch: int) -> Iterator[tuple[list[Item], int]]:
    """Questions of one shape, `batch` at a time, and the rows of their program: those of the others of that shape."""
    shapes: dict[tuple[int, int], list[Item]] = defaultdict(list)
    for item, shape in zip(plan.items, plan.shapes, strict=True):
        shapes[shape].append(item)
    for _, items in sorted(shapes.items(), key=lambda pair: pair[0], reverse=True):
        full = batch if len(items) > batch else 1 << (len(items) - 1).bit_length()
        yield from ((items[start : start + batch], min(full, batch)) for start in range(0, len(items), batch))


def _turns(engine: Engine, variables: Variables, items: Sequence[Item], full: int, asking: Asking) -> list[list[Reply]]:
    """The replies of each turn."""
    protocol = asking.protocol
    turns = [[Asked(item, protocol.prompt(item)) for item in items]]
    replies = [_ask(engine, variables, turns[0], full, asking)]
    if protocol.follow_up:
        said = [_plain(reply.text, engine.encoder.prompter.control_tokens) for reply in replies[0]]
        earlier = [((asked.question, text),) for asked, text in zip(turns[0], said, strict=True)]
        turns.append([Asked(item, protocol.follow_up(item), turn) for item, turn in zip(items, earlier, strict=True)])
        # One program for all of them, however long the first replies are.
        S, P = map(max, zip(*map(engine.shape, turns[1]), strict=True))
        engine = dataclasses.replace(engine, buckets=((S, P),))
        replies.append(_ask(engine, variables, turns[1], full, asking))
    return replies


def _plain(text: str, control: Sequence[str]) -> str:
    """A reply as a part of the next prompt, which control tokens would change."""
    for token in control:
        text = text.replace(token, " ")
    return text


def _ask(engine: Engine, variables: Variables, asked: list[Asked], full: int, asking: Asking) -> list[Reply]:
    """Replies in order. Filled up to the rows of the shape's program, and drawn by the group's first question: no other run of this group
    makes another program or other draws."""
    seed = zlib.crc32(f"{asking.seed}/{len(asked[0].earlier)}/{asked[0].id}".encode()) >> 1
    rows = asked + asked[-1:] * (full - len(asked))
    found = engine.ask(variables, rows, asking.latent_steps, asking.decoding, asking.eval_k, full, seed=seed)
    return in_order(found)[: len(asked)]


def _read(replies: Sequence[Reply], K: int, full: int, read: Reader) -> list[list[str]]:
    if not K:
        return [[] for _ in replies]
    z, _ = latents(replies, K)
    said = read(np.pad(z, ((0, full - len(z)), (0, 0), (0, 0))))
    return [steps[: reply.latent_steps] for steps, reply in zip(said, replies, strict=False)]


def _row(item: Item, turns: Sequence[Reply], seconds: float, steps: list[str] | None) -> Row:
    log_prob = sum(reply.log_prob for reply in turns)
    row: Row = {"id": item.id, "prediction": turns[-1].text, "K": turns[-1].latent_steps}
    row |= {"tokens": sum(len(reply.tokens) for reply in turns)}
    row |= {"log_prob": round(log_prob, 6) if math.isfinite(log_prob) else None, "latency": round(seconds, 6)}
    row |= {"complete": all(reply.complete for reply in turns)}
    row |= {"first": turns[0].text} if len(turns) > 1 else {}
    return row if steps is None else row | {"steps": steps}


# --- time -----------------------------------------------------------------------------------------------------------


class Making:
    """Counts the seconds in which JAX makes programs: traces, lowers, compiles, or reads them from its cache. A context manager."""

    def __init__(self):
        self._spans: list[tuple[float, float]] = []

    def __enter__(self) -> "Making":
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def __exit__(self, *_) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)

    def _note(self, event: str, seconds: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            now = time.monotonic()
            self._spans.append((now - seconds, now))

    def seconds(self) -> float:
        """Since the last look; what lies within another span counts once."""
        total, end = 0.0, -math.inf
        for start, stop in sorted(self._spans):
            total += max(0.0, stop - max(start, end))
            end = max(end, stop)
        self._spans.clear()
        return total


class Line:
    """Answered of all, items per second and time left: rewritten in place on a terminal, elsewhere a line every half minute.

    Args:
      total: questions. done: those answered by an earlier process. out: a text stream.
    """

    def __init__(self, total: int, done: int, out: IO[str]):
        self._total, self._done, self._out = total, done, out
        self._asked, self._seconds, self._last, self._width = 0, 0.0, -math.inf, 0
        self._terminal = out.isatty()
        if done:
            out.write(f"{done} of {total} are answered already\n")

    def add(self, items: int, seconds: float) -> None:
        """After a batch; `seconds` without those in which programs were made."""
        self._done, self._asked, self._seconds = self._done + items, self._asked + items, self._seconds + seconds
        if self._done < self._total and time.monotonic() - self._last < (0.2 if self._terminal else 30):
            return
        self._last = time.monotonic()
        rate = self._asked / max(self._seconds, 1e-9)
        left = round((self._total - self._done) / rate)
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        text = f"answered {self._done}/{self._total}  {rate:.3g} items/s  {clock} left"
        self._out.write(f"\r{text:<{self._width}}" if self._terminal else f"{text}\n")
        self._out.flush()
        self._width = len(text)

    def close(self) -> None:
        """Leaves the line standing."""
        if self._terminal and self._width:
            self._out.write("\n")
            self._out.flush()


def left_out(faults: Sequence[tuple[str, str, str]], total: int) -> str:
    """What a table says of questions that were not asked; "" for none."""
    counts = Counter(code for code, _, _ in faults)
    named = ", ".join(f"{number} {code}" for code, number in sorted(counts.items()))
    return f"only the {total - len(faults)} of {total} questions that can be asked ({named})" if faults else ""


def summary(rows: Mapping[str, Row]) -> dict[str, float]:
    """Mean tokens, median latency in seconds and share of complete answers over an evaluation's rows. Raises: ValueError for none."""
    if not rows:
        raise ValueError("no answers")
    tokens, latency, complete = zip(
        *((row["tokens"], row["latency"], row["complete"]) for row in rows.values()), strict=True
    )
    return {"tokens": fmean(tokens), "latency": median(latency), "complete": fmean(complete)}
