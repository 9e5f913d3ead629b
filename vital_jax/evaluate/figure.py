"""The audits as one page: a self-contained HTML file with drawings as inline SVG, no script and nothing loaded from anywhere.

Drawn by hand as in construct/grid.py: a few axes, dots and cells need no plotting package. Colours are Okabe and Ito's, told apart by any
eye, and everything that is drawn stands as a number in the table below.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from vital_jax.construct import pages
from vital_jax.construct.drawing import colour_bar, fill, ink, mixed, ticks
from vital_jax.evaluate import audit_groups, steps_held
from vital_jax.evaluate import audit_table as table
from vital_jax.evaluate.audit_groups import Table
from vital_jax.evaluate.audit_table import Line

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#555555")
NOTICE = "Research software, not a medical device."
# After the style that all pages share. Drawings keep their white ground, in the dark too.
_STYLE = """body { max-width: 78rem; margin: 0 auto; padding: 0.6rem 1rem; }
td, th { border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
td:nth-child(-n+3), th:nth-child(-n+3) { text-align: left; }
main { display: flex; flex-wrap: wrap; gap: 1.5rem; padding: 0; }
figure { background: #fff; overflow-x: auto; }"""

_SIDE = 58  # of a cell

Point = tuple[float, float, float | None, float | None]  # x, y, and the ends of its interval


def _svg(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(title)}" viewBox="0 0 {width:g} {height:g}" '
            f'width="{width:g}" height="{height:g}" font-family="sans-serif" font-size="12">',
            f'<text x="8" y="18" font-size="14">{escape(title)}</text>',
            *parts,
            "</svg>",
        ]
    )


def _padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = share * (high - low) or 1.0
    return low - room, high + room


def forest(title: str, rows: Sequence[tuple[str, float, float | None, float | None]], line: float, unit: str) -> str:
    """Values with their intervals, one row each, beside a vertical line at `line`."""
    left, right, step, top = 330, 330, 22, 34
    low, high = _padded([line, *(x for _, *xs in rows for x in xs if x is not None)])
    at = lambda x: left + right * (x - low) / (high - low)  # noqa: E731
    bottom = top + step * len(rows)
    parts = [
        f'<line x1="{at(line):.1f}" y1="{top}" x2="{at(line):.1f}" y2="{bottom}" stroke="#999" stroke-dasharray="4 3"/>'
    ]
    for i, (name, value, start, end) in enumerate(rows):
        y = top + step * i + step / 2
        parts.append(f'<text x="{left - 12}" y="{y + 4:g}" text-anchor="end">{escape(name)}</text>')
        if start is not None and end is not None:
            parts.append(
                f'<line x1="{at(start):.1f}" y1="{y:g}" x2="{at(end):.1f}" y2="{y:g}" stroke="{COLOURS[0]}" stroke-width="2"/>'
            )
        parts.append(
            f'<circle cx="{at(value):.1f}" cy="{y:g}" r="4" fill="{COLOURS[0]}"><title>{value:.1f}</title></circle>'
        )
    parts.append(f'<line x1="{left}" y1="{bottom}" x2="{left + right}" y2="{bottom}" stroke="#555"/>')
    for x in ticks(low, high):
        parts.append(f'<line x1="{at(x):.1f}" y1="{bottom}" x2="{at(x):.1f}" y2="{bottom + 4}" stroke="#555"/>')
        parts.append(f'<text x="{at(x):.1f}" y="{bottom + 16}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{left + right / 2}" y="{bottom + 34}" text-anchor="middle">{escape(unit)}</text>')
    return _svg(left + right + 24, bottom + 44, title, parts)


