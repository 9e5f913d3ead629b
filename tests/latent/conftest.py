"""Fixtures that the tests of decoding share."""

import numpy as np
import pytest
import toy
from decoding import DRAWN, NEVER, VITAL, G, K, T, ask

from vital_jax.latent.choose import row_keys


@pytest.fixture(scope="module")
def setup():
    """The toy backbone, its variables, and prompts of unequal length with two images and 1, 2, 3 and 4 steps."""
    vital = toy.method()
    params = toy.params(vital)
    batch = toy.batch(K=K)
    assert len(set(batch["lengths"].tolist())) > 1 and batch["patch_segment"].max() == 2
    assert batch["latent_steps"].tolist() == [1, 2, 3, 4]
    return vital.model, {"params": params["base"], "lora": params["lora"]}, batch


@pytest.fixture(scope="module")
def greedy(setup):
    return ask(setup)


@pytest.fixture(scope="module")
def keys():
    return row_keys(2, np.arange(4), G)


@pytest.fixture(scope="module")
def drawn(setup, keys):
    found = ask(setup, VITAL, DRAWN, G, keys)
    tokens, _ = found.answers(T, NEVER)
    assert np.any(tokens[..., T - 2] == NEVER) and not np.all(found.complete), "some rows end early and some do not"
    assert len({tuple(row) for row in tokens.reshape(-1, T).tolist()}) > 9
    return found
