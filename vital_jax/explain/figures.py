"""The paper's figures about latents, each one SVG file: pictures and texts inside, nothing loaded from anywhere.

    progress   heat maps from z_1 to z_K beside the region, two cases a row (figure 12)
    collapse   cosine matrices of the steps of several checkpoints side by side (figure 11)
    compare    one case, what several checkpoints answer, say and show on the way (figure 3)

A heat map is laid over a grey image as blocks, one for each patch, in the viridis colours, which grey printers and colour-blind eyes keep
in order. All steps of a case share one scale, from the coldest to the hottest patch of any of them: a map that is flat beside the others
looks flat. The two numbers stand beside it.
"""

import textwrap
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO

import numpy as np
from PIL import Image

from vital_jax.construct.drawing import colour_bar
from vital_jax.construct.pages import outline, picture
from vital_jax.evaluate.figure import heat as matrix
from vital_jax.evaluate.figure import heat_size
from vital_jax.explain.case import Case
from vital_jax.pipeline.images import decode

SIDE = 132  # of a panel in pixels
NOTICE = "Research software, not a medical device."
HEAT = f"{NOTICE} Approximate: cosines of image patches with the projected latent, from the coldest to the hottest of a case's steps."
_GAP, _LINE, _EDGE, _BAR = 8, 15, 12, 26
# Viridis at even distances (matplotlib, CC0).
_VIRIDIS = np.array([
    (68, 1, 84), (71, 45, 123), (59, 82, 139), (44, 114, 142), (33, 145, 140), (40, 174, 128), (94, 201, 98), (173, 220, 48),
    (253, 231, 37),
], np.float64)  # fmt: skip
_HEAT = 0.4  # opacity of the heat: the image keeps the most of its contrast


def progress(cases: Sequence[Case], columns: int = 2) -> str:
    """Heat maps step by step and, last, the region (figure 12).

    Args:
      cases: with heat maps; the first image of each is shown. columns: cases in a row.
    Raises: ValueError for no cases, or one without heat maps.
    """
    if not cases or any(not step.heat for case in cases for step in case.steps):
        raise ValueError("heat maps are missing: the run has no visual projector")
    panels = max(len(case.steps) for case in cases) + 1
    wide = panels * (SIDE + _GAP) + 2 * _GAP
    tall = SIDE + 3 * _LINE + _BAR + _GAP
    parts = []
    for number, case in enumerate(cases):
        left, top = _EDGE + number % columns * wide, 30 + number // columns * tall
        parts.append(_text(left, top + _LINE - 3, [_title(case)], 12, wide - 3 * _GAP))
        low, high = _scale(case)
        for k in range(len(case.steps)):
            x = left + k * (SIDE + _GAP)
            parts += _heat_map(case, k, x, top + _LINE + 4, low, high)
            parts.append(_text(x, top + SIDE + 2 * _LINE + 4, [f"z_{k + 1}"]))
        x = left + (panels - 1) * (SIDE + _GAP)
        parts += _region(case, x, top + _LINE + 4)
        named = "region" if case.masks[0] is not None else "image"
        parts.append(_text(x, top + SIDE + 2 * _LINE + 4, [named]))
        parts += _scale_bar(x, top + SIDE + 2 * _LINE + 10, low, high)
    rows = -(-len(cases) // columns)
    width = _EDGE + min(columns, len(cases)) * wide
    return _svg(width, 30 + rows * tall + 20, "Heat maps from latent step to latent step", parts, HEAT)


def collapse(matrices: Mapping[str, np.ndarray], counts: Mapping[str, int]) -> str:
    """Mean cosines of steps (equation 9), one matrix for each checkpoint (figure 11).

    Args:
      matrices: {name: [K, K]}, NaN where no question has both steps. counts: questions behind each.
    Raises: ValueError for no matrices.
    """
    if not matrices:
        raise ValueError("no matrices to draw")
    parts, left, tall = [], _EDGE, 0
    for name, values in matrices.items():
        K = len(values)
        known = {(i, j): float(values[i, j]) for i in range(K) for j in range(i, K) if np.isfinite(values[i, j])}
        drawn = matrix(f"{name} (N = {counts[name]})", [f"z_{k + 1}" for k in range(K)], known)
        # One drawing inside another keeps its own coordinates.
        parts.append(drawn.replace("<svg ", f'<svg x="{left}" y="34" ', 1))
        width, height = heat_size(K)
        left, tall = left + max(width, 9 * len(name) + 90), max(tall, height)
    return _svg(left, 34 + tall + 20, "Mean cosine of latent steps", parts)


def compare(cases: Mapping[str, Case]) -> str:
    """One case as several checkpoints answer it, with what their steps say and show (figure 3).

    Args:
      cases: {name of the checkpoint: the case}; without heat maps or texts where a checkpoint has no scaffold.
    Raises: ValueError for no cases, or cases of different questions.
    """
    if not cases or len({case.question for case in cases.values()}) != 1:
        raise ValueError("a comparison is of one question, asked of one checkpoint or more")
    first = next(iter(cases.values()))
    column = 2 * SIDE
    most = max(len(case.steps) for case in cases.values())
    width = 2 * _EDGE + SIDE + 3 * _GAP + max(1, most) * (column + _GAP)
    asked = [f"Question: {first.question}", *([f"Right answer: {first.gold}"] if first.gold else [])]
    asked = [line for text in asked for line in _wrapped(text, width - SIDE - 4 * _GAP)]
    parts = [_text(_EDGE + SIDE + 2 * _GAP, 30 + _LINE, asked, 13), *_region(first, _EDGE, 34)]
    top = 34 + max(SIDE, _LINE * len(asked)) + 2 * _GAP
    for name, case in cases.items():
        verdict = {True: " (right)", False: " (not the right answer)", None: ""}[case.correct]
        left = _EDGE
        parts.append(f'<line x1="{_EDGE}" y1="{top}" x2="{width - _EDGE}" y2="{top}" stroke="#999"/>')
        head = _wrapped(f"{name}: {case.answer}{verdict}, log-probability {case.log_prob:.2f}", width - 2 * _EDGE)
        parts.append(_text(left, top + _LINE + 2, head, 13))
        y, tall = top + _LINE * len(head) + _GAP, 0
        shows = any(step.heat for step in case.steps)
        low, high = _scale(case) if shows else (0.0, 0.0)
        for k, step in enumerate(case.steps if shows or any(step.text for step in case.steps) else ()):
            x = left + SIDE + 3 * _GAP + k * (column + _GAP)
            if step.heat:
                parts += _heat_map(case, k, x, y, low, high)
            words = _wrapped(f"z_{k + 1}: {step.text or 'no text decoder'}", column)
            parts.append(_text(x, y + SIDE * shows + _LINE, words))
            tall = max(tall, SIDE * shows + _LINE * (len(words) + 1))
        if not tall:
            parts.append(
                _text(left + SIDE + 3 * _GAP, y + _LINE, ["no latent steps, or no scaffold to read them with"])
            )
            tall = 2 * _LINE
        elif shows:
            parts += _scale_bar(left, y + 4, low, high)
        top = y + tall + _GAP
    return _svg(width, top + 20, "One case, several checkpoints", parts, HEAT)


# --- parts --------------------------------------------------------------------------------------------------------------


def _svg(width: float, height: float, title: str, parts: Sequence[str], notice: str = NOTICE) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(title)}" viewBox="0 0 {width:g} {height:g}" '
            f'width="{width:g}" height="{height:g}" font-family="sans-serif" font-size="12">',
            f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
            f'<text x="{_EDGE}" y="20" font-size="15">{escape(title)}</text>',
            *parts,
            f'<text x="{_EDGE}" y="{height - 6:g}" fill="#555555">{escape(notice)}</text>',
            "</svg>\n",
        ]
    )


