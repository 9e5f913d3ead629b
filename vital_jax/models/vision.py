"""The Qwen3-VL vision tower, jittable by construction.

The pipeline hands over arrays of a fixed patch budget with everything that depends on image sizes already worked out: four indices and
weights per patch to resample the learned position grid, its row and column for the 2-D rope, and the number of its image. No grid size
ever reaches a traced function, so a handful of budgets is a handful of programs, whatever images come.

Patches arrive in merge-block order: four neighbours (2 x 2) in a row become one token of the language model.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from vital_jax.models.attention import Segments, attend
from vital_jax.models.config import VisionConfig
from vital_jax.models.layers import LayerNorm, Linear
from vital_jax.models.rope import grid_angles, rotate


class VisionBlock(nn.Module):
    """One layer of the tower, scanned. Also keeps the state wherever its index is one of the deepstack layers."""

    config: VisionConfig
    attention: str

    def setup(self):
        c = self.config
        self.norm1, self.norm2 = LayerNorm(c.eps), LayerNorm(c.eps)
        self.qkv, self.proj = Linear(3 * c.width, True), Linear(c.width, True)
        self.fc1, self.fc2 = Linear(c.ffn, True), Linear(c.width, True)

    def __call__(self, carry, layer, angles, segments):
        x, taps = carry
        qkv = rearrange(self.qkv(self.norm1(x)), "B P (three N H) -> three B P N H", three=3, N=self.config.heads)
        q, k, v = rotate(qkv[0], angles), rotate(qkv[1], angles), qkv[2]
        mixed = attend(q[:, None], None, (k[:, None], v[:, None]), Segments(segments), self.attention)[:, 0]
        x = x + self.proj(rearrange(mixed, "B P N H -> B P (N H)"))
        x = x + self.fc2(nn.gelu(self.fc1(self.norm2(x)), approximate=True))
        chosen = jnp.asarray(self.config.deepstack_layers, jnp.int32) == layer
        return (x, jnp.where(chosen[:, None, None, None], x, taps)), None


class Merger(nn.Module):
    """Four neighbouring patches to one token of width D: norm, two linear layers with an erf GELU between.

    The main merger norms each patch, the deepstack mergers norm the four together (`joint`).
    """

    config: VisionConfig
    joint: bool

    def setup(self):
        c = self.config
        self.norm = LayerNorm(c.eps)
        self.fc1, self.fc2 = Linear(c.width * c.merge**2, True), Linear(c.out_width, True)

    def __call__(self, x):
        four = "B (Q m) D -> B Q (m D)"
        m = self.config.merge**2
        x = self.norm(rearrange(x, four, m=m)) if self.joint else rearrange(self.norm(x), four, m=m)
        return self.fc2(nn.gelu(self.fc1(x), approximate=False))


class VisionTower(nn.Module):
    """Patches to language-model tokens and deepstack features."""

    config: VisionConfig
    attention: str = "auto"

    @nn.compact
    def __call__(
        self, patches: jax.Array, index: jax.Array, weight: jax.Array, coords: jax.Array, segments: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes the images of each row.

        Args:
          patches: [B, P, patch_width] normalised pixels, in the dtype to compute in.
          index, weight: [B, P, 4] entries of the position grid and their bilinear weights.
          coords: [B, P, 2] row and column of each patch.
          segments: [B, P] image number from 1, 0 on padding.
        Returns: tokens [B, P / merge^2, D] and deepstack features [n, B, P / merge^2, D], finite on padding.
        """
        c = self.config
        dtype = patches.dtype
        x = Linear(c.width, True, name="patch_embed")(patches)
        grid = self.param("pos_embed", nn.initializers.normal(0.02), (c.grid**2, c.width), jnp.float32)
        x = x + jnp.einsum("bpcd,bpc->bpd", grid[index].astype(jnp.float32), weight.astype(jnp.float32)).astype(dtype)
        angles = grid_angles(coords, c.width // c.heads, c.rope_theta)
        blocks = nn.scan(
            VisionBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=c.layers,
        )(c, self.attention, name="blocks")
        taps = jnp.zeros((len(c.deepstack_layers), *x.shape), dtype)
        (x, taps), _ = blocks((x, taps), jnp.arange(c.layers), angles, segments)
        # Kept only for callers that ask for it: the state that belongs to single patches (hub/encoders.py).
        self.sow("intermediates", "last_block", x)
        tokens = Merger(c, joint=False, name="merger")(x)
        if not c.deepstack_layers:
            return tokens, jnp.zeros((0, *tokens.shape), dtype)
        mergers = nn.vmap(Merger, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=0)
        return tokens, mergers(c, joint=True, name="deepstack_mergers")(taps)
