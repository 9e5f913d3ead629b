"""Images: encoded bytes to the patches the vision tower reads, in Pillow and NumPy.

The checkpoint was trained on one exact sequence of operations (upright, 8-bit RGB, bicubic, rescale, normalise,
merge-block order), so this file repeats that of transformers' `Qwen2VLImageProcessorPil` to the last bit and adds what
medical files need:

- Files deeper than 8 bits keep their values (`deep`) and reach 8 bits by a stated linear window. Pillow's own conversion
  clips them at 255, which turns a CT slice white.
- What is no single 2-D image (NIfTI, DICOM, animations, page stacks) is refused by name instead of being read in part.

Transparent pixels are laid over white, as transformers 5 does.
"""

import json
import math
import zlib
from dataclasses import dataclass
from io import BytesIO
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vital_jax.pipeline.deep import black_is_zero, form_of, hidden_bits, stored_values, white_is_zero, words_of

MAX_ASPECT_RATIO = 200
MAX_PIXELS = 1_048_576  # 1,024 merged tokens at 32 x 32; the checkpoint's own 16,777,216 would be 16,384
WINDOW_PERCENTILES = (0.5, 99.5)

Grid = tuple[int, int, int]  # temporal, rows and columns of patches

_SLICE = "cut it into 2-D slices first (vital_jax.construct)"
_FRAME = "extract the one you mean, as PNG or JPEG"
_FOREIGN = (  # offset, signature, what it is, the way out
    (344, b"n+1\0", "a NIfTI volume", _SLICE),
    (344, b"ni1\0", "a NIfTI header", _SLICE),
    (4, b"n+2\0", "a NIfTI-2 volume", _SLICE),
    (128, b"DICM", "a DICOM file", _SLICE),
    (0, b"NRRD", "an NRRD volume", _SLICE),
    (4, b"ftyp", "an MP4-family file (a video, or a photograph as HEIC)", _FRAME),
    (8, b"AVI ", "a video (AVI)", _FRAME),
    (0, b"\x1a\x45\xdf\xa3", "a video (Matroska)", _FRAME),
)
# Pillow's other readers are not asked: some start programs (EPS runs Ghostscript) on bytes that may come from a stranger.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000", "PPM")
UPRIGHT = {  # EXIF's orientations, and what turns such an image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageConfig:
    """How an RGB image becomes patches.

    Attributes:
      patch_size: side of a patch in pixels. temporal_patch_size: how often a still image is repeated in time.
      merge_size: side, in patches, of the square that becomes one token.
      mean, std: per channel, applied after `rescale`.
      min_pixels, max_pixels: bounds on the resized image's area; the cap is ours, a memory budget.
      resample: Pillow's filter number (3 is bicubic).
    """

    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale: float = 1 / 255
    min_pixels: int = 65_536
    max_pixels: int = MAX_PIXELS
    resample: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} must be positive and at most max_pixels {self.max_pixels}")

    @classmethod
    def from_folder(cls, folder: str | Path, max_pixels: int = MAX_PIXELS) -> "ImageConfig":
        """Reads preprocessor_config.json, or its table inside processor_config.json, as transformers 5 saves it.

        Args:
          folder: a Hugging Face model folder.
          max_pixels: cap on the resized area; the file's own cap holds where it is smaller.

        Raises:
          FileNotFoundError: neither file is there.
          ValueError: a key is missing, or the file asks for another kind of processing.
        """
        path, table = _read_processor(Path(folder))

        def refuse(key: str, value: Any) -> None:
            raise ValueError(f"{path}: {key}={value!r} is not supported; vital_jax reads Qwen2-VL image processors")

        kind = table.get("image_processor_type", "Qwen2VLImageProcessor")
        if not kind.startswith("Qwen2VLImageProcessor"):
            refuse("image_processor_type", kind)
        for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
            if table.get(key) is False:
                refuse(key, False)
        size = table.get("size") or {}
        smallest: Any = table.get("min_pixels") or size.get("shortest_edge")
        largest: Any = table.get("max_pixels") or size.get("longest_edge")
        needed = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")
        missing = [key for key in needed if table.get(key) is None]
        missing += [key for key, value in (("shortest_edge", smallest), ("longest_edge", largest)) if value is None]
        if missing:
            raise ValueError(f"{path}: missing {', '.join(missing)}; take the file from the original checkpoint")
        return cls(
            patch_size=table["patch_size"],
            temporal_patch_size=table["temporal_patch_size"],
            merge_size=table["merge_size"],
            mean=tuple(table["image_mean"]),
            std=tuple(table["image_std"]),
            rescale=table.get("rescale_factor", cls.rescale),
            min_pixels=smallest,
            max_pixels=min(max_pixels, largest),
            resample=table.get("resample", cls.resample),
        )

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch: channels x temporal x patch x patch."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    def grid(self, height: int, width: int) -> Grid:
        """The patch grid of an image of this size. Exchanging height and width exchanges rows and columns."""
        factor = self.patch_size * self.merge_size
        height, width = smart_resize(height, width, factor, self.min_pixels, self.max_pixels)
        return 1, height // self.patch_size, width // self.patch_size


