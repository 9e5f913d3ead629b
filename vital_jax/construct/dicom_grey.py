"""The grey of a DICOM slice (PS3.3 C.11.1, C.11.2): stored values, modality look-up, window or VOI look-up table, eight bits.

The width of a window fills the eight bits, for files store more than is shown. Where a file has no usable window, CT is shown in its site's
and everything else between percentiles of what is not background. What a file pads its picture with is no part of it: it is black, and
counts for no percentile. MONOCHROME1 is inverted, as its files mean it. A CT whose values are not Hounsfield units is told by `hounsfield`.
"""

import re
from typing import Any, NamedTuple

import numpy as np

from vital_jax.construct.dicom_places import numbers, one_line, text
from vital_jax.construct.hounsfield import RELATIVE, SHIFT, SHIFTED, intensity
from vital_jax.construct.source import Rejected
from vital_jax.construct.volumes import PERCENTILES, background_of, connected, ct_window

_WINDOWS = {  # of VOILUTFunction: how far between black and white a value is, for a window's center and width (C.11.2.1.2, C.11.2.1.3)
    "LINEAR": lambda v, c, w: (v - (c - 0.5)) / (w - 1) + 0.5 if w > 1 else (v > c - 0.5).astype(float),
    "LINEAR_EXACT": lambda v, c, w: (v - c) / w + 0.5,
    "SIGMOID": lambda v, c, w: 1 / (1 + np.exp(np.clip(-4 * (v - c) / w, -500, 500))),
}


class Grey(NamedTuple):
    """A slice as it is shown: pixels [H, W] or, for colour, [H, W, 3] uint8; the (lowest, highest) value shown, empty for colour and VOI
    tables; and of a CT what `hounsfield.intensity` says."""

    pixels: np.ndarray
    window: tuple[float, ...] = ()
    intensity: str = ""


def render(slice_: Any, file: str, window: int = 0, site: str = "") -> tuple[np.ndarray, tuple[float, ...]]:
    """The pixels and the window of `grey_of`, of a pydicom data set with one image."""
    return grey_of(slice_, stored_values(slice_, file), file, window, site)[:2]


def stored_values(whole: Any, file: str, frame: int | None = None) -> np.ndarray:
    """[H, W] or [H, W, 3] stored values of a data set with pixels. Raises: Rejected, no-decoder or unreadable-image."""
    from pydicom.pixels import get_decoder, pixel_array

    try:
        syntax = whole.file_meta.TransferSyntaxUID
        decoder = get_decoder(syntax)
    except (AttributeError, NotImplementedError) as error:
        raise Rejected(
            "no-decoder", file, f"unknown transfer syntax ({one_line(error)}); save it uncompressed"
        ) from error
    if not decoder.is_available:
        way_out = _install(decoder) or "pip install pydicom"
        raise Rejected("no-decoder", file, f"compressed as {syntax.name}; {way_out}, or save it uncompressed")
    try:
        if frame is not None and numbers(whole, "BitsAllocated") == (1,) and not syntax.is_compressed:
            return _bits_of(whole, frame)
        return pixel_array(whole, index=frame)
    except Exception as error:
        # Pillow does a part of a syntax (of JPEG Extended all but 12 bits) and fails as it does for damaged data; the others do all.
        if syntax.is_compressed and decoder.available_plugins == ("pillow",) and (way_out := _install(decoder)):
            reason = f"compressed as {syntax.name} ({_bits(whole)} bits), which what is installed here cannot decode"
            raise Rejected(
                "no-decoder", file, f"{reason} ({one_line(error)}); {way_out}, or save it uncompressed"
            ) from error
        raise Rejected("unreadable-image", file, f"its pixels cannot be read ({one_line(error)})") from error


