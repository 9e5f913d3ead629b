"""What `vital bench latency` shows: tables in Markdown, every number as CSV and JSON, and the paper's Figure 4b as SVG.

Times are milliseconds for one question: a batch's time over its rows. A number with brackets is a median with its quartiles over rounds.
"""

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vital_jax.construct.drawing import ticks
from vital_jax.evaluate.latency import FORMS, STAGES, Spread, Timed, ratio, slopes, spread

_RESEARCH = "Research software, not a medical device."
_SIDES = {"program": "ours, one program"} | {form: f"transformers, {how}" for form, how in FORMS.items()}
_STAGE = ", latent stage alone"
_SIDES |= {"latent": "ours" + _STAGE} | {f"{form}/latent": _SIDES[form] + _STAGE for form in FORMS}
_NAMES = {"image": "image tower", "prefill": "prefill", "latent": "latent", "decode": "decode"}
Setting = Mapping[str, str]


def _groups(timed: Sequence[Timed]) -> Iterator[tuple[str, list[Timed]]]:
    """Cells that are compared with each other: one batch size, one length of answers."""
    for key in dict.fromkeys((one.cell.batch, one.cell.answer) for one in timed):
        batch, answer = key
        length = f"answers of {answer} tokens" if answer else "free answers"
        yield f"Batch {batch}, {length}", [one for one in timed if (one.cell.batch, one.cell.answer) == key]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:,.0f}"


def _spread(values: Spread) -> str:
    return f"{_ms(values.median)} ({_ms(values.low)} to {_ms(values.high)})"


def _times(values: Spread) -> str:
    return f"{values.median:.2f} ({values.low:.2f} to {values.high:.2f})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_row(head), "|" + "---|" * len(head), *map(_row, rows)]


def _sums(one: Timed) -> list[float]:
    return [sum(parts) for parts in zip(*(one.times[stage] for stage in STAGES), strict=True)]


def _direct(group: Sequence[Timed]) -> Timed | None:
    return next((one for one in group if not one.cell.latent_steps and not one.cell.chain), None)


def _ours(group: Sequence[Timed]) -> list[str]:
    head = ["", "tokens", "image files to arrays", *(_NAMES[stage] for stage in STAGES), "sum of stages", "one program"]
    head += ["sum / program", "to direct", "questions/s"]
    direct, rows = _direct(group), []
    for one in group:
        program, whole = (
            one.times["program"],
            [a + b for a, b in zip(one.times["host"], one.times["program"], strict=True)],
        )
        rows.append([
            one.cell.name,
            f"{one.tokens:.3g}",
            *(_ms(spread(one.times[part]).median) for part in ("host", *STAGES)),
            _ms(spread(_sums(one)).median),
            _spread(spread(program)),
            f"{ratio(_sums(one), program).median:.2f}",
            _times(ratio(program, direct.times["program"])) if direct else "",
            f"{1 / spread(whole).median:.3g}",
        ])  # fmt: skip
    return _table(head, rows)


def _theirs(group: Sequence[Timed]) -> list[str]:
    """Against transformers; nothing where it was not asked."""
    forms = [form for form in FORMS if any(form in one.times or form in one.failed for one in group)]
    if not forms:
        return []
    head = ["", "ours"]
    for form in forms:
        head += [FORMS[form], "ours / theirs", "rows with equal tokens (log-probabilities within)"]
    rows, failed = [], {}
    for one in group:
        row = [one.cell.name, _ms(spread(one.times["program"]).median)]
        for form in forms:
            if form in one.times:
                row += [_ms(spread(one.times[form]).median), _times(ratio(one.times["program"], one.times[form]))]
                row.append(f"{one.agree[form]} of {one.rows} ({one.apart[form]:.1g})")
            else:
                failed[form, one.failed[form]] = None
                row += ["could not run", "", ""]
        rows.append(row)
    notes = [f"{FORMS[form]} could not run: {why}" for form, why in failed]
    return ["", *_table(head, rows), *(line for note in notes for line in ("", note))]


def _sentences(group: Sequence[Timed]) -> list[str]:
    """What the paper's section 4.3 says of its own numbers."""
    chain = next((one for one in group if one.cell.chain), None)
    latent = max((one for one in group if one.cell.latent_steps), key=lambda one: one.cell.latent_steps, default=None)
    if not chain or not latent:
        return []
    times = _times(ratio(chain.times["program"], latent.times["program"]))
    return [
        "",
        f"A {chain.cell.name}, and then the answer take {times} times as long as K = {latent.cell.latent_steps}.",
    ]


def _slopes(timed: Sequence[Timed]) -> list[str]:
    rows = [
        [str(batch), str(answer), _SIDES[side], f"{1e3 * own.value:.3g} ± {1e3 * own.error:.2g}", str(own.n)]
        for (batch, answer, side), own in slopes(timed).items()
    ]
    if not rows:
        return []
    head = ["batch", "tokens", "who", "ms per question and latent step ± standard error", "points"]
    return ["", "## What a latent step costs", "", "Least squares of time against K.", "", *_table(head, rows)]


