"""Numbers to words: what each word about a measured target claims, with the limits in one place.

Teacher, captions and questions all speak through these functions, so that a word means the same everywhere and can be
checked against a mask. Image space only: left is the viewer's left of the picture. Functions that return None say
nothing where the numbers do not decide.
"""

from vital_jax.construct.measure import Measurement

THIRD_MARGIN = 0.03  # distance of a center from a border between thirds before an answer names the third
MIDLINE = 0.06  # how far a center lies off a midline before its half is named
APART = 0.1  # least difference of two centers before a direction is named
LARGER, SMALLER = 1.25, 0.8  # ratios of two areas
BRIGHTER, ALIKE = 0.06, 0.03  # differences of two mean greys: told apart from, called alike below


def _pick(value: float, steps: tuple, last: str) -> str:
    return next((word for limit, word in steps if value < limit), last)


def spans(m: Measurement, axis: str) -> bool:
    """Whether no single third of the "rows" or "columns" names the target's place: a good part of it lies in either outer third, or some
    of it does and it reaches over three quarters of the image."""
    first, _, last = getattr(m, axis)
    start, end = m.box[1::2] if axis == "rows" else m.box[::2]
    return min(first, last) >= (0.05 if end - start >= 0.75 else 0.2)


def clear(m: Measurement, *axes: str) -> bool:
    """Whether the place on each of the axes ("rows", "columns") is sure: it spans, or the center is off every border between thirds."""
    centers = {"rows": m.row, "columns": m.column}
    return all(
        spans(m, axis) or min(abs(centers[axis] - 1 / 3), abs(centers[axis] - 2 / 3)) >= THIRD_MARGIN for axis in axes
    )


def where(m: Measurement) -> str:
    """The place as it stands after "lies": in the upper left part of the image."""
    row = _pick(m.row, ((1 / 3, "upper"), (2 / 3, "central")), "lower")
    column = _pick(m.column, ((1 / 3, "left"), (2 / 3, "central")), "right")
    if spans(m, "rows") and spans(m, "columns"):
        return "across most of the image"
    if spans(m, "columns"):
        return f"across the {row} part of the image from left to right"
    if spans(m, "rows"):
        return f"along the {column} part of the image from top to bottom"
    if row == column:
        return "in the center of the image"
    words = [word for word in (row, column) if word != "central"] if row == "central" else [row, column]
    return f"in the {' '.join(words)} part of the image"


def side(m: Measurement) -> str:
    """The place as an answer to "left, center or right?"."""
    if spans(m, "columns"):
        return "across the left, the center and the right of the image"
    column = _pick(m.column, ((1 / 3, "left"), (2 / 3, "center")), "right")
    return "in the center of the image" if column == "center" else f"on the {column} of the image"


def extent(m: Measurement) -> str:
    """The size as it stands after "covers": about 12 percent of the image, a moderate part of it."""
    size = _pick(m.share, ((0.01, "very small"), (0.05, "small"), (0.2, "moderate"), (0.5, "large")), "dominant")
    return f"{share(m)}, a {size} part of it"


def share(m: Measurement) -> str:
    """The area alone: about 12 percent of the image."""
    return f"{'less than 1' if m.share < 0.01 else f'about {round(100 * m.share)}'} percent of the image"


def reach(m: Measurement) -> str:
    """The width as it stands after "reaches": from about 10 to 45 percent of the image width."""
    return f"from about {round(100 * m.box[0])} to {round(100 * m.box[2])} percent of the image width"


def third(m: Measurement) -> str:
    """The third of the width in which the center lies: the left third."""
    return f"the {_pick(m.column, ((1 / 3, 'left'), (2 / 3, 'central')), 'right')} third"


def half(m: Measurement) -> str:
    """The half of the height in which the center lies: upper or lower."""
    return "upper" if m.row < 0.5 else "lower"


def shape(m: Measurement) -> str:
    """The shape as an adjective: round, oval, elongated, irregular or divided."""
    if m.parts > 1:
        return "divided"
    if m.compactness < 0.35:
        return "irregular"
    return _pick(m.elongation, ((1.25, "round"), (2.0, "oval")), "elongated")


def brightness(m: Measurement) -> str:
    """The grey against the surroundings, as it stands after "is": clearly brighter than the surroundings."""
    if m.share == 1:
        return "without any surroundings to compare with"
    if abs(m.contrast) < 0.04:
        return "about as bright as the surroundings"
    strength = "slightly" if abs(m.contrast) < 0.15 else "clearly"
    return f"{strength} {'brighter' if m.contrast > 0 else 'darker'} than the surroundings"


def grey(m: Measurement) -> str:
    """The mean grey itself, whatever is around: about 40 percent of white."""
    return f"{'less than 1' if m.grey < 0.01 else f'about {round(100 * m.grey)}'} percent of white"


def boundary(m: Measurement) -> str:
    """The boundary as an adjective: well-defined, soft, blurred or faint."""
    if abs(m.contrast) < 0.04:
        return "faint"
    return _pick(m.sharpness, ((0.35, "blurred"), (0.65, "soft")), "well-defined")


def form(m: Measurement) -> str:
    """The shape as it stands after "is": oval in shape, with the long axis vertical."""
    if m.parts > 1:
        return f"divided into {m.parts if m.parts < 10 else 'many'} separate parts"
    if m.elongation < 1.25:
        return f"{shape(m)} in shape"
    steps = ((22.5, "horizontal"), (67.5, "rising to the right"), (112.5, "vertical"), (157.5, "falling to the right"))
    return f"{shape(m)} in shape, with the long axis {_pick(m.angle, steps, 'horizontal')}"


def texture(m: Measurement) -> str:
    """How even the grey is inside: even, slightly uneven or uneven."""
    return _pick(m.texture, ((0.05, "even"), (0.12, "slightly uneven")), "uneven")


def quarter(m: Measurement) -> str | None:
    """The quarter of the image in which the center lies, as upper left; None near a midline."""
    if min(abs(m.row - 0.5), abs(m.column - 0.5)) < MIDLINE:
        return None
    return f"{'upper' if m.row < 0.5 else 'lower'} {'left' if m.column < 0.5 else 'right'}"


def direction(a: Measurement, b: Measurement) -> str | None:
    """Where `a` lies seen from `b`: above, below, to the left of, to the right of; None where no axis clearly leads."""
    down, right = a.row - b.row, a.column - b.column
    if max(abs(down), abs(right)) < APART:
        return None
    if abs(down) >= 1.5 * abs(right):
        return "above" if down < 0 else "below"
    if abs(right) >= 1.5 * abs(down):
        return "to the left of" if right < 0 else "to the right of"
    return None


def compare_size(a: Measurement, b: Measurement) -> str:
    """The area of `a` against that of `b`: larger, smaller or about as large."""
    ratio = a.share / b.share
    return "larger" if ratio >= LARGER else "smaller" if ratio <= SMALLER else "about as large"


def compare_brightness(a: Measurement, b: Measurement) -> str | None:
    """The mean grey of `a` against that of `b`: brighter, darker, about as bright, or None in between."""
    difference = a.grey - b.grey
    if abs(difference) >= BRIGHTER:
        return "brighter" if difference > 0 else "darker"
    return "about as bright" if abs(difference) < ALIKE else None


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[0].upper() + text[1:]
