"""Looks of phantoms: what a modality's picture is like around the drawn structures, and which structures it may show.

A look is a field of view, a ground to draw on and what the imaging does to the finished drawing: noise, bias, speckle,
hairs. None of it depends on what is drawn, so a look says nothing about its structures but which names are possible.
Distractors (ribs, vessels, hairs, bubbles, streaks) are thin or small and no structure's form.

Values are grey, 0 black to 1 white; the colour of a look keeps the grey (ITU luma) exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

Rng = np.random.Generator

# Every name has one form and one grain; within a look no form and no grain comes twice, so either tells the name.
LEXICONS: dict[str, dict[str, tuple[str, str]]] = {
    "CT": {
        "liver": ("wedge", "dots"),
        "kidney": ("bean", "plain"),
        "aorta": ("disc", "rows"),
        "vertebra": ("box", "columns"),
        "tumor": ("star", "checker"),
    },
    "MRI": {
        "hippocampus": ("crescent", "rows"),
        "eyeball": ("disc", "plain"),
        "prostate": ("plus", "dots"),
        "spinal cord": ("bar", "columns"),
        "lower-grade glioma": ("trefoil", "checker"),
    },
    "X-Ray": {
        "heart": ("heart", "plain"),
        "lung": ("dome", "rows"),
        "clavicle": ("peanut", "dots"),
        "knee joint": ("hourglass", "checker"),
        "nodule": ("disc", "columns"),
    },
    "ultrasound": {
        "fetal head": ("disc", "plain"),
        "gallbladder": ("drop", "columns"),
        "uterus": ("wedge", "rows"),
        "spleen": ("crescent", "slant"),
        "benign tumor": ("star", "dots"),
    },
    "fundus": {
        "optic disc": ("disc", "plain"),
        "macula": ("box", "columns"),
        "hemorrhage": ("star", "rows"),
        "exudate": ("plus", "checker"),
        "retinal drusen": ("trefoil", "dots"),
    },
    "dermoscopy": {
        "melanoma": ("trefoil", "slant"),
        "nevus": ("disc", "plain"),
        "keratosis": ("box", "checker"),
        "hemangioma": ("peanut", "dots"),
        "scar": ("bar", "rows"),
    },
}


@dataclass(frozen=True)
class Look:
    """One modality's picture.

    Attributes:
      ground: (rng, size) -> field [size, size] bool, where structures may lie, and ground [size, size].
      finish: (rng, picture, field) -> picture; all [size, size]. What the imaging does to the drawing.
      tone: RGB of a middle grey, or None for a grey picture.
      softness: widest blur of a structure's edge, in pixels at 128.
    """

    ground: Callable[[Rng, int], tuple[np.ndarray, np.ndarray]]
    finish: Callable[[Rng, np.ndarray, np.ndarray], np.ndarray]
    tone: Callable[[Rng], np.ndarray] | None = None
    softness: int = 1


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """y [size, 1] and x [1, size] of pixel centers, -1..1 over the image."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) / size) * 2 - 1
    return line[:, None], line[None, :]


def colour(grey: np.ndarray, tone: np.ndarray) -> np.ndarray:
    """Grey [H, W] in 0..1 to RGB [3, H, W] on the way black - tone - white; luma is linear, so it stays the grey."""
    luma = float(tone @ np.array([0.299, 0.587, 0.114]))
    dark, light = np.minimum(grey / luma, 1), np.maximum((grey - luma) / (1 - luma), 0)
    return np.stack([dark * part + light * (1 - part) for part in tone.tolist()])


# --- what several looks use ----------------------------------------------------------------------------


