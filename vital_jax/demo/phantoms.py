"""Phantoms: drawn pictures in the looks of six modalities, with exact masks, for anybody without data and for tests.

Every picture is a function of (seed, index) alone. It shows two to four structures of its look's lexicon. What a
structure is called is told by its form and its grain, and by nothing else: place, size, angle, brightness, strength of
the grain and sharpness are drawn independently of the name, and elongation as far as the form allows. So
a question about a phantom can be answered only by looking at it. What is drawn is known: masks are exact (where an edge
is blurred, its middle), and a name that was not drawn is certainly absent.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image

from vital_jax.construct.sample import Sample
from vital_jax.construct.targets import load_targets
from vital_jax.demo.looks import LEXICONS, LOOKS, colour

NUMBERS = ((2, 3, 4), (0.6, 0.3, 0.1))  # structures per image; 2.5 of 5 names on average: presence is a coin's toss
AREAS = (0.025, 0.13)  # of the image, log-uniform: both below and above 5 percent, where "small" ends
LEAST_AREA = 0.015  # a structure that finds no room shrinks as far as this
CONTRASTS = (0.14, 0.34)  # of a structure's mean grey against the ground
STRENGTHS = (0.09, 0.15)  # standard deviation of the inner pattern
NEAREST, FARTHEST = 0.08, 0.46  # what the pattern leaves of the contrast at least and at most: no part melts or clips


@dataclass(frozen=True)
class Scene:
    """A drawn picture.

    Attributes:
      modality: as in the targets table.
      rgb: [size, size, 3] uint8.
      structures: (name, mask [size, size] bool) of everything that has a name.
    """

    modality: str
    rgb: np.ndarray
    structures: tuple[tuple[str, np.ndarray], ...]


def phantoms(count: int, seed: int, size: int = 128, start: int = 0) -> Iterator[Sample]:
    """Draws the images `start` .. `start + count - 1` of a seed and gives one sample per structure in each.

    Args:
      count, seed, start: which ones; image i of a seed is always the same.
      size: height and width in pixels.

    Raises:
      ValueError: a size under 32, at which forms would be a few pixels.
    """
    for index in range(start, start + count):
        scene = draw(seed, index, size)
        grey = LOOKS[scene.modality].tone is None
        image = _png(scene.rgb[..., 0] if grey else scene.rgb)
        masks = {name: _png(mask.astype(np.uint8) * 255) for name, mask in scene.structures}
        for name, mask in masks.items():
            yield Sample(
                id=f"phantom-{seed}/{index}/{name}",
                image=image,
                mask=mask,
                target=name,
                target_type=load_targets().row(name)["type"],
                modality=scene.modality,
                site="phantom",
                group=f"phantom-{seed}/{index}",
                source="phantom",
                licence="CC0-1.0",
                present=tuple(masks),
                absent=tuple(other for other in LEXICONS[scene.modality] if other not in masks),
                neighbours=tuple(pair for pair in masks.items() if pair[0] != name),
            )


def draw(seed: int, index: int, size: int = 128) -> Scene:
    """Draws one image. Raises: ValueError as `phantoms`."""
    if size < 32:
        raise ValueError(f"phantoms need at least 32 pixels a side, not {size}")
    rng = np.random.default_rng([seed, index])
    modality = list(LOOKS)[rng.integers(len(LOOKS))]
    look = LOOKS[modality]
    structures = []
    while len(structures) < NUMBERS[0][0]:  # one large structure in the middle can leave no room for another
        field, picture = look.ground(rng, size)
        picture, structures = _fill(rng, picture.astype(np.float32), field, LEXICONS[modality], look.softness)
    grey = np.clip(look.finish(rng, picture, field), 0, 1)
    planes = np.rint(255 * (grey[None] if look.tone is None else colour(grey, look.tone(rng)))).astype(np.uint8)
    rgb = np.ascontiguousarray(np.broadcast_to(planes, (3, size, size)).transpose(1, 2, 0))
    return Scene(modality, rgb, tuple(structures))


def _fill(
    rng: np.random.Generator, picture: np.ndarray, field: np.ndarray, lexicon: dict[str, tuple[str, str]], softness: int
) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """Draws structures into the field of a picture [size, size], the largest first; one without room is left out."""
    size, free = len(picture), field.copy()
    # A closed border: what would wrap around the picture's edge touches it (see `_place`).
    free[[0, -1]] = free[:, [0, -1]] = False
    names = rng.permutation(list(lexicon))[: rng.choice(NUMBERS[0], p=NUMBERS[1])].tolist()
    areas = np.sort(np.exp(rng.uniform(*np.log(AREAS), len(names))))[::-1]
    structures = []
    for name, area in zip(names, areas, strict=True):
        form, grain = lexicon[name]
        while area >= LEAST_AREA:
            mask = _stamp(rng, form, area * size**2, size)
            around = _window(mask, _margin(area * size**2, size), "any")
            place = _place(rng, free, around, mask)
            if place:
                break
            area *= 0.8
        else:
            continue
        near = slice(place[0], place[0] + len(mask)), slice(place[1], place[1] + mask.shape[1])
        soft = _window(mask, round(rng.integers(softness + 1) * size / 128), "mean")
        contrast, polarity = rng.uniform(*CONTRASTS), rng.choice((-1, 1))
        pattern = polarity * _grain(rng, grain, mask, place, size)
        inside = contrast + _strength(rng, contrast, pattern) * pattern
        picture[near] += (polarity * soft * inside).astype(np.float32)
        free[near] &= ~around
        whole = np.zeros((size, size), bool)
        whole[near] = mask
        structures.append((name, whole))
    return picture, structures


# --- forms: [h, w] bool from coordinates in which a form is about two wide ------------------------------


def _angle(u, v):
    return np.arctan2(v, u)


FORMS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda u, v: u**2 + v**2 <= 1,
    "box": lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= 0.9,
    "wedge": lambda u, v: np.maximum(-u, np.abs(v) * 0.866 + u * 0.5) <= 0.6,
    "plus": lambda u, v: (
        np.minimum(np.maximum(np.abs(u), 2.8 * np.abs(v)), np.maximum(2.8 * np.abs(u), np.abs(v))) <= 1
    ),
    "star": lambda u, v: np.hypot(u, v) <= 0.72 + 0.28 * np.cos(5 * _angle(u, v)),
    "trefoil": lambda u, v: np.hypot(u, v) <= 0.72 + 0.28 * np.cos(3 * _angle(u, v)),
    "bean": lambda u, v: (u**2 + (1.3 * v) ** 2 <= 1) & (np.hypot(u, v - 0.75) > 0.5),
    "crescent": lambda u, v: (u**2 + v**2 <= 1) & (np.hypot(u, v - 0.55) > 0.8),
    "dome": lambda u, v: (u**2 + (v + 0.4) ** 2 <= 1) & (v >= -0.4),
    "heart": lambda u, v: ((1.15 * u) ** 2 + (1.15 * v) ** 2 - 1) ** 3 <= 2 * u**2 * v**3,
    "hourglass": lambda u, v: (np.abs(u) <= 1) & (np.abs(v) <= 0.25 + 0.55 * np.abs(u)),
    "drop": lambda u, v: (np.hypot(u + 0.4, v) <= 0.6) | ((np.abs(v) <= 0.36 * (1.15 - u)) & (u >= -0.2)),
    "peanut": lambda u, v: np.hypot(np.abs(u) - 0.5, v) <= 0.54,
    "bar": lambda u, v: (np.abs(u) <= 1) & (np.abs(v) <= 0.33),
}
# Long by form: rounder than oval they would lose it. The long axis of the others may be either of the form's own.
LONG = ("bar", "crescent", "peanut")
# Drawn elongation of a structure and its odds, each between the limits of the words round, oval and elongated.
ELONGATIONS = ((1.0, 1.15), (1.35, 1.85), (2.1, 2.4))
ODDS = {True: (0.0, 0.5, 0.5), False: (0.4, 0.35, 0.25)}


# Grains, from angles that turn once in a period along x and y of the picture. They do not turn, grow or move with the structure, and bright
# stays bright: a patch of a few pixels tells them apart. A small tower learns these from some ten thousand pictures; of patterns that turn
# or shift with the structure it had learned next to nothing after sixty thousand.
PERIOD = 8  # pixels at 128
SHIFT = 0.75  # pixels at 128, at most, that a grain is off its place
PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "plain": lambda x, y: np.zeros_like(x + y),
    "columns": lambda x, y: np.sin(x + 0 * y) > 0,
    "rows": lambda x, y: np.sin(y + 0 * x) > 0,
    "slant": lambda x, y: np.sin(x + y) > 0,
    "checker": lambda x, y: np.sin(x) * np.sin(y) > 0,
    "dots": lambda x, y: np.cos(x) + np.cos(y) > 0.7,
}


@lru_cache
def _unit(form: str) -> tuple[float, float, float]:
    """A form's area and its reach from the origin in its own coordinates, and its extent along u over that along v."""
    line = np.linspace(-1.5, 1.5, 201)
    u, v = np.meshgrid(line, line)
    inside = FORMS[form](u, v)
    extents = u[inside].std() / v[inside].std()
    return float(inside.mean() * 9), float(np.hypot(u, v)[inside].max()), float(extents)


