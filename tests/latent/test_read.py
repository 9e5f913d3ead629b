"""Decoded sentences against the path that trains: what is written, fed back as the right words, is what the decoder predicts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from vital_jax.latent.read import decode_steps
from vital_jax.latent.scaffold import read_latents

B, K, C = 3, 4, 7
NEVER = toy.VOCAB  # no token: nothing ends


@pytest.fixture(scope="module")
def setup():
    vital = toy.method()
    scaffold = toy.draw(vital.abstract()["scaffold"])
    # Embeddings of length one would make the tied head repeat the last word whatever the latent says.
    scaffold["text_decoder"]["embed_tokens"]["embedding"] *= 0.3
    z = jnp.asarray(2 * np.random.default_rng(0).normal(size=(B, K, toy.WIDTH)), jnp.float32)
    return vital.decoder, scaffold, z


@functools.partial(jax.jit, static_argnums=(0, 3))
def decode(decoder, scaffold, z, length, end):
    return decode_steps(decoder, scaffold, z, length, end)


@functools.partial(jax.jit, static_argnums=0)
def predicted(decoder, scaffold, z, chain):
    states = read_latents(decoder, scaffold, z, chain)
    return jnp.argmax(decoder.apply({"params": scaffold["text_decoder"]}, states, method="logits"), axis=-1)


@pytest.fixture(scope="module")
def written(setup):
    return np.asarray(decode(*setup, C, NEVER))


def test_a_sentence_fed_back_as_the_right_words_is_predicted_again(setup, written):
    assert written.shape == (B, K, C) and written.dtype == np.int32
    np.testing.assert_array_equal(written, predicted(*setup, written))
    # The claim is empty where every latent says the same, or every word is the last one again.
    assert len({tuple(row) for row in written.reshape(-1, C)}) > B * K // 2
    assert np.mean(written[..., 1:] != written[..., :-1]) > 0.3


def test_a_step_reads_its_own_latent_alone(setup, written):
    decoder, scaffold, z = setup
    other = z.at[1, 2].set(-z[1, 2])
    changed = np.any(np.asarray(decode(decoder, scaffold, other, C, NEVER)) != written, axis=-1)
    expected = np.zeros((B, K), bool)
    expected[1, 2] = True
    np.testing.assert_array_equal(changed, expected)


def test_after_the_end_there_is_nothing_but_ends(setup, written):
    end = int(written[0, 0, 2])
    got = np.asarray(decode(*setup, C, end))
    for before, after in zip(written.reshape(-1, C), got.reshape(-1, C), strict=True):
        stop = np.flatnonzero(before == end)
        last = stop[0] if len(stop) else C
        np.testing.assert_array_equal(after[:last], before[:last])
        assert (after[last:] == end).all()
    assert (got[0, 0, 2:] == end).all()