def _read_processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if path.is_file():
            try:
                table = json.loads(path.read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} is not valid JSON: {error}") from error
            return path, table if name.startswith("pre") else table.get("image_processor", {})
    raise FileNotFoundError(f"{folder}/preprocessor_config.json not found: expected a Hugging Face model folder")


# --- decoding ----------------------------------------------------------------------------------------------------


def decode(data: bytes, name: str, window: tuple[float, float] | None = None) -> tuple[Image.Image, dict[str, Any]]:
    """Decodes one image file to an upright 8-bit RGB image.

    Args:
      data: the encoded file.
      name: what errors call it.
      window: (low, high) in stored values, mapped linearly to 0..255, for grey deeper than 8 bits; by default the 0.5 and
        99.5 percentiles of the finite, visible values. 8-bit images ignore it, and so do true colours deeper than that,
        which are shown from 0 to the end of the least number of bits that holds them (12 bits of 16: 0 to 4095).

    Returns:
      The image and {"mode": Pillow's mode of the file, "size": stored (height, width), "orientation": EXIF 1..8,
      "window": the (low, high) that was applied, or None}.

    Raises:
      ValueError: not a single readable 2-D image; the message names `name` and the way out.
    """
    found = read(data, name)
    mode, upright = found.image.mode, found.image.size[::-1]
    if found.values is None:
        image, window = _to_rgb(found.image, name), None
    else:
        image, window = _show(found.values, window, name)
        image = ImageOps.invert(image) if found.white_is_zero else image
    stored = upright[::-1] if found.orientation >= 5 else upright
    return image, {"mode": mode, "size": stored, "orientation": found.orientation, "window": window}


def read_file(path: str | Path) -> bytes:
    """An image file, known to decode. Raises: FileNotFoundError, it is not there; ValueError as `decode`; both name the path."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"image {path}: {'is a folder' if path.is_dir() else 'no such file'}")
    data = path.read_bytes()
    decode(data, f"image {path}")
    return data


class Stored(NamedTuple):
    """What a file stores: the image in its own mode, upright; its values where it is deeper than 8 bits, [height, width] or
    [height, width, 2 (grey, alpha), 3 or 4]; whether their lowest is white; and its EXIF orientation, 1..8."""

    image: Image.Image
    values: np.ndarray | None
    white_is_zero: bool
    orientation: int


def read(data: bytes, name: str) -> Stored:
    """Reads one image file. Raises: ValueError, as `decode`."""
    opened = open_image(data, name)
    words = words_of(opened, data)
    image, orientation = load_upright(opened, name)
    values = stored_values(opened, image, [load_upright(word, name)[0] for word in words])
    return Stored(image, values, white_is_zero(data), orientation)


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """(height, width) by the file's header alone, before any EXIF turn. Refuses what `decode` refuses by the header."""
    return open_image(data, name).size[::-1]


