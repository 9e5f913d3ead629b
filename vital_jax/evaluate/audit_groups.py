"""The audit's accuracies for kinds of questions apart: what a mean over all of them would hide.

Questions that need one look and questions that need four are not hurt alike by other latents or fewer steps. So every accuracy is kept
question by question, and the same answers are counted again for each group of records; no model is asked anew.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from vital_jax.evaluate import audit_table as table
from vital_jax.evaluate.audit_table import Line
from vital_jax.evaluate.score import CHANCE

UNKNOWN = "not stated"
LESS, MORE = "one step less than each record's own", "one step more than each record's own"
Table = tuple[str, list[str], list[list[str]]]  # title, header, rows


class Compared(NamedTuple):
    """An accuracy question by question.

    Attributes:
      audit, what: as of the line. exact: [n] 0 or 1, or a share. counted: [n] bool, the questions that the line is about.
      changed: [n] bool, answers that are other words than the run's; None for what is not compared with the run.
    """

    audit: str
    what: str
    exact: np.ndarray
    counted: np.ndarray
    changed: np.ndarray | None = None

    def line(self, run: np.ndarray, images: Sequence[Hashable], rows: np.ndarray) -> Line | None:
        """Its line over the counted ones among `rows` [n] bool, None for none; run: [n] bool, what the unchanged run gets right."""
        chosen = np.flatnonzero(self.counted & rows)
        if not len(chosen):
            return None
        exact, n = self.exact[chosen], len(chosen)
        if self.changed is not None:
            shown = [images[i] for i in chosen]
            return table.accuracy(self.audit, self.what, run[chosen], exact, shown, float(self.changed[chosen].mean()))
        if self.what == CHANCE:
            return Line(self.audit, self.what, table.ACCURACY, n, float(exact.mean()))
        return table.share(self.audit, self.what, table.ACCURACY, int(exact.sum()), n)


def groups_of(metadata: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """The group of each record: what its metadata says under a key.

    Raises: ValueError where none has the key, naming those there are.
    """
    if not any(key in one for one in metadata):
        known = ", ".join(sorted({name for one in metadata for name in one})) or "none"
        raise ValueError(f"no record has metadata {key!r} to group by; there are: {known}")
    return [str(one.get(key, UNKNOWN)) for one in metadata]


def by_group(
    parts: Sequence[Compared], key: str, groups: Sequence[str], run: np.ndarray, images: Sequence[Hashable]
) -> dict[str, Any]:
    """The lines of each group, JSON as it stands: {"key", "lines": [{"group", ...}]}, groups in their natural order."""
    lines = []
    for name in sorted(set(groups), key=natural):
        rows = np.array([group == name for group in groups])
        found = (part.line(run, images, rows) for part in parts)
        lines += [{"group": name, **asdict(line)} for line in found if line]
    return {"key": key, "lines": lines}


def natural(text: str) -> list[Any]:
    """Numbers in it by their size: "2 hops" before "10 hops"."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", text)]


def tables(by: Mapping[str, Any], brief: bool = False) -> list[Table]:
    """What `by_group` returns as tables: groups side by side, and, unless `brief`, every line with its interval."""
    lines = [(one["group"], Line(**{name: one[name] for name in one if name != "group"})) for one in by["lines"]]
    named: dict[tuple[str, str], dict[str, Line]] = {}
    for group, line in lines:
        named.setdefault((line.audit, _step(line)), {})[group] = line
    asked = {group: line.n for group, line in lines if line.audit == table.RUN}
    header = ["audit", "what", *(f"{group} ({n})" for group, n in asked.items())]
    rows = [[*name, *(_cell(found.get(group), n) for group, n in asked.items())] for name, found in named.items()]
    made = [(f"Accuracy by {by['key']}, %, and in brackets the difference from the run, points", header, rows)]
    if not brief:
        every = [[group, *table.cells(line)] for group, line in lines]
        made.append((f"By {by['key']}, every line", [by["key"], *table.HEADER], every))
    return made


def _step(line: Line) -> str:
    """The run's own line says at which K it was asked, which differs from group to group."""
    return "" if line.audit == table.RUN else line.what


def _cell(line: Line | None, asked: int) -> str:
    if line is None:
        return ""
    against = "" if line.difference is None else f" ({100 * line.difference:+.1f})"
    return f"{100 * line.value:.1f}{against}" + f", N {line.n}" * (line.n != asked)
