"""Boards: drawn images whose questions need one to four looks, each of which has to know what the look before found.

A board is a grid of 4 x 4 cells. Nine of them, drawn anew for every board, show a structure each; a structure's form is its name. Beside it
stands a badge, small and in the form of the structure that comes next, so the nine form one cycle, and no hop can be guessed from a
shorter one. "Start at the kidney and follow the flow three times" is then three lookups in the image, and nothing else answers it: names,
places, sizes and brightness say nothing of the order, and every order of the nine is as likely. A cell of 32 pixels is one image token of
a backbone with patches of 16 merged by two; 28 suits patches of 14.

Splits are by the order of the cycle, not only by image: the orders of the test split are never seen in training.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vital_jax.construct.sample import png
from vital_jax.demo.looks import smooth
from vital_jax.demo.phantoms import FORMS
from vital_jax.pipeline.records import Record

GRID = 4
NAMES = {  # structure: its form, always upright
    "liver": "wedge",
    "spleen": "crescent",
    "pancreas": "bar",
    "stomach": "drop",
    "kidney": "box",
    "aorta": "disc",
    "heart": "heart",
    "bladder": "dome",
    "tumor": "plus",
}
TIMES = ("", "once", "twice", "three times", "four times", "five times")
# Of a cell: where the middle of a structure and of its badge stand, and their half-widths; a badge is always smaller.
PLACE, RADII = 0.36, (0.22, 0.28)
BADGE_PLACE, BADGE_RADIUS = 0.82, 0.15
JITTER = 0.03
CONTRASTS = (0.2, 0.34)
NOISE = 0.02  # standard deviation of a pixel
_FINE = 4  # every pixel is the mean of 4 x 4 finer ones


@dataclass(frozen=True)
class Board:
    """A drawn board.

    Attributes:
      rgb: [size, size, 3] uint8.
      order: the names as the flow goes; the first follows the last.
      cells: (row, column) of each name. masks: [size, size] bool of each name's structure, without its badge.
    """

    rgb: np.ndarray
    order: tuple[str, ...]
    cells: dict[str, tuple[int, int]]
    masks: dict[str, np.ndarray]

    def path(self, start: str, hops: int) -> list[str]:
        """The names from `start` on, `hops` + 1 of them."""
        first = self.order.index(start)
        return [self.order[(first + hop) % len(self.order)] for hop in range(hops + 1)]


def draw_board(seed: int, index: int, cell: int = 32, noise: float = NOISE) -> Board:
    """Draws board `index` of a seed, always the same. Raises: ValueError for cells under 20 pixels, where badges cannot be told apart."""
    if cell < 20:
        raise ValueError(f"a cell of {cell} pixels: badges need at least 20")
    rng = np.random.default_rng([seed, index])
    size = GRID * cell
    order = tuple(rng.permutation(list(NAMES)).tolist())
    places = rng.permutation(GRID * GRID)[: len(order)]
    grey = (rng.uniform(0.4, 0.6) + 0.03 * smooth(rng, size, 5)).astype(np.float32)
    cells, masks = {}, {}
    for number in rng.permutation(len(order)):
        name, behind = order[number], order[(number + 1) % len(order)]
        row, column = divmod(int(places[number]), GRID)
        corner, polarity = (row * cell, column * cell), rng.choice((-1, 1))
        here = slice(row * cell, (row + 1) * cell), slice(column * cell, (column + 1) * cell)
        whole = _form(rng, NAMES[name], cell, PLACE, rng.uniform(*RADII))
        badge = _form(rng, NAMES[behind], cell, BADGE_PLACE, BADGE_RADIUS)
        grey[here] += polarity * (rng.uniform(*CONTRASTS) * whole + max(CONTRASTS) * badge)
        cells[name] = (row, column)
        masks[name] = np.zeros((size, size), bool)
        masks[name][corner[0] : corner[0] + cell, corner[1] : corner[1] + cell] = whole > 0.5
    grey += noise * rng.standard_normal((size, size), dtype=np.float32)
    planes = np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8)
    return Board(np.ascontiguousarray(np.broadcast_to(planes[..., None], (size, size, 3))), order, cells, masks)


def _form(rng: np.random.Generator, form: str, cell: int, place: float, radius: float) -> np.ndarray:
    """How much of each pixel of a cell [cell, cell] a form covers."""
    line = (np.arange(cell * _FINE) + 0.5) / (cell * _FINE)
    y, x = ((line - place - rng.uniform(-JITTER, JITTER) * (radius > BADGE_RADIUS)) / radius for _ in range(2))
    fine = FORMS[form](*np.meshgrid(x, y)).astype(np.float32)
    return fine.reshape(cell, _FINE, cell, _FINE).mean((1, 3))


def flow_records(
    count: int, seed: int, hops: Sequence[int] = (1, 2, 3, 4), per_board: int = 4, cell: int = 32, noise: float = NOISE
) -> Iterator[Record]:
    """Questions about the flow of boards 0 .. count - 1, `per_board` of each, numbers of hops in turn and starts drawn without repetition.

    A record's chain has a sentence for each hop; its mask and box show the structure that is reached. Its group, by which splits are made,
    is the order of the cycle.

    Raises: ValueError for hops outside 1 to 5, more questions than starts, or as `draw_board`.
    """
    if not hops or not all(1 <= hop < len(TIMES) for hop in hops):
        raise ValueError(f"hops={tuple(hops)}: give numbers from 1 to {len(TIMES) - 1}")
    if not 1 <= per_board <= len(NAMES):
        raise ValueError(f"{per_board} questions about a board: give 1 to {len(NAMES)}, the starts there are")
    for index in range(count):
        board = draw_board(seed, index, cell, noise)
        image = png(board.rgb[..., 0])
        rng = np.random.default_rng([seed, index, 1])
        first = board.order.index(min(board.order))
        cycle = board.order[first:] + board.order[:first]
        for number, start in enumerate(rng.permutation(list(board.order))[:per_board].tolist()):
            k = hops[(index * per_board + number) % len(hops)]
            names = board.path(start, k)
            mask = board.masks[names[-1]]
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            size = len(mask)
            yield Record(
                id=f"flow-{seed}/{index}/{start}/{k}",
                images=(image,),
                masks=(png(mask.astype(np.uint8) * 255),),
                boxes=((columns[0] / size, rows[0] / size, (columns[-1] + 1) / size, (rows[-1] + 1) / size),),
                question=f"Start at the {start} and follow the flow {TIMES[k]}. Which structure is reached?",
                answer=f"The {names[-1]}.",
                chain=tuple(f"The {a} flows to the {b}." for a, b in itertools.pairwise(names)),
                metadata={
                    "source": "flow",
                    "modality": "CT",
                    "site": "phantom",
                    "target_name": names[-1],
                    "question_type": f"{k} hop{'s' * (k > 1)}",
                    "latent_steps": k,
                    "licence": "CC0-1.0",
                    "group": f"flow/{'-'.join(cycle)}",
                },
            )
