"""A small SigLIP learned from drawn images and sentences about them, for region features that tell regions apart.

The loss is SigLIP's (arXiv 2303.15343): every image against every text of the batch, a sigmoid each. Pairs whose texts are equal count as
matches, for short sentences repeat. The text tower is a bag of words behind two layers; it and the heads are dropped when the vision tower
is saved. Some pairs are whole images, some are crops as the region extractor cuts them, so that both of its views are known to the tower.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vital_jax.construct.measure import measure
from vital_jax.construct.roi import crop_box, square_crop
from vital_jax.construct.sample import Sample
from vital_jax.construct.targets import load_targets
from vital_jax.construct.words import brightness, shape, texture
from vital_jax.demo.captions import caption
from vital_jax.demo.pretrain.fit import fit
from vital_jax.hub.load import load_siglip
from vital_jax.hub.tiny import save_siglip
from vital_jax.models.layers import LayerNorm, Linear
from vital_jax.models.siglip import SiglipVision
from vital_jax.pipeline.prompts import Prompter

_LENGTH = 48  # tokens of a text; what is longer is cut


class TextTower(nn.Module):
    """Token ids [B, T] (0 is padding) to unit vectors [B, E]: mean of embeddings, two layers. Word order is lost."""

    vocab: int
    width: int

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        rows = self.param("embedding", nn.initializers.normal(1.0), (self.vocab, self.width), jnp.float32)
        own = (ids > 0)[..., None]
        x = jnp.sum(jnp.where(own, rows[ids], 0), axis=1) / jnp.maximum(jnp.sum(own, axis=1), 1)
        x = Linear(self.width, True, name="fc2")(nn.gelu(Linear(2 * self.width, True, name="fc1")(x)))
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


class ImageHead(nn.Module):
    """Patch features [B, n, E] to unit vectors [B, E]: the mean, normed and mapped."""

    width: int

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        x = Linear(self.width, True, name="out")(LayerNorm(1e-6, name="norm")(jnp.mean(patches, axis=1)))
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def pairs(samples: Sequence[Sample], size: int, seed: int) -> Iterator[tuple[np.ndarray, str]]:
    """(pixels [size, size, 3] uint8, text): each sample's crop with how it looks, each image once with a caption."""
    targets, rng = load_targets(), np.random.default_rng(seed)
    shown = None
    for sample in samples:
        picture = sample.picture
        grey = np.asarray(picture.convert("L"))
        m = measure(grey, sample.region)
        crop, _ = square_crop(picture, crop_box(sample.region, 0.05, size // 14))
        look = f"{sample.modality}: {targets.phrase(sample.target)}, {shape(m)}, {brightness(m)}, {texture(m)}."
        yield np.asarray(crop.resize((size, size))), look
        if sample.group != shown:
            shown = sample.group
            regions = {sample.target: sample.region, **sample.others}
            marked = [(targets.phrase(name), measure(grey, region)) for name, region in regions.items()]
            absent = [targets.phrase(name) for name in sample.absent]
            yield np.asarray(picture.resize((size, size))), f"{sample.modality}: {caption(marked, absent, rng)}"


def _loss(model: SiglipVision, text: TextTower, head: ImageHead):
    def loss(trainable, frozen, batch, rng, norms):
        pixels = (batch["pixels"].astype(jnp.float32) / 255 - 0.5) / 0.5
        seen = model.apply({"params": trainable["vision"]}, pixels)
        images = head.apply({"params": trainable["head"]}, seen)
        texts = text.apply({"params": trainable["text"]}, batch["ids"])
        logits = jnp.exp(trainable["scale"]) * images @ texts.T + trainable["bias"]
        same = jnp.all(batch["ids"][:, None] == batch["ids"][None], axis=-1)
        value = -jnp.sum(jax.nn.log_sigmoid(jnp.where(same, logits, -logits))) / norms["pairs"]
        found = jnp.take_along_axis(same, jnp.argmax(logits, axis=1)[:, None], axis=1)
        return value, {"hit": jnp.sum(found) / norms["pairs"]}

    return loss


def train_siglip(
    folder: Path, tokenizer: Path, samples: Sequence[Sample], steps: int, batch: int = 128, seed: int = 0
) -> dict[str, Any]:
    """Trains the tower in `folder` in place.

    Args:
      folder: a SigLIP folder; its weights are the start and are replaced. tokenizer: a folder with the backbone's tokenizer.
      samples: of images that no record of an experiment shows. steps, batch: of the training.
    Returns: the last step's metrics.
    """
    model, tower = load_siglip(folder)
    prompter = Prompter(tokenizer)
    drawn = list(pairs(samples, model.config.image, seed))
    pixels = np.stack([image for image, _ in drawn])
    ids = np.zeros((len(drawn), _LENGTH), np.int32)
    for row, (_, sentence) in zip(ids, drawn, strict=True):
        found = prompter.encode_text(sentence, end=False)[:_LENGTH]
        row[: len(found)] = found
    width = model.config.width
    text, head = TextTower(int(ids.max()) + 1, width), ImageHead(width)
    keys = jax.random.split(jax.random.key(seed), 2)
    trainable = {
        "vision": tower,
        "text": text.init(keys[0], ids[:1])["params"],
        "head": head.init(keys[1], jnp.zeros((1, 4, width)))["params"],
        # SigLIP's start: temperature 10, and a bias that says that nearly all pairs are no matches.
        "scale": jnp.log(jnp.float32(10.0)),
        "bias": jnp.float32(-10.0),
    }
    rng = np.random.default_rng(seed)
    draws = (rng.choice(len(drawn), batch, replace=False) for _ in range(steps))
    trained, report = fit(
        "siglip",
        _loss(model, text, head),
        lambda b: {"pairs": jnp.float32(b["ids"].shape[1])},
        trainable,
        ({"pixels": pixels[chosen], "ids": ids[chosen]} for chosen in draws),
        steps,
        1e-3,
        seed,
    )
    save_siglip(folder, trained["vision"])
    return report
