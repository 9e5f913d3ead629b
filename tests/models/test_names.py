"""The name table against the index files of published checkpoints, and the two styles of config.json. No weights are read."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from vital_jax.hub.load import check_coverage
from vital_jax.models.backbone import Backbone, abstract_backbone
from vital_jax.models.config import DecoderConfig, VisionConfig
from vital_jax.models.decoder import Decoder, abstract_decoder
from vital_jax.models.families import backbone_entries, read_config, read_text_config
from vital_jax.models.names import Entry, decoder_entries
from vital_jax.training.partition import flatten

PUBLISHED = {"Qwen3-VL-8B-Instruct": 750, "Qwen3-VL-4B-Instruct": 713, "Qwen3-1.7B": 310}


@pytest.fixture(scope="module")
def published(real):
    """name -> (entries, leaves, index table) of a published checkpoint, made once each."""
    held = {}

    def get(name):
        if name not in held:
            folder = real("model_configs") / name
            index = json.loads((folder / "model.safetensors.index.json").read_text())
            if "VL" in name:
                config = read_config(folder)
                entries, tree = backbone_entries(config), abstract_backbone(Backbone(config))
            else:
                config = read_text_config(folder)
                entries, tree = decoder_entries(config), abstract_decoder(Decoder(config))
            held[name] = entries, flatten(tree), index
        return held[name]

    return get


@pytest.mark.parametrize("name, count", PUBLISHED.items())
def test_every_tensor_and_every_leaf_is_named_once(published, name, count):
    entries, leaves, index = published(name)
    tensors = index["weight_map"]
    assert len(tensors) == count
    check_coverage(entries, leaves, tensors, name)
    assert sum(len(entry.names) for entry in entries) == count
    # The index gives the bytes of all tensors together, two per bfloat16 number: the shapes agree in sum with the published ones.
    assert 2 * sum(int(np.prod(leaf.shape)) for leaf in leaves.values()) == index["metadata"]["total_size"]


def test_a_removed_row_is_an_error(published):
    entries, leaves, index = published("Qwen3-VL-4B-Instruct")
    for gone in (0, len(entries) // 2, len(entries) - 1):
        rest = entries[:gone] + entries[gone + 1 :]
        with pytest.raises(ValueError, match="leaves without a name: " + entries[gone].path) as error:
            check_coverage(rest, leaves, index["weight_map"], "4B")
        assert "extra tensors: " in str(error.value)


def test_an_extra_row_is_an_error(published):
    entries, leaves, index = published("Qwen3-1.7B")
    with pytest.raises(ValueError, match=r"names without a leaf: ghost; missing tensors: model\.ghost"):
        check_coverage([*entries, Entry("ghost", ("model.ghost",), False)], leaves, index["weight_map"], "1.7B")


@pytest.mark.parametrize("other", ["same tensors", "other tensors"])
def test_a_doubled_row_is_an_error(published, other):
    entries, leaves, index = published("Qwen3-1.7B")
    twin = entries[0] if other == "same tensors" else dataclasses.replace(entries[0], names=("model.other",))
    held = [*index["weight_map"], *twin.names]
    with pytest.raises(ValueError, match=f"named twice: .*{entries[0].path}"):
        check_coverage([*entries, twin], leaves, held, "1.7B")


def test_one_error_lists_everything_and_says_where_the_head_comes_from(published):
    entries, leaves, index = published("Qwen3-VL-8B-Instruct")
    tensors = set(index["weight_map"]) - {"lm_head.weight", "model.visual.pos_embed.weight"} | {"model.surprise"}
    with pytest.raises(ValueError) as error:
        check_coverage(entries, leaves, tensors, "/models/8B")
    text = str(error.value)
    assert "/models/8B" in text and "model.surprise" in text and "model.visual.pos_embed.weight" in text
    assert "lm_head.weight follows tie_word_embeddings of config.json" in text and "\n" not in text


def test_unused_tensors_are_matched_whole():
    entries, leaves = [Entry("a", ("a.weight",), False)], {"a": None}
    check_coverage(entries, leaves, ["a.weight", "head.weight"], "x", unused=r"head\..*")
    with pytest.raises(ValueError, match=r"extra tensors: my_head\.weight"):
        check_coverage(entries, leaves, ["a.weight", "my_head.weight"], "x", unused=r"head\..*")


NEWER = {
    "model_type": "qwen3_vl",
    "tie_word_embeddings": True,
    "image_token_id": 90, "vision_start_token_id": 91, "vision_end_token_id": 92,
    "text_config": {
        "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 96, "hidden_act": "silu", "rms_norm_eps": 1e-5, "attention_bias": False, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2], "mrope_interleaved": True},
    },
    "vision_config": {
        "hidden_size": 32, "depth": 3, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64, "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 2], "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "hidden_act": "gelu_pytorch_tanh", "in_channels": 3,
    },
}  # fmt: skip


def older(table):
    """The same model as 4.57 writes it."""
    table = copy.deepcopy(table)
    text = table["text_config"]
    scaling = text.pop("rope_parameters")
    text |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    return table


def read(tmp_path, table, reader=read_config):
    (tmp_path / "config.json").write_text(json.dumps(table))
    return reader(tmp_path)


def test_both_styles_are_one_configuration(tmp_path):
    config = read(tmp_path, NEWER)
    assert config == read(tmp_path, older(NEWER))
    assert config.decoder == DecoderConfig(100, 64, 4, 4, 2, 16, 96, 5e6, 1e-5, True, False, (4, 2, 2))
    assert config.vision == VisionConfig(32, 3, 2, 48, 64, (0, 2), 6)
    assert (config.image_token_id, config.vision_start_token_id, config.vision_end_token_id) == (90, 91, 92)


@pytest.mark.parametrize("name", ["Qwen3-VL-8B-Instruct", "Qwen3-1.7B"])
def test_transformers_rewrites_a_published_configuration_without_changing_it(real, tmp_path, name):
    from transformers import AutoConfig

    folder, reader = real("model_configs") / name, read_config if "VL" in name else read_text_config
    AutoConfig.from_pretrained(folder, local_files_only=True).save_pretrained(tmp_path)
    assert reader(tmp_path) == reader(folder)


@pytest.mark.parametrize(
    "top, text, tied", [(False, True, False), (True, False, True), (None, True, True), (None, None, False)]
)
def test_the_enclosing_file_says_whether_the_head_is_tied(tmp_path, top, text, tied):
    table = copy.deepcopy(NEWER)
    for place, value in ((table, top), (table["text_config"], text)):
        place.pop("tie_word_embeddings")
        place |= {} if value is None else {"tie_word_embeddings": value}
    assert read(tmp_path, table).decoder.tied is tied


REFUSED = {
    "use_sliding_window": ("text_config", {"use_sliding_window": True}),
    "layer_types": ("text_config", {"layer_types": ["full_attention", "sliding_attention"]}),
    "hidden_act='gelu'": ("text_config", {"hidden_act": "gelu"}),
    "vision_config.hidden_act='gelu'": ("vision_config", {"hidden_act": "gelu"}),
    "rope_type='yarn'": ("rope_parameters", {"rope_type": "yarn"}),
    "mrope_interleaved": ("rope_parameters", {"mrope_interleaved": False}),
    "mrope_section": ("rope_parameters", {"mrope_section": None}),
    r"mrope_section \[4, 3, 2\]": ("rope_parameters", {"mrope_section": [4, 3, 2]}),
    "rope_theta": ("rope_parameters", {"rope_theta": None}),
    "model_type='llava'": ("", {"model_type": "llava"}),
    "num_position_embeddings=35": ("vision_config", {"num_position_embeddings": 35}),
    "out_hidden_size 48": ("vision_config", {"out_hidden_size": 48}),
    r"deepstack_visual_indexes \[0, 3\]": ("vision_config", {"deepstack_visual_indexes": [0, 3]}),
    r"deepstack_visual_indexes \[2, 0\]": ("vision_config", {"deepstack_visual_indexes": [2, 0]}),
    r"image_token_id=100 are outside the 100 rows": ("", {"image_token_id": 100}),
    r"vision_end_token_id=151653 are outside": ("", {"vision_end_token_id": 151653}),
    "3 key/value heads": ("text_config", {"num_key_value_heads": 3}),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, message):
    place, edit = REFUSED[message]
    table = copy.deepcopy(NEWER)
    holders = {"": table, "rope_parameters": table["text_config"]["rope_parameters"]}
    holders.get(place, table.get(place)).update(edit)
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, table)
    assert str(tmp_path / "config.json") in str(error.value)


def test_absent_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json not found"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        read_config(tmp_path)
