"""The shape that a mask draws, and the region that is meant: specks, outlines, rings and what is drawn the wrong way round.

Every rule is stated here and nothing is done in silence: what has one meaning is mended by it, what has two is refused by name, and a
manifest can say which is meant (docs/data_files.md). Areas and distances are in pixels of the grid that the mask is stored on.
"""

import json
from fnmatch import fnmatchcase
from functools import cache

import numpy as np
from scipy import ndimage

from vital_jax.construct.source import Rejected
from vital_jax.construct.targets import DATA, Targets

SPECK = 50  # a piece of less than this part of the largest one, and too small to be a target of its own, is a speck
LINE = 5  # pixels: a closed line that is nowhere wider is an outline
_GAP = 2  # a gap of up to twice as many pixels does not open an outline
_EIGHT = np.ones((3, 3), bool)


def without_specks(region: np.ndarray, min_area: int) -> np.ndarray:
    """A region without stray pixels: 8-connected pieces under `min_area` and under a `SPECK`-th of the largest. [H, W] bool."""
    pieces, number = ndimage.label(region, _EIGHT)
    if number < 2:
        return region
    area = np.bincount(pieces.ravel())
    area[0] = 0
    kept = (area >= min_area) | (area * SPECK >= area.max())
    kept[0] = False
    return region if kept[1:].all() else kept[pieces]


def meant_region(
    region: np.ndarray, target: str, targets: Targets, file: str, outline: bool | None = None
) -> np.ndarray:
    """The region that a mask of a target means.

    A closed line (nowhere wider than `LINE`) around more than itself is an outline and becomes what it encloses. A wider ring around more
    than itself is refused, and so is a mask that fills the image's corners and border but for a part inside: it may be drawn the wrong way
    round. What may go around something is taken as drawn (`data/masks.json`: vessels, the myocardium); of lesions, which may be rings
    (an enhancing rim), only outlines are filled.

    Args:
      region: [H, W] bool. target: as in the table of targets.
      file: what a rejection calls it.
      outline: what the manifest says: fill whatever is enclosed, or take it as drawn; None: by these rules.

    Raises:
      Rejected: ring-mask or unclear-mask.
    """
    kind, table = targets.row(target)["type"], _table()
    if outline is not None or kind in table["types"]:
        return _filled(region) if outline else region
    if _inverted(region):
        reason = (
            "marks the image's corners and border and leaves out a part inside, as a mask drawn the wrong way round"
        )
        raise Rejected("unclear-mask", file, f'{reason}; say which pixels are meant by "value" (0 or 255)')
    if any(fnmatchcase(target, pattern) for pattern in table["targets"]):
        return region
    if 2 * region.sum() >= np.prod([np.ptp(v) + 1 for v in np.nonzero(region)] if region.any() else 0):
        return region  # it fills half of its box, so it cannot be a ring
    filled = _enclosed(region)
    if 2 * region.sum() >= filled.sum():
        return region
    if _width(region) <= LINE:
        return filled
    if kind in table["lined"]:
        return region
    share = f"marks a ring, {100 * region.sum() / filled.sum():.0f} percent of what it encloses"
    way_out = '"outline": true if what is enclosed is meant, false if the ring is'
    raise Rejected("ring-mask", file, f"{share}, and {target} is no ring; say {way_out}")


@cache
def _table() -> dict:
    return json.loads((DATA / "masks.json").read_text(encoding="utf-8"))


def _inverted(region: np.ndarray) -> bool:
    border = np.concatenate([region[0], region[-1], region[1:-1, 0], region[1:-1, -1]])
    corners = region[:: len(region) - 1 or 1, :: region.shape[1] - 1 or 1]
    return bool(corners.all() and 4 * border.sum() >= 3 * border.size and not region.all())


def _filled(region: np.ndarray) -> np.ndarray:
    """The region with its holes: background that does not reach the border."""
    pieces, number = ndimage.label(~np.pad(region, 1))
    return region if number < 2 else (pieces != pieces[0, 0])[1:-1, 1:-1]


def _enclosed(region: np.ndarray) -> np.ndarray:
    """The region with what it encloses, by itself, with a small gap, or together with one side of the image."""
    filled = _filled(region)
    if 2 * region.sum() < filled.sum() or _width(region) > LINE:
        return filled
    grown = ndimage.binary_dilation(np.pad(region, _GAP + 1), _EIGHT, _GAP)
    inner = ndimage.binary_erosion(_filled(grown), _EIGHT, _GAP)[_GAP + 1 : -_GAP - 1, _GAP + 1 : -_GAP - 1]
    found = [filled, region | inner]
    for side in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        touched = np.flatnonzero(region[side])
        if touched.size:
            closed = region.copy()
            closed[side][touched[0] : touched[-1]] = True
            found.append(_filled(closed))
    return max(found, key=np.count_nonzero)


def _width(region: np.ndarray) -> int:
    """How wide a region is where it is widest."""
    region = region[tuple(slice(v.min(), v.max() + 1) for v in np.nonzero(region))]
    return 2 * round(float(ndimage.distance_transform_edt(np.pad(region, 1)).max())) - 1
