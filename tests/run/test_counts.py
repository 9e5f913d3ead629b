"""Parameter counts at the 8B shapes against the paper's (Tables 9 to 12). Shapes only: nothing is allocated, no weights are read.

The paper counts the language model as if its head were tied to the embeddings; the published 8B checkpoint is untied. Both are checked.
"""

import dataclasses
import math

import jax
import pytest

from vital_jax.methods.vital import Vital
from vital_jax.models.backbone import Backbone, abstract_backbone
from vital_jax.models.config import LoraConfig
from vital_jax.models.decoder import Decoder
from vital_jax.models.families import read_config, read_text_config
from vital_jax.models.lora import init_lora

ROI_WIDTH = 1152  # MedSigLIP


@pytest.fixture(scope="module")
def shapes(real):
    """base, lora and scaffold of VITAL on Qwen3-VL-8B with Qwen3-1.7B as text decoder."""
    configs = real("model_configs")
    model = Backbone(read_config(configs / "Qwen3-VL-8B-Instruct"), LoraConfig())
    decoder = Decoder(read_text_config(configs / "Qwen3-1.7B"))
    lora = jax.eval_shape(lambda key: init_lora(model.config.decoder, model.lora, key), jax.random.key(0))
    scaffold = Vital(model, decoder, ROI_WIDTH).abstract()["scaffold"]
    return {"model": model, "base": abstract_backbone(model), "lora": lora, "scaffold": scaffold}


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def millions(tree):
    return round(count(tree) / 1e6, 1)


def test_trainable_parts(shapes):
    scaffold = shapes["scaffold"]
    assert count(shapes["lora"]) == 174_587_904  # 36 layers, 7 projections, rank 64
    assert round(count(scaffold["visual_projector"]) / 1e6, 2) == 21.51
    assert round(count(scaffold["pj_in"]) / 1e6, 2) == 8.39
    assert round(count(scaffold["text_decoder"]) / 1e6, 2) == 1720.57
    assert set(scaffold) == {"visual_projector", "pj_in", "text_decoder"}
    assert millions([shapes["lora"], scaffold]) == 1925.1


def test_frozen_parts_as_published_and_as_the_paper_counts(shapes):
    base = shapes["base"]
    assert set(base) == {"language_model", "visual"}
    assert millions(base["visual"]) == 576.4
    assert millions(base["language_model"]) == 8190.7
    untied = shapes["model"]
    config = dataclasses.replace(untied.config, decoder=dataclasses.replace(untied.config.decoder, tied=True))
    tied = abstract_backbone(untied.clone(config=config))
    assert millions(tied["language_model"]) == 7568.4
    total, trainable = count([tied, shapes["lora"], shapes["scaffold"]]), count([shapes["lora"], shapes["scaffold"]])
    assert round(total / 1e6, 1) == 10_069.9 and round(100 * trainable / total, 1) == 19.1


def test_a_part_that_no_loss_needs_is_absent(shapes):
    model = shapes["model"]
    assert Vital(model).abstract() == {}
    assert set(Vital(model, roi_width=ROI_WIDTH).abstract()["scaffold"]) == {"visual_projector"}


def test_shapes_are_those_of_a_real_start():
    """The counts above stand for what `init` makes."""
    import toy

    vital = toy.method()
    made = jax.eval_shape(lambda key: vital.init(key, {}), jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, made) == jax.tree.map(lambda x: x.shape, vital.abstract())
