"""A frozen decoder in int8: weights only, one scale for each output of a matrix, nothing to calibrate.

What fits a 24 GB card is decided by the decoder's matrices (6.9 of the 8.8 billion numbers of the 8B), and those train nothing under LoRA.
So they alone are kept as int8, beside a `kernel_scale`; the tower, the embeddings and the head stay as they are. A matrix is scaled behind
the product, y = (x q^T) s, which is the product with the kernel q s up to rounding, and takes no room for that kernel: int8 numbers are
exact in bfloat16. Adapters work on top as they do on any base. Nothing is written: a merge reads the checkpoint's own weights.

A base is quantised exactly if the scales are among its parameters, as adapters are on if they are given.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vital_jax.training.partition import flatten, unflatten

KINDS = ("", "int8")
SCALE = "kernel_scale"
_KERNELS = re.compile(r"language_model/layers/.*/kernel")
_LARGEST = 127


def scale_of(kernel: str) -> str:
    """The path of the scales of a kernel's path."""
    return f"{kernel.removesuffix('kernel')}{SCALE}"


def is_scale(path: str) -> bool:
    """Whether a path is that of scales."""
    return path.rpartition("/")[2] == SCALE


def quantized_shapes(tree: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The shapes of a Qwen3-VL's parameters when its decoder is kept as `kind`. Raises: ValueError for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"unknown quantize {kind!r}: use one of {', '.join(map(repr, KINDS))}")
    shapes = flatten(tree)
    for path in [path for path in shapes if kind and _KERNELS.fullmatch(path)]:
        shape = shapes[path].shape
        shapes[path] = jax.ShapeDtypeStruct(shape, jnp.int8)
        shapes[scale_of(path)] = jax.ShapeDtypeStruct(shape[:-1], jnp.float32)
    return unflatten(shapes)


def quantize(kernel: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """A kernel [out, in] as int8 [out, in] and scales [out] in `dtype`.

    The scale is rounded to `dtype` first and then divided by, so that what is kept is what was meant.
    """
    wide = kernel.astype(np.float32)
    scale = (np.maximum(wide.max(-1), -wide.min(-1)) / _LARGEST).astype(dtype)
    scale = np.where(scale > 0, scale, np.ones((), dtype))
    wide /= scale[:, None].astype(np.float32)
    np.clip(np.rint(wide, out=wide), -_LARGEST, _LARGEST, out=wide)
    return wide.astype(np.int8), scale


def scaled_product(x: jax.Array, kernel: jax.Array, scale: jax.Array) -> jax.Array:
    """x [..., in], int8 kernel [out, in], scales [out] -> [..., out], in the dtype of x."""

    def product(x, kernel, scale):
        return jnp.einsum("...i,oi->...o", x, kernel.astype(x.dtype)) * scale.astype(x.dtype)

    # The backward pass converts again: kept, the converted kernels of all layers would be the whole base in the wider type.
    return jax.checkpoint(product, prevent_cse=False)(x, kernel, scale)
