"""The page of explanations: per question the image, what each latent step says and where it points, the answer, and the numbers above all.

One HTML file that needs no network and no server, as the pages of `construct.pages`: images, style and script are inside, its content
security policy lets nothing else load or run, and what comes from data is only ever set as text.

A heat map travels as its small grid and is coloured in the browser, so that opacity, colours and scale are the reader's to change. It is
drawn in blocks, one for each patch: smoothing would show detail that the encoder does not have. Clinicians trust a sentence alone too much
(arXiv 2410.12284), so a sentence stands under its heat map, and the original image stays on the screen.

A case is given `LIMIT` characters: its images shrink until they fit, and the pictures of similar cases take what is left.
"""

import hashlib
import json
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vital_jax.construct import pages
from vital_jax.explain import pointing
from vital_jax.explain.case import Case, Similar, Step

TEMPLATES = Path(__file__).parent / "templates"
SIDES = (384, 320, 256, 192, 128, 64)  # longest side of a shown image in pixels: the largest that fits
THUMB = 80  # of a similar case
LIMIT = 64_000  # characters of a case in the page, which leaves room for the script: a page of one case is below 100 kB as well
MOST = 300  # cases: below 20 MB, which a mail server takes
TEXT = 1500  # characters of a shown text
FLAT = 0.05  # a heat map whose cosines lie closer together is called flat
NOTICE = (
    "Research use only. Not a medical device. Approximate: texts and heat maps are readings by modules trained beside the model, "
    "no proof of how it came to its answer."
)
FILTERS = {"verdict": "answer", "modality": "modality", "question_type": "question type"}
MEASURES = {
    "pointing": "pointing game",
    "iou_best": "IoU at its best threshold",
    "iou_area": "IoU at the region's area",
    "share": "share of heat inside",
}
BASELINES = {
    pointing.SHUFFLED: "another image's latents",
    pointing.OTHER: "another image's, same target",
    pointing.RANDOM: "random vector",
}
HEADS = (
    "measure",
    "N",
    "own latents",
    "95 % interval",
    *BASELINES.values(),
    "region's own feature",
    "above those compared",
)


def page(cases: Sequence[Case], summary: Mapping[str, Any], most: int = MOST) -> str:
    """The page as text.

    Args:
      cases: see `Case`; their order is kept.
      summary: as `numbers.summary`; what it lacks is left out. It may be over more cases than are shown, which the page says.
      most: cases shown.
    Raises: ValueError for no cases, an image that cannot be decoded, or a case whose parts do not match; the message names the case.
    """
    if not cases:
        raise ValueError("no cases to show; explain at least one question")
    album = _Album()
    shown = [_case(case, album) for case in cases[:most]]
    notes = [str(note) for note in summary.get("notes", ())]
    of = max(len(cases), int(summary.get("cases") or 0))
    if of > len(shown):
        notes.append(
            f"This page shows {len(shown)} of the {of} cases that were explained; the table is over all of them."
        )
    values = {name: sorted({case[name] for case in shown}) for name in FILTERS}
    numbers = {part: [_clean(row) for row in summary.get(part, ())] for part in ("table", "steps")}
    lines = [(row["modality"], _cells(row)) for row in numbers["table"]]
    inside = {
        "cases": shown, "pictures": album.pictures, "thumbs": album.thumbs, "flat": FLAT,
        "measures": list(MEASURES.items()), "notice": NOTICE,
        "summary": {"model": str(summary.get("model", "")), "cases": of, "notes": notes} | numbers,
    }  # fmt: skip
    return pages.page(
        "page",
        TEMPLATES,
        title=f"Explanations of {summary.get('model') or 'a model'}",
        notice=NOTICE,
        notes=[note for note in notes if note not in pointing.ABOUT],
        meanings=[note for note in notes if note in pointing.ABOUT],
        said=summary.get("said", ()),
        heads=HEADS,
        # One modality, or all together, at a glance; the others on demand.
        table=[line for line in lines if line[0] == lines[0][0]],
        by_modality=[line for line in lines if line[0] != lines[0][0]],
        steps=[(f"K = {row['K']}, z{row['step']}", _cells(row)) for row in numbers["steps"]],
        filters={FILTERS[name]: (name, found) for name, found in values.items() if len(found) > 1},
        side=SIDES[0],
        data=inside,
    )


