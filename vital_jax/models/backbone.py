"""The backbone: a family's vision tower and the decoder joined. Embeds a batch into a prefix, runs the decoder, scores states.

Everything above `models/` knows this module and no family; what a family has of its own is its row of `models/families.py`. The loop, the
losses and the sampler are pure functions over these few methods (`latent/loop.py`); nothing here knows of latents except the name of the
state that may be fed back: the decoder's last state before or after its final norm.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vital_jax.models.attention import Causal, KeyValues, Mask
from vital_jax.models.config import BackboneConfig, LoraConfig
from vital_jax.models.decoder import Decoder
from vital_jax.models.families import family_of
from vital_jax.models.layers import Head
from vital_jax.models.quantize import quantized_shapes
from vital_jax.models.tokens import check_added, delta_of, moved_rows
from vital_jax.pipeline.batch import Layout, batch_spec, full_batch

LATENT_STATES = ("post_norm", "pre_norm")


class Prefix(NamedTuple):
    """An embedded prompt, a value that pure functions may edit before the prefix pass."""

    x: jax.Array  # [B, S, D] inputs of the first layer
    deepstack: jax.Array | None  # [n, B, S, D] added after layers 0..n-1, zero off the image
    positions: jax.Array  # [3, B, S] int32
    lengths: jax.Array  # [B] int32, real columns of each row (right-padded)


class Backbone(nn.Module):
    """The multimodal model.

    Attributes: config; lora (None where no adapter will be given); remat, attention and stationary as in `Decoder`; dtype to compute in;
    `quantize`: how the shapes say that a frozen base is kept (see `quantize.py`); and `latent_state`, which of the decoder's last states is
    handed out and may be fed back: `post_norm` (the head's input) or `pre_norm`. Feeding one to a model trained on the other changes its
    meaning without an error, so checkpoints record it. `added` are the rows of the vocabulary that the collection `tokens` moves (see
    tokens.py); without that collection they are what the base holds.
    """

    config: BackboneConfig
    lora: LoraConfig | None = None
    remat: str = "none"
    attention: str = "auto"
    dtype: jnp.dtype = jnp.bfloat16
    latent_state: str = "post_norm"
    quantize: str = ""
    stationary: bool = False
    added: tuple[int, ...] = ()

    def setup(self):
        check_added(self.added, self.config.decoder)
        if self.latent_state not in LATENT_STATES:
            raise ValueError(f"unknown latent_state {self.latent_state!r}: use one of {LATENT_STATES}")
        self.visual = family_of(self.config).tower(self.config.vision, self.attention)
        self.language_model = Decoder(self.config.decoder, self.lora, self.remat, self.attention, self.stationary)

    def encode_images(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Image tokens [B, P / 4, D] and deepstack features [n, B, P / 4, D] of a batch (see pipeline/batch.py)."""
        plan = family_of(self.config).geometry(self.config).arrays
        return self.visual(batch["patches"].astype(self.dtype), *(batch[name] for name in plan))

    def embed_tokens(self, tokens: jax.Array) -> jax.Array:
        """[...] int32 -> [..., D] in the compute dtype."""
        x, rows = self.language_model.embed(tokens, self.dtype), self._rows("input")
        if rows is None:
            return x
        own = tokens[..., None] == jnp.asarray(self.added)
        # A product with ones and zeros, not a lookup: its gradient is a product too, where a lookup's would be a scatter of all tokens.
        chosen = jnp.einsum("...n,nd->...d", own.astype(x.dtype), rows.astype(x.dtype), precision="highest")
        return jnp.where(own.any(-1, keepdims=True), chosen, x)

    def _rows(self, side: str) -> jax.Array | None:
        """The rows [n, D] float32 of added tokens on one side, `input` or `head`; None where nothing moved them."""
        name = delta_of(side, self.config.decoder)
        if not self.has_variable("tokens", name):
            return None
        return moved_rows(self.language_model.table(side), self.added, self.get_variable("tokens", name))

    def embed(self, batch: Mapping[str, jax.Array]) -> Prefix:
        """Embeds tokens and images: the image tokens replace the pads at `patch_target`, the deepstack features stand at the same columns.

        A batch with a patch budget of zero is text. Keys: tokens, lengths, positions, and the patch arrays of pipeline/batch.py.
        """
        tokens, lengths = batch["tokens"], batch["lengths"]
        x = self.embed_tokens(tokens)
        deepstack = None
        if batch["patches"].shape[1] or self.is_initializing():
            image, deep = self.encode_images(batch)
            # Row by row, so that a batch split over devices stays where it is.
            put = jax.vmap(lambda row, target, tokens: row.at[target].set(tokens, mode="drop"))
            target = batch["patch_target"]
            deepstack = jax.vmap(put, (None, None, 0))(jnp.zeros_like(x), target, deep) if deep.shape[0] else None
            x = put(x, target, image)
        return Prefix(x, deepstack, jnp.moveaxis(batch["positions"], 1, 0), lengths)

    def decode(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: Mask,
        prefix_kv: KeyValues | None = None,
        suffix_kv: KeyValues | None = None,
        slot: jax.Array | int = 0,
        deepstack: jax.Array | None = None,
        deterministic: bool = True,
        taps: jax.Array | None = None,
    ) -> tuple[jax.Array, KeyValues, jax.Array | None]:
        """Runs the decoder, arguments as `Decoder`.

        Returns: the states named by `latent_state`, the suffix block's cache, and the states at `taps` [L + 1, B, G, n, D]: before each
          layer, and last the head's input (what transformers lists as `hidden_states`); None without taps.
        """
        args = (x, positions, mask, prefix_kv, suffix_kv, slot, deepstack, deterministic, taps)
        raw, kv, tapped = self.language_model(*args)
        normed = self.language_model.final_norm(raw)
        if taps is not None:
            last = jnp.take_along_axis(normed, taps[..., None], axis=2)
            tapped = jnp.concatenate([tapped, last[None]])
        return (normed if self.latent_state == "post_norm" else raw), kv, tapped

    def head_input(self, h: jax.Array) -> jax.Array:
        """The head's input of states as `decode` returns them."""
        return h if self.latent_state == "post_norm" else self.language_model.final_norm(h)

    def head(self) -> Head:
        """What scores the head's input, [..., D] -> [..., V] float32."""
        rows = self._rows("head")
        return self.language_model.head() if rows is None else Head(self.language_model.table("head"), rows, self.added)

    def logits(self, h: jax.Array) -> jax.Array:
        """Scores [..., V] float32 of states as `decode` returns them."""
        return self.head()(self.head_input(h))

    def __call__(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The plain forward pass: logits [B, S, V] of a batch, no latents."""
        prefix = self.embed(batch)
        h, *_ = self.decode(
            prefix.x[:, None], prefix.positions[:, :, None], Causal(prefix.lengths), deepstack=prefix.deepstack
        )
        return self.logits(h[:, 0])


def dummy_batch(config: BackboneConfig, rows: int = 1) -> dict[str, np.ndarray]:
    """The smallest batch the model accepts: one token per row, which is one image token."""
    layout = Layout(1, config.vision.merge**2)
    return full_batch(batch_spec(layout, family_of(config).geometry(config), config.vision.patch_width), rows)


def init_backbone(model: Backbone, key: jax.Array) -> dict:
    """A random parameter tree of the model, float32."""
    return model.init(key, dummy_batch(model.config))["params"]


def abstract_backbone(model: Backbone) -> dict:
    """The shapes of the model's parameters, int8 where the model is quantised; nothing is allocated. Raises: as `quantized_shapes`."""
    return quantized_shapes(jax.eval_shape(lambda key: init_backbone(model, key), jax.random.key(0)), model.quantize)
