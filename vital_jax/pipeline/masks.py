"""Masks: encoded bytes to the pixels that are meant.

A mask lies on the stored pixel grid of its image and is turned upright together with it. Which of its pixels are the target is
read off its values, by rules that never guess:

- Two values, of which one is 0: the other is the target, whatever it is. In colours, black and one colour.
- White on black with soft edges, as JPEG and resampling leave them: the brighter half. Soft edges are more than `LEVELS` values, none of
  them in flat patches (those are labels), and nowhere three pixels wide between a quarter and three quarters of white.
- Alpha says nothing where it is the same everywhere. Where it is not and the colours mark nothing, the shape is in it.
- Anything else has several meanings (a trimap, a label map, a probability map, a background that is not 0): refused, with the values
  that were found, unless `value` says which are meant.
"""

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from vital_jax.pipeline.images import UPRIGHT, Stored, in_words, open_image, read

Value = float | Sequence[float] | str  # which values of a mask are the target
LEVELS = 8
AGREE = 0.02  # share of the marked pixels in which colour and alpha may differ and still mark the same
_LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP")
_THRESHOLDS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_WAY_OUT = 'name the values of the target as "value" (2, [1, 2], ">=128" or "#ff0000"), or save 0 and 255'


class UnclearMask(ValueError):
    """A mask that can be read and has more than one meaning."""


def regions_of(record: Any, K: int, info: Mapping[str, Any]) -> list[np.ndarray | None]:
    """The region of the first image that each of K latents is about: that of its step, from the last step on the last one's.

    A record without regions of its steps has one for all, its mask. None where there is neither, or nothing is marked.

    Args: record: or a plain question. info: of its first image, see `decode_mask`.
    """
    steps, own = getattr(record, "step_masks", ()), getattr(record, "masks", ())
    files = [(data, f"mask of {record.id}, step {k}") for k, data in enumerate(steps, 1)]
    files = files or [(own[0] if own else b"", f"mask of {record.id}")]
    found = [decode_mask(data, name, info) if data else None for data, name in files[:K]]
    marked = [mask if mask is not None and mask.any() else None for mask in found]
    return [marked[min(k, len(marked) - 1)] for k in range(K)]


def decode_mask(data: bytes, name: str, info: Mapping[str, Any], value: Value | None = None) -> np.ndarray:
    """Decodes the mask of an image and turns it upright as its image was.

    Args:
      data: the encoded file, lossless, on the stored pixel grid of the image.
      name: what errors call it.
      info: what `pipeline.images.decode` returned for the image.
      value: which values are the target, where the rules above are not meant: a number, a list of numbers, a threshold as text (">=128") or
        a colour ("#ff0000"). Of a palette image the numbers are its entries.

    Returns:
      [height, width] bool, aligned with the decoded image.

    Raises:
      UnclearMask: of several meanings. ValueError: unreadable, lossy or of another size than its image.
    """
    if (kind := open_image(data, name).format) in _LOSSY:
        raise ValueError(f"{name} is lossy ({kind}), so its background is not zero; threshold it, save it as PNG")
    found = read(data, name)
    if found.orientation != 1:
        raise ValueError(f"{name} carries an orientation tag of its own; save it without, on its image's pixel grid")
    if found.image.size[::-1] != tuple(info["size"]):
        size = in_words(found.image.size[::-1])
        raise ValueError(f"{name} is {size} pixels but its image is stored as {in_words(info['size'])}")
    foreground = _marked(found, name, value)
    turn = UPRIGHT.get(info["orientation"])
    if turn is not None:
        foreground = np.asarray(Image.fromarray(foreground.astype(np.uint8)).transpose(turn)) > 0
    return foreground


def marked_values(values: np.ndarray, name: str, value: Value | None = None) -> np.ndarray:
    """Which numbers of a map (of any shape) are the target: bool. NaN counts as 0. Raises: UnclearMask, and as `check_value`."""
    values = np.nan_to_num(values) if values.dtype.kind == "f" else values
    if value is not None:
        check_value(value, name)
        if isinstance(value, str):
            if (found := re.fullmatch(_THRESHOLD, value)) is None:
                raise UnclearMask(f"{name} is not in colour, so no pixel of it is {value}")
            sign, number = found.groups()
            return _THRESHOLDS[sign](values, float(number))
        return np.isin(values, value)
    present = _distinct(values)
    if len(present) <= 1 or (len(present) == 2 and 0 in present):
        return values != 0
    if values.ndim == 2 and (soft := _soft(values, present)) is not None:
        return soft
    shown = ", ".join(f"{v:g}" for v in present[:6]) + (", ..." if len(present) > 6 else "")
    if len(present) == 2:
        raise UnclearMask(f"{name} holds the values {shown} and no 0, so nothing says which is background; {_WAY_OUT}")
    raise UnclearMask(
        f"{name} holds {len(present)} values ({shown}), and nothing says which are the target; {_WAY_OUT}"
    )


