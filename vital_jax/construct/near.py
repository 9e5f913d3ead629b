"""Near-duplicates: the same picture cropped, padded, mirrored, turned a little, with another contrast, or with something burnt into it.

A breast ultrasound set holds a frame under two names, a benchmark's X-ray lies mirrored in another set, a slice comes with its border cut
off. Two such pictures must not stand on two sides of a split. They are found in three steps, each cheaper per pair than the next:

1. Every picture becomes a small thumbnail of its content: even borders are trimmed (padding), and grey is replaced by its rank (gamma,
   windows). 77 low cosine frequencies of it are its descriptor; those of mirrored copies are the same but for signs. Of all others, each
   picture's `MOST` most alike, at least `ALIKE`, are candidates.
2. The halved thumbnails of a candidate pair are laid over each other by least squares (affine, from rough to fine; residuals are clipped,
   so that a burnt-in box does not pull), and a pair that does not fit even then is dropped.
3. The same at full size, and the fine structure decides: the correlation of what is left after smoothing, block by block, mean over the
   better three quarters of the blocks, at least `SAME`. Two chests are alike in the large and differ there.

docs/RESULTS.md says what is found, what is merged falsely, and what it costs.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

SIDE = 48
MOST, ALIKE = 16, 0.7
ROUGH, SAME = 0.75, 0.95
_ORDER = 12  # of cosine frequencies, both directions together
_BLOCK, _KEPT = 6, 0.75  # blocks along a side; share of them that counts
_FLAT = 12  # grey levels within which a border is even
_FEW = 8  # least blocks that both pictures show
ROWS, PAIRS = 1024, 1024  # pictures compared with all, and pairs aligned, at once
FLIPS = ((False, False), (True, False), (False, True), (True, True))  # upside down, left to right

_waves = np.cos(np.pi * (np.arange(SIDE) + 0.5) * np.arange(_ORDER)[:, None] / SIDE).astype(np.float32)
_down, _across = np.mgrid[:_ORDER, :_ORDER]
_low = (_down + _across > 0) & (_down + _across < _ORDER)
_weights = (1 / (1 + np.hypot(_down, _across)))[_low].astype(np.float32)


def describe(picture: Image.Image) -> bytes:
    """A picture's thumbnail: SIDE x SIDE grey bytes, without even borders."""
    grey = picture.convert("L")
    grey.thumbnail((512, 512), Image.Resampling.BOX)
    pixels = np.asarray(grey)
    top, bottom, left, right = (_even(lines) for lines in (pixels, pixels[::-1], pixels.T, pixels.T[::-1]))
    height, width = pixels.shape
    if top + bottom < 0.7 * height and left + right < 0.7 * width:
        grey = grey.crop((left, top, width - right, height - bottom))
    return grey.resize((SIDE, SIDE), Image.Resampling.BOX).tobytes()


def _even(lines: np.ndarray) -> int:
    """How many of the first lines are even, but for a few pixels."""
    low, high = np.percentile(lines, (2, 98), axis=1)
    uneven = np.flatnonzero(high - low > _FLAT)
    return int(uneven[0]) if len(uneven) else len(lines)


def ranks(thumbs: np.ndarray) -> np.ndarray:
    """Thumbnails [N, SIDE * SIDE] uint8 with each grey replaced by the share of pixels below it: [N, SIDE, SIDE] float32, -0.5..0.5."""
    found = np.empty(thumbs.shape, np.float32)
    for number, thumb in enumerate(thumbs):
        counts = np.bincount(thumb, minlength=256)
        above = np.cumsum(counts)
        found[number] = ((above - counts / 2) / thumb.size - 0.5)[thumb]
    return found.reshape(-1, SIDE, SIDE)


def descriptors(ranked: np.ndarray) -> np.ndarray:
    """[N, 77] float32 of length 1, of ranked thumbnails [N, SIDE, SIDE]; 0 where a picture is even."""
    found = (_waves @ ranked @ _waves.T)[:, _low] * _weights
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return np.where(length > 1e-3, found / np.maximum(length, 1e-3), 0).astype(np.float32)


def signs(flip: tuple[bool, bool]) -> np.ndarray:
    """[77] what mirroring does to a descriptor."""
    return np.where((_down * flip[0] + _across * flip[1])[_low] % 2, -1, 1).astype(np.float32)


