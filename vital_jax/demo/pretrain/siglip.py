"""A small SigLIP learned from boards and sentences about them and their regions, for features that tell regions apart.

The loss is SigLIP's (arXiv 2303.15343): every image against every text of the batch, a sigmoid each. Pairs whose texts are equal count as
matches, for short sentences repeat. The text tower is a bag of words behind two layers; it and the heads are dropped when the vision tower
is saved. Some texts are of whole images, some of regions in them (their patches' mean, as RegionCLIP's, arXiv 2112.09106), some of crops:
every view of the region extractor is known to the tower. From whole images alone, no patch's feature had told its structure.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from vital_jax.construct.roi import CELL_SHARE, area_resize, chosen_cells, crop_box, square_crop
from vital_jax.demo.boards import Board
from vital_jax.demo.pretrain.fit import fit
from vital_jax.hub.load import load_siglip
from vital_jax.hub.tiny import save_siglip
from vital_jax.models.layers import LayerNorm, Linear
from vital_jax.models.siglip import SiglipVision
from vital_jax.pipeline.prompts import Prompter

_LENGTH = 32  # tokens of a text; what is longer is cut
_REGIONS = 4  # of a board that are told of


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
    """Patch features [B, n, E], the mean of those that count [B, n], to unit vectors [B, E]: normed and mapped."""

    width: int

    @nn.compact
    def __call__(self, patches: jax.Array, counted: jax.Array) -> jax.Array:
        mean = jnp.einsum("bne,bn->be", patches, counted) / jnp.sum(counted, axis=1, keepdims=True)
        x = Linear(self.width, True, name="out")(LayerNorm(1e-6, name="norm")(mean))
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


class Pair(NamedTuple):
    """pixels [size, size, 3] uint8, cells [grid * grid] bool: the patches that the text is about, and the text."""

    pixels: np.ndarray
    cells: np.ndarray
    text: str


def pairs(boards: Iterable[Board], size: int, seed: int) -> Iterator[Pair]:
    """Of each board: what it shows as a whole, what a few of its regions show, and a region's crop by itself."""
    rng, grid = np.random.default_rng(seed), size // 14
    everything = np.ones(grid * grid, bool)
    for board in boards:
        picture = Image.fromarray(board.grey).convert("RGB")
        whole = np.asarray(picture.resize((size, size)))
        yield Pair(whole, everything, f"Shown: {', '.join(sorted(board.order))}.")
        *seen, cut = rng.permutation(list(board.order))[: _REGIONS + 1].tolist()
        for name in seen:
            quarter = f"{('upper', 'lower')[board.cells[name][0] >= 2]} {('left', 'right')[board.cells[name][1] >= 2]}"
            cells = chosen_cells(area_resize(board.masks[name], grid), CELL_SHARE)
            yield Pair(whole, cells, f"{_look(board, name)}, {quarter}.")
        crop, _ = square_crop(picture, crop_box(board.masks[cut], 0.05, grid))
        yield Pair(np.asarray(crop.resize((size, size))), everything, f"{_look(board, cut)}.")


def _look(board: Board, name: str) -> str:
    return f"{name}, {('darker', 'brighter')[board.bright[name]]}"


def _loss(model: SiglipVision, text: TextTower, head: ImageHead):
    def loss(trainable, frozen, batch, rng, norms):
        pixels = (batch["pixels"].astype(jnp.float32) / 255 - 0.5) / 0.5
        seen = model.apply({"params": trainable["vision"]}, pixels)
        images = head.apply({"params": trainable["head"]}, seen, batch["cells"].astype(jnp.float32))
        texts = text.apply({"params": trainable["text"]}, batch["ids"])
        logits = jnp.exp(trainable["scale"]) * images @ texts.T + trainable["bias"]
        same = jnp.all(batch["ids"][:, None] == batch["ids"][None], axis=-1)
        value = -jnp.sum(jax.nn.log_sigmoid(jnp.where(same, logits, -logits))) / norms["pairs"]
        found = jnp.take_along_axis(same, jnp.argmax(logits, axis=1)[:, None], axis=1)
        return value, {"hit": jnp.sum(found) / norms["pairs"]}

    return loss


def train_siglip(
    folder: Path, tokenizer: Path, boards: Iterable[Board], steps: int, batch: int = 128, seed: int = 0
) -> dict[str, Any]:
    """Trains the tower in `folder` in place.

    Args:
      folder: a SigLIP folder; its weights are the start and are replaced. tokenizer: a folder with the backbone's tokenizer.
      boards: that no record of an experiment shows. steps, batch: of the training.
    Returns: the last step's metrics.
    """
    model, tower = load_siglip(folder)
    prompter = Prompter(tokenizer)
    drawn = list(pairs(boards, model.config.image, seed))
    pixels, cells = np.stack([pair.pixels for pair in drawn]), np.stack([pair.cells for pair in drawn])
    ids = np.zeros((len(drawn), _LENGTH), np.int32)
    for row, pair in zip(ids, drawn, strict=True):
        found = prompter.encode_text(pair.text, end=False)[:_LENGTH]
        row[: len(found)] = found
    width = model.config.width
    text, head = TextTower(int(ids.max()) + 1, width), ImageHead(width)
    keys = jax.random.split(jax.random.key(seed), 2)
    trainable = {
        "vision": tower,
        "text": text.init(keys[0], ids[:1])["params"],
        "head": head.init(keys[1], jnp.zeros((1, 4, width)), jnp.ones((1, 4)))["params"],
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
        ({"pixels": pixels[chosen], "cells": cells[chosen], "ids": ids[chosen]} for chosen in draws),
        steps,
        1e-3,
        seed,
    )
    save_siglip(folder, trained["vision"])
    return report