def in_words(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]} (width x height)"


def open_image(data: bytes, name: str) -> Image.Image:
    """Reads the header and refuses what cannot become one 2-D image. No pixel is decoded."""
    if not data:
        raise ValueError(f"{name} is empty (0 bytes); write the file again")
    try:
        image = Image.open(BytesIO(black_is_zero(data) if white_is_zero(data) else data), formats=_FORMATS)
        frames = getattr(image, "n_frames", 1)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, str(error)) from error
    except Exception as error:  # each of Pillow's readers fails in its own way on a bad header
        start = _start(data)
        for offset, signature, what, way_out in _FOREIGN:
            if start[offset : offset + len(signature)] == signature:
                raise ValueError(f"{name} is {what}, not a 2-D image; {way_out}") from error
        if form := form_of(data):
            raise ValueError(
                f"{name} is a TIFF of {form} values, which is not read in this form, or damaged; save it as 16-bit TIFF or PNG"
            ) from error
        raise ValueError(
            f"{name} is no image, is cut short or has no pixels; use PNG, JPEG, TIFF, BMP or WebP"
        ) from error
    if (bits := hidden_bits(image, data)) > 8:
        raise ValueError(
            f"{name} is a {image.format} of {bits} bits per colour; save it as PNG or TIFF, which keep them"
        )
    width, height = image.size
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise _too_large(name, f"{in_words((height, width))}, more than {Image.MAX_IMAGE_PIXELS} pixels")
    # An MPO is a JPEG photograph followed by previews of itself; its first picture is the photograph.
    if frames > 1 and image.format != "MPO":
        raise ValueError(f"{name} is a {image.format} of {frames} frames or pages, not one 2-D image; {_FRAME}")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(
            f"{name} is {in_words((height, width))}, an aspect ratio over {MAX_ASPECT_RATIO}; crop or tile it"
        )
    return image


def load_upright(image: Image.Image, name: str) -> tuple[Image.Image, int]:
    """The decoded, upright image in its own mode, and the EXIF orientation (1..8) it was stored with."""
    try:
        # Before loading: Pillow turns TIFFs upright while loading and then drops the tag.
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        image.load()
        return ImageOps.exif_transpose(image), orientation if orientation in UPRIGHT else 1
    except Exception as error:  # as in open_image
        raise ValueError(f"{name} is damaged or cut short ({error}); copy or export the file again") from error


def _start(data: bytes) -> bytes:
    """The first bytes, of the content where the file is gzipped."""
    if data[:2] != b"\x1f\x8b":
        return data[:512]
    try:
        return zlib.decompressobj(wbits=31).decompress(data, 512)
    except zlib.error:
        return b""


def _too_large(name: str, what: str) -> ValueError:
    way_out = "shrink or tile it, or raise PIL.Image.MAX_IMAGE_PIXELS"
    return ValueError(f"{name} is too large to decode safely ({what}); {way_out}")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"{name} has colour mode {image.mode}, which has no RGB form; save it as RGB") from error


def _show(
    values: np.ndarray, window: tuple[float, float] | None, name: str
) -> tuple[Image.Image, tuple[float, float] | None]:
    """Deep values, as `read` gives them, to RGB over white; and the window of grey."""
    grey, alpha = values, None
    if values.ndim == 3:
        *colours, alpha = np.moveaxis(values, -1, 0) if values.shape[2] != 3 else (*np.moveaxis(values, -1, 0), None)
        same = all(np.array_equal(colour, colours[0]) for colour in colours)
        grey = colours[0] if same else np.stack(colours, axis=-1)
    if grey.ndim == 2:
        pixels, window = _apply_window(grey, window, name, None if alpha is None else alpha > 0)
        pixels = np.stack([pixels] * 3, axis=-1)
    else:
        pixels, window = np.rint(grey * (255 / _end(grey))).astype(np.uint8), None
    if alpha is not None:
        # Where the highest ends a number of bits, those are used: 12 bits of 16.
        share = (alpha / (alpha.max() if alpha.max() == _end(alpha) else 65535))[..., None]
        pixels = np.rint(pixels * share + 255 * (1 - share)).astype(np.uint8)
    return Image.fromarray(pixels), window


