"""From decoded answers to a table: exact match, intervals, and the answer that needs no model at all.

An accuracy without its number of questions and its interval says nothing about a small test set, so no table here leaves them out.
Questions about one image are not independent of each other: the intervals treat them as if they were and are a little too narrow for that.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vital_jax.pipeline.records import Record
from vital_jax.scoring.text import normalise
from vital_jax.statistics import wilson

CHANCE = "chance, one of the possible answers"
Row = dict[str, Any]  # {"id", "question", "gold", "answer", "exact", "question_type", "ask"}


def judge(record: Record, answer: str) -> Row:
    """One answered record: {"id", "question", "gold", "answer", "exact"}; `exact` compares after `normalise`."""
    return {
        "id": record.id,
        "question": record.question,
        "gold": record.answer,
        "answer": answer,
        "exact": normalise(answer) == normalise(record.answer),
    }


def kind(metadata: Mapping[str, Any]) -> dict[str, str]:
    """What a record asks, from its metadata: {"question_type", "ask"}, empty where it does not say."""
    return {name: metadata.get(name, "") for name in ("question_type", "ask")}


def _kept(record: Record) -> tuple[str, tuple[str, ...], None]:
    """What answers are counted by: the question's words, what it asks, and nothing."""
    return record.question, tuple(kind(record.metadata).values()), None


def frequent(train: Iterable[Record]) -> dict[Hashable, str]:
    """The most frequent answer to each question, to each (question type, ask), and, under None, of all.

    A tie goes to the answer that comes first in the alphabet. Raises: ValueError for no records.
    """
    counts: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for record in train:
        for key in _kept(record):
            counts[key][record.answer] += 1
    if not counts:
        raise ValueError("no training records, so no answer is the most frequent one")
    return {key: min(count, key=lambda answer, count=count: (-count[answer], answer)) for key, count in counts.items()}


def majority(best: Mapping[Hashable, str], test: Iterable[Record], worded: bool = False) -> list[Row]:
    """Answers every test record with the most frequent training answer to what it asks: (question type, ask).

    No image is looked at. What training never asked gets the most frequent answer of all.

    Args:
      best: of `frequent`. worded: go by the question's exact words first; by default no wording is looked at.
    """
    rows = []
    for record in test:
        key = next(key for key in _kept(record)[not worded :] if key in best)
        rows.append({**judge(record, best[key]), **kind(record.metadata)})
    return rows


def chance(test: Iterable[Record]) -> list[Row]:
    """What drawing one of the possible answers is worth: `exact` is a share. Empty where a record does not say how many there are.

    They are those it offers; for a free answer metadata's `choices` says how many are equally likely to who does not look.
    """
    rows = [
        {
            **judge(record, ""),
            **kind(record.metadata),
            "options": len(record.options) or record.metadata.get("choices", 0),
        }
        for record in test
    ]
    return [{**row, "exact": 1 / row["options"]} for row in rows] if all(row["options"] > 0 for row in rows) else []


@dataclass(frozen=True)
class Score:
    """How many answers of a system are exact.

    Attributes:
      name: of the system, as the table shows it.
      correct, n: exact answers (in the mean, of `chance`) and questions. by_type: the same two numbers per question type.
    """

    name: str
    correct: float
    n: int
    by_type: dict[str, tuple[float, int]]

    @classmethod
    def of(cls, name: str, rows: Sequence[Row]) -> "Score":
        """Counts judged rows. Raises: ValueError for none."""
        if not rows:
            raise ValueError(f"{name}: no answers to score")
        types = sorted({row["question_type"] for row in rows})
        chosen = {kind: [row["exact"] for row in rows if row["question_type"] == kind] for kind in types}
        by_type = {kind: (sum(exact), len(exact)) for kind, exact in chosen.items()}
        return cls(name, sum(row["exact"] for row in rows), len(rows), by_type)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        return wilson(self.correct, self.n)


def percent(share: float) -> str:
    """0.8333 -> "83.3"."""
    return f"{100 * share:.1f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and numbers to the right, padded so that it reads as plain text too."""
    lines = [list(header), *map(list, rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]  # a rule of one dash is none
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join(padded) + " |"

    return "\n".join(map(line, [lines[0], rule, *lines[1:]]))


def table(scores: Sequence[Score]) -> str:
    """Systems as rows of a Markdown table: N, accuracy and its 95 % interval, then the accuracy per question type; all in percent.

    Raises: ValueError for no scores, or for systems that did not answer the same number of questions of each type.
    """
    if not scores:
        raise ValueError("no scores to show")
    asked = {kind: n for kind, (_, n) in scores[0].by_type.items()}
    for score in scores[1:]:
        if {kind: n for kind, (_, n) in score.by_type.items()} != asked:
            raise ValueError(
                f"{scores[0].name!r} and {score.name!r} did not answer the same questions: compare nothing"
            )
    header = ["system", "N", "accuracy", "95 % interval", *(f"{kind} ({n})" for kind, n in asked.items())]
    rows = []
    for score in scores:
        types = (percent(correct / n) for correct, n in (score.by_type[kind] for kind in asked))
        interval = " to ".join(map(percent, score.interval))
        rows.append([score.name, str(score.n), percent(score.correct / score.n), interval, *types])
    return markdown(header, rows)
