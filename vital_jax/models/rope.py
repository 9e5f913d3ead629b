"""Rotary position embeddings: interleaved multimodal (Qwen3-VL), plain (Qwen3), and two-dimensional (the vision tower).

Angles are float32 whatever the model computes in: at position 257 a bfloat16 position is already another position.
"""

import jax
import jax.numpy as jnp
import numpy as np


def frequencies(width: int, theta: float) -> np.ndarray:
    """Inverse frequencies [width / 2] float32, computed in float32 as the reference does."""
    exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return (np.float32(1.0) / np.power(np.float32(theta), exponent, dtype=np.float32)).astype(np.float32)


def multimodal_angles(
    positions: jax.Array, head_width: int, theta: float, section: tuple[int, int, int] | None
) -> jax.Array:
    """Angles [..., H / 2] of positions [3, ...] (time, row, column).

    With a section, frequency i belongs to the row axis for i = 1, 4, 7, ... below 3 * section[1], to the column axis for i = 2, 5, 8, ...
    below 3 * section[2], and to time elsewhere (Qwen3-VL's interleaved M-RoPE). Without one, all frequencies follow time.
    """
    inverse = frequencies(head_width, theta)
    axis = np.zeros(head_width // 2, np.int32)
    if section is not None:
        for which in (1, 2):
            axis[which : 3 * section[which] : 3] = which
    chosen = jnp.moveaxis(positions, 0, -1)[..., axis]
    return chosen.astype(jnp.float32) * inverse


def grid_angles(coords: jax.Array, head_width: int, theta: float) -> jax.Array:
    """Angles [..., H / 2] of (row, column) pairs [..., 2]: rows turn the first half, columns the second."""
    inverse = frequencies(head_width // 2, theta)
    angles = coords[..., None].astype(jnp.float32) * inverse
    return angles.reshape(*coords.shape[:-1], head_width // 2)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotates x [..., heads, H] by angles [..., H / 2]; entry i is paired with entry i + H / 2."""
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
