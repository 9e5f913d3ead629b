"""A small text decoder learned from sentences alone: what a pretrained one brings to the scaffold, at the size of the quickstart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vital_jax.demo.pretrain.fit import fit
from vital_jax.hub.load import load_text_decoder
from vital_jax.hub.tiny import save_text_decoder
from vital_jax.latent.loss import cross_entropy
from vital_jax.models.attention import Causal
from vital_jax.models.decoder import Decoder
from vital_jax.pipeline.prompts import Prompter


def _loss(model: Decoder):
    def loss(trainable, frozen, batch, rng, norms):
        params, ids = {"params": trainable}, batch["ids"]
        B, T = ids.shape
        x = model.apply(params, ids, jnp.float32, method="embed")[:, None]
        positions = jnp.broadcast_to(jnp.arange(T), (3, B, 1, T))
        h, *_ = model.apply(params, x, positions, Causal(jnp.full((B,), T)))
        h = model.apply(params, h, method="final_norm")[:, 0, :-1]
        weights = (ids[:, 1:] > 0) / norms["tokens"]
        value, correct = cross_entropy(h, model.apply(params, method="head"), ids[:, 1:], weights)
        return value, {"accuracy": correct}

    return loss


def train_text(
    folder: Path, sentences: Sequence[str], steps: int, batch: int = 64, length: int = 24, seed: int = 0
) -> dict[str, Any]:
    """Trains the text decoder in `folder` in place to predict each sentence's next token.

    Args:
      folder: a text decoder with its tokenizer. sentences: longer ones than `length` tokens are cut. steps, batch: of the training.
    Returns: the last step's metrics.
    """
    model, params = load_text_decoder(folder)
    prompter = Prompter(folder)
    # Column 0 stays padding: it stands where a latent will, and predicts the first word.
    ids = np.zeros((len(sentences), length + 1), np.int32)
    for row, sentence in zip(ids, sentences, strict=True):
        found = prompter.encode_text(sentence)[:length]
        row[1 : len(found) + 1] = found
    rng = np.random.default_rng(seed)
    trained, report = fit(
        "text",
        _loss(model),
        lambda b: {"tokens": jnp.sum(b["ids"][..., 1:] > 0).astype(jnp.float32)},
        params,
        ({"ids": ids[rng.choice(len(ids), batch, replace=False)]} for _ in range(steps)),
        steps,
        3e-3,
        seed,
    )
    save_text_decoder(folder, trained)
    return report
