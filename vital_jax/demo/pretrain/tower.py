"""The backbone's vision tower, warmed up on captions of regions: each image token is told what lies in its own square of the image.

From random weights, a whole caption teaches its words long before it teaches a tower to see: after a thousand steps the small backbone told
right images from exchanged ones by 0.02 of loss. Real backbones start from a tower that sees (SigLIP-2, say); this is what stands
for that start here. A region's caption is short (`the liver, brighter`, or `nothing`), so it is a choice among a few dozen texts, read off
the merged tokens by a linear head that is dropped afterwards.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vital_jax.demo.phantoms import LEXICONS, draw
from vital_jax.demo.pretrain.fit import fit
from vital_jax.hub.encoders import tower_inputs
from vital_jax.hub.load import load_backbone
from vital_jax.hub.tiny import save_backbone
from vital_jax.models.families import family_of
from vital_jax.models.layers import Linear

_LEAST = 0.1  # of a square's area, before it is said to show a structure
CAPTIONS = (
    "nothing",
    *(f"{name}, {light}" for names in LEXICONS.values() for name in names for light in ("darker", "brighter")),
)


def region_captions(seed: int, index: int, size: int, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """A phantom [size, size, 3] uint8 and the number in `CAPTIONS` of what each of its grid x grid squares shows, [grid, grid] int32."""
    scene = draw(seed, index, size)
    square = size // grid
    share = lambda m: m.reshape(grid, square, grid, square).mean((1, 3))  # noqa: E731
    ground = np.median(scene.rgb[~np.any([mask for _, mask in scene.structures], axis=0)])
    found, most = np.zeros((grid, grid), np.int32), np.full((grid, grid), _LEAST)
    for name, mask in scene.structures:
        covered = share(mask)
        caption = CAPTIONS.index(f"{name}, {'brighter' if scene.rgb[mask].mean() > ground else 'darker'}")
        found, most = np.where(covered >= most, caption, found), np.maximum(covered, most)
    return scene.rgb, found


def train_tower(folder: Path, images: int, steps: int, seed: int, batch: int = 64) -> dict[str, Any]:
    """Trains the vision tower of the backbone in `folder` in place.

    Args:
      images: how many phantoms of `seed` to draw; they are mirrored at random, too. steps, batch: of the training.
    Returns: the last step's metrics; `seen` is the share of right captions among squares that show something.
    """
    model, params = load_backbone(folder, param_dtype=np.float32)
    config = model.config.vision
    grid = 4
    size = grid * config.patch * config.merge
    pixels, captions = map(np.stack, zip(*(region_captions(seed, i, size, grid) for i in range(images)), strict=True))
    tower, head = family_of(model.config).tower(config), Linear(len(CAPTIONS), True)

    def loss(trainable, frozen, batch, rng, norms):
        inputs = tower_inputs(model.config, size, batch["pixels"].astype(jnp.float32) / 127.5 - 1)
        tokens, deep = tower.apply({"params": trainable["visual"]}, *inputs)
        # A stack of what the language model will be given: the tokens, and the deepstack features added to its first layers.
        scores = head.apply({"params": trainable["head"]}, jnp.concatenate([tokens[None], deep]))
        right = batch["captions"].reshape(len(tokens), -1)
        lost = -jnp.take_along_axis(
            nn.log_softmax(scores), jnp.broadcast_to(right[None, ..., None], (*scores.shape[:3], 1)), -1
        )
        shown = right > 0
        seen = jnp.sum(shown & (jnp.argmax(scores[0], -1) == right)) / jnp.maximum(jnp.sum(shown), 1)
        return jnp.mean(lost), {"seen": seen}

    trainable = {
        "visual": params["visual"],
        "head": head.init(jax.random.key(seed), jnp.zeros((1, config.out_width)))["params"],
    }
    rng = np.random.default_rng(seed)

    def batches():
        for _ in range(steps):
            chosen = rng.choice(images, batch, replace=False)
            shown, told = pixels[chosen], captions[chosen]
            for axis in (1, 2):
                turned = rng.random(batch) < 0.5
                shown[turned], told[turned] = np.flip(shown[turned], axis), np.flip(told[turned], axis)
            yield {"pixels": shown, "captions": told}

    rows = lambda batch: {"rows": jnp.float32(1)}  # noqa: E731 -- the loss is a mean already
    trained, report = fit("tower", loss, rows, trainable, batches(), steps, 1.5e-3, seed)
    save_backbone(folder, {**params, "visual": trained["visual"]})
    return report
