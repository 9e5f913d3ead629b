"""SigLIP's vision tower: the frozen encoder whose patch features are the targets of the visual loss (MedSigLIP, used offline).

Two states can be read out. The default is the output of the last encoder block, before `post_layernorm`: the paper names "the output of
the last encoder block", and the lengths it reports fit no normed state. `post_layernorm` is what transformers calls `last_hidden_state`.
Pooling head and text tower have no part here.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from vital_jax.models.attention import Segments, attend
from vital_jax.models.config import ClipVisionConfig, SiglipVisionConfig
from vital_jax.models.layers import LayerNorm, Linear

HOOKS = ("last_block", "post_layernorm")


def cut_patches(images: jax.Array, config: SiglipVisionConfig | ClipVisionConfig, hook: str) -> jax.Array:
    """[n, size, size, C] images to [n, grid * grid, C * patch * patch] pixels, row by row from the upper left.

    Pixels beyond the last whole patch are left out, as in the reference.

    Raises: ValueError for an unknown hook or another image size than the tower's.
    """
    c = config
    if hook not in HOOKS:
        raise ValueError(f"unknown hook {hook!r}: use one of {HOOKS}")
    if images.shape[1:] != (c.image, c.image, c.channels):
        raise ValueError(f"images are {list(images.shape)}, the encoder takes [n, {c.image}, {c.image}, {c.channels}]")
    whole = c.grid * c.patch
    return rearrange(images[:, :whole, :whole], "n (r h) (s w) c -> n (r s) (c h w)", h=c.patch, w=c.patch)


class SiglipBlock(nn.Module):
    """One pre-norm encoder layer, scanned."""

    config: SiglipVisionConfig
    attention: str

    def setup(self):
        c = self.config
        self.norm1, self.norm2 = LayerNorm(c.eps), LayerNorm(c.eps)
        self.q_proj, self.k_proj = Linear(c.width, True), Linear(c.width, True)
        self.v_proj, self.out_proj = Linear(c.width, True), Linear(c.width, True)
        self.fc1, self.fc2 = Linear(c.ffn, True), Linear(c.width, True)

    def __call__(self, x, segments):
        y = self.norm1(x)
        q, k, v = (
            rearrange(proj(y), "n P (N H) -> n 1 P N H", N=self.config.heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = attend(q, None, (k, v), Segments(segments), self.attention)
        x = x + self.out_proj(rearrange(mixed, "n 1 P N H -> n P (N H)"))
        return x + self.fc2(nn.gelu(self.fc1(self.norm2(x)), approximate=True)), None


class SiglipVision(nn.Module):
    """Square images to patch features, row by row from the upper left."""

    config: SiglipVisionConfig
    attention: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, hook: str = "last_block") -> jax.Array:
        """Encodes images.

        Args:
          images: [n, size, size, 3] float32, normalised as the checkpoint's preprocessor says ((x / 255 - 0.5) / 0.5).
          hook: last_block | post_layernorm.
        Returns: [n, grid * grid, E] in the module's dtype.
        Raises: ValueError for an unknown hook or another image size.
        """
        c = self.config
        patches = cut_patches(images, c, hook).astype(self.dtype)
        grid = self.param("pos_embed", nn.initializers.normal(c.width**-0.5), (c.grid**2, c.width), jnp.float32)
        x = Linear(c.width, True, name="patch_embed")(patches) + grid.astype(self.dtype)
        blocks = nn.scan(
            SiglipBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.layers,
        )(c, self.attention, name="blocks")
        x, _ = blocks(x, jnp.ones(x.shape[:2], jnp.int32))
        normed = LayerNorm(c.eps, name="post_layernorm")(x)
        return normed if hook == "post_layernorm" else x


def init_siglip(model: SiglipVision, key: jax.Array) -> dict:
    """A random parameter tree of the tower, float32."""
    c = model.config
    return model.init(key, jnp.zeros((1, c.image, c.image, c.channels)))["params"]


def abstract_siglip(model: SiglipVision) -> dict:
    """The shapes of the tower's parameters; nothing is allocated."""
    return jax.eval_shape(lambda key: init_siglip(model, key), jax.random.key(0))
