"""Two systems on the same questions: McNemar's test, and the interval of the difference by drawing images.

Two accuracies with overlapping intervals may still differ clearly, for both systems find the same questions hard. A paired comparison
looks only at the questions where they disagree. It needs the same questions on both sides, so one that is missing is an error and never
left out.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path

from vital_jax.evaluate.intervals import clustered_mean
from vital_jax.evaluate.protocols.predictions import Row, read_predictions
from vital_jax.evaluate.score import markdown, percent

SHOWN = 5


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of b and c, the questions that only one of two systems gets right.

    Attributes:
      exact: two-sided binomial p value. mid_p: the same less half the weight of what was seen, on each side; the exact one is too cautious
        (Fagerland, Lydersen and Laake 2013).
    """

    b: int
    c: int
    exact: float
    mid_p: float


def mcnemar(b: int, c: int) -> McNemar:
    """The test; with no disagreement both p values are 1. Raises: ValueError for counts below 0."""
    if min(b, c) < 0:
        raise ValueError(f"counts of disagreements cannot be negative: {b} and {c}")
    n, least = b + c, min(b, c)
    ways = [comb(n, least)]
    for k in range(least, 0, -1):
        ways.append(ways[-1] * k // (n - k + 1))
    seen, tail = ways[0], sum(ways)
    # Integers to the end: the powers of two are beyond floats for a few thousand questions.
    exact = min(1.0, 2 * tail / 2**n)
    mid = (2 ** (n + 1) - seen) / 2 ** (n + 1) if b == c else (2 * tail - seen) / 2**n
    return McNemar(b, c, exact, 1.0 if n == 0 else mid)


@dataclass(frozen=True)
class Paired:
    """Two systems on one benchmark.

    Attributes:
      benchmark: its name, "all" for all together. n, images: questions, and images that they share.
      a, b: mean scores. difference: b - a. low, high: its 95 % interval, None where all questions share one image.
      test: McNemar's, None for a measure that is not right or wrong; `test.b` counts what only a gets right.
    """

    benchmark: str
    n: int
    images: int
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    test: McNemar | None


def compare(
    a: str | Path | Sequence[Row],
    b: str | Path | Sequence[Row],
    measure: str = "correct",
    draws: int = 1000,
    seed: int = 0,
) -> list[Paired]:
    """Compares two scored predictions files question by question: one line for each benchmark, and "all" where there are several.

    Args:
      a, b: files that were scored under the same protocol, or their rows. measure: "correct", or one of the protocol's measures
        ("open token F1"); questions that it does not count on either side are left out.
      draws, seed: of the bootstrap.
    Raises: ValueError, a file is not scored, the protocols or gold answers differ, one lacks questions of the other (named), or nothing
    is counted.
    """
    sides = [_keyed(side, name) for side, name in ((a, "first"), (b, "second"))]
    for here, there, name in ((*sides, "second"), (*sides[::-1], "first")):
        if lacking := [key for key in here if key not in there]:
            more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
            names = ", ".join("/".join(filter(None, key)) for key in lacking[:SHOWN])
            raise ValueError(
                f"the {name} file lacks {len(lacking)} questions of the other: {names}{more}; compare nothing"
            )
    groups: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for key, ours in sides[0].items():
        theirs = sides[1][key]
        for field in ("protocol", "gold"):
            if ours.get(field) != theirs.get(field):
                raise ValueError(
                    f"{key[-1]!r}: {field} is {ours.get(field)!r} in one file and {theirs.get(field)!r} in the other"
                )
        pair = _score(ours, measure), _score(theirs, measure)
        if None in pair:
            if pair != (None, None):
                raise ValueError(
                    f"{key[-1]!r}: {measure!r} is counted in one file only; score both with the same version"
                )
            continue
        groups[key[0]].append((*pair, str(ours.get("image") or key[-1])))
    if not groups:
        raise ValueError(f"no question is counted by {measure!r}; a scored row lists its measures")
    made = [_paired(name or "all", rows, draws, seed) for name, rows in sorted(groups.items())]
    if len(made) > 1:
        made.append(_paired("all", [row for _, rows in sorted(groups.items()) for row in rows], draws, seed))
    return made


def _keyed(side: str | Path | Sequence[Row], name: str) -> dict[tuple[str, str, str], Row]:
    rows = read_predictions(side) if isinstance(side, str | Path) else side
    found = {}
    for row in rows:
        if not isinstance(row.get("correct"), bool):
            raise ValueError(f"the {name} file is not scored: {row.get('id')!r} has no 'correct'; score it first")
        key = (row.get("benchmark") or "", row.get("split") or "", str(row["id"]))
        if key in found:
            raise ValueError(f"the {name} file has {row['id']!r} twice")
        found[key] = row
    return found


def _score(row: Row, measure: str) -> float | None:
    value = row["correct"] if measure == "correct" else row.get("measures", {}).get(measure)
    return None if value is None else float(value)


def _paired(name: str, rows: Sequence[tuple[float, float, str]], draws: int, seed: int) -> Paired:
    n = len(rows)
    differences = [b - a for a, b, _ in rows]
    images = [image for *_, image in rows]
    ends = clustered_mean(differences, images, draws=draws, seed=seed) or (None, None)
    # A measure is right or wrong or it is not: that the values of one file happen to be 0 and 1 is found out, not known.
    binary = all({a, b} <= {0.0, 1.0} for a, b, _ in rows)
    test = mcnemar(sum(d < 0 for d in differences), sum(d > 0 for d in differences)) if binary else None
    means = (sum(a for a, *_ in rows) / n, sum(b for _, b, _ in rows) / n)
    return Paired(name, n, len(set(images)), *means, sum(differences) / n, *ends, test)


def comparison_table(pairs: Sequence[Paired], a: str = "a", b: str = "b") -> str:
    """The comparison as a Markdown table in percent; p values are those of single tests, not corrected for the number of lines."""
    header = ["benchmark", "N", "images", a, b, f"{b} - {a}", "95 % interval by image", f"only {a}", f"only {b}"]
    lines = []
    for pair in pairs:
        ends = (pair.low, pair.high)
        shown = "none" if None in ends else " to ".join(f"{100 * end:+.1f}" for end in ends)
        test = pair.test
        tests = [str(test.b), str(test.c), f"{test.exact:.3g}", f"{test.mid_p:.3g}"] if test else ["-"] * 4
        scores = [percent(pair.a), percent(pair.b), f"{100 * pair.difference:+.1f}"]
        lines.append([pair.benchmark, str(pair.n), str(pair.images), *scores, shown, *tests])
    return markdown([*header, "McNemar exact p", "mid-p"], lines)
