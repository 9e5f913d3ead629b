"""Parameter tables: exactly one row per leaf, split and merge, and the printed plan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vital_jax.training.partition import flatten, match, merge, parameter_table, split, unflatten

TREE = {
    "base": {
        "layers": {"q_proj": {"kernel": np.zeros((2, 3, 4), np.float32)}},
        "norm": {"scale": np.ones(4, np.float32)},
    },
    "lora": {"layers": {"q_proj": {"a": np.zeros((2, 1, 4), np.float32), "b": np.zeros((2, 3, 1), np.float32)}}},
}
TABLE = (("base/.*", "frozen"), ("lora/.*", "trainable"))


def test_paths_are_keys_joined_by_slashes():
    assert list(flatten(TREE)) == [
        "base/layers/q_proj/kernel",
        "base/norm/scale",
        "lora/layers/q_proj/a",
        "lora/layers/q_proj/b",
    ]
    assert jax.tree.structure(unflatten(flatten(TREE))) == jax.tree.structure(TREE)


@pytest.mark.parametrize("tree, error", [({"a/b": 1}, ValueError), ({"a": {1: 2}}, TypeError)])
def test_keys_that_cannot_be_paths_are_refused(tree, error):
    with pytest.raises(error, match="parameter key"):
        flatten(tree)


def test_a_row_must_match_the_whole_path():
    assert match((("a", 1), ("a/b", 2)), ["a", "a/b"]) == {"a": 1, "a/b": 2}


def test_every_misfit_is_listed_with_its_rows():
    table = (("base/.*", 1), (".*/scale", 2), ("tokens/.*", 3))
    with pytest.raises(ValueError) as caught:
        match(table, flatten(TREE))
    message = str(caught.value)
    assert (
        "2 leaves matched by no row" in message
        and "lora/layers/q_proj/a" in message
        and "lora/layers/q_proj/b" in message
    )
    assert "1 leaves matched by several rows" in message and "base/norm/scale  <- 'base/.*', '.*/scale'" in message
    assert "1 rows that match no leaf" in message and "'tokens/.*'" in message


def test_unused_rows_can_be_allowed():
    table = (*TABLE, ("tokens/.*", "trainable"))
    with pytest.raises(ValueError, match="tokens"):
        match(table, flatten(TREE))
    assert set(match(table, flatten(TREE), allow_unused=True).values()) == {"frozen", "trainable"}


def test_split_shares_no_leaf_and_merge_undoes_it():
    trainable, frozen = split(TREE, ((".*/q_proj/.*", "trainable"), (".*/scale", "frozen")))
    assert list(flatten(frozen)) == ["base/norm/scale"]
    assert set(flatten(trainable)) == set(flatten(TREE)) - {"base/norm/scale"}
    merged = flatten(merge(trainable, frozen))
    assert merged.keys() == flatten(TREE).keys()
    assert all(merged[path] is leaf for path, leaf in flatten(TREE).items())


def test_split_refuses_other_words_and_merge_refuses_overlap():
    with pytest.raises(ValueError, match="trained"):
        split(TREE, ((".*", "trained"),))
    with pytest.raises(ValueError, match="'base' is in both parts"):
        merge({"base": np.zeros(1)}, {"base": {"kernel": np.zeros(1)}})


def test_the_plan_counts_by_hand_and_needs_no_arrays():
    tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), TREE)
    tree["lora"] = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), tree["lora"])
    tree["base"]["norm"]["scale"] = jax.ShapeDtypeStruct((2**20,), jnp.float32)
    rows = [line.split() for line in parameter_table(tree, TABLE).splitlines()]
    assert ["base/layers", "24", "0", "bfloat16", "0.0"] in rows
    assert ["base/norm", "1,048,576", "0", "float32", "4.0"] in rows
    assert ["lora/layers", "14", "14", "float32", "0.0"] in rows
    assert rows[-1] == ["total", "1,048,614", "14", "bfloat16+float32", "4.0"]