def to_markdown(timed: Sequence[Timed], setting: Setting, title: str) -> str:
    """The page. setting: what was measured on what, a line each."""
    rounds = len(timed[0].times["program"])
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in setting.items())]
    lines += [
        "",
        f"Milliseconds for one question, a batch's time over its rows; medians of {rounds} rounds in which everything ran in turn, and in "
        "brackets the quartiles. Stages are programs of their own, each waited for; one program is what users run. Questions/s counts "
        "image files to arrays too, ratios do not.",
    ]
    for name, group in _groups(timed):
        lines += ["", f"## {name}", "", *_ours(group), *_theirs(group), *_sentences(group)]
    other = [one for one in timed if one.agree["stages"] < one.rows]
    if other:
        told = ", ".join(
            f"batch {one.cell.batch} {one.cell.name} {one.rows - one.agree['stages']} of {one.rows}" for one in other
        )
        lines += ["", f"Rows to which the stages wrote other tokens than the one program (near ties): {told}."]
    return "\n".join([*lines, *_slopes(timed), "", _RESEARCH, ""])


def to_csv(timed: Sequence[Timed]) -> str:
    """A line for each part of each cell: seconds per question. answer is empty for free ones."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["batch", "latent_steps", "answer", "chain", "tokens", "part", *Spread._fields, "ours_to_it"])
    for one in timed:
        cell = one.cell
        for part, values in one.times.items():
            against = ratio(one.times["program"], values).median if part in FORMS else ""
            head = [cell.batch, cell.latent_steps, cell.answer, cell.chain, one.tokens]
            writer.writerow([*head, part, *spread(values), against])
    return text.getvalue()


def to_json(timed: Sequence[Timed], setting: Setting) -> str:
    """Everything: the setting, every round of every part, the slopes."""
    found: dict[str, Any] = {"setting": dict(setting), "cells": [dataclasses.asdict(one) for one in timed]}
    found["slopes"] = [
        {"batch": batch, "answer": answer, "side": side, **own._asdict()}
        for (batch, answer, side), own in slopes(timed).items()
    ]
    return json.dumps(found, indent=1) + "\n"


# --- the figure -----------------------------------------------------------------------------------------------------

_COLOURS = {"image": "#123458", "prefill": "#4a7fb5", "latent": "#d1495b", "decode": "#ecc46c"}
_MARKS = {"program": "#000000", "eager": "#7a7a7a", "compiled": "#2e8b57"}
_LEFT, _WIDTH, _STEP, _PANEL = 190, 560, 26, 66


def to_svg(timed: Sequence[Timed], title: str) -> str:
    """Figure 4b: a bar for each K made of its stages, and where the one program and transformers end. Bars beyond the scale are cut."""
    groups = list(_groups(timed))
    height = 70 + sum(_PANEL + _STEP * len(group) for _, group in groups)
    width = _LEFT + _WIDTH + 90
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f"<title>{_escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="12" y="20" font-size="14">{_escape(title)}</text>',
        *_legend(timed),
    ]
    y = 58
    for name, group in groups:
        parts.append(f'<text x="12" y="{y + 18}" font-weight="bold">{_escape(name)} (ms for one question)</text>')
        scale = 1.1 * max(_longest(one) for one in group if not one.cell.chain or len(group) == 1)
        for number, one in enumerate(group):
            parts += _bar(one, scale, y + 28 + number * _STEP)
        parts += _axis(scale, y + 30 + _STEP * len(group))
        y += _PANEL + _STEP * len(group)
    return "\n".join([*parts, "</svg>", ""])


def _axis(scale: float, y: int) -> list[str]:
    """Milliseconds below the bars of a group."""
    parts = [f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y}" y2="{y}" stroke="#555"/>']
    for ms in ticks(0, 1e3 * scale):
        x = _LEFT + _WIDTH * ms / (1e3 * scale)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 4}" stroke="#555"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 16}" text-anchor="middle" font-size="10">{ms:g}</text>')
    return parts


def _longest(one: Timed) -> float:
    return max([sum(_stages(one).values()), *(spread(one.times[part]).median for part in _MARKS if part in one.times)])


def _stages(one: Timed) -> dict[str, float]:
    return {stage: spread(one.times[stage]).median for stage in STAGES}


def _bar(one: Timed, scale: float, y: int) -> list[str]:
    place = lambda seconds: _LEFT + _WIDTH * min(seconds / scale, 1.0)  # noqa: E731
    parts = [f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{_escape(one.cell.name)}</text>']
    start = 0.0
    for stage, seconds in _stages(one).items():
        left, right = place(start), place(start + seconds)
        parts.append(f'<rect x="{left:.1f}" y="{y}" width="{right - left:.1f}" height="18" fill="{_COLOURS[stage]}"/>')
        start += seconds
    for part, colour in _MARKS.items():
        if part in one.times:
            x = place(spread(one.times[part]).median)
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 3}" y2="{y + 21}" stroke="{colour}" stroke-width="3"/>'
            )
    label = _ms(spread(one.times["program"]).median) + (" (cut)" if _longest(one) > scale else "")
    parts.append(f'<text x="{_LEFT + _WIDTH + 8}" y="{y + 14}">{label}</text>')
    return parts


def _legend(timed: Sequence[Timed]) -> list[str]:
    shown = [(_COLOURS[stage], _NAMES[stage]) for stage in STAGES]
    shown += [(colour, _SIDES[part]) for part, colour in _MARKS.items() if any(part in one.times for one in timed)]
    parts, x = [], 12
    for colour, name in shown:
        parts.append(f'<rect x="{x}" y="34" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14}" y="43" font-size="10">{_escape(name)}</text>')
        x += 24 + round(5.4 * len(name))
    return parts


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
