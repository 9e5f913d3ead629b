"""The audits as one table, and what they say in words.

Every line has its own N, since a change that leaves a question as it was cannot tell anything about it; the unchanged run is always scored
on the same questions. Accuracies have Wilson's interval; differences are paired, with an interval by drawing images and McNemar's mid-p.
p values are those of single tests, not corrected for their number. What they say in words is in `audit_words.py`.
"""

import csv
import io
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from vital_jax.evaluate.paired import compare
from vital_jax.evaluate.score import markdown
from vital_jax.statistics import wilson

ACCURACY = "accuracy"
TOKENS, SWEEP, IMAGES, MIRROR = "token replacement", "K sweep", "image", "mirror"
LATENTS, TEXT, REGIONS, CALIBRATION = "latents", "text decoder", "retrieval", "calibration"
STEPS = "what each step holds"
RUN = "the run as it is"
FLOOR = "no image, no model"
SWAPPED, GREY, MIRRORED = "image of another question", "evenly grey image", "mirrored image, right answer mirrored"
SIDES = "share of answers that name a side"
SENTENCE, LAST_WORD = "sentence decoded word for word", "last word of the sentence"
PROBE = "linear probe, name of the step"
NO_STEPS = "K = 0"
# What the report of a campaign shows; the rest stands beside it already, or in the audit's own table.
BRIEF = (RUN, FLOOR, TOKENS, SWEEP, IMAGES, MIRROR)


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
      audit, what, measure: what was done, how, and what `value` is. n: questions (or rows) counted.
      low, high: the 95 % interval of `value`, None where there is none; interval: how it was made.
      run: the same measure of the unchanged run on the same questions. difference: value - run, paired; difference_low, difference_high:
        its 95 % interval by drawing images. p: McNemar's mid-p. changed: share of answers that are other words than the run's.
    """

    audit: str
    what: str
    measure: str
    n: int
    value: float
    low: float | None = None
    high: float | None = None
    interval: str = ""
    run: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    changed: float | None = None


def accuracy(
    audit: str,
    what: str,
    before: Sequence[bool],
    after: Sequence[bool],
    images: Sequence[Hashable],
    changed: float | None = None,
) -> Line:
    """The line of an accuracy against the unchanged run, on the same questions in the same order. Raises: ValueError for none."""
    pictures = {image: str(i) for i, image in enumerate(dict.fromkeys(images))}
    sides = [
        [
            {"id": str(i), "correct": bool(right), "image": pictures[image]}
            for i, (right, image) in enumerate(zip(side, images, strict=True))
        ]
        for side in (before, after)
    ]
    pair = compare(*sides)[0]
    ends = wilson(sum(map(bool, after)), pair.n)
    difference = (pair.a, pair.difference, pair.low, pair.high, pair.test.mid_p)
    return Line(audit, what, ACCURACY, pair.n, pair.b, *ends, "Wilson", *difference, changed)


def share(audit: str, what: str, measure: str, hits: float, n: int) -> Line:
    """The line of a proportion."""
    return Line(audit, what, measure, n, hits / n, *wilson(hits, n), "Wilson")


def mean(audit: str, what: str, measure: str, found: Mapping[str, Any]) -> Line:
    """The line of a mean with its interval by image and, where there is one, its difference from the run's own."""
    keys = ("value", "low", "high", "difference", "difference_low", "difference_high")
    value, low, high, *difference = (found.get(key) for key in keys)
    how = "" if low is None else "bootstrap by image"
    return Line(audit, what, measure, found["n"], value, low, high, how, found.get("own"), *difference)


# --- the lines of what was measured ---------------------------------------------------------------


def lines_of_latents(found: Mapping[str, Any]) -> list[Line]:
    """Of what `geometry.shape_of` returns."""
    lines = [mean(LATENTS, f"{pair} (equation 9)", "mean cosine", one) for pair, one in found["cosine"].items()]
    for k, one in found["rank"].items():
        lines.append(mean(LATENTS, f"z_1..z_{k} of the rows with {k} steps", "effective rank", one))
    for name, one in found["data_rank"].items():
        what = f"{name} over the questions, at most {one['most']}"
        lines.append(Line(LATENTS, what, "effective rank", one["n"], one["value"]))
        lines.append(Line(LATENTS, f"{what}, less the mean", "effective rank", one["n"], one["centred"]))
    for name, one in found["length"].items():
        lines.append(mean(LATENTS, name, "length", one))
        lines.append(Line(LATENTS, name, "length, standard deviation", one["n"], one["sd"]))
    return lines


