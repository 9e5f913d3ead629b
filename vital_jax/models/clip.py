"""The vision tower of CLIP: a ViT with a class token (BiomedCLIP, the low-resolution encoder of VITAL's Table 14).

Two libraries write such towers, and both forms are computed as they come: transformers keeps q, k and v apart, timm has them in one tensor.
The class token stays first in what is returned, for it is the tower's own summary of the image. As in `siglip`, two states can be read out:
the output of the last block, and the one behind the final norm. timm norms every token there; transformers norms the class token alone,
but the same weights serve the patches, so that a patch and the class token remain comparable.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from vital_jax.models.attention import Segments, attend
from vital_jax.models.config import ClipVisionConfig
from vital_jax.models.layers import LayerNorm, Linear
from vital_jax.models.siglip import cut_patches


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _gelu(x: jax.Array) -> jax.Array:
    return nn.gelu(x, approximate=False)


_ACTIVATIONS = {"quick_gelu": _quick_gelu, "gelu": _gelu}


class ClipBlock(nn.Module):
    """One pre-norm encoder layer, scanned."""

    config: ClipVisionConfig
    attention: str

    @nn.compact
    def __call__(self, x, segments):
        c = self.config
        y = LayerNorm(c.eps, name="norm1")(x)
        if c.timm:
            qkv = jnp.split(Linear(3 * c.width, True, name="qkv")(y), 3, axis=-1)
        else:
            qkv = [Linear(c.width, True, name=name)(y) for name in ("q_proj", "k_proj", "v_proj")]
        q, k, v = (rearrange(part, "n T (N H) -> n 1 T N H", N=c.heads) for part in qkv)
        mixed = attend(q, None, (k, v), Segments(segments), self.attention)
        x = x + Linear(c.width, True, name="out_proj")(rearrange(mixed, "n 1 T N H -> n T (N H)"))
        y = Linear(c.ffn, True, name="fc1")(LayerNorm(c.eps, name="norm2")(x))
        return x + Linear(c.width, True, name="fc2")(_ACTIVATIONS[c.activation](y)), None


class ClipVision(nn.Module):
    """Square images to the class token's and the patches' features, the patches row by row from the upper left."""

    config: ClipVisionConfig
    attention: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, hook: str = "last_block") -> jax.Array:
        """Encodes images.

        Args:
          images: [n, size, size, 3] float32, normalised as the checkpoint's preprocessor says.
          hook: last_block | post_layernorm.
        Returns: [n, 1 + P, E] in the module's dtype, the class token first, P = grid * grid.
        Raises: ValueError for an unknown hook or another image size.
        """
        c = self.config
        draw = nn.initializers.normal(c.width**-0.5)
        lead = (1,) if c.timm else ()
        token = self.param("class_token", draw, (*lead, *lead, c.width), jnp.float32)
        places = self.param("pos_embed", draw, (*lead, c.grid**2 + 1, c.width), jnp.float32)
        patches = cut_patches(images, c, hook)
        x = Linear(c.width, not c.pre_norm, name="patch_embed")(patches.astype(self.dtype))
        first = jnp.broadcast_to(token.reshape(1, 1, c.width), (len(x), 1, c.width)).astype(self.dtype)
        x = jnp.concatenate([first, x], axis=1) + places.reshape(1, -1, c.width).astype(self.dtype)
        if c.pre_norm:
            x = LayerNorm(c.eps, name="pre_norm")(x)
        blocks = nn.scan(
            ClipBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.layers,
        )(c, self.attention, name="blocks")
        x, _ = blocks(x, jnp.ones(x.shape[:2], jnp.int32))
        normed = LayerNorm(c.eps, name="post_layernorm")(x)
        return normed if hook == "post_layernorm" else x


def abstract_clip(model: ClipVision) -> dict:
    """The shapes of the tower's parameters; nothing is allocated."""
    c = model.config
    images = jax.ShapeDtypeStruct((1, c.image, c.image, c.channels), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]
