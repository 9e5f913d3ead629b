"""The measured teacher: reasoning steps and answers from what can be measured in a picture, without a language model.

It measures where the target lies, how large it is, its shape, its brightness against the surroundings and how sharp its
boundary is, and words these numbers. So every statement is true of the pixels, nothing has to be paid for or sent away,
and the same sample always gives the same text. The rules of methods.md §1.4 hold by construction: image space only
(never the patient's left), no word about how the target was found, one step per latent, every sentence ends with a
period, and words of disease come only with a target that is itself a finding.
"""

from dataclasses import dataclass

import numpy as np

from vital_jax.construct.folders import Sample
from vital_jax.construct.questions import Question
from vital_jax.construct.targets import Targets, load_targets

TEACHER = "measured-1"


@dataclass(frozen=True)
class Measurement:
    """A target's measurements; lengths are fractions of the image's height or width.

    Attributes:
      share: of the image's area.
      row, column: center of gravity. box: (x_min, y_min, x_max, y_max).
      rows, columns: the target's share in the upper, middle, lower and in the left, center, right third of the image.
      parts: separate pieces of at least a fiftieth of the largest.
      elongation: longest over shortest axis of the ellipse with the same second moments; angle: of its long axis
        against the horizontal, 0..180 degrees.
      compactness: 4 pi area / perimeter², 1 for a disc.
      contrast: mean grey inside minus mean grey around, -1..1. texture: standard deviation of grey inside.
      sharpness: how much of the contrast is reached across the boundary itself, 0..1.
    """

    share: float
    row: float
    column: float
    rows: tuple[float, float, float]
    columns: tuple[float, float, float]
    box: tuple[float, float, float, float]
    parts: int
    elongation: float
    angle: float
    compactness: float
    contrast: float
    texture: float
    sharpness: float


