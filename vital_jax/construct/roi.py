"""Region-of-interest features: what a frozen image encoder sees where the target lies (VITAL A.5; methods.md §1.5).

A target that fills much of the image is read off the encoder's view of the whole image, through the target's cells of
the patch grid. A small one would fall into a handful of patches there, so it is cropped, padded to a square and encoded
again; then every patch that is not padding counts. The encoder is a callable, so this file needs NumPy and Pillow only
and the same geometry serves every encoder with a square patch grid.

The work runs in three places at once: threads decode and cut pictures ahead, the encoder has one batch in hand, and
this thread pools the batch before it.

Where the paper is silent: a whole-image target too thin for any cell to reach 30 % takes its fullest cells; so does a
crop so long that no cell is half filled; a box thinner than one patch of the whole image grows to one. The feature of
the whole image is the encoder's class token where it has one, otherwise the mean of all patches; a class token is never
among the patches. Every image is squeezed to the encoder's square, CLIP's too, so that a mask and the patches keep to
one grid.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from vital_jax.pipeline.features import TOP_PATCHES
from vital_jax.pipeline.images import decode
from vital_jax.pipeline.masks import decode_mask
from vital_jax.pipeline.records import Record

CELL_SHARE = 0.3  # a cell belongs to the target from this share on (whole-image path)
VALID_SHARE = 0.5  # a cell is not padding from this share on (crop path)
THREADS = min(8, os.cpu_count() or 1)
_GROUP = 16  # targets, or records, of one image that are held together; an image with more is encoded again

Encode = Callable[[np.ndarray], np.ndarray]
Item, Result, Tag = TypeVar("Item"), TypeVar("Result"), TypeVar("Tag")


class RoiFeature(NamedTuple):
    """One record's features; the order is that of a sidecar's row.

    feature [E] and global_feature [E] have unit length, path is "full" or "crop", top5 [5] int32 are the patches
    (row * grid + column) of that view most similar to the feature. steps [k, E] are the features of its steps' own
    regions; where a record has only those, feature is None.
    """

    feature: np.ndarray | None
    global_feature: np.ndarray
    path: str
    top5: np.ndarray
    steps: Sequence[np.ndarray] = ()


class Target(NamedTuple):
    """Where one target is read: the number of its picture, the cells [grid * grid] bool that count, "full" or "crop"."""

    picture: int
    cells: np.ndarray
    path: str


class Places(NamedTuple):
    """The numbers of a record's targets among those of its image: of its own region, if it has one, and of its steps'."""

    own: Sequence[int] = ()
    steps: Sequence[int] = ()


class Views(NamedTuple):
    """What the targets of one image need: pictures [size, size, 3] float32 (the whole image first), and the targets."""

    pictures: list[np.ndarray]
    targets: list[Target]


def area_resize(values: np.ndarray, grid: int) -> np.ndarray:
    """Averages [H, W] over grid x grid boxes, exactly as torch's interpolate(mode="area").

    Box i covers the pixels floor(i H / grid) to ceil((i + 1) H / grid): whole pixels, overlapping where grid does not
    divide H. Returns [grid, grid] float64.
    """
    values = np.asarray(values, np.float64)
    total = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    edges = []
    for length in values.shape:
        cell = np.arange(grid)
        edges.append((cell * length // grid, -(-(cell + 1) * length // grid)))
    (y0, y1), (x0, x1) = edges
    sums = total[np.ix_(y1, x1)] - total[np.ix_(y0, x1)] - total[np.ix_(y1, x0)] + total[np.ix_(y0, x0)]
    return sums / np.outer(y1 - y0, x1 - x0)


def crop_box(mask: np.ndarray, margin: float, grid: int) -> tuple[int, int, int, int]:
    """The target's box (y0, y1, x0, x1), ends excluded, grown by `margin` of its sides and to at least one patch."""
    box = []
    for axis in (0, 1):
        inside = np.flatnonzero(mask.any(1 - axis))
        length, low, high = mask.shape[axis], int(inside[0]), int(inside[-1]) + 1
        grow = margin * (high - low)
        low, high = int(np.floor(low - grow)), int(np.ceil(high + grow))
        short = -(-length // grid) - (high - low)
        if short > 0:
            low, high = low - short // 2, high + short - short // 2
            shift = max(0, -low) - max(0, high - length)
            low, high = low + shift, high + shift
        box.append((max(0, low), min(length, high)))
    (y0, y1), (x0, x1) = box
    return y0, y1, x0, x1


def square_crop(image: Image.Image, box: tuple[int, int, int, int]) -> tuple[Image.Image, np.ndarray]:
    """Cuts `box` out and centres it on a black square. Returns the square and which of its pixels [s, s] are image."""
    y0, y1, x0, x1 = box
    side = max(y1 - y0, x1 - x0)
    top, left = (side - (y1 - y0)) // 2, (side - (x1 - x0)) // 2
    square = Image.new("RGB", (side, side))
    square.paste(image.crop((x0, y0, x1, y1)), (left, top))
    valid = np.zeros((side, side), bool)
    valid[top : top + y1 - y0, left : left + x1 - x0] = True
    return square, valid


def siglip_pixels(image: Image.Image, size: int) -> np.ndarray:
    """RGB image -> [size, size, 3] float32 in -1..1, bit for bit what transformers' SiglipImageProcessorPil gives."""
    resized = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    scaled = (resized.astype(np.float64) * (1 / 255)).astype(np.float32)
    return (scaled - np.float32(0.5)) / np.float32(0.5)


def chosen_cells(share: np.ndarray, least: float) -> np.ndarray:
    """[grid * grid] bool: the cells of at least this share, or the fullest ones where none reaches it."""
    chosen = share >= least
    return (chosen if chosen.any() else share == share.max()).ravel()


def check_mask(image: Image.Image, mask: np.ndarray) -> np.ndarray:
    """The mask as [H, W] bool. Raises: ValueError where it is empty or not its image's size."""
    mask = np.asarray(mask, bool)
    if mask.shape != (image.height, image.width):
        raise ValueError(f"mask of {mask.shape} for an image of {(image.height, image.width)} (height, width)")
    if not mask.any():
        raise ValueError("the mask is empty; reject such samples before extracting features")
    return mask


def cut_views(
    image: Image.Image, masks: Sequence[np.ndarray], grid: int, size: int, threshold: float, margin: float
) -> Views:
    """The pictures to encode for these targets of an image; the last four arguments as in `extract_many`."""
    pictures, targets = [siglip_pixels(image, size)], []
    for mask in masks:
        mask = check_mask(image, mask)
        if mask.mean() >= threshold:
            targets.append(Target(0, chosen_cells(area_resize(mask, grid), CELL_SHARE), "full"))
        else:
            square, valid = square_crop(image, crop_box(mask, margin, grid))
            targets.append(Target(len(pictures), chosen_cells(area_resize(valid, grid), VALID_SHARE), "crop"))
            pictures.append(siglip_pixels(square, size))
    return Views(pictures, targets)


def ahead(function: Callable[[Item], Result], items: Iterable[Item], most: int) -> Iterator[Result]:
    """`map` by threads, in order, with at most `most` results waiting; an error comes where its result would."""
    waiting = deque()
    with ThreadPoolExecutor(THREADS, "roi") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def encode_all(
    groups: Iterable[tuple[Tag, Sequence[np.ndarray]]], encode: Encode, batch_size: int, grid: int
) -> Iterator[tuple[Tag, list[np.ndarray]]]:
    """Encodes groups of pictures, in order, with calls of exactly `batch_size` pictures (one compiled program).

    The pictures of a group may fall into several calls; the last call is filled up with black. One call is in hand while the
    results of the one before it are used.

    Args:
      groups: (anything, pictures [size, size, 3] float32).
      encode: images [batch_size, size, size, 3] -> states [batch_size, P or 1 + P, E], P = grid * grid.

    Yields: (the same thing, states [P or 1 + P, E] float32 of each picture).
    Raises: ValueError for states of another shape.
    """
    waiting, queue, flying = deque(), deque(), deque()

    def land() -> None:
        places, states = flying.popleft()
        states = np.asarray(states, np.float32)
        if states.ndim != 3 or states.shape[0] != batch_size or states.shape[1] - grid * grid not in (0, 1):
            raise ValueError(f"encode gave {states.shape}, expected ({batch_size}, {grid * grid} or one more, E)")
        for (found, slot), state in zip(places, states, strict=False):
            found[slot] = state

    def launch() -> None:
        taken = [queue.popleft() for _ in range(min(batch_size, len(queue)))]
        batch = np.zeros((batch_size, *taken[0][2].shape), np.float32)
        for row, (*_, pixels) in enumerate(taken):
            batch[row] = pixels
        flying.append(([place[:2] for place in taken], encode(batch)))
        if len(flying) > 1:
            land()

    def finished() -> Iterator[tuple[Tag, list[np.ndarray]]]:
        while waiting and all(state is not None for state in waiting[0][1]):
            yield waiting.popleft()

    for tag, pictures in groups:
        found = [None] * len(pictures)
        waiting.append((tag, found))
        queue.extend((found, slot, pixels) for slot, pixels in enumerate(pictures))
        while len(queue) >= batch_size:
            launch()
        yield from finished()
    while queue:
        launch()
    while flying:
        land()
    yield from finished()


def patches_of(states: np.ndarray, grid: int) -> np.ndarray:
    """States [P or 1 + P, E] without the class token."""
    return states[len(states) - grid * grid :]


def _unit(vector: np.ndarray) -> np.ndarray:
    return (vector / max(np.linalg.norm(vector), 1e-12)).astype(np.float32)


def _feature(states: Sequence[np.ndarray], target: Target, grid: int) -> RoiFeature:
    """States [P or 1 + P, E] of an image's pictures, the whole image first."""
    view, whole = patches_of(states[target.picture], grid), states[0]
    feature = _unit(view[target.cells].mean(0, dtype=np.float64))
    cosine = view @ feature / np.maximum(np.linalg.norm(view, axis=1), 1e-12)
    top = np.argsort(-cosine, kind="stable")[:TOP_PATCHES].astype(np.int32)
    summary = whole[0] if len(whole) > grid * grid else whole.mean(0, dtype=np.float64)
    return RoiFeature(feature, _unit(summary), target.path, top)


def _runs(items: Iterable[Item], same: Callable[[Item, Item], bool]) -> Iterator[list[Item]]:
    """Items that follow each other and are the same in some way, `_GROUP` at most."""
    run = []
    for item in items:
        if run and (len(run) == _GROUP or not same(run[-1], item)):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def extract_many(
    samples: Iterable[tuple[Image.Image, np.ndarray]],
    encode: Encode,
    batch_size: int = 8,
    grid: int = 32,
    size: int = 448,
    threshold: float = 0.20,
    margin: float = 0.05,
) -> Iterator[RoiFeature]:
    """Features of many targets, in order, with encoder calls of exactly `batch_size` images (one compiled program).

    A whole image is encoded once for all targets that follow each other with the same image object (up to 16).

    Args:
      samples: (RGB image, mask [H, W] bool).
      encode: images [batch_size, size, size, 3] float32 in SigLIP's normalisation -> patches
        [batch_size, grid * grid, E], row by row, or one row more where a class token comes first; before the encoder's
        final norm for VITAL.
      threshold: T, the share of the image from which the whole-image path is taken.
      margin: P, growth of the crop's box on each side as a share of its side.

    Raises:
      ValueError: an empty mask, a mask of another size than its image, or patches of another shape.
    """

    def groups() -> Iterator[tuple[list[Target], list[np.ndarray]]]:
        for run in _runs(samples, lambda one, other: one[0] is other[0]):
            pictures, targets = cut_views(run[0][0], [mask for _, mask in run], grid, size, threshold, margin)
            yield targets, pictures

    for targets, states in encode_all(groups(), encode, batch_size, grid):
        yield from (_feature(states, target, grid) for target in targets)


def extract(
    image: Image.Image,
    mask: np.ndarray,
    encode: Encode,
    grid: int = 32,
    size: int = 448,
    threshold: float = 0.20,
    margin: float = 0.05,
) -> RoiFeature:
    """One target's features; see `extract_many`."""
    return next(extract_many([(image, mask)], encode, 1, grid, size, threshold, margin))


def named_masks(record: Record) -> list[tuple[bytes, str]]:
    """The encoded regions of a record's first image with their names: its mask, if it has one, and those of its steps."""
    own = [(data, f"mask of {record.id}") for data in record.masks[:1]]
    return own + [(data, f"mask of {record.id}, step {k}") for k, data in enumerate(record.step_masks, 1)]


def open_regions(record: Record, masks: Iterable[tuple[bytes, str]]) -> tuple[Image.Image, list[np.ndarray]]:
    """A record's first image, upright RGB, and these regions of it [H, W] bool.

    Args: masks: encoded, with their names; from any record about that image.
    Raises: ValueError naming the record or mask that cannot be used.
    """
    image, info = decode(record.images[0], record.id, record.metadata.get("window"))
    regions = []
    for data, name in masks:
        mask = decode_mask(data, name, info)
        try:
            regions.append(check_mask(image, mask))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return image, regions


def record_rows(
    records: Iterable[Record],
    encode: Encode,
    batch_size: int = 8,
    grid: int = 32,
    size: int = 448,
    threshold: float = 0.20,
    margin: float = 0.05,
    faults: list[str] | None = None,
) -> Iterator[RoiFeature | None]:
    """One row per record for `pipeline.features.write_features`: None where the record has no mask, of its steps neither.

    Records that follow each other with the same image share its views, and equal masks one feature (the questions of one
    sample, the steps of one chain).

    Args:
      records: in the order of their numbers.
      encode and what follows: as for `extract_many`.
      faults: takes one line for each image or mask that cannot be used, whose records then get None; without it, that
        is an error.

    Raises:
      ValueError: as `extract_many`, and where an image or a mask cannot be decoded.
    """

    def same(one: Record, other: Record) -> bool:
        return one.images[0] == other.images[0] and one.metadata.get("window") == other.metadata.get("window")

    def prepare(run: list[Record]) -> tuple[list[Places], Views, str]:
        """For every record the numbers of its targets, the views, and what is wrong."""
        regions = {}
        for data, name in (one for record in run for one in named_masks(record)):
            regions.setdefault(data, (len(regions), name))
        if not regions:
            return [Places()] * len(run), Views([], []), ""
        try:
            image, masks = open_regions(run[0], ((data, name) for data, (_, name) in regions.items()))
            views = cut_views(image, masks, grid, size, threshold, margin)
        except ValueError as error:
            if faults is None:
                raise
            return [Places()] * len(run), Views([], []), str(error)
        at = {data: number for data, (number, _) in regions.items()}
        found = [Places(*([at[x] for x in part] for part in (one.masks[:1], one.step_masks))) for one in run]
        return found, views, ""

    def groups() -> Iterator[tuple[tuple[list[Places], list[Target]], list[np.ndarray]]]:
        for places, views, fault in ahead(prepare, _runs(records, same), 2 * batch_size):
            if fault:
                faults.append(fault)
            yield (places, views.targets), views.pictures

    for (places, targets), states in encode_all(groups(), encode, batch_size, grid):
        rows = [_feature(states, target, grid) for target in targets]
        yield from (_record_row(place, rows) for place in places)


def _record_row(places: Places, rows: Sequence[RoiFeature]) -> RoiFeature | None:
    steps = [rows[number].feature for number in places.steps]
    if places.own:
        return rows[places.own[0]]._replace(steps=steps)
    if not steps:
        return None
    # Every row of an image has the same global feature; the rest is not there without a region of the record's own.
    return rows[places.steps[0]]._replace(feature=None, top5=np.zeros(TOP_PATCHES, np.int32), steps=steps)
