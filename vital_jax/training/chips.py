"""What an accelerator could do at most: dense bfloat16 products, from the makers' data sheets, and the memory that programs can have.

A chip that is not in a table has no MFU, and no limit: a guess would look like a measurement.
"""

import re
from collections.abc import Iterable

import jax

# (regex of jax's device_kind, FLOP/s of one jax device, dense bfloat16). A TPU v2 or v3 device is half a chip; a v4, v5p or v7 chip is one
# megacore device. Sparse figures, twice as high, are not meant.
PEAKS = (
    (r"TPU v2", 22.5e12),
    (r"TPU v3", 61.5e12),
    (r"TPU v4", 275e12),
    (r"TPU v4i", 138e12),
    (r"TPU v5 ?(lite|e).*", 197e12),
    (r"TPU v5p?", 459e12),
    (r"TPU v6 ?(lite|e).*", 918e12),
    (r".*\b(GB300|B300)\b.*", 2250e12),
    (r".*\b(GB200|B200)\b.*", 2250e12),
    (r".*\bH200\b.*", 989.4e12),
    (r".*\bGH200\b.*", 989.4e12),
    (r".*\bH100 NVL\b.*", 835e12),
    (r".*\bH100 PCIe\b.*", 756e12),
    (r".*\bH100( SXM5| 80GB HBM3| SXM5 80GB)?", 989.4e12),
    (r".*\bA100\b.*", 312e12),
    (r".*\bL40S\b.*", 362e12),
    (r".*\bL4\b", 121e12),
    (r".*\bA10G?\b", 125e12),
    (r".*\bRTX 4090\b", 165.2e12),
    (r".*\bRTX 3090\b", 71e12),
)

# GiB of one jax device that a program may take: of a TPU as its compiler states them, of a GPU as its driver does.
MEMORY = (
    (r"TPU v5 ?(lite|e).*", 15.75),
    (r"TPU v5p?", 95.74),
    (r"TPU v6 ?(lite|e).*", 31.25),
    (r"TPU ?7x", 94.75),
    (r".*\bH200\b.*", 140.4),
    (r".*\bH100( SXM5| 80GB HBM3| SXM5 80GB)?", 79.6),
)


def memory(device_kind: str) -> float | None:
    """GiB of one device of this kind; None for a kind that is not in the table."""
    return next((value for pattern, value in MEMORY if re.fullmatch(pattern, device_kind)), None)


def peak(device_kind: str) -> float | None:
    """FLOP/s of one device of this kind (`jax.Device.device_kind`); None for a kind that is not in the table."""
    return next((value for pattern, value in PEAKS if re.fullmatch(pattern, device_kind)), None)


def peak_of(devices: Iterable[jax.Device]) -> float | None:
    """FLOP/s of these devices together; None where one of them is unknown."""
    peaks = [peak(device.device_kind) for device in devices]
    return None if None in peaks else sum(peaks)
