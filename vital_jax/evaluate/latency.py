"""How long an answer takes and where the time goes, for K = 0..4, direct and with a chain of thought in text (VITAL section 4.3, Figure 4).

Three things are timed for the same rows, one after the other in every round and in another order each time, so that a slow minute of the
machine hits all alike and a ratio belongs to one round:

    one program    `respond`, what users run
    stages         the same functions, each a program of its own that is waited for: image, prefill, latent, decode
    transformers   (where asked) the same weights, rows and numbers of tokens in another process: evaluate/latency_torch.py

Before any clock runs, all of them have to write the same tokens. The stages together take longer than the one program, since what one
leaves for the next goes through memory; the difference is stated. The latent stage ends with the choice of the first token. Answers of
fixed length make K comparable: an end token that no vocabulary holds never comes. Free answers stop where the model stops, so their time
also says how long its answers are. No token is banned, since transformers bans none.
"""

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vital_jax.latent.choose import Decoding, Sampling
from vital_jax.latent.decode import Asked, Decoded, Plan, State, decoded, proceed, respond, start
from vital_jax.latent.decode import Rows as Answers
from vital_jax.latent.engine import Engine, Request
from vital_jax.latent.loop import Prompt, Variables, embed, prefill
from vital_jax.models.backbone import Backbone
from vital_jax.pipeline.segments import LATENT

STAGES = ("image", "prefill", "latent", "decode")
FORMS = {"eager": "eager, dynamic cache", "compiled": "torch.compile, static cache"}  # of transformers
NEVER = -1  # an end token that cannot come
# Logits nearer than this may fall either way: the two sides round after other operations, and the loop feeds its rounding back.
TIE = {"float32": 1e-3, "bfloat16": 2.0**-3}
_PAUSE = 0.01  # seconds; threads that wait for more work go to sleep before the other side's turn

Rows = dict[str, np.ndarray]
_embed = jax.jit(embed, static_argnums=0)
_prefill = jax.jit(prefill, static_argnums=0)


@dataclass(frozen=True)
class Cell:
    """One way to answer, that is timed.

    Attributes:
      batch: most rows at once. latent_steps: K. answer: T, every answer's length; None: until it ends.
      chain: tokens of reasoning in text written before the answer.
    """

    batch: int
    latent_steps: int
    answer: int | None
    chain: int = 0

    @property
    def name(self) -> str:
        """As tables call it."""
        if self.chain:
            return f"chain of thought, {self.chain} tokens"
        return f"K = {self.latent_steps}" if self.latent_steps else "direct, K = 0"

    def decoding(self, longest: int, ends: tuple[int, ...]) -> Decoding:
        """Greedy; where the length is fixed no token ends it. longest: T of free answers."""
        return Decoding((self.answer or longest) + self.chain, (NEVER,) if self.answer else ends)


@dataclass
class Timed:
    """What was measured of a cell.

    Attributes:
      rows: in all batches together. tokens: written for a row, its mean.
      times: seconds per row of every round, by part: a stage, `program`, `host` (image files to arrays), and of transformers `eager` and
        `compiled` as well as their stages (`eager/image`).
      agree: rows whose tokens are those of the one program, by who wrote them. apart: the largest difference of these tokens' natural
        log-probabilities, by form of transformers.
      failed: a form of transformers that cannot run here, and why.
    """

    cell: Cell
    rows: int
    tokens: float
    times: dict[str, list[float]] = field(default_factory=dict)
    agree: dict[str, int] = field(default_factory=dict)
    apart: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, part: str, seconds: float) -> None:
        """A round's seconds over all rows."""
        self.times.setdefault(part, []).append(seconds / self.rows)


@functools.partial(jax.jit, static_argnames=("model", "plan"))
def _latents(
    model: Backbone, variables: Variables, batch: Rows, prompt: Prompt, z0: jax.Array, plan: Plan, sampling: Sampling
) -> tuple[Asked, Answers]:
    """The latents of every row, and the choice of its first token."""
    state = start(model, variables, batch, prompt, z0, plan, sampling)
    return state.asked, proceed(model, variables, state, plan, only=LATENT)


@functools.partial(jax.jit, static_argnames=("model", "plan"))
def _decode(
    model: Backbone, variables: Variables, prompt: Prompt, z0: jax.Array, asked: Asked, rows: Answers, plan: Plan
) -> Decoded:
    """The rest of the answers."""
    return decoded(proceed(model, variables, State(prompt, asked, None, rows), plan), z0)