def measure(grey: np.ndarray, region: np.ndarray) -> Measurement:
    """Measures a region.

    Args:
      grey: [H, W] uint8.
      region: [H, W] bool.

    Raises:
      ValueError: the region is empty or of another shape.
    """
    if region.shape != grey.shape or not region.any():
        raise ValueError(f"region of {region.shape} with {int(region.sum())} pixels in an image of {grey.shape}")
    height, width = region.shape
    y, x = np.nonzero(region)
    elongation, angle = _axes(y, x)
    band = max(2, round(min(height, width) / 128))
    reach = max(band, round(0.3 * np.sqrt(len(y))))
    near = tuple(slice(max(0, v.min() - reach), v.max() + reach + 1) for v in (y, x))
    grey, region = grey[near] / 255, region[near]
    around = _grow(region, reach) & ~region
    contrast = step = 0.0
    if around.any():
        contrast = _mean(grey, region) - _mean(grey, around)
        step = _mean(grey, region & _grow(~region, band)) - _mean(grey, around & _grow(region, band))
    return Measurement(
        share=len(y) / (height * width),
        row=(y.mean() + 0.5) / height,
        column=(x.mean() + 0.5) / width,
        rows=tuple(np.bincount(3 * y // height, minlength=3) / len(y)),
        columns=tuple(np.bincount(3 * x // width, minlength=3) / len(x)),
        box=(x.min() / width, y.min() / height, (x.max() + 1) / width, (y.max() + 1) / height),
        parts=_parts(region),
        elongation=elongation,
        angle=angle,
        compactness=min(1.0, 4 * np.pi * len(y) / _perimeter(region) ** 2),
        contrast=contrast,
        texture=float(grey[region].std()),
        sharpness=float(np.clip(step / contrast, 0, 1)) if abs(contrast) > 1e-6 else 0.0,
    )


def _mean(grey: np.ndarray, where: np.ndarray) -> float:
    return float(grey[where].mean())


def _axes(y: np.ndarray, x: np.ndarray) -> tuple[float, float]:
    """Elongation and angle from second moments; 1/12 is a pixel's own, so that a line stays finite."""
    a, b, c = y.var() + 1 / 12, x.var() + 1 / 12, ((y - y.mean()) * (x - x.mean())).mean()
    middle, half = (a + b) / 2, np.hypot((a - b) / 2, c)
    # Image rows grow downward; the angle is the viewer's, counter-clockwise.
    angle = np.degrees(0.5 * np.arctan2(-2 * c, b - a)) % 180
    return float(np.sqrt((middle + half) / (middle - half))), float(angle)


def _perimeter(region: np.ndarray) -> float:
    """Crofton's formula with the two axis directions: pi/4 of the pixel edges, right on average over all directions."""
    padded = np.pad(region, 1).astype(np.int8)
    return np.pi / 4 * float(np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum())


def _grow(region: np.ndarray, radius: int) -> np.ndarray:
    """Every pixel within a square of this radius around the region, from running sums."""
    for axis in (0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (radius + 1, radius)
        total = np.moveaxis(np.pad(region, pad).cumsum(axis, dtype=np.int32), axis, 0)
        region = np.moveaxis(total[2 * radius + 1 :] > total[: -2 * radius - 1], 0, axis)
    return region


def _parts(region: np.ndarray) -> int:
    """Counts separate pieces on a raster of at most 128 x 128 blocks, by spreading the largest label until it rests."""
    block = -(-max(region.shape) // 128)
    padded = np.pad(region, [(0, -side % block) for side in region.shape])
    coarse = padded.reshape(padded.shape[0] // block, block, -1, block).any((1, 3))
    labels = np.where(coarse, np.arange(1, coarse.size + 1).reshape(coarse.shape), 0)
    while True:
        wide = np.pad(labels, 1)
        rows = np.maximum(np.maximum(wide[:-2], wide[1:-1]), wide[2:])
        spread = np.where(coarse, np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]), 0)
        if np.array_equal(spread, labels):
            break
        labels = spread
    sizes = np.unique(labels[coarse], return_counts=True)[1]
    return int((sizes * 50 >= sizes.max()).sum())


# --- numbers to words ----------------------------------------------------------------------------------


def _pick(value: float, steps: tuple, last: str) -> str:
    return next((word for limit, word in steps if value < limit), last)


def _spans(thirds: tuple[float, float, float]) -> bool:
    """Whether a good part of the target lies in either outer third, so that no single third names its place."""
    return min(thirds[0], thirds[2]) >= 0.2


def where(m: Measurement) -> str:
    """The place as it stands after "lies": in the upper left part of the image."""
    row = _pick(m.row, ((1 / 3, "upper"), (2 / 3, "central")), "lower")
    column = _pick(m.column, ((1 / 3, "left"), (2 / 3, "central")), "right")
    if _spans(m.rows) and _spans(m.columns):
        return "across most of the image"
    if _spans(m.columns):
        return f"across the {row} part of the image from left to right"
    if _spans(m.rows):
        return f"along the {column} part of the image from top to bottom"
    if row == column:
        return "in the center of the image"
    words = [word for word in (row, column) if word != "central"] if row == "central" else [row, column]
    return f"in the {' '.join(words)} part of the image"


def side(m: Measurement) -> str:
    """The place as an answer to "left, center or right?"."""
    if _spans(m.columns):
        return "across the left, the center and the right of the image"
    column = _pick(m.column, ((1 / 3, "left"), (2 / 3, "center")), "right")
    return "in the center of the image" if column == "center" else f"on the {column} of the image"


def extent(m: Measurement) -> str:
    """The size as it stands after "covers": about 12 percent of the image, a moderate part of it."""
    percent = "less than 1 percent" if m.share < 0.01 else f"about {round(100 * m.share)} percent"
    size = _pick(m.share, ((0.01, "very small"), (0.05, "small"), (0.2, "moderate"), (0.5, "large")), "dominant")
    return f"{percent} of the image, a {size} part of it"


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


def teach(
    question: Question, sample: Sample, measurement: Measurement, targets: Targets | None = None
) -> tuple[tuple[str, ...], str]:
    """Words the reasoning chain and the answer.

    Args:
      question: what is asked of the sample.
      sample: the image and its target.
      measurement: of that target.
      targets: another table than the built-in one.

    Returns:
      `question.steps` sentences, and the answer, a sentence too.
    """
    targets, m = targets or load_targets(), measurement
    the, plural = targets.definite(question.target), targets.plural(question.target)
    phrase, noun = targets.phrase(question.target), targets.noun(question.target)
    modality = targets.modality_words(sample.modality)
    is_, covers, lies, shows, has, reaches = (
        pair[plural]
        for pair in (
            ("is", "are"), ("covers", "cover"), ("lies", "lie"),
            ("shows", "show"), ("has", "have"), ("reaches", "reach"),
        )
    )  # fmt: skip
    if not question.visible:
        chain = (f"No part of this {modality} image has the form and the place expected of {phrase}.",)
        return chain, f"No, {phrase} {is_} not visible in this {modality} image."

    The = the[0].upper() + the[1:]
    seen = f"The {shape(m)} area {where(m)} is {brightness(m)}"
    position = f"{The} {lies} {where(m)}."
    size = f"{The} {covers} {extent(m)}, and {is_} {form(m)}."
    light = f"{The} {is_} {brightness(m)} and {shows} a {boundary(m)} boundary."
    grain = f"The brightness inside {the} is {_pick(m.texture, ((0.05, 'even'), (0.12, 'slightly uneven')), 'uneven')}."
    reach = f"{round(100 * m.box[0])} to {round(100 * m.box[2])} percent of the image width"
    described = f"{The} {lies} {where(m)}, {is_} {shape(m)} and {brightness(m)}, and {has} a {boundary(m)} boundary"

    chains = {
        "yesno": [f"{seen}, which fits {phrase}."],
        "identify": [f"{seen} and covers {extent(m)}."],
        "location_choice": [f"From left to right, {the} {reaches} from about {reach}."],
        "location": [f"{seen} and fits {phrase}.", position],
        "describe": [size, light, grain],
        "reasoning": [position, size, light, f"This place, size, shape and brightness together fit {phrase}."],
    }
    answers = {
        "yesno": f"Yes, {phrase} {is_} visible in this {modality} image.",
        "identify": f"The {noun} shown is {phrase}.",
        "location_choice": f"{The} {lies} {side(m)}.",
        "location": position,
        "describe": f"{described}.",
        "reasoning": f"{described}, which fits {phrase}.",
    }
    return tuple(chains[question.type][: question.steps]), answers[question.type]
