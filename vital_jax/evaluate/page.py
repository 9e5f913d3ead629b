"""The page of an evaluation: its scores, and every question with its image, the right answer and the model's.

One HTML file that needs no network and no server, as the pages of `construct.pages`: images, style and script are inside, its content
security policy lets nothing else load or run, and what comes from data is only ever set as text. Its size has bounds: images are shrunk
to `SIDE` pixels and each is held once; after `BYTES` of them, or `ITEMS` questions, the rest is left out, which the page says.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vital_jax.construct import pages
from vital_jax.evaluate.items import Item, read_picture
from vital_jax.evaluate.protocols.core import Scored, values_of
from vital_jax.evaluate.score import Row, percent
from vital_jax.scoring.choice import letter

TEMPLATES = Path(__file__).parent / "templates"
SIDE = 256  # longest side of a shown image in pixels: 5 to 20 kB as JPEG
BYTES = 24 * 2**20  # of all images together, as text in the page
ITEMS = 5000  # about a kilobyte each
NOTICE = "For research use only. Not a medical device. Answers come from a model and may be wrong."
FILTERS = ("modality", "question_type")
NOTHING = "none"


def page(
    scored: Scored, items: Sequence[Item], answers: Mapping[str, Row], notes: Sequence[str], bound: int = BYTES, most: int = ITEMS
) -> str:  # fmt: skip
    """The page as text.

    Args:
      scored: rows in the order of `items`. answers: {id: row} with "complete" and perhaps "steps" and "first", see `run.answer`.
      notes: sentences about what was asked and how, shown above the scores.
      bound: the images' size in characters at which the next ones are left out. most: questions shown.
    Raises: ValueError for no items.
    """
    if not items:
        raise ValueError("no items to show")
    album = _Album(bound)
    shown = list(zip(items, scored.rows, strict=True))[:most]
    cards = [_card(item, row, answers.get(item.id, {}), album) for item, row in shown]
    notes = list(notes)
    if len(items) > most:
        notes.append(f"Only the first {most} of {len(items)} questions are on this page; all are in predictions.jsonl.")
    if album.full:
        notes.append(
            f"Only the first {album.shown} questions with images show them, which keeps this page below {bound / 1e6:.0f} MB of images."
        )
    benchmark, split = items[0].benchmark, items[0].split
    filters = {name: sorted({value for card in cards for value in card[name]}) for name in FILTERS}
    return pages.page(
        "page",
        TEMPLATES,
        title=f"{benchmark} {split} under {scored.protocol}",
        notice=NOTICE,
        notes=notes,
        scores=[_score(metric) for metric in scored.metrics if "=" not in metric.group],
        filters={name: values for name, values in filters.items() if len(values) > 1},
        count=len(items),
        side=SIDE,
        data={"cards": cards, "pictures": album.pictures},
    )


def _score(metric: Any) -> list[str]:
    ends = (metric.low, metric.high)
    interval = "none" if None in ends else " to ".join(map(percent, ends))
    return [
        metric.measure,
        metric.group,
        *map(str, (metric.n, metric.unread)),
        percent(metric.value),
        interval,
        metric.interval,
        metric.rule,
    ]


def _card(item: Item, row: Row, answer: Row, album: "_Album") -> dict[str, Any]:
    """A question's words for the page, JSON values."""
    facts = [("K", row.get("K")), ("tokens", row.get("tokens")), ("read as", row["parsed"] or "nothing")]
    facts += [("by", row["how"])] if row["how"] else []
    facts += [("latency", f"{1000 * row['latency']:.0f} ms")] if "latency" in row else []
    facts += [("cut", "the answer did not end")] if answer.get("complete") is False else []
    scores = [(name, f"{value:.3g}") for name, value in row["measures"].items()]
    return {
        "id": item.id,
        "correct": row["correct"],
        **{name: list(values_of(item, name)) or [NOTHING] for name in FILTERS},
        "question": item.question,
        "options": [f"{letter(place)}. {option}" for place, option in enumerate(item.options)],
        "gold": f"{item.gold}. {item.answer}" if item.gold else "; ".join((item.answer, *item.answers)),
        "prediction": row["prediction"],
        "first": answer.get("first", ""),
        "steps": answer.get("steps", []),
        "facts": [[name, str(value)] for name, value in [*facts, *scores] if value is not None],
        "images": album.show(item),
    }


class _Album:
    """Shrunk images, each held once, up to a size.

    Attributes:
      pictures: {"src": data URL, "width", "height"}. full: whether one had to be left out. shown: questions with all their images.
    """

    def __init__(self, bound: int):
        self.pictures: list[dict[str, Any]] = []
        self.full, self.shown = False, 0
        self._left, self._places = bound, {}

    def show(self, item: Item) -> list[dict[str, Any]]:
        """Per image {"picture": its number, -1 where it is left out, "alt": words for who cannot see it}."""
        places = [self._place(item, image) for image in item.images]
        self.shown += bool(places) and -1 not in places
        kind = next(iter(values_of(item, "modality")), "medical")
        of = f", {{}} of {len(places)}" if len(places) > 1 else ""
        return [{"picture": at, "alt": f"{kind} image{of.format(number)}"} for number, at in enumerate(places, 1)]

    def _place(self, item: Item, image: Any) -> int:
        if image not in self._places:
            if self.full:
                return -1
            data = read_picture(image)
            window = item.metadata.get("window")
            source, (width, height), _ = pages.picture(data, f"item {item.id!r}", SIDE, window)
            if len(source) > self._left:
                self.full = True
                return -1
            self._left -= len(source)
            self._places[image] = len(self.pictures)
            self.pictures.append({"src": source, "width": width, "height": height})
        return self._places[image]
