"""Shapes from a configuration are those of the real run: of its parameters, its optimizer's state and its batches."""

import dataclasses

import jax
import numpy as np
import pytest
import shapes
import toy

from vital_jax.methods.base import Budgets
from vital_jax.run import program, setup
from vital_jax.training.partition import flatten, split
from vital_jax.training.sharding import make_mesh, shard
from vital_jax.training.step import init_state


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shapes.write(tmp_path_factory.mktemp("shapes"))


@pytest.mark.parametrize("base, mesh", [("fsdp", (2, 4, 1)), ("replicated", (8, 1, 1))])
def test_the_abstract_state_is_the_real_one(folder, base, mesh):
    config = shapes.config(folder, **{"mesh.base": base})
    method, mesh = setup.make_method(config, 12), make_mesh(*mesh)
    abstract, frozen = program.abstract_training(config, method, mesh, 2)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), setup.kept_params(config, method))
    real = shard(zeros, mesh, setup.sharding_rows(base), allow_unused=True)
    trainable, rest = split(real, setup.tables(config)[2])
    state = init_state(trainable, program.optimizer_of(config, config.phases[2]))
    for shape, array in ((abstract, state), (frozen, rest)):
        assert jax.tree.structure(shape) == jax.tree.structure(array)
        for wanted, made in zip(*map(jax.tree.leaves, (shape, array)), strict=True):
            assert (wanted.shape, wanted.dtype, wanted.sharding) == (made.shape, made.dtype, made.sharding)
    moments = [x for x in jax.tree.leaves(state["opt_state"]) if x.ndim]
    whole = sum(x.size for x in moments if x.sharding.is_fully_replicated)
    assert whole < 0.02 * sum(x.size for x in moments), "an optimizer's state is always split"
    text = flatten(real["scaffold"]["text_decoder"])
    assert all(
        not x.sharding.is_fully_replicated for path, x in text.items() if "kernel" in path or "embedding" in path
    )


def test_full_rows_are_rows_of_the_pipeline():
    """Names, shapes and types as an encoder makes them, and no budget is left empty."""
    method = toy.method()
    layout = dataclasses.replace(method.layout(toy.phase(), Budgets(5, 6, roi=toy.ROI)), prefix=14, patches=16)
    rows = program.full_rows(method, layout, 4)
    batch = toy.batch(rows=4)
    assert {name: (x.shape, x.dtype) for name, x in rows.items()} == {
        name: (x.shape, x.dtype) for name, x in batch.items()
    }
    assert rows["lengths"].tolist() == [14] * 4 and rows["latent_steps"].tolist() == [4] * 4
    assert (
        rows["answer_mask"].all()
        and rows["chain_mask"].all()
        and rows["patch_segment"].all()
        and rows["roi_mask"].all()
    )
