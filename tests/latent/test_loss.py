"""Cross entropy in chunks against log_softmax in one piece: values, gradients, and what a weight of zero keeps out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vital_jax.latent.loss import cross_entropy


def tokens(rows=7):
    r = np.random.default_rng(2)
    h, head = (jnp.asarray(r.normal(size=(n, 8)), jnp.float32) for n in (rows, 19))
    weights = jnp.asarray(r.uniform(0.1, 1, rows) * (np.arange(rows) != 2), jnp.float32)
    return h, head, jnp.asarray(r.integers(0, 19, rows)), weights


@pytest.mark.parametrize("chunk", [1, 3, 7, 512])
def test_every_chunk_size_gives_the_same_loss_and_gradients(chunk):
    h, head, targets, weights = tokens()

    def long(h, head):
        log_p = jax.nn.log_softmax(h @ head.T)
        return -jnp.sum(weights * log_p[jnp.arange(7), targets])

    quick = lambda h, head: cross_entropy(h, head, targets, weights, chunk)[0]  # noqa: E731
    np.testing.assert_allclose(quick(h, head), long(h, head), rtol=1e-6)
    pairs = zip(jax.grad(quick, (0, 1))(h, head), jax.grad(long, (0, 1))(h, head), strict=True)
    for got, expected in pairs:
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    right = np.argmax(np.asarray(h) @ np.asarray(head).T, -1) == np.asarray(targets)
    correct = cross_entropy(h, head, targets.at[0].set(int(np.argmax(h[0] @ head.T))), weights, chunk)[1]
    np.testing.assert_allclose(correct, np.sum(np.asarray(weights) * (right | (np.arange(7) == 0))), rtol=1e-6)


def test_a_weight_of_zero_silences_a_state_that_is_not_finite():
    h, head, targets, weights = tokens()
    assert weights[2] == 0
    run = jax.value_and_grad(lambda h, head: cross_entropy(h, head, targets, weights, 3)[0], (0, 1))
    expected, (by_state, by_head) = run(h, head)
    for broken in (jnp.nan, jnp.inf):
        value, grads = run(h.at[2].set(broken), head)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(grads[0], by_state, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(grads[1], by_head, rtol=1e-6, atol=1e-7)
    assert not np.any(by_state[2])


def test_leading_axes_are_flattened():
    h, head, targets, weights = tokens(8)
    flat = cross_entropy(h, head, targets, weights, 3)
    shaped = cross_entropy(h.reshape(2, 2, 2, 8), head, targets.reshape(2, 2, 2), weights.reshape(2, 2, 2), 3)
    np.testing.assert_allclose(shaped, flat, rtol=1e-6)
