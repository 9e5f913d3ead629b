"""The paper's recipe at every size, what the small cards change of it, and the memory that either needs by arithmetic."""

import sys
from pathlib import Path

import pytest

from configs import one_gpu, vital
from vital_jax.training.config import resolved

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import memory_table

sys.path.pop(0)

PAPER = {  # sections 4.1 and B.2
    "lora": {"rank": 64, "alpha": 128.0, "dropout": 0.05},
    "optim": {"learning_rate": 2e-5, "warmup": 0.05, "weight_decay": 0.01, "clip": 1.0},
    "method": {"text": 1.0, "visual": 0.1, "max_steps": 4, "eval_k": "fixed", "projector": "residual_mlp_ln"},
    "data": {"roi_threshold": 0.20, "roi_margin": 0.05},
}


def differing(a, b, path=""):
    if isinstance(a, dict) and isinstance(b, dict):
        return {
            key for name in {*a, *b} for key in differing(a.get(name), b.get(name), f"{path}.{name}" if path else name)
        }
    return set() if a == b else {path}


@pytest.mark.parametrize("name", vital.BASES)
def test_every_size_holds_the_papers_numbers(name):
    config = resolved(vital.get_config(name))
    for part, numbers in PAPER.items():
        assert {key: config[part][key] for key in numbers} == numbers
    assert [(phase["max_steps"], phase["epochs"]) for phase in config["phases"]] == [(1, 5), (2, 5), (4, 10)]
    assert config["batch"] == 128 and config["model"]["folder"] == f"models/{name}"
    assert differing(config, resolved(vital.get_config())) <= {"model.folder", "mesh.base", "mesh.data", "mesh.fsdp"}


@pytest.mark.parametrize("card, changed", [("24gb", {"model.quantize", "table"}), ("48gb", set())])
def test_a_small_card_changes_what_memory_forces_and_nothing_else(card, changed):
    config, paper = resolved(one_gpu.get_config(card)), resolved(vital.get_config())
    assert differing(config, paper) == {"workdir", "model.text_decoder", "micro_batches", *changed}
    assert config["batch"] % config["micro_batches"] == 0


@pytest.mark.parametrize(
    "card, gib", [("24gb", 22.5), ("48gb", 45.0)]
)  # an L4 and an L40S, the least of what is sold under these names
def test_a_small_card_holds_its_recipe(card, gib):
    config = memory_table.recipe(one_gpu.get_config(card), "qwen3_0_6b")
    decoder = memory_table.setup.make_method(config, 1152).model.config.decoder
    rows = config.batch // config.micro_batches
    needed = sum(memory_table.state(config).values()) + rows * memory_table.activations(decoder, 1152)
    assert needed < 0.92 * gib * 2**30
    more = rows * 10 * memory_table.activations(decoder, 1152)
    assert needed + more > 0.92 * gib * 2**30, "the recipe could take many more rows"


def test_arithmetic_counts_what_the_papers_table_and_the_index_files_count():
    sizes = memory_table.state(memory_table.recipe(vital.get_config("qwen3_vl_8b")))
    assert sizes["base"] == 17_534_247_392  # total_size of the published index
    assert sizes["lora"] == 16 * 174_587_904
    assert sizes["text decoder"] == 16 * 1_720_574_976
    assert sizes["projectors"] == 16 * (21_511_552 + 8_390_656)
    assert memory_table.state(memory_table.recipe(vital.get_config("qwen3_vl_4b")))["base"] == 8_875_631_616
    small = memory_table.state(memory_table.recipe(vital.get_config("qwen3_vl_8b"), quantize="int8"))
    matrices = 36 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 12288)
    scales = 36 * (2 * 4096 + 2 * 1024 + 2 * 12288 + 4096)
    assert sizes["base"] - small["base"] == matrices - 2 * scales
