"""Block sizes of the kernels, by chip and class of shape. One table.

No row has been measured yet: the sizes are those that public TPU kernels use for many short queries over a long cache (sglang-jax and
tpu-inference take at most 32 queries and 2,048 keys a block; MaxText 512 by 512), held to what fits a core's vector memory beside the
float32 scores of a block. A shape without a row takes the default and says so once.
"""

import functools
import logging

import jax

from vital_jax.kernels.shared_prefix import Blocks

_LOG = logging.getLogger(__name__)
DEFAULT = Blocks(rows=256, prefix=512, suffix=512)
# (chip as jax calls it, class of shape) -> sizes.
TUNED: dict[tuple[str, str], Blocks] = {}


def shape_class(queries: int, prefix: int) -> str:
    """One query, a few, or many, over a short or a long prefix."""
    number = "one" if queries == 1 else "few" if queries <= 64 else "many"
    return f"{number} over {'short' if prefix <= 512 else 'long'}"


def blocks_for(q: jax.Array, k: jax.Array) -> Blocks:
    """Sizes for queries [B, G, U, N, H] over a prefix [B, S, M, H], on the device that compiles."""
    mesh = jax.sharding.get_abstract_mesh()
    # A mesh of a topology's devices says what it is compiled for; without a mesh it is this machine's first device.
    chip = (jax.devices()[0] if mesh.empty else mesh.abstract_device).device_kind
    kind = shape_class(q.shape[2], k.shape[1])
    _say_if_missing(chip, kind)
    return TUNED.get((chip, kind), DEFAULT)


@functools.cache
def _say_if_missing(chip: str, kind: str) -> None:
    if (chip, kind) not in TUNED:
        _LOG.info("no measured block sizes for %s on %s: using the default", kind, chip)
