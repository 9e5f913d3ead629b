"""Every recipe on the meshes it is meant for, from shapes alone: each leaf lies somewhere that divides, and a chip has room for it."""

import math
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from configs import one_gpu, quickstart, vital
from vital_jax.run import plan, program, setup
from vital_jax.training import chips
from vital_jax.training.sharding import AXES

MODELS = Path(__file__).resolve().parents[2] / "configs" / "models"
ROI = 1152  # E of MedSigLIP
V5E, V5P, V6E, H200 = "TPU v5 lite", "TPU v5", "TPU v6 lite", "NVIDIA H200"


def recipe(made):
    """Resolved, over the architectures of configs/models where it names a folder for downloads."""
    for key in ("folder", "text_decoder"):
        if made.model[key].startswith("models/"):
            made.model[key] = str(MODELS / Path(made.model[key]).name)
    plan.resolve(made)
    for phase in made.phases:
        phase.steps = phase.steps or 100
    return made


@pytest.fixture(scope="module")
def states():
    """(config, method) by recipe and base, made once."""
    held = {}

    def get(name, base):
        if (name, base) not in held:
            module, _, arg = name.partition(":")
            config = recipe(
                {"vital": vital, "one_gpu": one_gpu, "quickstart": quickstart}[module].get_config(*filter(None, [arg]))
            )
            config.mesh.base = base or config.mesh.base
            held[name, base] = config, setup.make_method(config, ROI)
        return held[name, base]

    return get


# The recipe, where its base lies (empty: as the recipe has it), data, fsdp, tensor, and the chip.
CELLS = [
    ("vital:qwen3_vl_2b", "", (16, 1, 1), V5E),
    ("vital:qwen3_vl_4b", "fsdp", (1, 16, 1), V5E),
    ("vital:qwen3_vl_8b", "fsdp", (1, 16, 1), V5E),
    ("vital:qwen3_vl_8b", "fsdp", (2, 8, 1), V5E),
    ("vital:qwen3_vl_8b", "fsdp", (16, 16, 1), V5E),
    ("vital:qwen3_vl_8b", "", (4, 1, 1), V5P),
    ("vital:qwen3_vl_8b", "", (16, 1, 1), V6E),
    ("vital:qwen3_vl_8b", "", (1, 1, 1), H200),
    ("vital:qwen3_vl_8b", "", (8, 1, 1), H200),
    ("vital:qwen3_vl_32b", "", (1, 16, 1), V5E),
    ("vital:qwen3_vl_32b", "", (1, 16, 1), V6E),
    ("vital:qwen3_vl_32b", "", (1, 8, 1), H200),
    ("vital:qwen3_vl_32b", "", (1, 4, 1), V5P),
    ("one_gpu:24gb", "", (1, 1, 1), H200),
    ("one_gpu:48gb", "", (1, 1, 1), H200),
    ("quickstart", "", (1, 1, 1), H200),
    ("quickstart", "", (4, 2, 1), H200),
]


@pytest.mark.parametrize("name, base, sizes, chip", CELLS, ids=lambda value: str(value).replace(" ", ""))
def test_every_leaf_of_a_recipe_has_a_place_that_divides(states, name, base, sizes, chip):
    config, method = states(name, base)
    mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3)
    held, split = 0, 0
    for tree in program.abstract_training(config, method, mesh, len(config.phases) - 1):
        for leaf in jax.tree.leaves(tree):
            # Raises where a dimension does not divide.
            held += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            split += math.prod(leaf.shape) * leaf.dtype.itemsize
    assert held < 2**30 * chips.memory(chip), f"a chip's part of the state alone is {held / 2**30:.1f} GiB"
    if sizes != (1, 1, 1):
        assert held < 0.9 * split, "nothing is split"
    assert config.batch % (config.micro_batches * sizes[0] * sizes[1]) == 0 or math.prod(sizes) > config.batch
