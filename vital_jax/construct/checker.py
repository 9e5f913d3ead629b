"""Tests what constructed text claims (`claims.claims` reads it) against the masks: a judge written apart from the teacher.

A teacher that measures wrongly and a test that uses the teacher's own measures agree with each other. So this file shares no line with
the teacher: it knows only what the words are to mean, and measures with NumPy code of its own.

What is claimed about a region, all in image space, grey in 0..1 (ITU luma / 255), fractions of the image's height and width:

- place: the third of the height and of the width in which the center of gravity lies; where both outer thirds of an axis hold 20 % of the
  area and more (a pixel belongs to the third its center lies in), or 5 % where the box is 75 % of the axis and more, it spans that axis.
- half, quarter: the center of gravity against the midlines.
- share, reach, from_top, apart: percent of the image's area, box edges, center from the top, distance of two centers.
- size: very small < 1 % <= small < 5 % <= moderate < 20 % <= large < 50 % <= dominant.
- shape: divided (8-connected parts of at least 1/50 of the largest), irregular (4 pi A / p^2 < .35), else by the ratio of the axes of the
  ellipse of second moments: round < 1.25 <= oval < 2 <= elongated; axis: its long axis in sectors of 45 degrees, from 1.25 on.
- tone: mean inside minus mean of the ring (pixels outside at most max(2, round(shorter side / 128), round(1.06 A / p)) steps away,
  diagonals counting as one; without ground of at most 10 of 255 that reaches the image's edge, unless that leaves less than a tenth of
  the ring): equal < .04 <= slightly < .15 <= clearly. grey: mean inside, percent of white. texture: standard deviation inside,
  even < .05 <= slightly uneven < .12 <= uneven.
- direction: by centers of gravity, the axis with the larger difference, which is at least .1 and 1.5 times the other. within: 90 % of the
  area. larger, smaller: area ratio 1.25 and more, .8 and less. brighter, darker than a neighbour: by .06; as bright: within .03.

Tolerances, only where text or measure rounds: numbers in percent half a point; 4 pi A / p^2 within .1, for estimators of the perimeter on
a pixel grid differ by so much; everything else 1e-6, for sums in floating point. `boundary` is read but not tested.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
from scipy.ndimage import label

from vital_jax.construct.claims import AXES, RELATIONS, Claim, claims, unread
from vital_jax.construct.sample import Sample
from vital_jax.construct.targets import Targets, load_targets
from vital_jax.pipeline.records import Record

EXACT = 1e-6
PERCENT = 0.5 + EXACT
PERIMETER = 0.1
SIZES = {
    "very small": (0, 0.01),
    "small": (0.01, 0.05),
    "moderate": (0.05, 0.2),
    "large": (0.2, 0.5),
    "dominant": (0.5, 2),
}
SHAPES = {"round": (0, 1.25), "oval": (1.25, 2), "elongated": (2, np.inf)}
TEXTURES = {"even": (0, 0.05), "slightly uneven": (0.05, 0.12), "uneven": (0.12, 1)}
TONES = {"": (0.04, 2), "slightly": (0.04, 0.15), "clearly": (0.15, 2)}
DIRECTIONS = ("above", "below", "to the left of", "to the right of")


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What can be measured of one region: mask [H, W] bool with a pixel at least, grey [H, W] in 0..1."""

    mask: np.ndarray
    grey: np.ndarray

    @cached_property
    def pixels(self) -> np.ndarray:
        """[area, 2] rows and columns of the region's pixels."""
        return np.argwhere(self.mask)

    @cached_property
    def area(self) -> int:
        """Number of pixels."""
        return len(self.pixels)

    @cached_property
    def center(self) -> np.ndarray:
        """[2] center of gravity, fractions of height and width."""
        return (self.pixels.mean(0) + 0.5) / self.mask.shape

    @cached_property
    def place(self) -> tuple[str, str]:
        """Words for height and width; "span" where both outer thirds hold 20 % of the area and more."""
        at = (self.pixels + 0.5) / self.mask.shape
        wide = np.diff(self.box, axis=1)[:, 0] >= 0.75 - EXACT
        spans = np.minimum((at < 1 / 3).mean(0), (at > 2 / 3).mean(0)) >= np.where(wide, 0.05, 0.2)
        words = (("upper", "central", "lower"), ("left", "central", "right"))
        rows, columns = (
            "span" if s else w[int(c >= 1 / 3) + int(c > 2 / 3)]
            for s, w, c in zip(spans, words, self.center, strict=True)
        )
        return rows, columns

    @cached_property
    def box(self) -> np.ndarray:
        """[2, 2] first and last edge, of height and of width, as fractions."""
        return np.stack([self.pixels.min(0), self.pixels.max(0) + 1], 1) / np.array(self.mask.shape)[:, None]

    @cached_property
    def ellipse(self) -> tuple[float, float]:
        """Ratio of the axes of the ellipse of second moments (a pixel is a unit square), and the long one's angle in 0..180 degrees."""
        (rr, rc), (_, cc) = np.cov(self.pixels.T, bias=True) + np.eye(2) / 12
        spread = np.hypot(cc - rr, 2 * rc)
        ratio = np.sqrt((rr + cc + spread) / (rr + cc - spread))
        return float(ratio), float(np.degrees(np.arctan2(-2 * rc, cc - rr)) / 2 % 180)

    @cached_property
    def perimeter(self) -> float:
        """By Crofton's formula over four directions."""
        m = np.pad(self.mask, 1)
        straight = (m[1:] != m[:-1]).sum() + (m[:, 1:] != m[:, :-1]).sum()
        slanted = (m[1:, 1:] != m[:-1, :-1]).sum() + (m[1:, :-1] != m[:-1, 1:]).sum()
        return float(np.pi / 8 * (straight + slanted / np.sqrt(2)))

    @cached_property
    def roundness(self) -> float:
        """4 pi A / p^2."""
        return float(4 * np.pi * self.area / self.perimeter**2)

    @cached_property
    def parts(self) -> int:
        """8-connected parts of at least 1/50 of the largest, by uniting runs of pixels."""
        edges = np.diff(np.pad(self.mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
        (row, start), (_, end) = np.nonzero(edges == 1), np.nonzero(edges == -1)
        below = (row + 1) * (self.mask.shape[1] + 2)
        here = below - self.mask.shape[1] - 2
        first, last = np.searchsorted(here + end, below + start), np.searchsorted(here + start, below + end, "right")
        parent = list(range(len(row)))

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = i = parent[parent[i]]
            return i

        for i in range(len(row)):
            for j in range(first[i], last[i]):
                parent[root(j)] = root(i)
        sizes = np.bincount([root(i) for i in range(len(row))], end - start)
        return int((sizes * 50 >= sizes.max()).sum())

    @cached_property
    def brightness(self) -> float:
        """Mean grey inside."""
        return float(self.grey[self.mask].mean())

    @cached_property
    def contrast(self) -> float | None:
        """Mean inside minus mean of the ring; None where the region leaves none."""
        reach = max(2, round(min(self.mask.shape) / 128), round(1.06 * self.area / self.perimeter))
        grown = self.mask
        for _ in range(2):
            total = np.cumsum(np.pad(grown.astype(np.int32), ((0, 0), (reach + 1, reach))), axis=1)
            grown = (total[:, 2 * reach + 1 :] > total[:, : -2 * reach - 1]).T
        ring = grown & ~self.mask
        # With a dark frame around it, all ground that reaches the edge is one.
        ground, _ = label(np.pad(self.grey <= 10 / 255 + EXACT, 1, constant_values=True))
        seen = ring & (ground != ground[0, 0])[1:-1, 1:-1]
        ring = seen if seen.sum() >= 0.1 * ring.sum() else ring
        return self.brightness - float(self.grey[ring].mean()) if ring.any() else None


# --- judging --------------------------------------------------------------------------------------


class Scene:
    """One image with its marked regions, each measured once.

    Args:
      grey: [H, W] luma in 0..255.
      regions: [H, W] bool by target name.
      present: further names that are in the image without a region.
    """

    def __init__(self, grey: np.ndarray, regions: dict[str, np.ndarray], present: Iterable[str] = ()):
        grey = np.asarray(grey, np.float64) / 255
        self.looks = {name: Look(np.asarray(mask, bool), grey) for name, mask in regions.items() if np.any(mask)}
        self.present = {*regions, *present}

    def holds(self, claim: Claim, target: str) -> bool:
        """Whether a claim, leaving its negation aside, is true; false too where it speaks of what the image does not show."""
        about, other = claim.about or target, claim.other or target
        if claim.kind == "presence":
            return (about in self.present) == claim.value
        if claim.kind == "name":
            return claim.value == target
        if about not in self.looks or (
            (claim.other or claim.kind in (*RELATIONS, "apart")) and other not in self.looks
        ):
            return False
        a = self.looks[about]
        if claim.kind in (*RELATIONS, "apart"):
            return about != other and _compare(claim, a, self.looks[other])
        return _RULES[claim.kind](claim.value, a)


def direction(a: Look, b: Look) -> str:
    """Where `a` lies as seen from `b`, by the centers; "" where no axis prevails."""
    down, right = (a.center - b.center).tolist()
    if (
        max(abs(down), abs(right)) < 0.1 - EXACT
        or max(abs(down), abs(right)) < 1.5 * min(abs(down), abs(right)) - EXACT
    ):
        return ""
    if abs(down) > abs(right):
        return "below" if down > 0 else "above"
    return "to the right of" if right > 0 else "to the left of"


def _compare(claim: Claim, a: Look, b: Look) -> bool:
    if claim.kind == "apart":
        return all(_number(said, gap) for said, gap in zip(claim.value, np.abs(a.center - b.center), strict=True))
    if claim.kind == "direction":
        return direction(a, b) == claim.value
    if claim.kind == "within":
        return (a.mask & b.mask).sum() >= (0.9 - EXACT) * a.area
    if claim.kind == "larger":
        ratio = a.area / b.area
        if claim.value == "large":
            return 0.8 - EXACT < ratio < 1.25 + EXACT
        return ratio >= 1.25 - EXACT if claim.value == "larger" else ratio <= 0.8 + EXACT
    gap = a.brightness - b.brightness
    if claim.value == "bright":
        return abs(gap) < 0.03 + EXACT
    return (gap if claim.value == "brighter" else -gap) >= 0.06 - EXACT


def _number(said: str, fraction: float) -> bool:
    return fraction < 0.01 + EXACT if said == "less than 1" else abs(int(said) - 100 * fraction) <= PERCENT


def _between(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] - EXACT <= value < bounds[1] + EXACT


def _quarter(value: tuple[str, str], a: Look, margin: float) -> bool:
    far = np.where(np.equal(value, ("upper", "left")), 0.5 - a.center, a.center - 0.5)
    return bool((far >= margin - EXACT).all())


def _reach(value: tuple[str, str, str], a: Look) -> bool:
    first, last, axis = value
    return all(_number(said, edge) for said, edge in zip((first, last), a.box[int(axis == "width")], strict=True))


def _shape(word: str, a: Look) -> bool:
    if word == "divided" or a.parts > 1:
        return word == "divided" and a.parts > 1
    if word == "irregular":
        return a.roundness < 0.35 + PERIMETER
    return a.roundness >= 0.35 - PERIMETER and _between(a.ellipse[0], SHAPES[word])


def _axis(word: str, a: Look) -> bool:
    ratio, angle = a.ellipse
    off = abs((angle - 45 * AXES.index(word) + 90) % 180 - 90)
    return ratio >= 1.25 - EXACT and off <= 22.5 + EXACT


def _tone(value: tuple[str, str], a: Look) -> bool:
    strength, sign = value
    if a.contrast is None or strength == "none":
        return a.contrast is None and strength == "none"
    if strength == "equal":
        return abs(a.contrast) < 0.04 + EXACT
    return _between(a.contrast if sign == "brighter" else -a.contrast, TONES[strength])


_RULES = {
    "place": lambda value, a: value == a.place,
    "third": lambda value, a: value == a.place[1],
    "side": lambda value, a: a.place[1] == {"center": "central"}.get(value, value),
    "half": lambda value, a: a.center[0] < 0.5 + EXACT if value == "upper" else a.center[0] > 0.5 - EXACT,
    "quarter": lambda value, a: _quarter(value, a, 0),
    "from_top": lambda value, a: _number(value, a.center[0]),
    "reach": _reach,
    "share": lambda value, a: _number(value, a.area / a.mask.size),
    "grey": lambda value, a: _number(value, a.brightness),
    "size": lambda value, a: _between(a.area / a.mask.size, SIZES[value]),
    "parts": lambda value, a: a.parts >= 10 if value == "many" else a.parts == int(value) > 1,
    "shape": _shape,
    "axis": _axis,
    "tone": _tone,
    "texture": lambda value, a: _between(float(a.grey[a.mask].std()), TEXTURES[value]),
    "boundary": lambda value, a: True,
}


def contradictions(
    sentences: Iterable[str], grey: np.ndarray, regions: dict[str, np.ndarray], target: str, names: Iterable[str] = ()
) -> list[str]:
    """One line for every claim that the masks do not bear out; empty where text and image agree.

    Args:
      sentences: of a chain, an answer or a caption.
      grey: [H, W] luma in 0..255.
      regions: [H, W] bool by target name.
      target: what "it" and "the area" are.
      names: targets that may be spoken of without being in the image.
    """
    scene = Scene(grey, regions)
    known = dict.fromkeys([target, *regions, *names])
    return [line for sentence in sentences for line in _judge(sentence, claims(sentence, known), scene, target)]


def _judge(sentence: str, found: Iterable[Claim], scene: Scene, target: str) -> list[str]:
    wrong = [claim for claim in found if scene.holds(claim, target) == claim.negated]
    return [
        f"{c.kind} {c.value!r} of {c.about or target!r} {c.other and f'to {c.other!r} '}in {sentence!r}" for c in wrong
    ]


def by_sample(
    samples: Iterable[Sample], build: Callable[[Iterable[Sample]], Iterable[Record]]
) -> Iterator[tuple[Sample, list[Record]]]:
    """Each sample with its records, for `check_records`.

    Closed questions are balanced over the samples before, so records are built in one run and paired as they come: `build_records` gives
    all records of a sample before it takes the next.

    Args:
      samples: from any source.
      build: samples to records, such as `partial(build_records, questions_per_sample=6, seed=0)`.
    """
    latest: list[Sample] = []

    def watched() -> Iterator[Sample]:
        for sample in samples:
            latest[:] = [sample]
            yield sample

    pairs = ((latest[0], record) for record in build(watched()))
    for _, group in groupby(pairs, key=lambda pair: pair[0].id):
        same, records = zip(*group, strict=True)
        yield same[0], list(records)


def check_records(
    records: Iterable[Record], sample: Sample, targets: Targets | None = None
) -> tuple[list[str], list[tuple[Record, str, str, bool]]]:
    """Tests chains, answers and options of one sample's records, as `by_sample` pairs them.

    Returns:
      A line per contradiction, and (record, sentence, slot, whether it was read) for every sentence of a chain or open answer.
    """
    targets = targets or load_targets()
    regions = {sample.target: sample.region, **sample.others}
    # Where a name would give a diagnosis away, the text says a wider one.
    wider = {targets.neutral(name): region for name, region in regions.items()}
    present = {targets.neutral(name) for name in sample.present}
    scene = Scene(np.asarray(sample.picture.convert("L")), wider | regions, {*sample.present, *present})
    found, seen = [], []
    for record in records:
        ask, asked = record.metadata.get("ask", ""), record.metadata["target_name"]
        known = dict.fromkeys([asked, *scene.present, *targets.rows])
        slots = record.metadata.get("slots", ["chain"] * len(record.chain))
        sentences = [(text, "", slot) for text, slot in zip(record.chain, slots, strict=True)]
        if record.options:
            found += [f"{record.id}: {line}" for line in _closed(record, scene)]
        else:
            sentences.append((record.answer, ask, f"answer ({ask})"))
        for text, about, slot in sentences:
            lines = _judge(text, claims(text, known, about), scene, sample.target)
            found += [f"{record.id}: {line}" for line in lines]
            seen.append((record, text, slot, not unread(text, known, about)))
    return found, seen


def _closed(record: Record, scene: Scene) -> list[str]:
    """What is wrong with a closed-ended record: its gold option has to be true and every other one false."""
    gold = record.options["ABCDEFGH".index(record.gold)]
    found = (
        [] if record.answer == f"{gold[:1].upper()}{gold[1:]}." else [f"the answer {record.answer!r} is not {gold!r}"]
    )
    for option in record.options:
        true = _option(option.lower(), record, scene)
        if true != (option == gold):
            found.append(f"option {option!r} is {true} and gold is {gold!r} in {record.question!r}")
    return found


def _option(option: str, record: Record, scene: Scene) -> bool:
    """Whether an option is true.

    Raises:
      ValueError: what is asked is not known here.
    """
    ask, asked, other = (record.metadata.get(key, "") for key in ("ask", "target_name", "neighbour"))
    if ask == "presence":
        return (asked in scene.present) == (option == "yes")
    if ask == "name":
        return re.sub(r"^(the|an?) ", "", option) in {name.lower() for name in scene.present}
    a, b = scene.looks[asked], scene.looks.get(other)
    if ask in ("larger", "brighter_of_two"):
        first, second = (asked, other) if option.removeprefix("the ") == asked.lower() else (other, asked)
        return scene.holds(Claim(ask.split("_")[0], ask.split("_")[0], first, second), asked)
    if ask == "direction":
        return direction(a, b) == (option if option in ("above", "below") else f"{option.removesuffix(' of')} of")
    if ask == "quarter":
        return _quarter(tuple(option.split()), a, 0.06)
    if ask == "brightness":
        return a.contrast is not None and (a.contrast if option == "brighter" else -a.contrast) >= 0.06 - EXACT
    if ask == "place_and_brightness":
        half, tone = option.split(" and ")
        return _RULES["half"](half.split()[0], a) and _tone(("", tone), a)
    if ask in ("side", "shape", "size"):
        return _RULES[ask](option, a)
    raise ValueError(f"record {record.id!r} asks {ask!r}, for which the checker has no rule")