_THRESHOLD = r"\s*(>=|<=|>|<)\s*(\d+(?:\.\d+)?)\s*"


def check_value(value: object, name: str) -> None:
    """Raises: ValueError, where `value` is none that a mask can have."""
    numbers = value if isinstance(value, list) else [value]
    good = bool(numbers) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers)
    if isinstance(value, str):
        good = bool(re.fullmatch(_THRESHOLD, value) or re.fullmatch("#[0-9a-fA-F]{6}", value))
    if not good:
        raise ValueError(
            f'{name}: value {value!r} must be a number, a list of numbers, a threshold (">=128") or a colour ("#ff0000")'
        )


def _marked(found: Stored, name: str, value: Value | None) -> np.ndarray:
    """[H, W] bool: what the values of an image mark."""
    image, values = found.image, found.values
    if values is None and image.mode in ("1", "L", "P"):
        values = np.asarray(image)
        if (
            image.mode == "P"
            and value is None
            and ((values != 0) != (_code(np.asarray(image.convert("RGB"))) != 0)).any()
        ):
            raise UnclearMask(
                f"{name} is a palette image in which entry 0 is not the one black entry; save it as 8-bit grey"
            )
    elif values is None:
        colour = "RGBA" if "A" in image.getbands() else "RGB"
        values = np.asarray(image if image.mode in ("LA", "RGB", "RGBA") else image.convert(colour))
    if values.ndim == 2:
        return marked_values(values, name, value)
    opaque, alpha = values.shape[2] == 3, values[..., -1]
    colours = values if opaque else values[..., :-1]
    flat = opaque or alpha.min() == alpha.max()
    plain = len(_distinct(_code(colours))) == 1
    if value is not None or flat or not plain:
        try:
            by_colour = _by_colour(colours, name, value)
        except UnclearMask:
            # What is transparent may have any colour.
            if flat or value is not None or len(_distinct(_code(colours)[alpha > 0])) > 1:
                raise
            plain = True
    if value is not None or flat:
        return by_colour
    by_alpha = marked_values(alpha, f"{name} (its alpha)")
    if not plain and (by_colour ^ by_alpha).sum() > AGREE * max(1, by_alpha.sum()):
        raise UnclearMask(
            f"{name} marks one shape in its colours and another in its alpha; save the one that is meant as grey"
        )
    return by_alpha if plain else by_colour


def _by_colour(colours: np.ndarray, name: str, value: Value | None) -> np.ndarray:
    """[H, W] bool. colours: [H, W, 1 or 3]."""
    code = _code(colours)
    if isinstance(value, str) and value.startswith("#"):
        check_value(value, name)
        deep = colours.dtype == np.uint16
        wanted = [int(value[i : i + 2], 16) * (257 if deep else 1) for i in (1, 3, 5)][: colours.shape[2]]
        return code == _code(np.array(wanted, colours.dtype))
    grey = colours[..., 0]
    if all(np.array_equal(colours[..., i], grey) for i in range(1, colours.shape[2])):
        return marked_values(grey, name, value)
    if value is not None:
        raise UnclearMask(f'{name} is in colour: value must be like "#ff0000", not {value!r}')
    present = _distinct(code)
    if len(present) == 2 and present[0] == 0:
        return code != 0
    raise UnclearMask(f"{name} holds {len(present)} colours, and nothing says which are the target; {_WAY_OUT}")


def _code(colours: np.ndarray) -> np.ndarray:
    """One number per colour; 0 is black."""
    parts = (colours[..., i].astype(np.uint64) << np.uint64(16 * i) for i in range(colours.shape[-1]))
    return sum(parts, np.zeros(colours.shape[:-1], np.uint64))


def _distinct(values: np.ndarray) -> np.ndarray:
    """The values that occur, in order."""
    if values.dtype in (np.uint8, np.uint16):
        return np.flatnonzero(np.bincount(values.ravel()))
    return np.unique(values)


def _soft(values: np.ndarray, present: np.ndarray) -> np.ndarray | None:
    """[H, W] bool: the brighter half of a white shape with soft edges; None where that is not what the values are."""
    white, most = float(present[-1]), 1.0 if values.dtype.kind == "f" else 255.0 if present[-1] < 256 else 65535.0
    if len(present) < LEVELS or not 0.8 * most <= white <= most or present[0] < 0 or present[0] > white / 8:
        return None
    found, counts = np.unique(values, return_counts=True)
    common = found[counts.argmax()]
    black = common if common <= white / 64 else 0  # coarse JPEG stores it as 1
    inner = (values > black) & (values < 0.75 * white)
    flat = inner[:-1, :-1] & (values[:-1, :-1] == values[1:, :-1]) & (values[:-1, :-1] == values[:-1, 1:])
    wide = ndimage.binary_erosion((values > 0.25 * white) & (values < 0.75 * white), np.ones((3, 3)))
    return None if wide.any() or 2 * flat.sum() > inner.sum() else values > white / 2