def smooth(rng: Rng, size: int, cells: int) -> np.ndarray:
    """A smooth random field [size, size] of standard deviation near 1, with features of size / cells."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _noise(rng: Rng, size: int) -> np.ndarray:
    return rng.standard_normal((size, size), dtype=np.float32)


def _ellipse(rng: Rng, size: int, low: float, high: float, power: float = 2.0) -> np.ndarray:
    """How far out a pixel lies: below 1 inside an upright ellipse (a rounded box for a larger power)."""
    y, x = grid(size)
    a, b = rng.uniform(low, high, 2).tolist()
    return np.abs((y - rng.uniform(-0.02, 0.02)) / a) ** power + np.abs((x - rng.uniform(-0.02, 0.02)) / b) ** power


def _lines(rng: Rng, size: int, count: int, width: float, bend: float) -> np.ndarray:
    """Curved thin lines right across the picture: [size, size] in 0..1. Drawn double-size, so that they are smooth."""
    sheet = Image.new("L", (2 * size, 2 * size))
    draw = ImageDraw.Draw(sheet)
    t = np.linspace(-1.6, 1.6, 12)
    for _ in range(count):
        angle, middle = rng.uniform(0, np.pi), rng.uniform(-0.8, 0.8, 2)
        curve = rng.uniform(-bend, bend) * t**2
        x = middle[0] + np.cos(angle) * t - np.sin(angle) * curve
        y = middle[1] + np.sin(angle) * t + np.cos(angle) * curve
        thick = max(1, round(2 * width * rng.uniform(0.7, 1.3) * size / 128))
        draw.line(list(zip(((x + 1) * size).tolist(), ((y + 1) * size).tolist(), strict=True)), 255, thick, "curve")
    return np.asarray(sheet.reduce(2), np.float32) / 255


def _bubbles(rng: Rng, size: int, count: int) -> np.ndarray:
    """Small round spots, far under the size of any structure: [size, size] in 0..1."""
    y, x = grid(size)
    sheet = np.zeros((size, size), np.float32)
    for row, column, radius in rng.uniform((-0.9, -0.9, 0.02), (0.9, 0.9, 0.045), (count, 3)).tolist():
        sheet = np.maximum(sheet, np.clip(1.5 - ((y - row) ** 2 + (x - column) ** 2) / radius**2, 0, 1))
    return sheet


# --- the six looks -------------------------------------------------------------------------------------


def _ct_ground(rng: Rng, size: int) -> tuple[np.ndarray, np.ndarray]:
    out = _ellipse(rng, size, 0.88, 0.98, power=2.5)
    field = out < 1
    ground = np.where(field, rng.uniform(0.4, 0.6) + 0.03 * smooth(rng, size, 5), rng.uniform(0.02, 0.08))
    # A thin skin, brighter or darker than what it holds.
    return field & (out < 0.93), ground + rng.uniform(-0.15, 0.2) * (field & (out > 0.94))


def _ct_finish(rng: Rng, picture: np.ndarray, field: np.ndarray) -> np.ndarray:
    size = len(picture)
    y, x = grid(size)
    for angle, offset in rng.uniform((0, -0.7), (np.pi, 0.7), (3, 2)).tolist():
        away = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y - np.float32(offset)
        picture = picture + np.float32(rng.uniform(-0.07, 0.07)) * (np.abs(away) < 0.012)
    return picture + 0.02 * _noise(rng, size)


def _mri_ground(rng: Rng, size: int) -> tuple[np.ndarray, np.ndarray]:
    out = _ellipse(rng, size, 0.9, 0.97, power=3.0)
    tissue = rng.uniform(0.4, 0.55) + 0.025 * smooth(rng, size, 24)
    ground = np.where(out < 1, tissue, 0.03)
    # A shell and a dark gap inside it, as around a brain.
    ground += rng.uniform(0.1, 0.3) * ((out > 0.9) & (out < 1)) - rng.uniform(0, 0.25) * ((out > 0.8) & (out < 0.9))
    return out < 0.8, ground


def _mri_finish(rng: Rng, picture: np.ndarray, field: np.ndarray) -> np.ndarray:
    size = len(picture)
    y, x = grid(size)
    bias = 1 + np.float32(rng.uniform(-0.15, 0.15)) * y + np.float32(rng.uniform(-0.15, 0.15)) * x
    bias += 0.06 * smooth(rng, size, 3)
    # The magnitude of a noisy signal: never under zero, and the dark background is not quite black.
    return np.hypot(picture * bias + 0.025 * _noise(rng, size), 0.03 * _noise(rng, size))


def _xray_ground(rng: Rng, size: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = grid(size)
    ground = rng.uniform(0.4, 0.58) + 0.04 * smooth(rng, size, 4)
    # Ribs: soft arched bands on both sides of a soft spine.
    spine = np.float32(rng.uniform(-0.15, 0.15))
    arch = y + np.float32(rng.uniform(0.2, 0.7)) * (x - spine) ** 2
    ribs = np.cos(np.float32(rng.uniform(12, 18)) * arch + np.float32(rng.uniform(0, 6)))
    ground += rng.uniform(0.02, 0.06) * np.maximum(ribs, -0.2)
    ground += rng.uniform(0.02, 0.08) * np.exp(-(((x - spine) / 0.09) ** 2))
    field = np.ones((size, size), bool)
    return field, ground


def _xray_finish(rng: Rng, picture: np.ndarray, field: np.ndarray) -> np.ndarray:
    # Quanta: noise grows with the darkness of the film's negative, that is with what little light arrives.
    return picture + 0.03 * np.sqrt(np.clip(picture, 0.1, 1)) * _noise(rng, len(picture))


def _ultrasound_ground(rng: Rng, size: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = grid(size)
    apex = np.float32(rng.uniform(-1.75, -1.5))
    depth = np.hypot(y - apex, x)
    angle = np.abs(np.arctan2(x, y - apex))
    near, far = -0.93 - apex, 0.96 - apex
    field = (depth > near) & (depth < far) & (angle < rng.uniform(0.6, 0.72))
    tissue = rng.uniform(0.42, 0.56) + 0.03 * smooth(rng, size, 6) + rng.uniform(-0.06, 0.06) * (depth - 1.5)
    return field, np.where(field, tissue, 0)


def _ultrasound_finish(rng: Rng, picture: np.ndarray, field: np.ndarray) -> np.ndarray:
    size = len(picture)
    y, _ = grid(size)
    # Speckle: multiplied, of grains about two pixels wide; it loses strength with depth as the beam does.
    grain = np.maximum(1, round(size * 2 / 128))
    coarse = Image.fromarray(rng.rayleigh(0.8, (-(-size // grain), -(-size // grain))).astype(np.float32))
    speckle = np.asarray(coarse.resize((size, size), Image.Resampling.BILINEAR)) * 0.35 + 0.65
    lines = 0.06 * _lines(rng, size, 2, 1.5, 0.3)
    fade = 1 - np.float32(rng.uniform(0, 0.25)) * (y + 1) / 2
    return np.where(field, (picture + lines) * speckle * fade, 0.01)


def _fundus_ground(rng: Rng, size: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = grid(size)
    radius = np.hypot(y, x)
    field = radius < rng.uniform(0.94, 0.98)
    ground = rng.uniform(0.4, 0.52) + 0.03 * smooth(rng, size, 5) - rng.uniform(0.05, 0.15) * radius**4
    ground -= rng.uniform(0.08, 0.16) * _lines(rng, size, int(rng.integers(3, 6)), 1.3, 0.4)
    return field, np.where(field, ground, 0.01)


def _fundus_finish(rng: Rng, picture: np.ndarray, field: np.ndarray) -> np.ndarray:
    return np.where(field, picture + 0.015 * _noise(rng, len(picture)), picture)


def _skin_ground(rng: Rng, size: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = grid(size)
    ground = rng.uniform(0.45, 0.62) + 0.025 * smooth(rng, size, 4) + 0.015 * smooth(rng, size, 40)
    ground = ground - rng.uniform(0, 0.1) * (x**2 + y**2)
    return np.ones((size, size), bool), ground


def _skin_finish(rng: Rng, picture: np.ndarray, field: np.ndarray) -> np.ndarray:
    size = len(picture)
    hairs = _lines(rng, size, int(rng.integers(0, 7)), 0.8, 0.35)
    picture = picture * (1 - rng.uniform(0.4, 0.75) * hairs)
    picture = picture + 0.12 * _bubbles(rng, size, int(rng.integers(0, 4)))
    return picture + 0.015 * _noise(rng, size)


def _orange(rng: Rng) -> np.ndarray:
    return np.array([rng.uniform(0.8, 0.92), rng.uniform(0.38, 0.46), rng.uniform(0.12, 0.25)])


def _skin(rng: Rng) -> np.ndarray:
    return np.array([rng.uniform(0.82, 0.92), rng.uniform(0.55, 0.68), rng.uniform(0.45, 0.6)])


LOOKS: dict[str, Look] = {
    "CT": Look(_ct_ground, _ct_finish),
    "MRI": Look(_mri_ground, _mri_finish),
    "X-Ray": Look(_xray_ground, _xray_finish, softness=2),
    "ultrasound": Look(_ultrasound_ground, _ultrasound_finish),
    "fundus": Look(_fundus_ground, _fundus_finish, _orange),
    "dermoscopy": Look(_skin_ground, _skin_finish, _skin),
}