def _stamp(rng: np.random.Generator, form: str, area: float, size: int) -> np.ndarray:
    """The mask [h, w] of a structure of `area` pixels at a random angle and elongation, with a clear rim for `_window`."""
    unit, reach, extents = _unit(form)
    angle = rng.uniform(0, 2 * np.pi)
    elongation = rng.uniform(*ELONGATIONS[rng.choice(3, p=ODDS[form in LONG])])
    upright = form not in LONG and rng.random() < 0.5
    along = np.sqrt((1 / elongation if upright else elongation) / extents)
    across = 1 / along
    scale = np.sqrt(area / unit)
    rim = _margin(area, size) + 1
    half = int(scale * reach * max(along, across)) + 1 + rim
    line = np.arange(-half, half + 1, dtype=np.float32)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u = (cos * line + sin * line[:, None]) / np.float32(scale * along)
    v = (cos * line[:, None] - sin * line) / np.float32(scale * across)
    mask = FORMS[form](u, v)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = slice(rows[0] - rim, rows[-1] + 1 + rim), slice(columns[0] - rim, columns[-1] + 1 + rim)
    return mask[box]


def _grain(rng: np.random.Generator, grain: str, mask: np.ndarray, place: tuple[int, int], size: int) -> np.ndarray:
    """A grain over a mask [h, w] whose upper left corner lies at `place`: mean 0 and standard deviation 1 inside (plain: 0), 0 outside."""
    y, x = (
        (corner + np.arange(side) + rng.uniform(-SHIFT, SHIFT) * size / 128) * (2 * np.pi * 128 / (PERIOD * size))
        for corner, side in zip(place, mask.shape, strict=True)
    )
    pattern = PATTERNS[grain](x, y[:, None]).astype(np.float32)
    inside = pattern[mask]
    return np.where(mask, (pattern - inside.mean()) / max(float(inside.std()), 0.1), 0)


