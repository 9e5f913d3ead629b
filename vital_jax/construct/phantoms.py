"""Phantoms: pictures with one drawn shape and its exact mask, for anybody without data and for tests without downloads.

Every picture is a function of (seed, index) alone. What is drawn is known, so the answers are right by construction and
an absent shape is certainly absent.
"""

from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import Image

from vital_jax.construct.folders import Sample
from vital_jax.construct.targets import load_targets

SHAPES = ("disc", "ellipse", "bar")


def phantoms(count: int, seed: int, size: int = 128, start: int = 0) -> Iterator[Sample]:
    """Draws phantoms `start` .. `start + count - 1` of a seed: a bright or dark shape on a noisy ground.

    Args:
      count, seed, start: which ones; phantom i of a seed is always the same.
      size: height and width in pixels.

    Raises:
      ValueError: a size under 32, at which shapes would be a few pixels.
    """
    if size < 32:
        raise ValueError(f"phantoms need at least 32 pixels a side, not {size}")
    for index in range(start, start + count):
        grey, region, target = _draw(np.random.default_rng([seed, index]), size)
        yield Sample(
            id=f"phantom-{seed}/{index}/{target}",
            image=_png(grey),
            mask=_png(region.astype(np.uint8) * 255),
            target=target,
            target_type=load_targets().row(target)["type"],
            modality="phantom",
            site="phantom",
            group=f"phantom-{seed}/{index}",
            source="phantom",
            licence="CC0-1.0",
            present=(target,),
            absent=tuple(shape for shape in SHAPES if shape != target),
        )


def _draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Returns grey [size, size] uint8, region [size, size] bool and the shape's name."""
    target = SHAPES[rng.integers(len(SHAPES))]
    long = rng.uniform(0.1, 0.25) * size
    short = long * {"disc": 1.0, "ellipse": rng.uniform(0.45, 0.7), "bar": rng.uniform(0.2, 0.35)}[target]
    centre = rng.uniform(long, size - long, 2)
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[:size, :size] + 0.5 - centre[:, None, None]
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    u, v = np.abs(along) / long, np.abs(across) / short
    region = np.maximum(u, v) <= 1 if target == "bar" else u**2 + v**2 <= 1
    ground = rng.uniform(90, 165)
    difference = rng.choice([-1, 1]) * rng.uniform(35, 80)
    slope = rng.uniform(-15, 15, 2) @ (np.mgrid[:size, :size].reshape(2, -1) / size - 0.5)
    grey = ground + slope.reshape(size, size) + difference * region + rng.normal(0, 6, (size, size))
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8), region, target


def _png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
