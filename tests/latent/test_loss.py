"""Scores in chunks against log_softmax in one piece: values, gradients, and what a weight of zero keeps out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vital_jax.latent.loss import cross_entropy, token_log_probs
from vital_jax.models.layers import Head


@pytest.fixture(scope="module")
def tokens():
    """Three rows of seven tokens, the third of each row with weight zero: states, head, targets, weights."""
    r = np.random.default_rng(2)
    h, head = (jnp.asarray(r.normal(size=shape), jnp.float32) for shape in ((3, 7, 8), (19, 8)))
    weights = jnp.asarray(r.uniform(0.1, 1, (3, 7)) * (np.arange(7) != 2), jnp.float32)
    targets = jnp.argmax(h @ head.T, axis=-1).at[:, ::2].set(5)  # every other one as the head says
    return h, head, targets, weights


@jax.jit
def long(h, head, targets, weights):
    """((loss, correct), gradients) in one piece."""

    def loss(h, head):
        log_p = jax.nn.log_softmax(h @ head.T)
        chosen = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
        return -jnp.sum(weights * chosen), jnp.sum(weights * (jnp.argmax(log_p, axis=-1) == targets))

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(h, head)


def run(h, head, targets, weights, chunk=6):
    """The same from `cross_entropy`."""
    loss = lambda h, head: cross_entropy(h, Head(head), targets, weights, chunk)  # noqa: E731
    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(h, head)


def assert_same(got, expected, atol=1e-6):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("chunk", [1, 6, 9, 512])
def test_every_chunk_size_gives_the_same_loss_and_gradients(tokens, chunk):
    """One token of each row at a time, two and three (which leave a remainder), and all."""
    expected = long(*tokens)
    assert 0 < expected[0][1] < jnp.sum(tokens[3])
    assert_same(run(*tokens, chunk), expected)


def test_a_weight_of_zero_silences_a_state_that_is_not_finite(tokens):
    h, *rest = tokens
    expected = long(*tokens)
    assert not np.any(expected[1][0][:, 2])
    for broken in (jnp.nan, jnp.inf):
        assert_same(run(h.at[:, 2].set(broken), *rest), expected)


def test_axes_between_row_and_width_are_any(tokens):
    h, head, targets, weights = tokens
    extra = (h[:, None, :, None], Head(head), targets[:, None, :, None], weights[:, None, :, None])
    assert_same(cross_entropy(*extra, 6), long(*tokens)[0])
    flat = (h.reshape(21, 8), Head(head), targets.reshape(21), weights.reshape(21))
    assert_same(cross_entropy(*flat, 6), long(*tokens)[0])


@pytest.mark.parametrize("chunk", [1, 6, 9, 512])
def test_tokens_have_their_own_probability_and_entropy_whatever_the_chunk(tokens, chunk):
    """Among the tokens that are not taken out, at a temperature; gradients flow through both and never turn NaN."""
    h, head, targets, weights = tokens
    out = jnp.arange(19) == 7
    targets, own = jnp.where(targets == 7, 8, targets), weights > 0
    scaled = lambda scores: jnp.where(out, -jnp.inf, scores) / 0.7  # noqa: E731

    def one(h, head):
        log_p = jax.nn.log_softmax(jnp.delete(h @ head.T, 7, axis=-1, assume_unique_indices=True) / 0.7)
        place = targets - (targets > 7)
        chosen = jnp.take_along_axis(log_p, place[..., None], axis=-1)[..., 0]
        return jnp.where(own, chosen, 0), jnp.where(own, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1), 0)

    def ours(h, head):
        return token_log_probs(h, Head(head), targets, own, scaled, chunk)

    def both(which):
        total = lambda h, head: sum(jnp.sum(jnp.sin(x)) for x in which(h, head))  # noqa: E731
        return jax.jit(lambda h, head: (which(h, head), jax.grad(total, (0, 1))(h, head)))(h, head)

    assert_same(both(ours), both(one), atol=1e-5)  # gradients are of the order of one
    broken = h.at[:, 2].set(jnp.nan)
    assert_same(ours(broken, head), ours(h, head))
