"""Other pictures for the same question: mirrored, grey, and what a mirrored picture must do to an answer.

An image turned left to right turns the right answer with it, which no prior over words can follow: a model that answers "left" for a
picture and "left" for its mirror image did not look. Only questions that are certain to ask in image space count: closed ones that this
package's questions made from a mask (side, quarter, direction). Radiological questions of other sources mean the patient's side, which a
mirror does not exchange but make wrong, and so does a name with a side in it ("left kidney").
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

from PIL import Image, ImageOps, ImageStat

from vital_jax.construct.questions import DIRECTIONS, QUARTERS, SIDES
from vital_jax.pipeline.images import decode
from vital_jax.pipeline.records import Record
from vital_jax.scoring.text import normalise

OPTIONS = {"side": SIDES, "quarter": QUARTERS, "direction": DIRECTIONS}
VERDICTS = ("left and right exchanged", "the same answer", "another answer")
_LEFT, _RIGHT = SIDES[0], SIDES[-1]
_SWAP = {_LEFT: _RIGHT, _RIGHT: _LEFT}


def mirrored_words(text: str) -> str:
    """ "upper left" -> "upper right"; words without a side stay."""
    return " ".join(_SWAP.get(word, word) for word in text.split())


def countable(record: Record) -> bool:
    """Whether a mirrored image certainly exchanges left and right among this question's answers."""
    metadata = record.metadata
    names = f"{metadata.get('target_name', '')} {metadata.get('neighbour', '')}".lower().split()
    wanted = OPTIONS.get(metadata.get("ask", ""))
    return (
        metadata.get("form") == "closed"
        and bool(metadata.get("teacher"))
        and wanted is not None
        and set(record.options) == set(wanted)
        and not _SWAP.keys() & set(names)
    )


def chosen(answer: str, options: Sequence[str]) -> str | None:
    """The option that an answer is, without case and full stop; None where it is none of them."""
    said = normalise(answer).rstrip(".")
    return next((option for option in options if normalise(option) == said), None)


def right(record: Record) -> str:
    """The right option. Raises: ValueError naming a record whose answer is none of its options."""
    found = chosen(record.answer, record.options)
    if found is None:
        raise ValueError(f"record {record.id!r}: the answer {record.answer!r} is none of its options {record.options}")
    return found


def mirrored_right(record: Record) -> str:
    """The option that is right for the mirror image. Raises: as `right`."""
    return mirrored_words(right(record))


def verdict(record: Record, before: str, after: str) -> str | None:
    """What the mirror did to an answer, one of `VERDICTS`; None where the first answer names no side."""
    first, second = (chosen(answer, record.options) for answer in (before, after))
    if first is None or mirrored_words(first) == first:
        return None
    return {mirrored_words(first): VERDICTS[0], first: VERDICTS[1]}.get(second, VERDICTS[2])


# --- pictures -------------------------------------------------------------------------------------


def mirrored(record: Record) -> Record:
    """The question about its images turned left to right."""
    return _with(record, (ImageOps.mirror(image) for image in _images(record)))


def mean_grey(records: Iterable[Record]) -> int:
    """The mean over images of their mean grey, 0 to 255. One for all: an image's own would still tell something about it."""
    greys: dict[bytes, float] = {}
    for record in records:
        if missing := [data for data in record.images if data not in greys]:
            for data, image in zip(record.images, _images(record), strict=True):
                if data in missing:
                    greys[data] = ImageStat.Stat(image.convert("L")).mean[0]
    return round(sum(greys.values()) / len(greys))


def greyed(record: Record, grey: int) -> Record:
    """The question about evenly grey images of the same sizes."""
    return _with(record, (Image.new("RGB", image.size, (grey,) * 3) for image in _images(record)))


def _images(record: Record) -> list[Image.Image]:
    window = record.metadata.get("window")
    return [decode(data, f"record {record.id!r} image {i}", window)[0] for i, data in enumerate(record.images)]


def _with(record: Record, images: Iterable[Image.Image]) -> Record:
    # Decoded images have 8 bits, already seen through the window.
    metadata: dict[str, Any] = {name: value for name, value in record.metadata.items() if name != "window"}
    return replace(record, images=tuple(map(_png, images)), masks=(), step_masks=(), boxes=(), metadata=metadata)


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
