"""Region-of-interest features: what a frozen image encoder sees where the target lies (VITAL A.5; methods.md §1.5).

A target that fills much of the image is read off the encoder's view of the whole image, through the target's cells of
the patch grid. A small one would fall into a handful of patches there, so it is cropped, padded to a square and encoded
again; then every patch that is not padding counts. The encoder is a callable, so this file needs NumPy and Pillow only
and the same geometry serves every encoder with a square patch grid.

Where the paper is silent: a whole-image target too thin for any cell to reach 30 % takes its fullest cells; so does a
crop so long that no cell is half filled; a box thinner than one patch of the whole image grows to one.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from vital_jax.pipeline.features import TOP_PATCHES
from vital_jax.pipeline.images import decode, decode_mask
from vital_jax.pipeline.records import Record

CELL_SHARE = 0.3  # a cell belongs to the target from this share on (whole-image path)
VALID_SHARE = 0.5  # a cell is not padding from this share on (crop path)

Encode = Callable[[np.ndarray], np.ndarray]


class RoiFeature(NamedTuple):
    """One target's features; the order is that of a sidecar's row.

    feature [E] and global_feature [E] have unit length (the whole image's is the mean of all its patches), path is
    "full" or "crop", top5 [5] int32 are the patches (row * grid + column) of that view most similar to the feature.
    """

    feature: np.ndarray
    global_feature: np.ndarray
    path: str
    top5: np.ndarray


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


def _cells(share: np.ndarray, least: float) -> np.ndarray:
    """[grid * grid] bool: the cells of at least this share, or the fullest ones where none reaches it."""
    chosen = share >= least
    return (chosen if chosen.any() else share == share.max()).ravel()


def _unit(vector: np.ndarray) -> np.ndarray:
    return (vector / max(np.linalg.norm(vector), 1e-12)).astype(np.float32)


def _feature(view: np.ndarray, cells: np.ndarray, whole: np.ndarray, path: str) -> RoiFeature:
    """view, whole [grid * grid, E]; cells [grid * grid] bool."""
    feature = _unit(view[cells].mean(0, dtype=np.float64))
    cosine = view @ feature / np.maximum(np.linalg.norm(view, axis=1), 1e-12)
    top = np.argsort(-cosine, kind="stable")[:TOP_PATCHES].astype(np.int32)
    return RoiFeature(feature, _unit(whole.mean(0, dtype=np.float64)), path, top)


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

    A whole image is encoded once for all targets that follow each other with the same image object.

    Args:
      samples: (RGB image, mask [H, W] bool).
      encode: images [batch_size, size, size, 3] float32 in SigLIP's normalisation -> patches
        [batch_size, grid * grid, E], row by row; before the encoder's final norm for VITAL.
      threshold: T, the share of the image from which the whole-image path is taken.
      margin: P, growth of the crop's box on each side as a share of its side.

    Raises:
      ValueError: an empty mask, a mask of another size than its image, or patches of another shape.
    """
    waiting, views, pictures = deque(), {}, deque()
    count, last_image, last_number = 0, None, -1

    def run_encoder() -> None:
        numbers, pixels = zip(*[pictures.popleft() for _ in range(min(batch_size, len(pictures)))], strict=True)
        batch = np.zeros((batch_size, size, size, 3), np.float32)
        batch[: len(pixels)] = pixels
        patches = np.asarray(encode(batch), np.float32)
        if patches.ndim != 3 or patches.shape[:2] != (batch_size, grid * grid):
            raise ValueError(f"encode gave {patches.shape}, expected ({batch_size}, {grid * grid}, E)")
        views.update(zip(numbers, patches, strict=False))

    def finished() -> Iterator[RoiFeature]:
        while waiting and waiting[0][0] in views and waiting[0][1] in views:
            whole, view, cells, path = waiting.popleft()
            yield _feature(views[view], cells, views[whole], path)
        for number in views.keys() - {last_number, *(number for job in waiting for number in job[:2])}:
            del views[number]

    for image, mask in samples:
        mask = np.asarray(mask, bool)
        if mask.shape != (image.height, image.width):
            raise ValueError(f"mask of {mask.shape} for an image of {(image.height, image.width)} (height, width)")
        if not mask.any():
            raise ValueError("the mask is empty; reject such samples before extracting features")
        if image is not last_image:
            pictures.append((count, siglip_pixels(image, size)))
            last_image, last_number, count = image, count, count + 1
        if mask.mean() >= threshold:
            waiting.append((last_number, last_number, _cells(area_resize(mask, grid), CELL_SHARE), "full"))
        else:
            square, valid = square_crop(image, crop_box(mask, margin, grid))
            pictures.append((count, siglip_pixels(square, size)))
            waiting.append((last_number, count, _cells(area_resize(valid, grid), VALID_SHARE), "crop"))
            count += 1
        while len(pictures) >= batch_size:
            run_encoder()
        yield from finished()
    while pictures:
        run_encoder()
    yield from finished()


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


def record_rows(records: Iterable[Record], encode: Encode, **options) -> Iterator[RoiFeature | None]:
    """One row per record for `pipeline.features.write_features`: None where the record has no mask.

    Records that follow each other with the same image and mask (the questions of one sample) share one extraction.

    Args:
      records: in the order of their numbers.
      encode, options: as for `extract_many`.

    Raises:
      ValueError: as `extract_many`, and where an image or a mask cannot be decoded.
    """
    kinds = deque()

    def targets():
        picture = image = info = region = None
        for record in records:
            if not record.masks:
                kinds.append("none")
                continue
            changed = record.images[0] != picture
            if not changed and record.masks[0] == region:
                kinds.append("same")
                continue
            if changed:
                image, info = decode(record.images[0], record.id, record.metadata.get("window"))
            picture, region = record.images[0], record.masks[0]
            kinds.append("new")
            yield image, decode_mask(region, f"mask of {record.id}", info)

    row = None
    for feature in extract_many(targets(), encode, **options):
        while (kind := kinds.popleft()) != "new":
            yield None if kind == "none" else row
        row = feature
        yield row
    while kinds:
        yield None if kinds.popleft() == "none" else row
