"""Cases and their numbers as files: the summary that a page shows, Markdown to read, CSV and JSON to go on with.

The closing sentences follow one plain rule, so that no run is talked up: a difference whose interval excludes zero is one, every other was
not shown by these questions.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vital_jax.evaluate.score import markdown
from vital_jax.explain import pointing
from vital_jax.explain.case import Case
from vital_jax.explain.pointing import BASELINES, OTHER, RANDOM, SHUFFLED, TARGET, Pointed

RESEARCH = "Research software, not a medical device. Texts and heat maps are readings by modules trained beside the model, and approximate."
_WHO = {
    SHUFFLED: "latents about other images",
    OTHER: "latents about other images with a target of the same name",
    RANDOM: "random vectors",
}


def summary(model: str, cases: Sequence[Case], pointed: Sequence[Pointed], notes: Sequence[str] = ()) -> dict[str, Any]:
    """What stands above the cases, JSON as it is.

    Args:
      model: its name. pointed: of the cases that have a mask, see `windows.explain`. notes: sentences on how was asked, put first.
    Returns: {"model", "cases", "notes", "table" and "steps" (see `pointing.table` and `by_step`), "said"}.
    """
    notes = [f"{len(cases)} questions, {_steps(cases)} latent steps.", *notes]
    if not any(step.text for case in cases for step in case.steps):
        notes.append("The run has no text decoder, so no step has a text.")
    table, steps, said = pointing.table(pointed), pointing.by_step(pointed), []
    if not any(step.heat for case in cases for step in case.steps):
        notes.append("No visual projector, or no encoder beside it: there are no heat maps and no numbers about them.")
    elif not pointed:
        notes.append("No question has a mask, so there are no numbers beside the heat maps.")
    else:
        area = 100 * float(np.mean([one.area for one in pointed]))
        images = len({one.image for one in pointed})
        notes.append(
            f"The numbers are of the {len(pointed)} questions with a mask, about {images} images; the region covers {area:.1f} % of the "
            "image in the mean. Each question counts with the mean over its steps; intervals are at 95 %, by drawing images."
        )
        notes += pointing.ABOUT
        said = sentences(table)
    return {"model": model, "cases": len(cases), "notes": notes, "table": table, "steps": steps, "said": said}


def _steps(cases: Sequence[Case]) -> str:
    found = sorted({len(case.steps) for case in cases})
    return f"K = {found[0]}" if len(found) == 1 else f"K = {found[0]} to {found[-1]}"


def sentences(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the rows of all modalities together say, one sentence for each measure and baseline."""
    said = []
    first = table[0]["modality"] if table else None
    for row in table:
        if row["modality"] != first:
            continue
        for who, over in row["over"].items():
            found = f"{row['measure']}: {over['value']:+.3f} against {_WHO[who]}"
            if over["low"] is None:
                said.append(f"{found} (N = {over['n']}, no interval: all about one image).")
                continue
            shown = "a difference" if over["low"] > 0 or over["high"] < 0 else "no difference shown"
            said.append(f"{found} ({over['low']:+.3f} to {over['high']:+.3f}, N = {over['n']}): {shown}.")
    return said


# --- files --------------------------------------------------------------------------------------------------------------


def _cell(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


def _ends(low: float | None, high: float | None, sign: str = "") -> str:
    return "-" if low is None or high is None else f"{low:{sign}.3f} to {high:{sign}.3f}"


def _baseline(row: Mapping[str, Any], who: str) -> str:
    """Its value, with its own number of questions where that is another than the row's."""
    n = row["over"].get(who, row)["n"]
    return _cell(row[who]) + (f" (N = {n})" if n != row["n"] else "")


def _over(row: Mapping[str, Any], who: str) -> str:
    over = row["over"].get(who)
    return "-" if over is None else f"{over['value']:+.3f} ({_ends(over['low'], over['high'], '+')}; {over['n']})"


def to_markdown(found: Mapping[str, Any], steps: bool = True) -> str:
    """The summary as text with its tables; `steps` includes the one step by step."""
    lines = [f"# Explanations of {found['model']}", "", *(f"- {note}" for note in found["notes"])]
    names = (*BASELINES, TARGET)
    head = ["measure", "N", "own", "95 % interval", *names, *(f"own - {who} (interval; N)" for who in BASELINES)]

    def cells(row: Mapping[str, Any]) -> list[str]:
        values = [
            str(row["n"]),
            _cell(row["own"]),
            _ends(row["low"], row["high"]),
            *(_baseline(row, who) for who in names),
        ]
        return [row["measure"], *values, *(_over(row, who) for who in BASELINES)]

    if found["table"]:
        rows = [[row["modality"], *cells(row)] for row in found["table"]]
        lines += ["", "## Heat maps and regions", "", markdown(["modality", *head], rows)]
    if steps and found["steps"]:
        rows = [[f"K = {row['K']}, z_{row['step']}", *cells(row)] for row in found["steps"]]
        lines += ["", "## Step by step", "", markdown(["step", *head], rows)]
    if found["said"]:
        lines += ["", "## What this says", "", *(f"- {sentence}" for sentence in found["said"])]
    return "\n".join([*lines, "", RESEARCH, ""])


def to_csv(found: Mapping[str, Any]) -> str:
    """Both tables, all digits; "modality" or "K" and "step" say which row it is, empty where there is no such number."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    plain = ("modality", "K", "step", "measure", "n", "own", "low", "high", *BASELINES, TARGET)
    parts = [(who, key) for who in BASELINES for key in ("n", "value", "low", "high")]
    writer.writerow([*plain, *(f"over_{who}_{key}" for who, key in parts)])
    for row in (*found["table"], *found["steps"]):
        more = [row["over"].get(who, {}).get(key) for who, key in parts]
        # Not row.get(key, ""): a number that is there and unknown is empty too.
        writer.writerow(["" if value is None else value for value in (*(row.get(key) for key in plain), *more)])
    return file.getvalue()


def to_json(cases: Sequence[Case], found: Mapping[str, Any]) -> str:
    """Everything but images, masks, heat maps and thumbnails: {"summary", "cases": [...]}, a case with the fields of `Case`."""
    rows = [
        {
            "id": case.id,
            "question": case.question,
            "answer": case.answer,
            "gold": case.gold,
            "correct": case.correct,
            "log_prob": case.log_prob,
            "tokens": case.tokens,
            "complete": case.complete,
            "metadata": dict(case.metadata),
            "similarity": np.round(case.similarity, 6).tolist(),
            "steps": [
                {
                    "text": step.text,
                    "gold": step.gold,
                    "norm": step.norm,
                    "scores": step.scores,
                    "similar": [
                        {"id": one.id, "step": one.step, "cosine": one.cosine, "text": one.text, "label": one.label}
                        for one in step.similar
                    ],
                }
                for step in case.steps
            ],
        }
        for case in cases
    ]
    return json.dumps({"summary": dict(found), "cases": rows}, ensure_ascii=False, allow_nan=False, indent=1)
