"""Do the latents matter? A trained run asked again with one thing changed at a time, and what its latents hold.

Published numbers of latent reasoning leave open whether the latents do anything (methods that keep their accuracy with noise in the slots
are many). So the same questions are asked with other vectors in the slots, with another number of steps, about other pictures; then the
latents themselves are measured, and the confidence of the answers. Nothing here says that a run reasons: it says what its answers do not
depend on.

Everything is one program per shape: a row's steps are data, so every K from 1 up runs in the program of the largest, and only K = 0 and
the vectors that are given need programs of their own. What was answered is on disk before the next audit begins.
"""

import hashlib
import json
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vital_jax.construct.pages import write_text
from vital_jax.evaluate import audit_table as table
from vital_jax.evaluate import evidence, mirror, steps_held
from vital_jax.evaluate.audit_groups import LESS, MORE, Compared, by_group, groups_of
from vital_jax.evaluate.audit_words import EACH_OWN, sentences
from vital_jax.evaluate.calibration import calibration
from vital_jax.evaluate.geometry import shape_of
from vital_jax.evaluate.preview import shuffled
from vital_jax.evaluate.replacements import ABOUT, ORACLE, replacements
from vital_jax.evaluate.score import CHANCE, chance, frequent, majority
from vital_jax.evaluate.text_floor import Reader, taught, text_floors, written
from vital_jax.latent.engine import OWN_K, Engine, Reply, in_order, with_images
from vital_jax.latent.loop import variables_of
from vital_jax.latent.scaffold import VisualProjector
from vital_jax.pipeline.feed import Feed
from vital_jax.pipeline.records import Record, ids_hash
from vital_jax.scoring.text import normalise

VERSION = 2  # of what is asked and stored: a file of another version is not gone on with
CONFIDENCES = ("probability of the answer", "probability per token")


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained run and the questions it is asked.

    Attributes:
      engine: asks. params: {base, lora?, ...}. feed, numbers: the records, and which of them.
      max_steps: the most steps the run was trained with. latent_steps, eval_k: how the unchanged run answers: that many steps for all
        (`fixed`), or each record's own, at most so many (`per_sample`).
      length: T, the most tokens of an answer. batch: rows of every program. seed: of the draws.
      by: a metadata key whose groups of records have accuracies of their own; "" for none.
      reader: the run's text decoder, if any. visual: its projector and the projector's parameters, if any.
    """

    engine: Engine
    params: Mapping[str, Any]
    feed: Feed
    numbers: Sequence[int]
    max_steps: int
    latent_steps: int
    eval_k: str
    length: int
    batch: int = evidence.BATCH
    seed: int = 0
    by: str = ""
    reader: Reader | None = None
    visual: tuple[VisualProjector, Mapping[str, Any]] | None = None

    @cached_property
    def records(self) -> list[Record]:
        """The questions."""
        return [self.feed.source[int(number)] for number in self.numbers]

    @cached_property
    def own_steps(self) -> list[int]:
        """Each record's own number of steps, at most `max_steps`; that where it states none."""
        return [min(record.latent_steps or self.max_steps, self.max_steps) for record in self.records]

    @cached_property
    def groups(self) -> list[str]:
        """Each record's, by `by`. Raises: ValueError as `groups_of`."""
        return groups_of([record.metadata for record in self.records], self.by)

    @cached_property
    def steps(self) -> list[int]:
        """K_i of the unchanged run."""
        if self.eval_k == "fixed":
            return [self.latent_steps] * len(self.numbers)
        return [min(own, self.latent_steps) for own in self.own_steps]

    @cached_property
    def images(self) -> list[str]:
        """What questions about one picture (or patient) share."""
        digest = lambda record: hashlib.sha256(b"".join(record.images)).hexdigest()  # noqa: E731
        return [str(record.metadata.get("group") or digest(record)) for record in self.records]

    def ask(self, records: Sequence[Record], steps: Sequence[int], given: np.ndarray | None = None) -> list[Reply]:
        """Greedy replies at these steps; 0 for all is the program without latents."""
        n, K = len(records), self.max_steps if max(steps) else 0
        asked = [_with_steps(record, k) for record, k in zip(records, steps, strict=True)] if K else list(records)
        # Few questions are filled up: a smaller program would take longer to compile than these to run.
        asked += asked[-1:] * (self.batch - n)
        if given is not None:
            given = np.concatenate([given, np.repeat(given[-1:], len(asked) - n, axis=0)])
        decoding = self.engine.decoding(self.length)
        found = self.engine.ask(
            variables_of(self.params), asked, K, decoding, "per_sample", self.batch, given=given
        )  # fmt: skip
        return in_order(found)[:n]

    @cached_property
    def replies(self) -> list[Reply]:
        """The unchanged run's, with their latents."""
        return self.ask(self.records, self.steps)

    def vectors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """u, z [n, K, D], own [n, K], z0 [n, D] of the unchanged run."""
        z, own = evidence.latents(self.replies, self.max_steps)
        u, _ = evidence.latents([replace(reply, z=reply.u) for reply in self.replies], self.max_steps)
        return u, z, own, np.stack([reply.z0 for reply in self.replies])

    def settings(self) -> dict[str, Any]:
        """What the audit's numbers depend on, beside the weights."""
        source = self.feed.source
        names = {"records": str(source.folder), "split": source.split, "N": len(self.numbers)}
        names |= {"ids": ids_hash(source.ids[int(number)] for number in self.numbers)}
        names |= {"K": self.latent_steps, "eval_k": self.eval_k, "max_steps": self.max_steps}
        return names | {"answer": self.length, "seed": self.seed}