def lines(
    title: str, series: Mapping[str, Sequence[Point]], across: str, up: str, diagonal: bool = False, dots: bool = True
) -> str:
    """Curves over one axis, with the intervals of their points; `diagonal` draws y = x over 0 to 1."""
    left, top, width, height = 76, 34, 330, 230
    points = [point for curve in series.values() for point in curve]
    x0, x1 = (0.0, 1.0) if diagonal else _padded([x for x, *_ in points], 0.04)
    y0, y1 = (0.0, 1.0) if diagonal else _padded([y for _, *ys in points for y in ys if y is not None])
    at = lambda x, y: (left + width * (x - x0) / (x1 - x0), top + height * (1 - (y - y0) / (y1 - y0)))  # noqa: E731
    parts = [f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999"/>']
    if diagonal:
        (a, b), (c, d) = at(0, 0), at(1, 1)
        parts.append(
            f'<line x1="{a:g}" y1="{b:g}" x2="{c:g}" y2="{d:g}" stroke="#999" stroke-dasharray="4 3"/>'
        )  # fmt: skip
    for i, (name, curve) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y, *_ in curve)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for x, y, low, high in curve:
            px, py = at(x, y)
            if low is not None and high is not None:
                ends = (at(x, low)[1], at(x, high)[1])
                parts.append(
                    f'<line x1="{px:.1f}" y1="{ends[0]:.1f}" x2="{px:.1f}" y2="{ends[1]:.1f}" stroke="{colour}"/>'
                )
            if dots:
                tip = f"<title>{escape(name)}: {y:.4g}</title>"
                parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}">{tip}</circle>')
        y = top + height + 58 + 17 * i
        parts.append(f'<rect x="{left}" y="{y - 10}" width="12" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{left + 18}" y="{y}">{escape(name)}</text>')
    steps = sorted({x for x, *_ in points})
    for x in steps if all(float(x).is_integer() for x in steps) and len(steps) < 8 else ticks(x0, x1):
        parts.append(f'<text x="{at(x, y0)[0]:.1f}" y="{top + height + 16}" text-anchor="middle">{x:.3g}</text>')
    for y in ticks(y0, y1):
        parts.append(f'<text x="{left - 6}" y="{at(x0, y)[1] + 4:.1f}" text-anchor="end">{y:.3g}</text>')
    middle = top + height / 2
    parts += [
        f'<text x="{left + width / 2:g}" y="{top + height + 36}" text-anchor="middle">{escape(across)}</text>',
        f'<text x="16" y="{middle:g}" transform="rotate(-90 16 {middle:g})" text-anchor="middle">{escape(up)}</text>',
    ]
    return _svg(left + width + 24, top + height + 56 + 17 * len(series), title, parts)


def heat(title: str, names: Sequence[str], values: Mapping[tuple[int, int], float]) -> str:
    """A symmetric matrix of cosines as coloured cells; pairs without a value stay empty."""
    side, left, top = _SIDE, 50, 54
    width, height = heat_size(len(names))
    parts = []
    for i, name in enumerate(names):
        parts.append(f'<text x="{left - 8}" y="{top + side * i + side / 2 + 4:g}" text-anchor="end">{name}</text>')
        parts.append(f'<text x="{left + side * i + side / 2:g}" y="{top - 8}" text-anchor="middle">{name}</text>')
        for j in range(len(names)):
            value = 1.0 if i == j else values.get((min(i, j), max(i, j)))
            place = min(max(value or 0.0, 0.0), 1.0)
            colour = (255.0, 255.0, 255.0) if value is None else mixed(place)
            x, y = left + side * j, top + side * i
            parts.append(
                f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="{fill(colour)}" stroke="#ffffff"/>'
            )
            if value is not None:
                spot = f'x="{x + side / 2:g}" y="{y + side / 2 + 4:g}"'
                parts.append(f'<text {spot} text-anchor="middle" fill="{ink(colour)}">{value:.3f}</text>')
    parts += colour_bar(16, height - 36, width - 32, [mixed(i / 15) for i in range(16)], "0", "cosine", "1")
    return _svg(width, height, title, parts)


def heat_size(count: int) -> tuple[int, int]:
    """Width and height of a `heat` of so many names."""
    return _SIDE * count + 66, _SIDE * count + 112


# --- the page -------------------------------------------------------------------------------------


