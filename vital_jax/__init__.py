"""vital_jax: latent-reasoning medical vision-language models in JAX.

One alphabet serves every einsum, shape comment and docstring of the package:

    B batch                 G rollouts per prompt      S prefix tokens
    K latent steps          T answer tokens            U suffix slots (latents, then answer)
    C chain tokens          P image patches            L layers
    D model width           N query heads              M key/value heads
    H head width            F feed-forward width       V vocabulary
    E width of the region-of-interest encoder

This is research software, not a medical device.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

# Imported when asked for, so that importing the package reads nothing else and touches no device.
_LAZY = {"load": "vital_jax.api"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
