"""Near-duplicates: the same picture cropped, padded, mirrored, turned a little, with another contrast, or with something burnt into it.

A breast ultrasound set holds a frame under two names, a benchmark's X-ray lies mirrored in another set, a slice comes with its border cut
off. Two such pictures must not stand on two sides of a split. They are found in three steps, each cheaper per pair than the next:

1. Every picture becomes a small thumbnail of its content: even borders are trimmed (padding), and grey is replaced by its rank (gamma,
   windows). 77 low cosine frequencies of it are its descriptor; those of mirrored copies are the same but for signs. Of all others, each
   picture's `MOST` most alike, at least `ALIKE`, are candidates.
2. The halved thumbnails of a candidate pair are laid over each other by least squares (affine, from rough to fine; residuals are clipped,
   so that a burnt-in box does not pull), and a pair that does not fit roughly, or not even then, is dropped.
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
EARLY, ROUGH, SAME = 0.5, 0.75, 0.95
_ORDER = 12  # of cosine frequencies, both directions together
_BLOCK, _KEPT = 6, 0.75  # blocks along a side; share of them that counts
_FLAT = 12  # grey levels within which a border is even
_FEW = 8  # least blocks that both pictures show
# Pictures compared with all, with how many of those, and pairs aligned at once: what is worked on has to fit a processor's cache.
ROWS, COLUMNS, PAIRS = 256, 1024, 64
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
    # A small picture is enlarged: boxes would repeat its pixels in steps, which a copy with another border has elsewhere.
    small = min(grey.size) < 2 * SIDE
    return grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC if small else Image.Resampling.BOX).tobytes()


def _even(lines: np.ndarray) -> int:
    """How many of the first lines are even, but for a few pixels."""
    low, high = np.percentile(lines, (2, 98), axis=1)
    uneven = np.flatnonzero(high - low > _FLAT)
    return int(uneven[0]) if len(uneven) else len(lines)


def ranks(thumbs: np.ndarray) -> np.ndarray:
    """Thumbnails [N, SIDE * SIDE] uint8 with each grey replaced by the share of pixels below it: [N, SIDE, SIDE] float32, -0.5..0.5."""
    own = thumbs + 256 * np.arange(len(thumbs))[:, None]  # greys of each thumbnail by numbers of their own
    counts = np.bincount(own.ravel(), minlength=256 * len(thumbs)).reshape(-1, 256)
    below = (np.cumsum(counts, axis=1) - counts / 2) / thumbs.shape[1] - 0.5
    return below.astype(np.float32).reshape(-1)[own].reshape(-1, SIDE, SIDE)


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

    Mirroring changes signs of frequencies that are odd down, across or both. So four sums of products are enough for all flips.

    Args:
      found: descriptors [N, 77]. groups: [N] pictures of one group are not compared.
    """
    parity = (2 * (_down % 2) + _across % 2)[_low]
    parts = [np.ascontiguousarray(found[:, parity == number]) for number in range(4)]
    for start in range(0, len(found), ROWS):
        rows = slice(start, start + ROWS)
        best = np.empty((len(found[rows]), len(found)), np.float32)
        for first in range(0, len(found), COLUMNS):
            columns = slice(first, first + COLUMNS)
            plain, across, down, both = (part[rows] @ part[columns].T for part in parts)
            most = np.maximum(across + np.abs(down + both), np.abs(down - both) - across)
            most[groups[rows, None] == groups[columns]] = -2
            np.add(plain, most, out=best[:, columns])
        near = _largest(best, MOST)
        one, place = np.nonzero(np.take_along_axis(best, near, 1) >= ALIKE)
        other, one = near[one, place], one + start
        cosines = np.stack([(found[one] * signs(flip) * found[other]).sum(1) for flip in FLIPS])
        yield one, other, cosines.argmax(0), cosines.max(0)


def _largest(values: np.ndarray, most: int) -> np.ndarray:
    """[R, most] where in its row [N] the largest values are, in no order; all where there are no more."""
    size = values.shape[1] // most
    if size <= most:
        return np.argpartition(-values, min(most, values.shape[1]) - 1, axis=1)[:, :most]
    # They lie in the groups with the largest maxima, and those are few; the last values of a row may belong to no group.
    groups = np.arange(most * size).reshape(most, size)
    heads = values[:, : most * size].reshape(-1, most, size).max(1)
    places = groups[:, np.argpartition(-heads, most - 1, axis=1)[:, :most]].transpose(1, 0, 2).reshape(len(values), -1)
    rest = np.broadcast_to(np.arange(most * size, values.shape[1]), (len(values), values.shape[1] - most * size))
    places = np.concatenate([places, rest], axis=1)
    chosen = np.argpartition(-np.take_along_axis(values, places, 1), most - 1, axis=1)[:, :most]
    return np.take_along_axis(places, chosen, 1)


def same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[N] bool, whether ranked thumbnails [N, SIDE, SIDE] are of the same picture; `other` is mirrored as it has to be."""
    small = [sum(ranked[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4 for ranked in (one, other)]
    moved, live = np.zeros((len(one), 2, 3), np.float32), np.arange(len(one))
    for blur, least in ((1.5, EARLY), (0.7, ROUGH)):
        moved = align(*small, moved, (blur,))
        fits = _likeness(*small, moved) >= least
        moved, live, small = moved[fits], live[fits], [ranked[fits] for ranked in small]
        if not len(live):
            break
    found = np.zeros(len(one), bool)
    if len(live):
        one, other = one[live], other[live]
        moved = align(one, other, 2 * moved, (1.2, 0.6))
        found[live] = _likeness(one, other, moved) >= SAME
    return found


def align(
    one: np.ndarray, other: np.ndarray, moved: np.ndarray, blurs: tuple[float, ...], turns: int = 4
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
    y -= row  # in place: with a whole number of 32 bits it would become a number of 64
    x -= column
    place = (row * side + column).astype(np.intp) + np.arange(len(images))[:, None] * side**2
    upper, right, lower, corner = (images.reshape(-1)[place + more] for more in (0, 1, side, side + 1))
    upper += x * (right - upper)
    lower += x * (corner - lower)
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