def _with_steps(record: Record, steps: int) -> Record:
    """The same question, taking so many latent steps; its sentences are not read when it is asked."""
    return replace(record, chain=(), step_masks=(), metadata={**record.metadata, "latent_steps": steps})


class Store:
    """A JSON file of finished parts, so that an audit that was killed goes on.

    Args:
      path: the file. settings: JSON values. fresh: start anew where the file has other settings, instead of refusing.
    Raises: ValueError naming what differs from the file's settings, or a file that is none of ours.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], fresh: bool = False):
        self.path, self.settings = Path(path), {"version": VERSION, **settings}
        self.parts: dict[str, Any] = {}
        if not self.path.exists():
            return
        try:
            held = json.loads(self.path.read_text(encoding="utf-8"))
            other, parts = held["settings"], held["parts"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: not the file of an audit ({error}); remove it or name another") from error
        if other == self.settings:
            self.parts = parts
        elif not fresh:
            changed = sorted(key for key in {*other, *self.settings} if other.get(key) != self.settings.get(key))
            raise ValueError(
                f"{self.path} was made with another {', '.join(changed)}; name another folder, or remove it"
            )

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """The part of this name, made and written if it is not there yet."""
        if name not in self.parts:
            self.parts[name] = make()
            self._write({})
        return self.parts[name]

    def finish(self, found: Mapping[str, Any]) -> None:
        """Writes the file with the results beside the parts."""
        self._write(found)

    def _write(self, found: Mapping[str, Any]) -> None:
        held = {"settings": self.settings, **found, "parts": self.parts}
        write_text(self.path, json.dumps(held, allow_nan=False))


def audit(subject: Subject, store: Store, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """All audits that the run and the records allow.

    Args:
      store: keeps what is finished. say: takes a line of progress.
    Returns: {"lines" [asdict of `audit_table.Line`], "sentences", "left_out" [[audit, why]], "by" (`by_group`), "latents", "text", "steps",
      "retrieval", "calibration" {name: ...}}, the last six where they were measured or asked for; JSON as it stands.
    Raises: ValueError for no questions, a key that no record has, or as `Engine.ask`.
    """
    if not len(subject.numbers):
        raise ValueError(f"{subject.feed.source.folder}: no question to ask")
    steps_held.labels_of(subject.records)  # mistakes in the records are named before anything is asked
    if subject.by:
        _ = subject.groups
    return _Audit(subject, store, say).run()


class _Audit:
    """One pass over a subject; parts are asked for in the order of the table."""

    def __init__(self, subject: Subject, store: Store, say: Callable[[str], None]):
        self.subject, self.store, self.say = subject, store, say
        self.lines: list[table.Line] = []
        self.compared: list[Compared] = []
        self.everything = np.ones(len(subject.numbers), bool)
        self.left_out: list[list[str]] = []
        self.found: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        s = self.subject
        self.own = self._answers(table.RUN, lambda: s.replies)
        right = [record.answer for record in s.records]
        self.exact = _exact(self.own["text"], right)
        self._add(Compared(table.RUN, f"K = {_span(s.steps)}", self.exact, self.everything))
        self._floors()
        if s.latent_steps:
            self._tokens(right)
        else:
            self.left_out.append([table.TOKENS, "the run takes no latent steps"])
        self._sweep(right)
        self._images(right)
        self._mirror()
        if s.latent_steps:
            self._latents()
            self._text()
            self._steps()
            self._retrieval()
        self._calibration()
        if s.by:
            self.found["by"] = by_group(self.compared, s.by, s.groups, self.exact, s.images)
        said = sentences(self.lines)
        out = {"lines": [asdict(line) for line in self.lines], "sentences": said, "left_out": self.left_out}
        self.store.finish(out | self.found)
        return out | self.found

    def _floors(self) -> None:
        """What the same questions give to whoever never looks: an accuracy means nothing without them."""
        records = self.subject.records
        name = "the commonest right answer to each kind of these questions"
        for what, rows in ((name, majority(frequent(records), records)), (CHANCE, chance(records))):
            if rows:
                self._add(Compared(table.FLOOR, what, np.array([row["exact"] for row in rows]), self.everything))

    def _part(self, name: str, make: Callable[[], Any]) -> Any:
        def timed() -> Any:
            start = time.perf_counter()
            made = make()
            self.say(f"{name}: {time.perf_counter() - start:.1f} s")
            return made

        return self.store.part(name, timed)

    def _answers(self, name: str, ask: Callable[[], Sequence[Reply]]) -> dict[str, list]:
        def columns() -> dict[str, list]:
            replies = ask()
            return {
                "text": [reply.text for reply in replies],
                "log_prob": [reply.log_prob for reply in replies],
                "tokens": [len(reply.tokens) for reply in replies],
            }

        return self._part(f"answers: {name}", columns)

    def _add(self, part: Compared) -> None:
        """Adds the line of an accuracy."""
        self.compared.append(part)
        line = part.line(self.exact, self.subject.images, self.everything)
        assert line is not None
        self.lines.append(line)

    def _compare(
        self, audit: str, name: str, said: Sequence[str], right: Sequence[str], counted: np.ndarray
    ) -> Compared:
        """An accuracy over the counted questions against the unchanged run's; `said` [n] answers."""
        return Compared(audit, name, _exact(said, right), counted, ~_exact(said, self.own["text"]))

    # --- other vectors, other steps, other pictures ---------------------------------------------------

    def _tokens(self, right: Sequence[str]) -> None:
        s = self.subject
        u, _, own, _ = s.vectors()
        asked = [(record.question, _asked(record, i)) for i, record in enumerate(s.records)]
        made = replacements(u, own, s.images, asked, s.seed)
        for name, replacement in made.items():
            after = self._answers(name, lambda r=replacement: s.ask(s.records, s.steps, r.vectors))
            self._add(self._compare(table.TOKENS, name, after["text"], right, replacement.counted))
        for name in [name for name in ABOUT if name not in made]:
            self.left_out.append([f"{table.TOKENS}: {name}", "no question is changed by it"])
        self.left_out.append([f"{table.TOKENS}: oracle", ORACLE])

    def _sweep(self, right: Sequence[str]) -> None:
        s = self.subject
        if not s.max_steps:
            return self.left_out.append([table.SWEEP, "the run was trained without latent steps"])
        n = len(s.records)
        asked = {f"K = {K}": [K] * n for K in range(s.max_steps + 1)}
        if len(set(s.own_steps)) > 1:
            asked[EACH_OWN] = s.own_steps
        said = {}
        for name, steps in asked.items():
            after = self.own if steps == s.steps else self._answers(name, lambda k=steps: s.ask(s.records, k))
            said[name] = after["text"]
            self._add(self._compare(table.SWEEP, name, after["text"], right, self.everything))
        for name, more in ((LESS, -1), (MORE, 1)) if s.by else ():
            # Of the answers above, each record's at its own number; a step beyond those asked is not counted.
            steps = [(record.latent_steps or s.max_steps) + more for record in s.records]
            counted = np.array([0 <= k <= s.max_steps for k in steps])
            held = [said[f"K = {min(max(k, 0), s.max_steps)}"][i] for i, k in enumerate(steps)]
            self.compared.append(self._compare(table.SWEEP, name, held, right, counted))

    def _images(self, right: Sequence[str]) -> None:
        s = self.subject
        grey = lambda: mirror.mean_grey(s.records)  # noqa: E731
        after = self._answers(
            table.GREY, lambda: s.ask([mirror.greyed(record, g) for g in [grey()] for record in s.records], s.steps)
        )
        self._add(self._compare(table.IMAGES, table.GREY, after["text"], right, self.everything))
        try:
            others = shuffled(s.numbers, s.feed, s.seed)
        except ValueError as error:
            return self.left_out.append([f"{table.IMAGES}: {table.SWAPPED}", str(error)])
        places = {int(number): place for place, number in enumerate(s.numbers)}
        exchange = lambda: [with_images(a, s.records[places[b]]) for a, b in zip(s.records, others, strict=True)]  # noqa: E731
        after = self._answers(table.SWAPPED, lambda: s.ask(exchange(), s.steps))
        self._add(self._compare(table.IMAGES, table.SWAPPED, after["text"], right, self.everything))

    def _mirror(self) -> None:
        s = self.subject
        places = [i for i, record in enumerate(s.records) if mirror.countable(record)]
        if not places:
            why = "no closed question that certainly asks for left or right in the image (see vital_jax/evaluate/mirror.py)"
            return self.left_out.append([table.MIRROR, why])
        chosen = [s.records[i] for i in places]
        after = self._answers(
            table.MIRRORED, lambda: s.ask([mirror.mirrored(record) for record in chosen], [s.steps[i] for i in places])
        )
        pairs = list(zip(chosen, [self.own["text"][i] for i in places], after["text"], strict=True))
        before = [mirror.chosen(said, record.options) == mirror.right(record) for record, said, _ in pairs]
        exact = [mirror.chosen(said, record.options) == mirror.mirrored_right(record) for record, _, said in pairs]
        changed = sum(normalise(a) != normalise(b) for _, a, b in pairs) / len(pairs)
        images = [s.images[i] for i in places]
        self.lines.append(table.accuracy(table.MIRROR, table.MIRRORED, before, exact, images, changed))
        verdicts = [mirror.verdict(*each) for each in pairs]
        sided = [verdict for verdict in verdicts if verdict]
        for verdict in mirror.VERDICTS if sided else ():
            line = table.share(table.MIRROR, verdict, table.SIDES, sided.count(verdict), len(sided))
            self.lines.append(line)
        if not sided:
            self.left_out.append([f"{table.MIRROR}: {table.SIDES}", "no answer of the run names a side"])

    # --- what the latents hold, and how sure the answers are ------------------------------------------

    def _latents(self) -> None:
        s = self.subject

        def measure() -> dict[str, Any]:
            _, z, own, z0 = s.vectors()
            rows = s.params["base"]["language_model"]["embed_tokens"]["embedding"]
            lengths = np.asarray(jax.device_get(_lengths(rows)), np.float64)
            return shape_of(z, own, z0, lengths, s.images)

        self.found["latents"] = self._part("latents", measure)
        self.lines += table.lines_of_latents(self.found["latents"])

    def _text(self) -> None:
        s = self.subject
        if s.reader is None:
            return self.left_out.append([table.TEXT, "the run has no text decoder"])
        if not any(record.chain for record in s.records):
            return self.left_out.append([table.TEXT, "no record has a chain"])

        def measure() -> dict[str, Any]:
            _, z, own, _ = s.vectors()
            return text_floors(s.reader, s.records, z, own, s.images, s.batch, s.seed)

        self.found["text"] = self._part("text decoder", measure)
        self.lines += table.lines_of_text(self.found["text"])

    def _steps(self) -> None:
        s = self.subject
        if not any(record.chain for record in s.records):
            return self.left_out.append([table.STEPS, "no record has a chain"])

        def measure() -> list[dict[str, Any]]:
            _, z, own, z0 = s.vectors()
            said = None
            if s.reader is not None:
                chain, _ = taught(
                    s.records, np.ones((len(z), max(len(r.chain) for r in s.records)), bool), s.reader.prompter
                )
                said = written(s.reader, z, chain.shape[-1], s.batch)
            return steps_held.steps_held(s.records, z, own, z0, s.images, said, s.groups if s.by else None, s.seed)

        name = table.STEPS + (f", by {s.by}" if s.by else "")
        self.found["steps"] = self._part(name, measure)
        self.lines += steps_held.lines(self.found["steps"])
        if not any("probe" in one for one in self.found["steps"]):
            why = "no records of several images name what their steps are about (metadata 'steps')"
            self.left_out.append([f"{table.STEPS}: {table.PROBE}", why])

    def _retrieval(self) -> None:
        s = self.subject
        if s.feed.features is None:
            return self.left_out.append([table.REGIONS, "the records have no region features of the run's encoder"])
        if s.visual is None:
            return self.left_out.append([table.REGIONS, "the run has no projector"])

        def measure() -> dict[str, Any]:
            places, features, keys, names = evidence.regions(s.feed, s.numbers)
            _, z, own, _ = s.vectors()
            shown = evidence.project(*s.visual, z[places], own[places])
            return evidence.retrieval(shown, own[places], features, keys, names)

        try:
            self.found["retrieval"] = self._part("retrieval", measure)
        except ValueError as error:
            return self.left_out.append([table.REGIONS, str(error)])
        self.lines += table.lines_of_retrieval(self.found["retrieval"])

    def _calibration(self) -> None:
        log_prob, tokens = (np.asarray(self.own[name], np.float64) for name in ("log_prob", "tokens"))
        for name, value in zip(CONFIDENCES, (log_prob, log_prob / tokens), strict=True):
            # Logarithms of probabilities near 1 may round to a hair above 0.
            confidence = np.exp(np.minimum(value, 0))
            found = calibration(confidence, self.exact.tolist(), self.subject.images, self.subject.seed)
            self.found.setdefault("calibration", {})[name] = found
            self.lines += table.lines_of_calibration(name, found)


@jax.jit
def _lengths(rows: jax.Array) -> jax.Array:
    return jnp.linalg.norm(rows.astype(jnp.float32), axis=-1)


def _exact(said: Sequence[str], right: Sequence[str]) -> np.ndarray:
    """[n] bool, which are the same words."""
    return np.array([normalise(answer) == normalise(gold) for answer, gold in zip(said, right, strict=True)])


def _asked(record: Record, place: int) -> Hashable:
    """What a question asks and about what; a record that does not say is like no other."""
    found = tuple(record.metadata.get(key) for key in ("question_type", "ask", "target_name"))
    return found if all(found) else place


def _span(steps: Sequence[int]) -> str:
    return str(steps[0]) if len(set(steps)) == 1 else f"{min(steps)} to {max(steps)}, {OWN_K}"