def _margin(area: float, size: int) -> int:
    """Pixels kept clear around a structure of `area` pixels: brightness against the surroundings is measured there."""
    return max(1, round(3 * size / 128), round(0.12 * np.sqrt(area)))


def _window(mask: np.ndarray, radius: int, what: str) -> np.ndarray:
    """Any or mean of a mask over the square of this radius around every pixel."""
    height, width = mask.shape
    total = np.zeros((height + 2 * radius + 1, width + 2 * radius + 1), np.int32)
    total[radius + 1 : -radius or None, radius + 1 : -radius or None] = mask
    total = total.cumsum(0).cumsum(1)
    step = 2 * radius + 1
    count = total[step:, step:] - total[:-step, step:] - total[step:, :-step] + total[:-step, :-step]
    return count > 0 if what == "any" else count / np.float32(step**2)


def _strength(rng: np.random.Generator, contrast: float, pattern: np.ndarray) -> float:
    """Draws how strongly a pattern is laid over a structure of this contrast."""
    low, high = -float(pattern.min()), float(pattern.max())
    drawn = rng.uniform(*STRENGTHS)
    return min(drawn, (contrast - NEAREST) / max(low, 0.1), (FARTHEST - contrast) / max(high, 0.1))


def _place(rng: np.random.Generator, free: np.ndarray, around: np.ndarray, mask: np.ndarray) -> tuple[int, int] | None:
    """Draws the upper left corner of a stamp from all places where `around` touches nothing; None where there is none.

    Thirds of the image are drawn first, then a place within: no part of the image is likelier for being roomier.

    Every place is tried at once: the correlation of the stamp with what is taken is zero where there is room. It wraps
    around the edges, but a stamp that does so touches the closed border. A raster of about 64 x 64 blocks is fine enough;
    a block counts as taken where any pixel of it is.
    """
    size = len(free)
    block = -(-size // 64)
    taken, stamp = _blocks(~free, block), _blocks(around, block)
    if max(stamp.shape) > len(taken):
        return None
    room = np.fft.irfft2(np.fft.rfft2(taken) * np.fft.rfft2(stamp, taken.shape).conj(), taken.shape) < 0.5
    corners = block * np.array(np.nonzero(room))
    if not corners.size:
        return None
    middle = np.mean(np.nonzero(mask), axis=1) + 0.5
    for axis in (1, 0):
        third = (3 * (corners[axis] + middle[axis]) / size).astype(int)
        corners = corners[:, third == rng.choice(np.flatnonzero(np.bincount(third)))]
    row, column = corners[:, rng.integers(corners.shape[1])].tolist()
    return row, column


def _blocks(mask: np.ndarray, block: int) -> np.ndarray:
    """Any over squares of `block` pixels; a side that is no multiple is made longer."""
    height, width = (-(-side // block) * block for side in mask.shape)
    wide = np.zeros((height, width), bool)
    wide[: mask.shape[0], : mask.shape[1]] = mask
    return np.logical_or.reduce([wide[i::block, j::block] for i in range(block) for j in range(block)])


def _png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
