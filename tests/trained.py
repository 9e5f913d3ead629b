"""A run's folder as training leaves it, for tests of export: nothing is trained, but every leaf is drawn away from its start."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import tiny
import toy
from ml_collections import ConfigDict

from configs import vital as recipe
from vital_jax.hub import parity
from vital_jax.hub.export import export
from vital_jax.hub.load import fingerprint, load_backbone
from vital_jax.latent.choose import Decoding
from vital_jax.latent.decode import respond
from vital_jax.latent.engine import Engine
from vital_jax.methods.base import settings_of
from vital_jax.methods.vital import Vital
from vital_jax.models.config import LoraConfig
from vital_jax.models.lora import init_lora
from vital_jax.run import setup
from vital_jax.run.open import open_run
from vital_jax.training.checkpoint import Checkpoints, make_meta
from vital_jax.training.config import resolved
from vital_jax.training.partition import flatten, unflatten

ROI = 12
PROMPTS = (  # words, then images as (rows, columns) of patches, in turn: four prompts of unequal lengths
    (5, (6, 8), 4, (4, 14), 7),
    (3, (10, 4), 6),
    (2, (4, 4), 9),
    (8, (6, 6), 3),
)


PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "size": {"shortest_edge": 1024, "longest_edge": 1048576},
    **dict(patch_size=16, temporal_patch_size=2, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3),
}


def save_base(name: str, folder: Path) -> Path:
    """A tiny redrawn Qwen3-VL as transformers saves it, with the files of a downloaded one that are no weights."""
    tiny.save(tiny.qwen3_vl(name), folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=3))
    (folder / "LICENSE").write_text("terms of the base")
    (folder / "notes.py").write_text("1 / 0")
    return folder


@dataclass(frozen=True)
class Run:
    """A run's folder and what its checkpoint holds: {base, lora?, scaffold?}, float32."""

    folder: Path
    method: Vital
    params: dict[str, Any]
    config: Any


def write_run(
    folder: Path,
    base: Path,
    text: Path | None = None,
    rank: int = 4,
    trained_base: tuple[str, ...] = (),
    latent_state: str = "post_norm",
    projector: str = "residual_mlp_ln",
    records: Path | str = "nowhere",
    **data: Any,
) -> Run:
    """Writes a run of K = 4 on `base`, with a scaffold where a text decoder is given.

    Args: trained_base: leaves of the base that it moved. data: more of `config.data`.
    """
    config = recipe.get_config()
    config.workdir = str(folder)
    config.model.update(folder=str(base), text_decoder=str(text), dtype="float32", param_dtype="float32")
    config.lora.update(rank=rank, alpha=2.0 * rank, dropout=0.05)
    config.method.update(latent_state=latent_state, projector=projector)
    config.data.update(records=str(records), max_pixels=128 * 128, buckets=((96, 64),), answer=10, chain=8, **data)
    config.method = ConfigDict(settings_of(config.method.to_dict()))
    weights = dict(text=1.0, visual=0.1) if text else dict(text=0.0, visual=0.0)
    config.phases = tuple(
        recipe.phase(f"{k} steps", k, 0, steps=1, latent_steps=k, weights=ConfigDict(weights)) for k in (1, 4)
    )
    method = setup.make_method(config, ROI if text else None)
    tree = {"base": load_backbone(base, param_dtype=jnp.float32)[1]}
    leaves = flatten(tree)
    for path in (f"base/{path}" for path in trained_base):
        leaves[path] = leaves[path] + 0.1 * jnp.sin(jnp.arange(leaves[path].size)).reshape(leaves[path].shape)
    tree = unflatten(leaves)
    if rank:
        lora, decoder = LoraConfig(rank), method.model.config.decoder
        tree["lora"] = toy.draw(jax.eval_shape(lambda key: init_lora(decoder, lora, key), jax.random.key(0)), 1)
    if text:
        tree["scaffold"] = toy.draw(method.abstract()["scaffold"], 2)
    kept = ("lora/", "scaffold/", *(f"base/{path}" for path in trained_base))
    state = {"trainable": unflatten({p: x for p, x in flatten(tree).items() if p.startswith(kept)})}
    meta = make_meta(resolved(config), fingerprint(base), "vital", setup.switches(config), 1, 2)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(2, state, meta)
        checkpoints.wait()
    return Run(folder, method, tree, config)


def export_run(folder, out, form="merged", base=None, text_decoder=None, **options) -> Path:
    """`export` of a run's folder, as `vital export` does it."""
    return export(open_run(folder, base=base, text_decoder=text_decoder), out, form=form, **options)


def make_case(config, seed: int = 0) -> dict[str, np.ndarray]:
    """`PROMPTS` with random words and pixels, as `vital_jax.hub.parity.make_case`."""
    with mock.patch.object(parity, "_PROMPTS", PROMPTS):
        return parity.make_case(config, seed)


def answers(model, variables, case, tokens: int, steps=range(5)) -> dict[int, dict[str, np.ndarray]]:
    """What JAX answers greedily after each of these numbers of latents: tokens [B, T], their log_probs, latents [B, K, D], first logits."""
    batch, found = parity.make_batch(case, model.config), {}
    rows, most = len(batch["tokens"]), max(steps)
    for K in steps:
        # How many steps a row takes is data: one program serves all of them but none. No token ends an answer.
        given = {**batch, "latent_steps": np.full(rows, K, np.int32)}
        with jax.default_matmul_precision("highest"):
            plan = Engine(model, None).plan(most if K else 0, tokens)
            sample = respond(model, variables, given, plan, Decoding(tokens, (10**6,)).rows(rows))
            last = sample.z[:, 0, K - 1] if K else sample.z0[:, 0]
            logits = model.apply(variables, last, method="logits")
        words, log_probs = sample.answers(tokens, 10**6)
        names = dict(tokens=words[:, 0], log_probs=log_probs[:, 0], latents=sample.z[:, 0, :K], logits=logits)  # fmt: skip
        found[K] = {name: np.asarray(array) for name, array in names.items()}
    return found