def _bits_of(whole: Any, frame: int) -> np.ndarray:
    """One of the frames of single bits, which follow each other without a gap; pydicom reads only those that begin with a byte."""
    size = whole.Rows * whole.Columns
    first, skipped = divmod(frame * size, 8)
    packed = np.frombuffer(whole.PixelData, np.uint8)[first : first + -(-(skipped + size) // 8)]
    return np.unpackbits(packed, bitorder="little")[skipped : skipped + size].reshape(whole.Rows, whole.Columns)


def _bits(whole: Any) -> str:
    return text(whole, "BitsStored") or "?"


def _install(decoder: Any) -> str:
    """How to get the decoders of a syntax that are not installed, those of pylibjpeg first; empty where none is lacking."""
    lacking = sorted(decoder.missing_dependencies, key=lambda line: not line.startswith("pylibjpeg"))
    packages = re.findall(r"[\w-]+>=[\d.]+", lacking[0].replace(" gdcm>", " python-gdcm>")) if lacking else []
    return f"pip install {' '.join(repr(name) for name in packages)}" if packages else ""


def grey_of(header: Any, stored: np.ndarray, file: str, window: int = 0, site: str = "") -> Grey:
    """A slice as it is shown.

    Args:
      header: a pydicom data set. stored: its values, as `stored_values` gives them. file: what a rejection calls it.
      window: which of the file's usable windows, or of its VOI tables. site: decides CT's window where the file has none.

    Raises:
      Rejected: unreadable-image, bad-window or no-contrast.
    """
    kind = text(header, "PhotometricInterpretation")
    if stored.ndim == 3 and stored.dtype == np.uint8 and stored.shape[2] == 3:
        return Grey(stored)
    if stored.ndim != 2 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        reason = f"{kind or 'unstated'} pixels of shape {stored.shape}; convert to grey or 8-bit RGB"
        raise Rejected("unreadable-image", file, reason)
    try:
        padding = _padding(header, stored)
        share, shown, unit = _shares(header, stored, padding, window, site)
    except Rejected as reason:
        raise Rejected(reason.code, file, reason.reason) from reason
    except Exception as error:  # tags that contradict each other make pydicom fail in many ways
        raise Rejected("bad-window", file, f"its display settings cannot be applied ({one_line(error)})") from error
    pixels = np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)
    pixels = 255 - pixels if kind == "MONOCHROME1" else pixels
    pixels[padding] = 0
    return Grey(pixels, shown, unit)


def _padding(header: Any, stored: np.ndarray) -> np.ndarray:
    """[H, W] bool: the pixels that the file calls padding (C.7.5.1.1.2): one value, or all to the end of a range."""
    ends = [v for tag in ("PixelPaddingValue", "PixelPaddingRangeLimit") for v in numbers(header, tag, 1)]
    if not numbers(header, "PixelPaddingValue", 1) or stored.dtype.kind not in "iu":
        return np.zeros(stored.shape, bool)
    # Some files write the value as unsigned where pixels are signed, or the other way round.
    low, high = (np.int64(v).astype(stored.dtype) for v in (min(ends), max(ends)))
    found = (stored >= min(low, high)) & (stored <= max(low, high))
    return found if not found.all() else np.zeros(stored.shape, bool)


def _shares(
    header: Any, stored: np.ndarray, padding: np.ndarray, window: int, site: str
) -> tuple[np.ndarray, tuple[float, ...], str]:
    """[H, W] how far between the darkest and the brightest, 0..1; the window; and of a CT what its values are."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    scale = {}
    for tag, usual in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        if tag in header and header.get_item(tag).value not in (None, b"", "") and not numbers(header, tag, 1):
            raise Rejected("bad-window", "", f"{tag} is malformed, so nothing says what its values are")
        (scale[tag],) = numbers(header, tag, 1) or (usual,)
    if header.get("ModalityLUTSequence"):
        values = apply_modality_lut(stored, header)
    else:
        values = stored * scale["RescaleSlope"] + scale["RescaleIntercept"]
    picture = values[~padding]
    is_ct = text(header, "Modality") == "CT"
    unit = _unit(header, picture) if is_ct else ""
    if unit == SHIFTED:
        values, picture = values - SHIFT, picture - SHIFT
    tables, windows = header.get("VOILUTSequence") or (), _windows(header)
    if not 0 <= window < max(1, len(tables or windows)):
        reason = f"has {len(tables or windows)} usable windows; number {window} (from 0) is asked for"
        raise Rejected("bad-window", "", reason)
    if tables:
        whole = np.rint(values).astype(np.int32)
        return apply_voi_lut(whole, header, window) / (2 ** int(tables[window].LUTDescriptor[2]) - 1), (), unit
    if windows:
        center, width, function = windows[window]
        ends = (center - width / 2, center + width / 2)
        # A window of Hounsfield units says nothing about values that are none.
        if unit != RELATIVE or ends[0] < np.median(picture[picture > picture.min()]) < ends[1]:
            return _WINDOWS[function](values.astype(np.float64), center, width), ends, unit
    if is_ct and unit != RELATIVE:
        low, high = ct_window("", site)
        background = None
    else:
        background = background_of(picture)
        low, high = (float(v) for v in np.percentile(picture[picture != background], PERCENTILES))
        if low == high:
            low, high = float(picture.min()), float(picture.max())
        if low == high:
            raise Rejected("no-contrast", "", "all values of the image are equal")
    share = (values - low) / (high - low)
    if background is not None:
        share[connected(values == background)] = 0
    return share, (low, high), unit


def _unit(header: Any, picture: np.ndarray) -> str:
    """What the values of a CT are. An intercept that the file states is believed, but for eight bits."""
    if any(numbers(header, "RescaleIntercept", 1)) and np.ptp(picture) > 255:
        return ""
    return intensity(picture)


def _windows(header: Any) -> list[tuple[float, float, str]]:
    """The (center, width, function) of a file's usable windows: two numbers, and a width as its function needs it."""
    function = text(header, "VOILUTFunction").upper() or "LINEAR"
    function = function if function in _WINDOWS else "LINEAR"
    centers, widths = (_entries(header, tag) for tag in ("WindowCenter", "WindowWidth"))
    pairs = [pair for pair in zip(centers, widths, strict=False) if np.isfinite(pair).all()]
    # C.11.2.1.2.1: LINEAR widths are at least 1.
    return [(center, width, function) for center, width in pairs if (width >= 1 if function == "LINEAR" else width > 0)]


def _entries(header: Any, tag: str) -> list[float]:
    """A tag's numbers, NaN for each that is malformed; so that one of them costs no other."""
    if tag not in header:
        return []
    raw = header.get_item(tag).value
    if isinstance(raw, bytes):
        raw = raw.decode("ascii", "replace").split("\\")
    found = []
    for entry in np.ravel(raw):
        try:
            found.append(float(entry))
        except (TypeError, ValueError):
            found.append(np.nan)
    return found