# --- words and numbers ----------------------------------------------------------------------------


def _number(value: Any) -> float | None:
    """Six decimals, more than anybody reads; None for what is no finite number, which JSON cannot hold."""
    if value is None or not math.isfinite(value):
        return None
    return round(float(value), 6)


def _cut(text: Any, most: int = TEXT) -> str:
    text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False, default=str)
    return text if len(text) <= most else f"{text[:most]} [...]"


def _clean(value: Any) -> Any:
    """JSON values, numbers as `_number` has them."""
    if isinstance(value, Mapping):
        return {str(key): _clean(each) for key, each in value.items()}
    return value if isinstance(value, str | int) else _number(value)


def _cells(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A line of the table: what each cell says, and what it says in small letters below."""
    said = lambda value: "–" if value is None else f"{value:.3f}"  # noqa: E731
    low, high, over = row.get("low"), row.get("high"), row.get("over") or {}
    interval = "–" if None in (low, high) else f"{low:.3f} to {high:.3f}"
    cells = [(MEASURES.get(row["measure"], row["measure"]), ""), (str(row["n"]), "")]
    cells += [(said(row["own"]), ""), (interval, "")]
    above = []
    for name in BASELINES:
        # The difference on the same questions says more than two intervals that overlap.
        more, small = over.get(name) or {}, ""
        if more.get("n", row["n"]) != row["n"]:
            small = f"N {more['n']}: not compared"
        elif None not in (more.get("low"), more.get("high")):
            small = f"ahead by {more['low']:+.3f} to {more['high']:+.3f}"
            above.append(more["low"] > 0)
        elif row.get(name) is not None and low is not None:
            above.append(low > row[name])
        cells.append((said(row.get(name)), small))
    return [*cells, (said(row.get("target")), ""), ("yes" if above and all(above) else "no" if above else "–", "")]


# --- a case ---------------------------------------------------------------------------------------


def _case(case: Case, album: "_Album") -> dict[str, Any]:
    """A case for the page, JSON values. Raises: ValueError as `page`."""
    name, steps = f"case {case.id!r}", len(case.steps)
    parts = [("masks", len(case.masks)), *(("heat maps", len(step.heat)) for step in case.steps if step.heat)]
    for what, count in parts:
        if count != len(case.images):
            raise ValueError(f"{name}: {count} {what} for {len(case.images)} images; give one for each image")
    if np.shape(case.similarity) != (steps, steps):
        raise ValueError(f"{name}: similarity is {np.shape(case.similarity)} for {steps} steps")
    kinds = {kind: str(case.metadata.get(kind) or pages.NOTHING) for kind in ("modality", "question_type")}
    made = {
        "id": case.id,
        **kinds,
        "verdict": {True: "right", False: "wrong", None: "not judged"}[case.correct],
        "question": _cut(case.question),
        "answer": _cut(case.answer),
        "gold": _cut(case.gold),
        "log_prob": _number(case.log_prob),
        "tokens": int(case.tokens),
        "complete": bool(case.complete),
        "metadata": [[_cut(key, 60), _cut(value, 300)] for key, value in sorted(case.metadata.items())],
        "similarity": [[_number(value) for value in row] for row in np.asarray(case.similarity, np.float64)],
        "steps": [_step(step) for step in case.steps],
    }
    room = LIMIT - len(json.dumps(made))
    made["images"], used = album.show(case, kinds["modality"], room)
    for step, shown in zip(case.steps, made["steps"], strict=True):
        shown["outline"] = album.outline(made["images"][0], step.region)
        used += len(shown["outline"])
    # The nearest of every step come first: they keep their pictures where the room does not do for all.
    ranked = sorted(
        ((rank, at) for at, step in enumerate(case.steps) for rank in range(len(step.similar))), key=lambda pair: pair
    )
    room -= used
    for rank, at in ranked:
        thumb, used = album.thumb(case.steps[at].similar[rank], name, room)
        made["steps"][at]["similar"][rank]["thumb"] = thumb
        room -= used
    return made


def _step(step: Step) -> dict[str, Any]:
    scores = step.scores or {}
    return {
        "text": _cut(step.text),
        "gold": _cut(step.gold),
        "norm": _number(step.norm),
        "scores": {key: bool(value) if key == "pointing" else _number(value) for key, value in scores.items()},
        "heat": [_heat(np.asarray(heat, np.float32)) for heat in step.heat],
        "similar": [
            {
                "id": one.id,
                "step": int(one.step),
                "cosine": _number(one.cosine),
                "text": _cut(one.text, 300),
                "label": _cut(one.label, 100),
            }
            for one in step.similar
        ],
    }


def _heat(heat: np.ndarray) -> dict[str, Any] | None:
    """[h, w] cosines as 256 levels between their ends, row by row; None where one is no finite number."""
    if not np.isfinite(heat).all():
        return None
    low, high = float(heat.min()), float(heat.max())
    levels = np.rint((heat - low) / ((high - low) or 1.0) * 255).astype(np.uint8)
    rows, columns = heat.shape
    text = b64encode(levels.tobytes()).decode("ascii")
    return {"rows": rows, "columns": columns, "low": _number(low), "high": _number(high), "levels": text}


class _Album:
    """Shrunk images, each held once however many cases ask about it.

    Attributes:
      pictures: {"src": data URL, "width", "height"}. thumbs: data URLs of similar cases.
    """

    def __init__(self):
        self.pictures: list[dict[str, Any]] = []
        self.thumbs: list[str] = []
        self._places: dict[Any, int] = {}

    def show(self, case: Case, kind: str, room: int) -> tuple[list[dict[str, Any]], int]:
        """Per image {"picture": its number, "outline": data URL or "", "alt": words for who cannot see it}, and the characters used."""
        shown, count = [], len(case.images)
        kind = "medical" if kind == pages.NOTHING else kind
        for number, (data, mask) in enumerate(zip(case.images, case.masks, strict=True), 1):
            of = f", {number} of {count}" if count > 1 else ""
            made = {"picture": self._picture(case, number, data, room // count), "alt": f"{kind} image{of}"}
            shown.append({**made, "outline": self.outline(made, mask)})
        # Shared images count for every case that shows them: cases are alike, whichever came first.
        return shown, sum(len(part["outline"]) + len(self.pictures[part["picture"]]["src"]) for part in shown)

    def outline(self, image: Mapping[str, Any], mask: np.ndarray | None) -> str:
        """The line around a region of an image that `show` returned, as a data URL; "" where nothing is marked."""
        if mask is None or not np.any(mask):
            return ""
        one = self.pictures[image["picture"]]
        return pages.outline(np.asarray(mask, bool), (one["width"], one["height"]))

    def _picture(self, case: Case, number: int, data: bytes, most: int) -> int:
        window = case.metadata.get("window")
        key = hashlib.sha256(data).digest(), str(window)
        if key not in self._places:
            name = f"case {case.id!r}: image {number}"
            for side in SIDES:
                source, (width, height), _ = pages.picture(data, name, side, window)
                if len(source) <= most:
                    break
            self._places[key] = len(self.pictures)
            # Sizes are those of the largest side, so that pages of small images look the same.
            scale = SIDES[0] / max(width, height)
            width, height = round(width * scale), round(height * scale)
            self.pictures.append({"src": source, "width": width, "height": height})
        return self._places[key]

    def thumb(self, similar: Similar, name: str, room: int) -> tuple[int, int]:
        """(its number, the characters it takes), (-1, 0) where there is none or no room."""
        if not similar.picture:
            return -1, 0
        source, _, _ = pages.picture(similar.picture, f"{name}: similar case {similar.id!r}", THUMB)
        if len(source) > room:
            return -1, 0
        if source not in self._places:
            self._places[source] = len(self.thumbs)
            self.thumbs.append(source)
        return self._places[source], len(source)