def drawings(found: Mapping[str, Any]) -> list[str]:
    """The figures of what `audits.audit` returned."""
    made, rows = [], [Line(**line) for line in found["lines"]]
    changed = [line for line in rows if line.measure == table.ACCURACY and line.difference is not None]
    if changed:
        name = lambda line: f"{line.what} (N = {line.n})"  # noqa: E731
        hundred = lambda values: [None if value is None else 100 * value for value in values]  # noqa: E731
        points = [(name(c), *hundred((c.difference, c.difference_low, c.difference_high))) for c in changed]
        title = "Change of accuracy against the run, on the same questions"
        made.append(forest(title, points, 0.0, "points, 95 % intervals by drawing images"))
        run = rows[0]
        # The dashed line is of all questions: an accuracy of others says nothing beside it, and stands above with the run's on the same.
        points = [(name(c), *hundred((c.value, c.low, c.high))) for c in changed if c.n == run.n]
        if points:
            title = f"Accuracy on all {run.n} questions (dashed: the run)"
            made.append(forest(title, points, 100 * run.value, "percent, Wilson's 95 % intervals"))
    sweep = [line for line in rows if line.audit == table.SWEEP and line.what.removeprefix("K = ").isdigit()]
    if len(sweep) > 1:
        curve = [(int(line.what.removeprefix("K = ")), 100 * line.value, 100 * line.low, 100 * line.high) for line in sweep]  # fmt: skip
        made.append(lines("K sweep", {"accuracy": curve}, "K, the same for all questions", "percent"))
    if latents := found.get("latents"):
        steps = [name for name in latents["length"] if name.startswith("z_")]
        cosines = {
            tuple(int(part.removeprefix("z_")) - 1 for part in pair.split()): one["value"]
            for pair, one in latents["cosine"].items()
        }
        if cosines:
            made.append(heat("Mean cosine of steps (equation 9)", [name for name in steps if name != "z_0"], cosines))
        curve = [(int(name[2:]), *(latents["length"][name][key] for key in ("value", "low", "high"))) for name in steps]
        words = latents["length"]["token embeddings"]["value"]
        curves = {"z_k, the next step's input": curve, "token embeddings": [(x, words, None, None) for x, *_ in curve]}
        made.append(lines("Mean length of latents", curves, "step (0: after the prompt)", "length"))
    if text := found.get("text"):
        curves = {
            name: [
                (int(step), one["value"], one["low"], one["high"])
                for step, one in sorted(steps.items())
                if step != "all"
            ]
            for name, steps in text.items()
        }
        made.append(lines("Cross-entropy of the text decoder, by latents", curves, "step", "nats per token"))
    for name, one in found.get("calibration", {}).items():
        bins = [(confidence, right, None, None) for _, confidence, right in one["reliability"]]
        title = f"Reliability: {name}"
        made.append(lines(title, {f"{one['bins']} bins of equal mass": bins}, "confidence", "share right", True))
    curves = {name: _curve(one["risk"]) for name, one in found.get("calibration", {}).items()}
    if curves:
        made.append(lines("Risk-coverage", curves, "share of questions answered", "share wrong among them", dots=False))
    return made


def _curve(risk: Sequence[float], most: int = 200) -> list[Point]:
    n = len(risk)
    places = sorted({round(i * (n - 1) / max(1, min(most, n) - 1)) for i in range(min(most, n))})
    return [((i + 1) / n, risk[i], None, None) for i in places]


def more(found: Mapping[str, Any], brief: bool = False) -> list[Table]:
    """The tables beside the audit's own: by group, unless `brief` with every line of each, and what each step holds."""
    by = audit_groups.tables(found["by"], brief) if "by" in found else []
    return by + steps_held.tables(found.get("steps", ()))


def page(title: str, about: str, found: Mapping[str, Any]) -> str:
    """The page of what `audits.audit` returned; `about` says what was asked under. Texts are escaped."""
    own = "Table", table.HEADER, [table.cells(Line(**line)) for line in found["lines"]]
    row = lambda tag, values: f"<tr>{''.join(f'<{tag}>{escape(value)}</{tag}>' for value in values)}</tr>"  # noqa: E731
    items = lambda texts: "\n".join(f"<li>{escape(text)}</li>" for text in texts)  # noqa: E731
    figures = "\n".join(f"<figure>{drawing}</figure>" for drawing in drawings(found))
    tables = "\n".join(
        f"""<h2>{escape(name)}</h2>
<div class="wide" role="region" aria-label="table" tabindex="0"><table>
<thead>{row("th", header)}</thead>
<tbody>
{chr(10).join(row("td", values) for values in cells)}
</tbody>
</table></div>"""
        for name, header, cells in (own, *more(found))
    )
    left_out = items(f"{name}: {why}" for name, why in found["left_out"])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{pages.stylesheet()}
{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="notice">{escape(about)} {NOTICE}</p>
<ul>
{items(found["sentences"])}
</ul>
<main>
{figures}
</main>
{tables}
<h2>Left out</h2>
<ul>
{left_out}
</ul>
<p class="notice">{NOTICE}</p>
</body>
</html>
"""
