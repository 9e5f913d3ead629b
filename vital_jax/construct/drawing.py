"""What drawings in SVG have in common: ticks of axes, colour bars, and ink that can be read on any colour."""

import math
from collections.abc import Sequence
from html import escape

Colour = tuple[float, float, float]  # red, green and blue, 0 to 255
DARK, LIGHT = (18, 52, 88), (236, 226, 188)  # of heat maps drawn in cells: kept in order by grey printers


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from low to high: steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * times for times in (1, 2, 5, 10) if (high - low) / (power * times) <= most)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def mixed(place: float) -> Colour:
    """The colour of a cell, from LIGHT at 0 to DARK at 1."""
    return tuple(round(light + place * (dark - light)) for dark, light in zip(DARK, LIGHT, strict=True))


def luminance(colour: Colour) -> float:
    """Relative luminance as WCAG 2 defines it, 0 for black and 1 for white."""
    shares = (channel / 255 for channel in colour)
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: Colour, other: Colour) -> float:
    """The contrast of two colours as WCAG 2 defines it, 1 to 21; text needs 4.5."""
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def ink(colour: Colour) -> str:
    """Black or white, whichever can be read better on this colour."""
    return "#000000" if contrast(colour, (0, 0, 0)) > contrast(colour, (255, 255, 255)) else "#ffffff"


def fill(colour: Colour) -> str:
    """A colour as an attribute's value."""
    return f"rgb({','.join(f'{round(channel)}' for channel in colour)})"


def colour_bar(
    x: float, y: float, width: float, colours: Sequence[Colour], low: str, name: str, high: str
) -> list[str]:
    """A bar of these colours, 10 high, over its ends and the name of what it measures: 26 in all."""
    step = width / len(colours)
    parts = [
        f'<rect x="{x + step * i:.1f}" y="{y:g}" width="{step + 0.2:.1f}" height="10" fill="{fill(colour)}"/>'
        for i, colour in enumerate(colours)
    ]
    for at, anchor, text in ((x, "start", low), (x + width / 2, "middle", name), (x + width, "end", high)):
        parts.append(f'<text x="{at:.1f}" y="{y + 23:g}" font-size="11" text-anchor="{anchor}">{escape(text)}</text>')
    return parts
