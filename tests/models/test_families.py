"""A family is a row: one made up here, with its own tower and patch plan, is read, drawn and run by code that never heard of it."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from flax import linen as nn

from vital_jax.models import families
from vital_jax.models.backbone import Backbone, abstract_backbone, dummy_batch
from vital_jax.models.config import BackboneConfig, VisionConfig
from vital_jax.models.layers import Linear
from vital_jax.pipeline import families as images


class Shade(NamedTuple):
    patch_shade: np.ndarray  # [P] float32


class Flat:
    """Patches have a shade and no place."""

    title, arrays, image_token_id, merge_size = "Flat", {"patch_shade": "how bright"}, 57, 2

    @classmethod
    def from_config(cls, table, where):
        return cls()

    def plan(self, grids, budget, name):
        return Shade(np.full(budget, len(grids), np.float32))


class FlatTower(nn.Module):
    config: VisionConfig
    attention: str = "auto"

    @nn.compact
    def __call__(self, patches, shade):
        x = Linear(self.config.out_width, name="only")(patches) + shade[..., None]
        tokens = x.reshape(len(x), -1, self.config.merge**2, x.shape[-1]).sum(2)
        return tokens, jnp.zeros((0, *tokens.shape), x.dtype)


def flat_config(table, where):
    return BackboneConfig("flat", toy.DECODER, toy.CONFIG.vision, 57, 58, 59)


@pytest.fixture
def flat(monkeypatch):
    row = families.Family(flat_config, FlatTower, lambda config: [], lambda config: Flat(), ((".*", "patches"),))
    monkeypatch.setitem(families.FAMILIES, "flat", row)
    monkeypatch.setitem(images.FAMILIES, "flat", Flat)


def test_another_family_is_a_row_and_a_tower(flat, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "flat"}))
    config = families.read_config(tmp_path)
    model = Backbone(config, dtype=jnp.float32)
    params = toy.draw(abstract_backbone(model))
    assert set(params["visual"]) == {"only"}
    batch = dummy_batch(config, 2) | {"patches": jnp.ones((2, 4, config.vision.patch_width))}
    batch |= {"patch_shade": jnp.stack([jnp.zeros(4), jnp.ones(4)])}
    tokens, deepstack = model.apply({"params": params}, batch, method="encode_images")
    np.testing.assert_allclose(tokens[1] - tokens[0], jnp.full((1, toy.WIDTH), 4.0), rtol=1e-5)
    assert deepstack.shape == (0, 2, 1, toy.WIDTH)
    logits = jax.jit(model.apply)({"params": params}, batch)
    assert logits.shape == (2, 1, toy.VOCAB) and not np.array_equal(logits[0], logits[1])
    assert isinstance(images.read_geometry({"model_type": "flat"}, "config.json"), Flat)


@pytest.mark.parametrize("kind", ["llava", None])
def test_an_unknown_family_is_refused_with_those_there_are(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    refused = rf"config\.json: model_type={kind!r} is not read as a {{}}; use one of {{}}"
    with pytest.raises(ValueError, match=refused.format("backbone", ", ".join(families.FAMILIES))):
        families.read_config(tmp_path)
    with pytest.raises(ValueError, match=refused.format("text decoder", ", ".join(families.TEXT_DECODERS))):
        families.read_text_config(tmp_path)
    with pytest.raises(ValueError, match=refused.format("backbone", ", ".join(images.FAMILIES))):
        images.read_geometry({"model_type": kind}, "config.json")


def test_both_halves_have_the_same_rows():
    assert set(families.FAMILIES) == set(images.FAMILIES)
    for kind in images.FAMILIES.values():
        plan = kind(57, 2, 4).plan([], 4, "an empty row")
        assert tuple(plan._fields) == tuple(kind.arrays)
