"""What is measured about a target: its place, size, shape, brightness and boundary, and what else is marked around it.

Numbers only; `words` says them. Everything is of the picture as it is seen: rows from the top, columns from the left,
grey as ITU-R 601 luma. So a number can be checked against the pixels, and nothing about a patient is implied.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from scipy import ndimage

from vital_jax.construct.sample import Sample
from vital_jax.pipeline.images import decode
from vital_jax.pipeline.masks import decode_mask

WITHIN = 0.9  # share of a target's area that lies in another, from which on it is within the other
SHARED = 0.1  # share of the smaller of two filled targets that both have in common, from which on neither is beside the other
DARK = 10  # greatest grey, of 255, of the dead ground around a field of view
INSIDE = 0.1  # least share of the band around a target that lies in the field of view, or else all of the band counts


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
      grey: mean inside, 0..1. contrast: mean grey inside minus mean grey around, -1..1. Around is a band as wide as about half the
        target's own thickness, so that it is what a reader sees beside it, and without the dead ground outside the field of view.
      texture: standard deviation of grey inside.
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
    grey: float
    contrast: float
    texture: float
    sharpness: float


@dataclass(frozen=True)
class Facts:
    """A sample's measurements.

    Attributes:
      own: of the target. others: of every other marked target in the image, by name.
      within: the others in which the target lies; holds: the others that lie in the target.
      shared: the others with which it has more than a rim in common, or which lie in a hole of it or it in theirs.
    """

    own: Measurement
    others: dict[str, Measurement] = field(default_factory=dict)
    within: frozenset[str] = frozenset()
    holds: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()


def look(sample: Sample) -> Facts:
    """Measures a sample's target and its neighbours; those of one image are measured once while they follow each other.

    Neighbours with nothing in their mask are left out.

    Raises:
      ValueError: an image or mask cannot be decoded, or the target's mask is empty.
    """
    region, filled, own = _measured(sample.image, sample.mask)
    if own is None:
        raise ValueError(f"sample {sample.id!r}: its mask is empty")
    found = {name: _measured(sample.image, mask) for name, mask in sample.neighbours}
    found = {name: measured for name, measured in found.items() if measured[2]}
    common = {name: int((region & other).sum()) for name, (other, *_) in found.items()}
    return Facts(
        own,
        {name: m for name, (*_, m) in found.items()},
        frozenset(name for name, area in common.items() if area >= WITHIN * region.sum()),
        frozenset(name for name, area in common.items() if area >= WITHIN * found[name][0].sum()),
        frozenset(name for name, (_, other, _) in found.items() if _share(filled, other)),
    )


def _share(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two regions [H, W] have a good part of the smaller in common."""
    return bool((one & other).sum() >= SHARED * min(one.sum(), other.sum()))


@lru_cache(maxsize=1)
def _grey(image: bytes) -> tuple[np.ndarray, np.ndarray, dict]:
    picture, info = decode(image, "the image")
    grey = np.asarray(picture.convert("L"))
    return grey, field_of_view(grey), info


def field_of_view(grey: np.ndarray) -> np.ndarray:
    """[H, W] bool: everything but the dark ground that reaches the edge of the picture (of a fundus camera, an endoscope, an X-ray)."""
    return ~_outer(grey <= DARK)