def _wrapped(text: str, width: float) -> list[str]:
    return textwrap.wrap(text, max(10, int(width / 6.4))) or [""]


def _text(x: float, y: float, lines: Sequence[str], size: int = 12, most: float | None = None) -> str:
    lines = [textwrap.shorten(line, int(most / 6.4), placeholder=" ...") for line in lines] if most else lines
    spans = "".join(f'<tspan x="{x:g}" dy="{_LINE if i else 0}">{escape(line)}</tspan>' for i, line in enumerate(lines))
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}">{spans}</text>'


def _image(x: float, y: float, source: str, about: str) -> str:
    return (
        f'<image x="{x:g}" y="{y:g}" width="{SIDE}" height="{SIDE}" preserveAspectRatio="xMidYMid meet" href="{source}">'
        f"<title>{escape(about)}</title></image>"
    )


def _title(case: Case) -> str:
    facts = (case.metadata.get("modality", ""), case.metadata.get("target_name", ""), case.question)
    return ", ".join(filter(None, facts))


def _scale(case: Case) -> tuple[float, float]:
    values = np.concatenate([step.heat[0].ravel() for step in case.steps])
    return float(values.min()), float(values.max())


def _scale_bar(x: float, y: float, low: float, high: float) -> list[str]:
    """The colours of a case's heat maps, in the width of a panel."""
    return colour_bar(x, y, SIDE, _VIRIDIS, f"{low:.2f}", "cosine", f"{high:.2f}")


def _region(case: Case, x: float, y: float) -> list[str]:
    """The first image, untouched, and the line around its region as a drawing of its own."""
    source, shown, _ = picture(case.images[0], case.id, 2 * SIDE, case.metadata.get("window"))
    drawn = [_image(x, y, source, "the image")]
    if case.masks[0] is not None:
        drawn.append(_image(x, y, outline(case.masks[0], shown), "the region"))
    return drawn


def _heat_map(case: Case, k: int, x: float, y: float, low: float, high: float) -> list[str]:
    """The heat map of step k, counted from 0, and the line around what it is about, where the steps have regions of their own."""
    step = case.steps[k]
    drawn = [_image(x, y, _overlay(case, step.heat[0], low, high), f"heat map of step {k + 1}")]
    if step.region is not None:
        height, width = step.region.shape
        shown = round(2 * SIDE * width / max(height, width)), round(2 * SIDE * height / max(height, width))
        drawn.append(_image(x, y, outline(step.region, shown), f"region of step {k + 1}"))
    return drawn


def _overlay(case: Case, heat: np.ndarray, low: float, high: float) -> str:
    """A heat map over the grey image, as a data URL of a JPEG."""
    image, _ = decode(case.images[0], case.id, case.metadata.get("window"))
    scale = 2 * SIDE / max(image.size)
    size = [max(1, round(length * scale)) for length in image.size]
    grey = image.convert("L").convert("RGB").resize(size, Image.Resampling.LANCZOS)
    place = (heat - low) / (high - low) if high > low else np.zeros_like(heat)
    at = np.clip(place, 0, 1) * (len(_VIRIDIS) - 1)
    below = np.minimum(at.astype(int), len(_VIRIDIS) - 2)
    part = (at - below)[..., None]
    colours = np.rint((1 - part) * _VIRIDIS[below] + part * _VIRIDIS[below + 1]).astype(np.uint8)
    blocks = Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)
    file = BytesIO()
    Image.blend(grey, blocks, _HEAT).save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode('ascii')}"
