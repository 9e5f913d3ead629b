"""Whether the values of a CT are Hounsfield units, and what to do where they are not.

Public copies of CT have lost their unit in many ways: stored without their intercept (air at 0 and water at 1024), captured as 8-bit grey,
scaled to [0, 1] or [-1, 1], or z-scored. In a window of Hounsfield units such slices are uniformly grey, black or white. What shows it are
the values alone:

- Values that are no whole numbers and span less than `SPAN`, whole numbers from 0 to 255, or those of a signed byte: no Hounsfield units.
- Air near 0, and most of the rest within 200 below and 300 above 1024 (fat to contrast medium): the intercept was lost. The only case
  with one meaning; 1024 is taken off.
- Something at or below -50 (fat, air), and 2 percent of all from -200 to 300: Hounsfield units. Anything else is not.

Values without the unit are shown between percentiles and say so (`RELATIVE`), so that nothing is said about their density.
"""

import numpy as np

SPAN = 100  # a body spans more Hounsfield units than that
SHIFT = 1024  # what a lost intercept leaves the values above Hounsfield units
SHIFTED, RELATIVE = "shifted", "relative"
_AIR, _TISSUE = -700, (-200, 300)


def intensity(values: np.ndarray) -> str:
    """What the values of a CT are: "" (Hounsfield units, or nothing shows that they are not), `SHIFTED` by `SHIFT`, or `RELATIVE`.

    Args:
      values: of any shape, those of the image without padding; NaN and infinite ones do not count.
    """
    values = values[np.isfinite(values)].astype(np.float64)
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    if low == high:
        return ""
    whole = np.array_equal(values, np.rint(values))
    if (high - low < SPAN and not whole) or (low >= 0 and high <= 255) or (-128 <= low <= -120 and 120 <= high <= 127):
        return RELATIVE
    body = values[values - SHIFT > _AIR]
    if (
        (values < _AIR).mean() < 0.01
        and 0.1 * values.size <= body.size <= 0.95 * values.size
        and _tissue(body - SHIFT) >= 0.5
    ):
        return SHIFTED
    return "" if low <= -50 and _tissue(values) >= 0.02 else RELATIVE


def _tissue(values: np.ndarray) -> float:
    return float(((values >= _TISSUE[0]) & (values <= _TISSUE[1])).mean())


def told(what: str) -> tuple[str, str]:
    """The code and the sentence that note what `intensity` found."""
    return {
        SHIFTED: (
            "shifted-hounsfield",
            f"values lie {SHIFT} above Hounsfield units (their intercept was lost); {SHIFT} is taken off",
        ),
        RELATIVE: (
            "not-hounsfield",
            "values are not Hounsfield units; shown between percentiles, and nothing is said of their density",
        ),
    }[what]
