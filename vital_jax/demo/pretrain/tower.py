"""The backbone's vision tower, warmed up on captions of cells: each image token is told what lies in its own square of a board.

From random weights, a whole caption teaches its words long before it teaches a tower to see. Real backbones start from a tower that sees
(SigLIP-2, say); this is what stands for that start here. A cell's caption (`kidney, badge liver, brighter, row 2, column 3`) is five
choices, read off the merged tokens by linear heads that are dropped afterwards. Places are among them because attention reads positions
only when it compares: where a structure lies must stand in its token.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vital_jax.demo.boards import GRID, NAMES, Board, draw_board
from vital_jax.demo.pretrain.fit import fit
from vital_jax.hub.encoders import tower_inputs
from vital_jax.hub.load import load_backbone
from vital_jax.hub.tiny import save_backbone
from vital_jax.models.families import family_of
from vital_jax.models.layers import Linear

# The first of each but places: nothing.
CHOICES = {"structure": len(NAMES) + 1, "badge": len(NAMES) + 1, "light": 3, "row": GRID, "column": GRID}


def cell_captions(board: Board) -> np.ndarray:
    """What each cell shows, the numbers of `CHOICES`, [GRID, GRID, 5] int32."""
    names, found = list(NAMES), np.zeros((GRID, GRID, len(CHOICES)), np.int32)
    found[..., 3], found[..., 4] = np.indices((GRID, GRID))
    for name, place in board.cells.items():
        found[place][:3] = names.index(name) + 1, names.index(board.path(name, 1)[1]) + 1, 1 + board.bright[name]
    return found


def train_tower(folder: Path, boards: int, steps: int, seed: int, batch: int = 64) -> dict[str, Any]:
    """Trains the vision tower of the backbone in `folder` in place.

    Args:
      boards: how many of `seed` to draw. steps, batch: of the training.
    Returns: the last step's metrics; by the names of `CHOICES` the shares of right ones among cells that show something.
    """
    model, params = load_backbone(folder, param_dtype=np.float32)
    config = model.config.vision
    cell = config.patch * config.merge
    drawn = [draw_board(seed, index, cell) for index in range(boards)]
    pixels, captions = np.stack([b.grey for b in drawn]), np.stack([cell_captions(b) for b in drawn])
    tower, head = family_of(model.config).tower(config), Linear(sum(CHOICES.values()), True)
    edges = np.cumsum(list(CHOICES.values()))[:-1].tolist()

    def loss(trainable, frozen, batch, rng, norms):
        grey = batch["pixels"].astype(jnp.float32)[..., None] / 127.5 - 1
        tokens, deep = tower.apply(
            {"params": trainable["visual"]},
            *tower_inputs(model.config, GRID * cell, jnp.broadcast_to(grey, (*grey.shape[:3], 3))),
        )
        # A stack of what the language model will be given: the tokens, and the deepstack features added to its first layers.
        scores = head.apply({"params": trainable["head"]}, jnp.concatenate([tokens[None], deep]))
        total, report = jnp.zeros(()), {}
        for number, (name, scored) in enumerate(zip(CHOICES, jnp.split(scores, edges, axis=-1), strict=True)):
            right = batch["captions"][..., number].reshape(len(tokens), -1)
            told = jnp.broadcast_to(right[None, ..., None], (*scored.shape[:3], 1))
            total -= jnp.mean(jnp.take_along_axis(nn.log_softmax(scored), told, -1))
            shown = batch["captions"][..., 0].reshape(right.shape) > 0
            report[name] = jnp.sum(shown & (jnp.argmax(scored[0], -1) == right)) / jnp.sum(shown)
        return total, report

    trainable = {
        "visual": params["visual"],
        "head": head.init(jax.random.key(seed), jnp.zeros((1, config.out_width)))["params"],
    }
    rng = np.random.default_rng(seed)
    draws = (rng.choice(boards, batch, replace=False) for _ in range(steps))
    trained, report = fit(
        "tower",
        loss,
        lambda batch: {"rows": jnp.float32(1)},  # the loss is a mean already
        trainable,
        ({"pixels": pixels[chosen], "captions": captions[chosen]} for chosen in draws),
        steps,
        1.5e-3,
        seed,
    )
    save_backbone(folder, {**params, "visual": trained["visual"]})
    return report
