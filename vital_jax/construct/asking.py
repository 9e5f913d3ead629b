"""What the factory asks about the samples that were cut, and what becomes of the answers: a line per record, or a reject.

A line is a record but for its bytes. It needs no picture, for everything that questions and answers are made of was measured when the
sample was cut; so this is quick, and is simply done again in every run. Lines follow the plan's order, on which the balance of closed
questions depends.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vital_jax.construct.build import record_fields, record_id
from vital_jax.construct.gate import Verdict, gate
from vital_jax.construct.gate import version as gate_version
from vital_jax.construct.hounsfield import RELATIVE
from vital_jax.construct.licences import benchmark_of
from vital_jax.construct.measure import Facts
from vital_jax.construct.parts import Entry, Parts, sample_of
from vital_jax.construct.progress import Stage
from vital_jax.construct.questions import FORMS, Balance, Question, questions
from vital_jax.construct.sample import Sample
from vital_jax.construct.settings import EVALUATION, Settings
from vital_jax.construct.splits import Key, official
from vital_jax.construct.targets import load_targets
from vital_jax.construct.teacher import TEACHER, Lesson, teach
from vital_jax.pipeline.records import FILES, Record

_DENSITY = re.compile(r"\b(hypo|hyper|iso)?-?(densit(y|ies)|dense|attenuat\w+|hounsfield)\b", re.IGNORECASE)
Held = tuple[str, str, Entry | None]  # source, unit, where the store has it


@dataclass(frozen=True)
class Asked:
    """A question with what its record needs; `lesson` where it needs no teacher beside the measured one."""

    question: Question
    sample: Sample
    facts: Facts
    row: dict
    entry: Entry
    unit: tuple[str, str]
    key: Key
    lesson: Lesson | None


class Asker:
    """Asks about all samples of a store.

    Args:
      settings: how.
      parts: the store. units: in the order of the plan.
      audited: record id -> code of what people rejected (`vital data audit --apply`).

    Attributes:
      sides, overlaps: of `splits.divide`; to be set before questions are asked.
    """

    def __init__(self, settings: Settings, parts: Parts, units: Sequence[Held], audited: Mapping[str, str]):
        self.settings, self.parts, self.units, self.audited = settings, parts, units, audited
        self.targets = load_targets()
        self.sides: Mapping[Key, str] = {}
        self.overlaps: Mapping[Key, set[str]] = {}
        self._made: set[bytes] = set()  # ids of records

    def rejects(self, source: str, unit: str, entry: Entry | None) -> Iterator[dict]:
        """What was set aside when a unit was cut."""
        if entry is None:
            yield _reject(
                source, unit, unit, "reader-failed", "its files changed while they were read; run again", "cut"
            )
        elif entry.codes:
            for row in self.parts.rejects(entry):
                yield _reject(source, unit, row["file"], row["code"], row["reason"], "cut")

    def strata(self, source: str, unit: str, row: dict) -> tuple[Key, Counter]:
        """What a sample is divided with, and how many records it will make per number of steps and modality.

        Counted are its open questions, which do not depend on the split; the closed ones do, for they are balanced within it.
        """
        if row["kind"] == "record":
            metadata = row["fields"]["metadata"]
            steps = metadata.get("latent_steps", len(row["fields"]["chain"]))
            return _key(source, unit, row), Counter(
                {("K", str(steps)): 1, ("modality", metadata.get("modality", "")): 1}
            )
        sample, facts = sample_of(row)
        try:
            drawn = questions(sample, self.settings.questions, self.settings.seed, self.targets, "open", facts)
            modality = self.targets.family(sample.modality)
        except ValueError:  # set aside with a reason when it is asked
            return _key(source, unit, row), Counter()
        return _key(source, unit, row), Counter(
            [("K", str(q.steps)) for q in drawn] + [("modality", modality)] * len(drawn)
        )

    def questions(self, stage: Stage) -> Iterator[Asked | dict]:
        """Every question and finished record in the order of the plan; a reject is a dict with "code", a record one with "kind"."""
        settings, balances, seen = self.settings, defaultdict(Balance), set()
        for source, unit, entry in self.units:
            yield from self.rejects(source, unit, entry)
            number = 0
            for row in self.parts.items(entry) if entry else ():
                if row["kind"] == "picture":
                    continue
                number += 1
                name = row["fields"]["id"] if row["kind"] == "record" else row["id"]
                short = hashlib.sha256(name.encode()).digest()[:8]
                if short in seen:
                    yield _reject(source, unit, name, "duplicate-id", "another sample had this id before", "ask")
                    continue
                seen.add(short)
                if row["kind"] == "record":
                    key = _key(source, unit, row)
                    yield row | {"entry": entry, "unit": (source, unit), "key": key}
                    continue
                sample, facts = sample_of(row)
                key = _key(source, unit, row)
                split = self.sides[key]
                try:
                    for form in self._forms(split):
                        for question in questions(
                            sample, settings.questions, settings.seed, self.targets, form, facts, balances[split]
                        ):
                            # Closed questions measure a model, and what is right there was measured: no language model is asked.
                            measured = settings.teacher == "measured" or form == "closed"
                            lesson = teach(question, sample, facts, self.targets) if measured else None
                            yield Asked(question, sample, facts, row, entry, (source, unit), key, lesson)
                except ValueError as error:
                    yield _reject(source, unit, name, "unknown-target", str(error), "ask")
            stage.add(1, number)

    def _forms(self, split: str) -> tuple[str, ...]:
        form = self.settings.form
        if form == EVALUATION:
            return FORMS if split in ("val", "test") else ("open",)
        return FORMS if form == "both" else (form,)

    def answered(self, one: Asked, accepted: Mapping[str, Lesson], models: Mapping, dropped: Mapping) -> dict | None:
        """The line of a question's record, or a reject, or None where its lesson is awaited."""
        question, sample, name = one.question, one.sample, record_id(one.sample, one.question)
        lesson, teacher = one.lesson or accepted.get(name), TEACHER if one.lesson else models.get(name, "")
        if lesson is None:
            if name in dropped:
                codes = ", ".join(dropped[name]) or "no reply passed"
                return _reject(*one.unit, name, "teacher-gave-up", codes, "teach")
            if self.settings.teacher == "replay":
                return _reject(*one.unit, name, "no-answer", f"{self.settings.answers} has none that fits", "teach")
            return None
        # The measured teacher may name whatever is marked in the image; another may name what the question names.
        names = (sample.target, *one.facts.others) if one.lesson else tuple(filter(None, [question.other]))
        names = tuple(dict.fromkeys(each for name in names for each in (name, self.targets.neutral(name))))
        verdict = gate(
            {"final_answer": lesson.answer, "reasoning_chain": list(lesson.chain)},
            question_type=question.type,
            target_type=self.targets.row(question.target)["type"],
            target=question.target,
            modality=sample.modality,
            ask=question.ask,
            options=question.options,
            names=names,
            targets=self.targets,
        )
        if not verdict.accepted:
            return _violated(one.unit, name, verdict)
        if sample.intensity == RELATIVE and (word := _DENSITY.search(" ".join((verdict.answer, *verdict.chain)))):
            reason = f"{word[0]!r} of an image whose values are not Hounsfield units"
            return _reject(*one.unit, name, "density-claim", reason, "gate")
        lesson = Lesson(verdict.chain, verdict.answer, lesson.slots)
        fields = record_fields(
            question, sample, one.facts, lesson, self.targets, teacher, gate=f"gate-{gate_version()}"
        )
        files = {"images": [one.row["image"]], "masks": [one.row["mask"]] if question.visible else []}
        return self._line(one.unit, one.entry, one.key, files, fields)

    def finished(self, row: dict) -> dict:
        """The line of a finished record, or a reject where its chain breaks a rule; its words are left as they are."""
        fields, metadata = row["fields"], row["fields"]["metadata"]
        fields = fields | {"metadata": metadata | {"group": row["key"].group}}
        if fields["chain"]:
            verdict = gate(
                {"final_answer": fields["answer"], "reasoning_chain": fields["chain"]},
                question_type=metadata.get("question_type", ""),
                target_type=metadata.get("target_type", ""),
                target=metadata.get("target_name", ""),
                modality=metadata.get("modality", ""),
                ask=metadata.get("ask", ""),
                steps=(len(fields["chain"]),) * 2,
                options=fields["options"],
                names=tuple(filter(None, [metadata.get("neighbour")])),
                targets=self.targets,
            )
            if not verdict.accepted:
                return _violated(row["unit"], fields["id"], verdict)
        return self._line(row["unit"], row["entry"], row["key"], row, fields)

    def _line(self, unit: tuple[str, str], entry: Entry, key: Key, files: Mapping, fields: dict) -> dict:
        """A record but for its bytes, checked as a record is, with what is known of official splits in its metadata.

        Args: files: the names of a record's files in the store, by field.
        """
        held = {name: files.get(name, []) for name in FILES}
        known = {
            "source_split": key.official,
            "overlaps": sorted({benchmark_of(source) for source in self.overlaps.get(key, ())}),
        }
        known = {name: value for name, value in known.items() if value}
        fields = fields | {"metadata": fields["metadata"] | known}
        if fields["id"] in self.audited:
            return _reject(*unit, fields["id"], self.audited[fields["id"]], "rejected by the audit", "audit")
        # A finished record may be what a sample's question made once: both folders are given, the set and its export.
        short = hashlib.sha256(fields["id"].encode()).digest()[:8]
        if short in self._made:
            return _reject(*unit, fields["id"], "duplicate-id", "another record had this id before", "ask")
        self._made.add(short)
        try:
            Record(**{name: (b"-",) * len(held[name]) for name in FILES}, **fields)
        except ValueError as error:
            return _reject(*unit, fields["id"], "bad-record", str(error), "gate")
        part = entry.part.relative_to(self.parts.samples).as_posix()
        return {"split": self.sides[key], "part": part, **held, "fields": fields}


def _key(source: str, unit: str, row: dict) -> Key:
    """What a line is divided with. A finished record stays with its own group, or with its unit."""
    if row["kind"] != "record":
        return Key(row["source"], row["group"], row["split"])
    metadata = row["fields"]["metadata"]
    group = metadata.get("group") or f"{source}/{unit}"
    return Key(metadata.get("source", source), group, official(row["split"]))


def _reject(source: str, unit: str, file: str, code: str, reason: str, stage: str) -> dict:
    return {"source": source, "unit": unit, "file": file, "code": code, "reason": reason, "stage": stage}


def _violated(unit: tuple[str, str], name: str, verdict: Verdict) -> dict:
    first, *more = verdict.violations
    return _reject(*unit, name, first.code, "; ".join(map(str, (first, *more))), "gate")