# --- our side -------------------------------------------------------------------------------------------------------


def program(engine: Engine, variables: Variables, batches: Sequence[Rows], K: int, decoding: Decoding):
    """The one program over all batches, results fetched as `Engine.ask` fetches them: (seconds, tokens, log_probs), [rows, T] each."""
    begun = time.perf_counter()
    plan = engine.plan(K, decoding.length)
    found = [
        jax.device_get(respond(engine.model, variables, rows, plan, decoding.rows(len(rows["lengths"]))))
        for rows in batches
    ]
    seconds = time.perf_counter() - begun
    return seconds, *map(np.concatenate, zip(*(_answers(x, decoding) for x in found), strict=True))


def _answers(found: Decoded, decoding: Decoding) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and log-probabilities [B, T] of one answer a prompt; the first end token fills what follows."""
    tokens, log_probs = found.answers(decoding.length, decoding.ends[0])
    return tokens[:, 0], log_probs[:, 0]


def stages(engine: Engine, variables: Variables, batches: Sequence[Rows], K: int, decoding: Decoding):
    """The same, stage by stage: ({stage: seconds}, tokens [rows, T])."""
    seconds, tokens, plan = dict.fromkeys(STAGES, 0.0), [], engine.plan(K, decoding.length)
    for rows in batches:
        marks = [time.perf_counter()]

        def ready(found: Any, marks: list[float] = marks) -> Any:
            jax.block_until_ready(found)
            marks.append(time.perf_counter())
            return found

        prefix = ready(_embed(engine.model, variables, rows))
        z0, prompt = ready(_prefill(engine.model, variables, prefix, rows["next_position"]))
        sampling = decoding.rows(len(rows["lengths"]))
        asked, answers = ready(_latents(engine.model, variables, rows, prompt, z0, plan, sampling))
        found = _decode(engine.model, variables, prompt, z0, asked, answers, plan)
        tokens.append(_answers(ready(jax.device_get(found)), decoding)[0])
        for stage, (begun, end) in zip(STAGES, pairwise(marks), strict=True):
            seconds[stage] += end - begun
    return seconds, np.concatenate(tokens)


# --- the other side -------------------------------------------------------------------------------------------------


def for_torch(rows: Rows) -> Rows:
    """A batch as transformers takes it: prompts padded on the left to the longest, patches one after the other without padding.

    Returns: ids, mask [B, S'] int64; patches [n, width] float32; grids [images, 3] int64 (1, rows, columns); next_position [B] int64.
    """
    lengths, S = rows["lengths"], int(rows["lengths"].max())
    ids, mask = np.zeros((2, len(lengths), S), np.int64)
    grids = []
    for b, n in enumerate(lengths):
        ids[b, S - n :], mask[b, S - n :] = rows["tokens"][b, :n], 1
        for image in range(1, int(rows["patch_segment"][b].max(initial=0)) + 1):
            grids.append((1, *(rows["patch_coords"][b][rows["patch_segment"][b] == image].max(0) + 1)))
    return {
        "ids": ids,
        "mask": mask,
        "patches": rows["patches"][rows["patch_segment"] > 0],
        "grids": np.asarray(grids, np.int64),
        "next_position": rows["next_position"].astype(np.int64),
    }


class Reference:
    """transformers in a process of its own; a context manager.

    Args:
      folder: whole weights in the Hugging Face layout. dtype: what both sides compute in. device: cpu or cuda.
    Raises: RuntimeError with its last line where it fails.
    """

    def __init__(self, folder: str | Path, dtype: str, device: str):
        self.dtype = dtype
        self._scratch = tempfile.TemporaryDirectory()
        self._errors = (Path(self._scratch.name) / "errors").open("w+", encoding="utf-8")
        command = [sys.executable, "-m", "vital_jax.evaluate.latency_torch"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, encoding="utf-8"
        )
        try:
            self.facts = self._ask(do="open", folder=str(folder), dtype=dtype, device=device, threads=threads())
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "Reference":
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # it may have ended before its last request was sent
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()
        self._scratch.cleanup()

    def _ask(self, **request: Any) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._errors.seek(0)
            lines = self._errors.read().strip().splitlines() or ["no message"]
            raise RuntimeError(f"the process of transformers ended: {lines[-1]}")
        found = json.loads(line)
        if "error" in found:
            raise RuntimeError(f"transformers: {found['error']}")
        return found

    def read(self, batches: Sequence[Rows]) -> None:
        """Hands over the rows that are answered from here on."""
        path = Path(self._scratch.name) / "rows.npz"
        arrays = {f"{b}/{name}": x for b, rows in enumerate(batches) for name, x in for_torch(rows).items()}
        np.savez(path, batches=len(batches), **arrays)
        self._ask(do="read", path=str(path))

    def answer(self, form: str, steps: int, decoding: Decoding, check: bool = False) -> dict[str, Any]:
        """As `latency_torch.Reference.answer`."""
        ends = [token for token in decoding.ends if token != NEVER]
        return self._ask(do="answer", form=form, steps=steps, length=decoding.length, ends=ends, check=check)


def threads() -> int:
    """Cores this process may use, which is what XLA takes on a CPU."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def strays(ours: np.ndarray, theirs: np.ndarray, margins: np.ndarray, tie: float) -> list[tuple[int, int]]:
    """(row, token) of the first difference of each row that no near tie explains; all arrays [rows, T], margins of their choices."""
    found = []
    for row in np.flatnonzero((ours != theirs).any(1)):
        t = int(np.argmax(ours[row] != theirs[row]))
        if margins[row, t] >= tie:
            found.append((int(row), t))
    return found


# --- measuring ------------------------------------------------------------------------------------------------------


def grid(
    batches: Sequence[int], latent_steps: Sequence[int], answers: Sequence[int | None], chain: int = 0
) -> list[Cell]:
    """Every combination, and where there is a fixed length the chain of thought in text: K = 0, `chain` tokens before the answer."""
    cells = []
    for batch in batches:
        for answer in answers:
            cells += [Cell(batch, K, answer) for K in latent_steps]
            cells += [Cell(batch, 0, answer, chain)] if chain and answer else []
    return cells


def measure(
    engine: Engine,
    variables: Variables,
    requests: Sequence[Request],
    cells: Iterable[Cell],
    repeats: int,
    warmup: int = 2,
    *,
    longest: int = 16,
    reference: Reference | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Timed]:
    """Times every cell.

    Args:
      requests: what is asked; taken again from the first where a batch is larger. longest: T of free answers.
      repeats: rounds that count, after `warmup` rounds that do not (one more has compiled and compared).
      reference: transformers to time beside ours. say: takes a line of progress.
    Raises: ValueError as `Engine.batches`; RuntimeError where transformers writes other tokens in float32, or its process fails.
    """
    done, cells = [], list(cells)
    for size in dict.fromkeys(cell.batch for cell in cells):
        asked = [requests[i % len(requests)] for i in range(max(size, len(requests)))]
        batches = [rows for _, rows in engine.batches(asked, 0, batch=size)]
        if reference:
            reference.read(batches)
        clocks = []
        for cell in (cell for cell in cells if cell.batch == size):
            say(f"batch {size}, {cell.name}, {_length(cell)}: compiling and comparing")
            clocks.append(_Clock(engine, variables, batches, cell, longest, reference))
        for number in range(warmup + repeats):
            say(f"batch {size}: round {number + 1} of {warmup + repeats}")
            start = time.perf_counter()
            for _ in engine.batches(asked, 0, batch=size):
                pass
            host = (time.perf_counter() - start) / len(asked)
            for clock in clocks:
                clock.round(number, counts=number >= warmup)
                if number >= warmup:
                    clock.timed.times.setdefault("host", []).append(host)
        done += [clock.timed for clock in clocks]
    return done


def _length(cell: Cell) -> str:
    return f"answers of {cell.answer} tokens" if cell.answer else "free answers"


class _Clock:
    """A cell with all that answers it; compiled and compared when made."""

    def __init__(
        self,
        engine: Engine,
        variables: Variables,
        batches: Sequence[Rows],
        cell: Cell,
        longest: int,
        reference: Reference | None,
    ):
        K, decoding = cell.latent_steps, cell.decoding(longest, engine.ends)
        batches = [{**rows, "latent_steps": np.full_like(rows["latent_steps"], K)} for rows in batches]
        common = engine, variables, batches, K, decoding
        self.sides: dict[str, Callable[[], dict[str, float]]] = {
            "program": lambda: {"program": program(*common)[0]},
            "stages": lambda: stages(*common)[0],
        }
        _, tokens, log_probs = program(*common)
        ended = np.isin(tokens, decoding.ends)
        written = np.where(ended.any(1), ended.argmax(1) + 1, tokens.shape[1])
        self.timed = Timed(cell, len(tokens), float(written.mean()))
        _, staged = stages(*common)
        self.timed.agree["stages"] = int((staged == tokens).all(1).sum())
        for form in FORMS if reference else ():
            try:
                found = reference.answer(form, K, decoding, check=True)
            except RuntimeError as error:
                if form == "eager":
                    raise
                self.timed.failed[form] = str(error)
                continue
            theirs, margins = np.asarray(found["tokens"]), np.asarray(found["margins"])
            equal = (theirs == tokens).all(1)
            self.timed.agree[form] = int(equal.sum())
            counted = equal[:, None] & (np.arange(tokens.shape[1]) < written[:, None])
            apart = np.abs(log_probs - np.asarray(found["log_probs"]))
            self.timed.apart[form] = float(np.max(apart, where=counted, initial=0.0))
            different = strays(tokens, theirs, margins, TIE[reference.dtype])
            if different and reference.dtype == "float32":
                row, t = different[0]
                raise RuntimeError(
                    f"{cell.name}, {_length(cell)}: row {row} is answered otherwise by transformers ({FORMS[form]}) from token {t + 1} on "
                    f"({tokens[row, t]} here, {theirs[row, t]} there, {margins[row, t]:.2g} above its second choice); "
                    "the two do not do the same work, so their times are not compared"
                )
            self.sides[form] = lambda form=form: _named(form, reference.answer(form, K, decoding)["seconds"])

    def round(self, number: int, counts: bool) -> None:
        """Every side once, in an order that turns with the round."""
        names = list(self.sides)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            time.sleep(_PAUSE)
            for part, seconds in self.sides[name]().items():
                if counts:
                    self.timed.add(part, seconds)


def _named(form: str, seconds: dict[str, float]) -> dict[str, float]:
    return {form: sum(seconds.values())} | {f"{form}/{stage}": value for stage, value in seconds.items()}


# --- arithmetic -----------------------------------------------------------------------------------------------------


class Spread(NamedTuple):
    """Median and quartiles of n rounds."""

    low: float
    median: float
    high: float
    n: int


class Slope(NamedTuple):
    """Seconds per row and latent step, its standard error, and the number of points."""

    value: float
    error: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    """Of a part's rounds."""
    return Spread(*map(float, np.quantile(values, (0.25, 0.5, 0.75))), len(values))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Of ours to theirs, round by round. Raises: ValueError where they have not as many rounds."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} rounds of ours and {len(theirs)} of theirs")
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def slope(steps: Sequence[float], seconds: Sequence[float]) -> Slope:
    """Least squares of time against K. Raises: ValueError for fewer than three points or one K."""
    x, y = np.asarray(steps, float), np.asarray(seconds, float)
    if len(x) < 3 or len(set(steps)) < 2:
        raise ValueError(f"a slope needs three points and two values of K; there are {len(x)} and {len(set(steps))}")
    away = x - x.mean()
    value = float(away @ y / (away @ away))
    rest = y - y.mean() - value * away
    return Slope(value, float(np.sqrt(rest @ rest / (len(x) - 2) / (away @ away))), len(x))


def slopes(timed: Iterable[Timed]) -> dict[tuple[int, int, str], Slope]:
    """By (batch, length of the answer, part): of the one program, of each form of transformers, and of the latent stage of each alone.

    The whole's is what a user waits for; the stage's is the sharper one, since what the image tower takes moves it not. Free answers are
    left out: their length differs with K.
    """
    points: dict[tuple[int, int, str], list[tuple[int, float]]] = {}
    for one in timed:
        cell = one.cell
        for part in ("program", "latent", *(part for form in FORMS for part in (form, f"{form}/latent"))):
            if cell.answer and not cell.chain and part in one.times:
                own = points.setdefault((cell.batch, cell.answer, part), [])
                own += [(cell.latent_steps, seconds) for seconds in one.times[part]]
    return {
        key: slope(*zip(*own, strict=True))
        for key, own in points.items()
        if len(own) > 2 and len({K for K, _ in own}) > 1
    }
