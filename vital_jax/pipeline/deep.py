"""Image files that hold more than 8 bits a channel, read as they store them.

Pillow has no colours deeper than 8 bits: of 16-bit PNG and TIFF with colour or alpha it keeps the high byte, so that 12-bit data in them
becomes black. Its readers can be told to take the other byte instead, so such a file is decoded twice and put together. It reads
unsigned 32-bit TIFF as signed and signed 8-bit TIFF as unsigned, and turns a TIFF whose white is zero only where it has 8 bits. The two
formats whose depth it hides altogether are refused (`hidden_bits`).
"""

import struct
import sys
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

_SWAPPED = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of a TIFF
_UNSIGNED, _SIGNED = 1, 2  # values of the last
_FORMS = {_UNSIGNED: "unsigned", _SIGNED: "signed", 3: "floating point", 5: "complex", 6: "complex"}


def white_is_zero(data: bytes) -> bool:
    """Whether a TIFF deeper than 8 bits stores white as its lowest value; shallower ones are turned by Pillow."""
    return _tag(data, _PHOTOMETRIC)[1] == 0 and _tag(data, _BITS)[1] > 8


def black_is_zero(data: bytes) -> bytes:
    """A TIFF of which `white_is_zero` is true, said to be the other way round: Pillow refuses most of such files."""
    place = _tag(data, _PHOTOMETRIC)[0]
    return data[:place] + struct.pack(_end(data) + "H", 1) + data[place + 2 :]


def form_of(data: bytes) -> str:
    """What the values of a grey TIFF are, in words; empty for any other file."""
    bits, form = _tag(data, _BITS)[1], _tag(data, _SAMPLE_FORMAT)[1]
    return f"{bits}-bit {_FORMS.get(form, '')}".strip() if bits > 0 else ""


def _end(data: bytes) -> str:
    return {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4], "")


def _tag(data: bytes, tag: int) -> tuple[int, int]:
    """Where a TIFF's tag has its 16-bit value, and that value; (0, -1) where it has none, or the file is none."""
    if end := _end(data):
        try:
            (start,) = struct.unpack_from(end + "I", data, 4)
            for number in range(struct.unpack_from(end + "H", data, start)[0]):
                place = start + 2 + 12 * number
                found, kind, count, value = struct.unpack_from(end + "HHIH", data, place)
                if (found, kind, count) == (tag, 3, 1):
                    return place + 8, value
        except struct.error:
            pass
    return 0, -1


def hidden_bits(image: Image.Image, data: bytes) -> int:
    """Bits per colour of a colour image (PPM, JPEG 2000) that Pillow brings down to 8 without saying so; 8 for every other."""
    if image.mode not in ("RGB", "RGBA", "LA"):
        return 8
    if image.format == "PPM":
        return max(
            (int(tile.args[1]).bit_length() for tile in getattr(image, "tile", ()) if len(tile.args) > 1), default=8
        )
    if image.format == "JPEG2000" and (start := data.find(b"\xff\x4f\xff\x51")) >= 0:
        return (data[start + 42] & 0x7F) + 1
    return 8


def words_of(image: Image.Image, data: bytes) -> list[Image.Image]:
    """The images, not yet loaded, whose bytes make up a file's 16-bit colours: none, one that holds both bytes, or high and low.

    Args:
      image: the file, opened and not yet loaded. data: its bytes.
    """
    modes = {_raw_mode(tile.args) for tile in getattr(image, "tile", ())}
    if image.mode not in ("RGB", "RGBA", "RGBX", "LA") or not any(";16" in mode for mode in modes):
        return []
    formats = [image.format or ""]
    if modes == {"LA;16B"}:
        # Two words a pixel are stored and filtered just as four bytes are.
        header = data[12:24] + bytes([8, 6]) + data[26:29]
        bytewise = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
        return [Image.open(BytesIO(bytewise), formats=formats)]
    high, low = (Image.open(BytesIO(data), formats=formats) for _ in range(2))
    low.tile = [tile._replace(args=_other_byte(tile.args)) for tile in low.tile]
    return [high, low]


def _raw_mode(args: object) -> str:
    first = args if isinstance(args, str) else args[0] if isinstance(args, tuple) and args else ""
    return first if isinstance(first, str) else ""


def _other_byte(args: Any) -> str | tuple[Any, ...]:
    mode = _raw_mode(args)
    swapped = mode[:-3] + _SWAPPED.get(mode[-3:], mode[-3:])
    return swapped if isinstance(args, str) else (swapped, *args[1:])


def stored_values(opened: Image.Image, image: Image.Image, words: list[Image.Image]) -> np.ndarray | None:
    """The values of an image that is deeper than 8 bits; None for any other.

    Args:
      opened: the file, which knows its tags. image: the same, loaded and upright.
      words: what `words_of` gave, loaded and upright.

    Returns:
      [height, width], or [height, width, channels] uint16.
    """
    if len(words) == 1:
        return np.ascontiguousarray(np.asarray(words[0])).view(">u2").astype(np.uint16)
    if words:
        high, low = (np.asarray(part).astype(np.uint16) for part in words)
        return high << 8 | low
    tags = getattr(opened, "tag_v2", {}) if opened.format == "TIFF" else {_SAMPLE_FORMAT: ()}
    form = (*tags.get(_SAMPLE_FORMAT, (_UNSIGNED,)), 0)[0]
    if image.mode == "L" and form == _SIGNED:
        return np.asarray(image).view(np.int8)
    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return None
    values = np.asarray(image)
    return values.view(np.uint32) if (image.mode, form) == ("I", _UNSIGNED) and values.dtype == np.int32 else values