def _end(values: np.ndarray) -> int:
    """The highest number of the least number of bits, 8 at least, that holds the values."""
    return int(2 ** max(8, int(values.max()).bit_length()) - 1)


def _apply_window(
    values: np.ndarray, window: tuple[float, float] | None, name: str, visible: np.ndarray | None = None
) -> tuple[np.ndarray, tuple[float, float]]:
    """Deep values to uint8: low and below 0, high and above 255, NaN 0. Returns the pixels and the window."""
    values = values.astype(np.float64)
    if window is None:
        shown = values if visible is None or not visible.any() else values[visible]
        finite = shown[np.isfinite(shown)]
        if not finite.size:
            raise ValueError(f"{name} holds no finite value")
        low, high = np.percentile(finite, WINDOW_PERCENTILES)
        if low == high:  # nearly all pixels are equal: a small bright structure on an even ground
            low, high = finite.min(), finite.max()
        if low == high:  # all pixels are equal, and become 0
            high = low + max(1.0, abs(low))
    else:
        numbers = [value for value in window if isinstance(value, Real) and math.isfinite(value)]
        if len(window) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
            raise ValueError(
                f"{name} is deeper than 8 bits: its window must be [low, high], low < high, not {window!r}"
            )
        low, high = numbers
    scaled = np.clip((values - low) / (high - low), 0, 1)
    return np.rint(np.nan_to_num(scaled) * 255).astype(np.uint8), (float(low), float(high))


# --- patches -----------------------------------------------------------------------------------------------------


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The size an image is resized to: sides multiples of `factor`, area within bounds, shape kept as well as possible.

    Qwen2-VL, section 2.1 (naive dynamic resolution), as in transformers, rounding half to even included.

    Raises:
      ValueError: the aspect ratio is over 200.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"{in_words((height, width))} is an aspect ratio over {MAX_ASPECT_RATIO}; crop or tile the image"
        )
    sides = [round(side / factor) * factor for side in (height, width)]
    if sides[0] * sides[1] > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        sides = [max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)]
    elif sides[0] * sides[1] < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        sides = [math.ceil(side * grow / factor) * factor for side in (height, width)]
    return sides[0], sides[1]


def patchify(image: Image.Image, config: ImageConfig) -> tuple[np.ndarray, Grid]:
    """Resizes, normalises and cuts an RGB image.

    Returns:
      patches [P, patch_dim] float32, (channel, time, row, column) flattened, in merge-block order: the four patches of
      a token are neighbours; and the grid (1, rows, columns) with P = rows x columns.

    Raises:
      ValueError: the image is not RGB, or its aspect ratio is over 200.
    """
    if image.mode != "RGB":
        raise ValueError(f"patchify needs an RGB image, got mode {image.mode}; use decode")
    grid = config.grid(image.height, image.width)
    _, rows, columns = grid
    patch, merge = config.patch_size, config.merge_size
    pixels = np.asarray(image.resize((columns * patch, rows * patch), config.resample))
    pixels = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    pixels = pixels.transpose(0, 3, 1, 4, 6, 2, 5)
    # 256 possible values: a table gives the bits of the arithmetic at a fraction of its time.
    levels = (np.arange(256, dtype=np.float64) * config.rescale).astype(np.float32)
    mean, std = np.asarray(config.mean, np.float32), np.asarray(config.std, np.float32)
    patches = np.empty((*pixels.shape[:5], config.temporal_patch_size, patch, patch), np.float32)
    for channel in range(3):
        table = (levels - mean[channel]) / std[channel]
        patches[..., channel, :, :, :] = table[pixels[..., channel, :, :]][..., None, :, :]
    return patches.reshape(rows * columns, config.patch_dim), grid
