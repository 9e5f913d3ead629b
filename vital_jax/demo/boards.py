"""Boards: drawn images whose structures form a chain that can only be read off the image, one link after the other.

A board is a grid of 4 x 4 cells. Nine of them, drawn anew for every board, show a structure each; a structure's form is its name. Beside it
stands a badge, small and in the form of the structure that comes next, so the nine form one cycle, and no hop can be guessed from a
shorter one. Names, places, sizes and brightness say nothing of the order, and every order of the nine is as likely. Nine of twelve names
are shown, so that a name may be absent, too. A cell of 32 pixels is one image token of a backbone with patches of 16 merged by two; 28
suits patches of 14.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vital_jax.demo.looks import smooth
from vital_jax.demo.phantoms import FORMS

GRID = 4
SHOWN = 9
_Form = Callable[[np.ndarray, np.ndarray], np.ndarray]
# Structure: its form, always upright. Small as a badge, no two of them correlate by more than 0.72.
NAMES: dict[str, _Form] = {
    "aorta": lambda u, v: (np.hypot(u, v) <= 1) & (np.hypot(u, v) >= 0.5),
    "bladder": FORMS["trefoil"],
    "heart": FORMS["heart"],
    "kidney": FORMS["bean"],
    "liver": lambda u, v: FORMS["wedge"](-v, u),
    "lung": lambda u, v: FORMS["bar"](v, u),
    "nodule": lambda u, v: FORMS["plus"](0.6 * (u + v), 0.6 * (u - v)),
    "pancreas": FORMS["bar"],
    "spleen": FORMS["crescent"],
    "stomach": lambda u, v: FORMS["wedge"](v, u),
    "tumor": FORMS["star"],
    "vertebra": FORMS["plus"],
}
# Of a cell: where the middle of a structure and of its badge stand, and their half-widths; a badge is always smaller.
PLACE, RADII = 0.36, (0.20, 0.29)
BADGE_PLACE, BADGE_RADIUS = 0.82, 0.15
JITTER = 0.03
CONTRASTS = (0.2, 0.34)
NOISE = 0.02  # standard deviation of a pixel
_FINE = 3  # every pixel is the mean of 3 x 3 finer ones


@dataclass(frozen=True)
class Board:
    """A drawn board.

    Attributes:
      grey: [size, size] uint8.
      order: the names as the flow goes; the first follows the last.
      cells: (row, column) of each name. bright: whether it is brighter than its ground.
      masks: [size, size] bool of each name's structure, without its badge.
    """

    grey: np.ndarray
    order: tuple[str, ...]
    cells: dict[str, tuple[int, int]]
    bright: dict[str, bool]
    masks: dict[str, np.ndarray]

    def path(self, start: str, hops: int) -> list[str]:
        """The names from `start` on, `hops` + 1 of them."""
        first = self.order.index(start)
        return [self.order[(first + hop) % len(self.order)] for hop in range(hops + 1)]

    @property
    def absent(self) -> list[str]:
        """The names that are not shown."""
        return [name for name in NAMES if name not in self.cells]

    @property
    def cycle(self) -> tuple[str, ...]:
        """The order from its alphabetically first name on: the same for every place to begin."""
        first = self.order.index(min(self.order))
        return self.order[first:] + self.order[:first]


def draw_board(seed: int, index: int, cell: int = 32, noise: float = NOISE) -> Board:
    """Draws board `index` of a seed, always the same.

    Args: cell: the side of a cell in pixels. noise: standard deviation of a pixel, where black is 0 and white 1.
    Raises: ValueError for cells under 20 pixels, where badges cannot be told apart.
    """
    if cell < 20:
        raise ValueError(f"a cell of {cell} pixels: badges need at least 20")
    rng = np.random.default_rng([seed, index])
    size = GRID * cell
    order = tuple(rng.permutation(list(NAMES))[:SHOWN].tolist())
    places = rng.permutation(GRID * GRID)[:SHOWN]
    grey = (rng.uniform(0.4, 0.6) + 0.03 * smooth(rng, size, 5)).astype(np.float32)
    cells, bright, masks = {}, {}, {}
    for number in rng.permutation(SHOWN):
        name, behind = order[number], order[(number + 1) % SHOWN]
        row, column = divmod(int(places[number]), GRID)
        polarity = int(rng.choice((-1, 1)))
        here = slice(row * cell, (row + 1) * cell), slice(column * cell, (column + 1) * cell)
        whole = _form(rng, NAMES[name], cell, PLACE, rng.uniform(*RADII))
        badge = _form(rng, NAMES[behind], cell, BADGE_PLACE, BADGE_RADIUS)
        grey[here] += polarity * (rng.uniform(*CONTRASTS) * whole + max(CONTRASTS) * badge)
        cells[name], bright[name] = (row, column), polarity > 0
        masks[name] = np.zeros((size, size), bool)
        masks[name][here] = whole > 0.5
    grey += noise * rng.standard_normal((size, size), dtype=np.float32)
    return Board(np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8), order, cells, bright, masks)


def _form(rng: np.random.Generator, form: _Form, cell: int, place: float, radius: float) -> np.ndarray:
    """How much of each pixel of a cell [cell, cell] a form covers."""
    line = (np.arange(cell * _FINE) + 0.5) / (cell * _FINE)
    y, x = ((line - place - rng.uniform(-JITTER, JITTER) * (radius > BADGE_RADIUS)) / radius for _ in range(2))
    fine = form(*np.meshgrid(x, y)).astype(np.float32)
    return fine.reshape(cell, _FINE, cell, _FINE).mean((1, 3))
