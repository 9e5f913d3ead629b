"""A method that adds two tokens and a module inside its loop, a small base with room for them, and a run of it as training leaves it."""

import dataclasses
import json
from pathlib import Path
from typing import ClassVar
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import toy
from ml_collections import ConfigDict

from configs import coconut as recipe
from vital_jax.hub import tiny
from vital_jax.hub.load import fingerprint
from vital_jax.methods import base as methods
from vital_jax.methods.coconut import Coconut
from vital_jax.models.backbone import Backbone, abstract_backbone
from vital_jax.models.families import read_config
from vital_jax.run import setup
from vital_jax.training.checkpoint import Checkpoints, make_meta
from vital_jax.training.config import resolved
from vital_jax.training.partition import flatten, split, unflatten
from vital_jax.training.sharding import make_mesh

A, B = "<|latent_start|>", "<|latent_end|>"
TEXTS = ("the liver is darker than the spleen", "no lesion is seen in the kidney")


@dataclasses.dataclass(frozen=True)
class Marked(Coconut):
    """Coconut with a map of its own before each latent."""

    name = "marked"
    added: ClassVar = {A: "the", B: ""}
    feedback = True

    @property
    def feed(self):
        return lambda params, z, k, key: z @ params["feedback"]["mixer"]["kernel"].astype(z.dtype).T

    def init(self, key, loaded):
        width = self.model.config.decoder.width
        return {"feedback": {"mixer": {"kernel": jnp.eye(width) + 0.1 * jax.random.normal(key, (width, width))}}}

    def abstract(self):
        return jax.eval_shape(lambda key: self.init(key, {}), jax.random.key(0))


known = mock.patch.dict(methods.METHODS, marked="marked:Marked")


def write_base(folder: Path, tied: bool) -> Path:
    """A small redrawn Qwen3-VL with a tokenizer and spare rows behind it."""
    tiny.write_backbone(folder, TEXTS, width=64, layers=2, vocab=290)
    table = json.loads((folder / "config.json").read_text())
    table["tie_word_embeddings"] = table["text_config"]["tie_word_embeddings"] = tied
    (folder / "config.json").write_text(json.dumps(table))
    tiny.save_backbone(folder, toy.draw(abstract_backbone(Backbone(read_config(folder))), 4))
    return folder


def config_of(base: Path):
    """A recipe of the method on this base."""
    config = recipe.get_config()
    config.method.name = "marked"
    config.model.update(folder=str(base), dtype="float32", param_dtype="float32")
    config.lora.update(rank=4, alpha=8.0, dropout=0.0)
    config.data.update(max_pixels=128 * 128, buckets=((96, 64),), answer=10, written=16, features="")
    config.phases = config.phases[1:3]
    config.method = ConfigDict(methods.settings_of(config.method.to_dict()))
    for phase in config.phases:
        phase.update(latent_steps=Marked.steps_of(config.method, phase), weights=ConfigDict())
    return config


def load(config):
    """(method, parameters) as training starts them, on one device."""
    method = setup.make_method(config, None)
    return method, setup.load_params(config, method, make_mesh(devices=jax.devices()[:1]))


def write_run(folder: Path, base: Path):
    """(method, parameters) of a run whose trained leaves have all moved; its checkpoint is in `folder`."""
    config = config_of(base)
    method, params = load(config)
    trainable, frozen = split(params, setup.tables(config)[0])
    r = np.random.default_rng(0)
    moved = {path: x + jnp.asarray(0.2 * r.normal(size=x.shape), x.dtype) for path, x in flatten(trainable).items()}
    meta = make_meta(resolved(config), fingerprint(base), "marked", setup.switches(config), 1, 2)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(2, {"trainable": unflatten(moved)}, meta)
        checkpoints.wait()
    return method, setup.overlay(frozen, unflatten(moved))