def candidates(
    found: np.ndarray, groups: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs that may be the same: (one, other, number of the flip, cosine) per block of pictures.

    Args:
      found: descriptors [N, 77]. groups: [N] pictures of one group are not compared.
    """
    for start in range(0, len(found), ROWS):
        rows = found[start : start + ROWS]
        best, which = None, np.zeros((len(rows), len(found)), np.uint8)
        for number, flip in enumerate(FLIPS):
            cosines = (rows * signs(flip)) @ found.T
            if best is None:
                best = cosines
                continue
            better = cosines > best
            which[better] = number
            np.maximum(best, cosines, out=best)
        best[groups[start : start + ROWS, None] == groups[None]] = -1
        most = min(MOST, best.shape[1])
        near = np.argpartition(-best, most - 1, axis=1)[:, :most]
        cosines = np.take_along_axis(best, near, 1)
        one, place = np.nonzero(cosines >= ALIKE)
        other = near[one, place]
        yield one + start, other, which[one, other], cosines[one, place]


def same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[N] bool, whether ranked thumbnails [N, SIDE, SIDE] are of the same picture; `other` is mirrored as it has to be."""
    small = [ranked.reshape(-1, SIDE // 2, 2, SIDE // 2, 2).mean((2, 4)) for ranked in (one, other)]
    moved = align(*small, np.zeros((len(one), 2, 3), np.float32), (1.5, 0.7))
    likely = np.flatnonzero(_likeness(*small, moved) >= ROUGH)
    found = np.zeros(len(one), bool)
    if len(likely):
        one, other = one[likely], other[likely]
        moved = align(one, other, 2 * moved[likely], (1.2, 0.6))
        found[likely] = _likeness(one, other, moved) >= SAME
    return found


def align(
    one: np.ndarray, other: np.ndarray, moved: np.ndarray, blurs: tuple[float, ...], turns: int = 6
) -> np.ndarray:
    """Lays pictures [N, S, S] over each other (Lucas and Kanade, with the gradient of `one` throughout).

    Args:
      moved: [N, 2, 3] where to start: what is added to a pixel's row and column, per 1, x and y (-1..1). blurs: from rough to fine.
      turns: steps at each.

    Returns: `moved`, improved.
    """
    side = one.shape[1]
    basis = _basis(side)
    for blur in blurs:
        a, b = (gaussian_filter(image, (0, blur, blur), truncate=2.5) for image in (one, other))
        gradient = np.stack(np.gradient(a, axis=(1, 2)), 1).reshape(len(a), 2, -1)
        slopes = (gradient[:, :, None] * basis).reshape(len(a), 6, -1)
        normal = slopes @ slopes.transpose(0, 2, 1)
        normal += (1e-3 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-6) * np.eye(6, dtype=np.float32)
        inverse = np.linalg.inv(normal)
        flat = a.reshape(len(a), -1)
        for _ in range(turns):
            warped, inside = _warp(b, moved)
            here, spread = _standard(flat, inside)
            there, _ = _standard(warped, inside)
            residual = np.clip(here - there, -1, 1) * spread * inside
            step = (inverse @ (slopes @ residual[..., None]))[..., 0]
            moved = np.clip(moved + step.reshape(-1, 2, 3), -side / 8, side / 8)
    return moved


def _standard(values: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values [N, P] with mean 0 and deviation 1 where they are inside, and the deviation [N, 1] they had."""
    count = np.maximum(inside.sum(1, keepdims=True), 1).astype(np.float32)
    values = values - (values * inside).sum(1, keepdims=True) / count
    spread = np.sqrt((values * values * inside).sum(1, keepdims=True) / count) + 1e-6
    return values / spread, spread


def _basis(side: int) -> np.ndarray:
    """[3, S * S] 1, x and y of each pixel, -1..1."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    return np.stack([np.ones_like(x), x, y]).reshape(3, -1)


def _warp(images: np.ndarray, moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [N, S, S] read at moved places, bilinear: [N, S * S], and where that is within the picture."""
    side = images.shape[1]
    y, x = np.mgrid[:side, :side].astype(np.float32).reshape(2, -1)
    offset = moved @ _basis(side)
    y, x = y + offset[:, 0], x + offset[:, 1]
    inside = (y >= 0) & (y <= side - 1) & (x >= 0) & (x <= side - 1)
    y, x = np.clip(y, 0, side - 1.001), np.clip(x, 0, side - 1.001)
    row, column = y.astype(np.int32), x.astype(np.int32)
    y, x = y - row, x - column
    flat, place = images.reshape(len(images), -1), row * side + column
    corners = [np.take_along_axis(flat, place + more, 1) for more in (0, 1, side, side + 1)]
    upper = corners[0] + x * (corners[1] - corners[0])
    lower = corners[2] + x * (corners[3] - corners[2])
    return upper + y * (lower - upper), inside


def _likeness(one: np.ndarray, other: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """[N] how far the fine structures of aligned pictures [N, S, S] agree, -1..1."""
    side = one.shape[1]
    warped, inside = _warp(other, moved)
    scale = side / SIDE
    fine = [
        gaussian_filter(image, (0, 0.7 * scale, 0.7 * scale)) - gaussian_filter(image, (0, 3 * scale, 3 * scale))
        for image in (one, warped.reshape(one.shape))
    ]
    a, b, seen = (_blocks(each.reshape(one.shape)) for each in (*fine, inside))
    a, b = (each - each.mean(2, keepdims=True) for each in (a, b))
    likeness = (a * b).sum(2) / np.sqrt((a * a).sum(2) * (b * b).sum(2) + 1e-9)
    whole = seen.mean(2) > 0.9
    ordered = -np.sort(np.where(whole, -likeness, 2), axis=1)
    kept = (_KEPT * whole.sum(1)).astype(int)
    counted = np.arange(ordered.shape[1]) < kept[:, None]
    mean = np.where(counted, ordered, 0).sum(1) / np.maximum(kept, 1)
    return np.where(whole.sum(1) >= _FEW, mean, -1)


def _blocks(images: np.ndarray) -> np.ndarray:
    """Pictures [N, S, S] as [N, blocks, pixels]."""
    side = images.shape[1] // _BLOCK
    cut = images.reshape(-1, _BLOCK, side, _BLOCK, side)
    return cut.transpose(0, 1, 3, 2, 4).reshape(len(images), _BLOCK * _BLOCK, -1)


def mirrored(ranked: np.ndarray, flips: np.ndarray) -> np.ndarray:
    """Thumbnails [N, SIDE, SIDE], each mirrored as its number in `FLIPS` says."""
    found = ranked.copy()
    for number, (down, across) in enumerate(FLIPS):
        here = flips == number
        found[here] = ranked[here][:, :: -1 if down else 1, :: -1 if across else 1]
    return found