def lines_of_text(found: Mapping[str, Any]) -> list[Line]:
    """Of what `text_floor.text_floors` returns."""
    return [
        mean(TEXT, name if step == "all" else f"{name}, step {step}", "nats per token", one)
        for name, steps in found.items()
        for step, one in steps.items()
    ]


def lines_of_retrieval(found: Mapping[str, Any]) -> list[Line]:
    """Of what `evidence.retrieval` returns: the last step's."""
    who = {"own": "own latents", "shuffled": "of another region", "same_class": "of another region of the same target"}
    lines = []
    for name, hits in found["last"].items():
        lines += [
            Line(
                REGIONS, who[name], measure, hits["n"], *(hits[measure][end] for end in ("share", "low", "high")), "Wilson"
            )
            for measure in found["chance"]
        ]  # fmt: skip
    return lines + [
        Line(REGIONS, f"chance, {found['gallery']} regions", measure, found["n"], value)
        for measure, value in found["chance"].items()
    ]


def lines_of_calibration(name: str, found: Mapping[str, Any]) -> list[Line]:
    """Of what `calibration.calibration` returns."""
    n, floor = found["n"], found["ece_floor"]
    measures = {"ece": f"ECE, {found['bins']} bins of equal mass", "brier": "Brier score", "aurc": "AURC"}
    lines = [mean(CALIBRATION, name, measure, {"n": n, **found[key]}) for key, measure in measures.items()]
    ends = (0.0, floor["high"], "simulated, one-sided")
    lines.insert(1, Line(CALIBRATION, f"{name}, were it calibrated", measures["ece"], n, floor["value"], *ends))
    return [
        *lines,
        Line(CALIBRATION, f"{name}, best order", "AURC", n, found["aurc_best"]),
        Line(CALIBRATION, f"{name}, no order", "AURC", n, found["error"]),
    ]


# --- as text --------------------------------------------------------------------------------------

_PERCENT = (ACCURACY, SIDES, SENTENCE, LAST_WORD, PROBE, "hit@1", "hit@5", "hit@10")
HEADER = [
    "audit", "what", "measure", "N", "value", "95 % interval", "run", "difference", "95 % by image", "mid-p", "answers changed",
]  # fmt: skip


def to_markdown(lines: Sequence[Line]) -> str:
    """The table; accuracies and shares in percent, their differences in points."""
    return markdown(HEADER, map(cells, lines))


def cells(line: Line) -> list[str]:
    """A line as the table shows it."""
    percent = line.measure in _PERCENT

    def shown(value: float | None, sign: str = "") -> str:
        if value is None:
            return ""
        return format(100 * value, f"{sign}.1f") if percent else format(value, f"{sign}.4g")

    def ends(low: float | None, high: float | None, sign: str = "") -> str:
        return "" if low is None else f"{shown(low, sign)} to {shown(high, sign)}"

    measure = f"{line.measure}, %" if percent else line.measure
    p = "" if line.p is None else f"{line.p:.3g}"
    changed = "" if line.changed is None else f"{100 * line.changed:.1f} %"
    return [
        line.audit, line.what, measure, str(line.n), shown(line.value), ends(line.low, line.high), shown(line.run),
        shown(line.difference, "+"), ends(line.difference_low, line.difference_high, "+"), p, changed,
    ]  # fmt: skip


def to_csv(lines: Sequence[Line], grouped: Sequence[Mapping[str, Any]] = ()) -> str:
    """Every line with all digits; shares as they are, 0.5 for 50 %. `grouped`: {"group", ...} of groups, which get one more column."""
    file = io.StringIO()
    names = [*(field.name for field in fields(Line)), *["group"] * bool(grouped)]
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*map(asdict, lines), *grouped])
    return file.getvalue()


def show(found: Mapping[str, Any]) -> str:
    """What `audits.audit` returns, in short, for a report that has its latents and retrieval elsewhere."""
    lines = [Line(**line) for line in found["lines"]]
    kept = [line for line in lines if line.audit in BRIEF]
    kept += [line for line in lines if line.audit == TEXT and ", step " not in line.what]
    kept += [
        line for line in lines if line.audit == LATENTS and line.measure == "effective rank" and "rows" in line.what
    ]
    kept += [line for line in lines if line.audit == CALIBRATION and "," not in line.what]
    listed = "\n".join(f"- {said}" for said in found["sentences"])
    return "\n\n".join(filter(None, [to_markdown(kept), listed]))