def _outer(ground: np.ndarray) -> np.ndarray:
    """The parts of a region [H, W] that reach the edge of the picture."""
    labels, count = ndimage.label(ground)
    reach = np.zeros(count + 1, bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        reach[edge] = True
    reach[0] = False
    return reach[labels]


@lru_cache(maxsize=128)
def _measured(image: bytes, mask: bytes) -> tuple[np.ndarray, np.ndarray, Measurement | None]:
    """A region [H, W], the same with its holes filled, and its measurements."""
    grey, field, info = _grey(image)
    region = decode_mask(mask, "the mask", info)
    return region, ~_outer(~region), measure(grey, region, field) if region.any() else None


def measure(grey: np.ndarray, region: np.ndarray, field: np.ndarray | None = None) -> Measurement:
    """Measures a region.

    Args:
      grey: [H, W] uint8.
      region: [H, W] bool.
      field: [H, W] bool, `field_of_view(grey)` where it is known.

    Raises:
      ValueError: the region is empty or of another shape.
    """
    if region.shape != grey.shape or not region.any():
        raise ValueError(f"region of {region.shape} with {int(region.sum())} pixels in an image of {grey.shape}")
    height, width = region.shape
    y, x = np.nonzero(region)
    elongation, angle = _axes(y, x)
    field = field_of_view(grey) if field is None else field
    band = max(2, round(min(height, width) / 128))
    perimeter = _perimeter(region)
    # Twice area over perimeter is a disc's radius and a line's width; of a disc this reaches half its radius.
    reach = max(band, round(0.53 * 2 * len(y) / perimeter))
    near = tuple(slice(max(0, v.min() - reach), v.max() + reach + 1) for v in (y, x))
    grey, region, field = grey[near] / 255, region[near], field[near]
    around = _grow(region, reach) & ~region
    if (around & field).sum() >= INSIDE * around.sum():
        around &= field
    contrast = step = 0.0
    if around.any():
        contrast = _mean(grey, region) - _mean(grey, around)
        beside = around & _grow(region, band)
        step = _mean(grey, region & _grow(~region, band)) - _mean(grey, beside if beside.any() else around)
    return Measurement(
        share=len(y) / (height * width),
        row=(y.mean() + 0.5) / height,
        column=(x.mean() + 0.5) / width,
        rows=tuple(np.bincount(3 * (2 * y + 1) // (2 * height), minlength=3) / len(y)),
        columns=tuple(np.bincount(3 * (2 * x + 1) // (2 * width), minlength=3) / len(x)),
        box=(x.min() / width, y.min() / height, (x.max() + 1) / width, (y.max() + 1) / height),
        parts=_parts(region),
        elongation=elongation,
        angle=angle,
        compactness=min(1.0, 4 * np.pi * len(y) / perimeter**2),
        grey=_mean(grey, region),
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
    """Crofton's formula with four directions: within about 5 %, however a region is turned; with two, turning a square changes a third."""
    m = np.pad(region, 1)
    straight = (m[1:] != m[:-1]).sum() + (m[:, 1:] != m[:, :-1]).sum()
    slanted = (m[1:, 1:] != m[:-1, :-1]).sum() + (m[1:, :-1] != m[:-1, 1:]).sum()
    return float(np.pi / 8 * (straight + slanted / np.sqrt(2)))


def _grow(region: np.ndarray, radius: int) -> np.ndarray:
    """Every pixel within a square of this radius around the region, from running sums."""
    for axis in (0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (radius + 1, radius)
        total = np.moveaxis(np.pad(region, pad).cumsum(axis, dtype=np.int32), axis, 0)
        region = np.moveaxis(total[2 * radius + 1 :] > total[: -2 * radius - 1], 0, axis)
    return region


def _parts(region: np.ndarray) -> int:
    """Counts 8-connected pieces of at least a fiftieth of the largest: rows as runs of pixels, runs that touch united."""
    edges = np.diff(np.pad(region, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges > 0)
    ends = np.nonzero(edges < 0)[1]
    # Runs come row by row, from left to right: of the row above, those that touch a run follow each other.
    width = region.shape[1] + 2
    first = np.searchsorted((rows + 1) * width + ends, rows * width + starts)
    last = np.searchsorted((rows + 1) * width + starts, rows * width + ends, "right")
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    for run, (low, high) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        for above in range(low, high):
            parent[root(above)] = root(run)
    sizes = np.bincount([root(run) for run in range(len(rows))], ends - starts)
    return int((sizes * 50 >= sizes.max()).sum())
