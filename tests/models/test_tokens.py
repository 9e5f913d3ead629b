"""Added tokens as an overlay: the same numbers as tables whose rows were written over, in values and gradients, tied and untied."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from vital_jax.latent.loop import variables_of
from vital_jax.latent.loss import cross_entropy
from vital_jax.models.backbone import Backbone, abstract_backbone
from vital_jax.models.tokens import TABLES, init_tokens, sides
from vital_jax.training.partition import flatten, unflatten

ADDED = (53, 55, 56)
TOKENS = jnp.asarray([[3, 53, 7, 56], [56, 55, 1, 53]])


def written_over(base, tokens):
    """The base whose tables hold what the overlay puts there."""
    leaves = flatten(base)
    for side, delta in tokens.items():
        leaves[TABLES[side]] = leaves[TABLES[side]].at[jnp.asarray(ADDED)].add(delta)
    return unflatten(leaves)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def made(request):
    """(config, base, tokens) with every delta away from zero."""
    config = dataclasses.replace(toy.CONFIG, decoder=dataclasses.replace(toy.DECODER, tied=request.param))
    base = toy.draw(abstract_backbone(Backbone(config, dtype=jnp.float32)))
    drawn = toy.draw(jax.eval_shape(lambda: init_tokens(base, config.decoder, ADDED)), 5)
    assert set(drawn) == ({"input"} if request.param else {"input", "head"})
    return config, base, {side: 3 * x for side, x in drawn.items()}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_are_looked_up_and_scored_as_if_they_stood_in_the_tables(made, dtype):
    config, base, tokens = made
    model = Backbone(config, dtype=dtype, added=ADDED)
    plain, moved = Backbone(config, dtype=dtype), {"params": base, "tokens": tokens}
    expected = {"params": written_over(base, tokens)}
    words = model.apply(moved, TOKENS, method="embed_tokens")
    np.testing.assert_array_equal(words, plain.apply(expected, TOKENS, method="embed_tokens"))
    assert not np.array_equal(words, plain.apply({"params": base}, TOKENS, method="embed_tokens"))
    scores = model.apply(moved, words, method="logits")
    np.testing.assert_allclose(scores, plain.apply(expected, words, method="logits"), rtol=1e-5, atol=1e-5)
    others = np.setdiff1d(np.arange(toy.VOCAB), ADDED)
    np.testing.assert_array_equal(
        scores[..., others], plain.apply({"params": base}, words, method="logits")[..., others]
    )


def test_without_their_tree_the_rows_are_the_bases(made):
    config, base, _ = made
    x = Backbone(config, added=ADDED).apply({"params": base}, TOKENS, method="embed_tokens")
    np.testing.assert_array_equal(x, Backbone(config).apply({"params": base}, TOKENS, method="embed_tokens"))


def test_gradients_are_those_of_the_rows(made):
    config, base, tokens = made
    model, targets = Backbone(config, dtype=jnp.float32, added=ADDED), jnp.roll(TOKENS, -1, 1)

    def loss(model, variables):
        words = jnp.tanh(model.apply(variables, TOKENS, method="embed_tokens"))
        return cross_entropy(words, model.apply(variables, method="head"), targets, jnp.ones(targets.shape), 4)[0]

    overlay = lambda tokens: loss(model, variables_of({"base": base, "tokens": tokens}))  # noqa: E731
    tables = lambda base: loss(Backbone(config, dtype=jnp.float32), {"params": base})  # noqa: E731
    value, found = jax.jit(jax.value_and_grad(overlay))(tokens)
    expected, whole = jax.jit(jax.value_and_grad(tables))(written_over(base, tokens))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for side in sides(config.decoder):
        rows = flatten(whole)[TABLES[side]][jnp.asarray(ADDED)]
        assert np.abs(rows).min(-1).max() > 0
        np.testing.assert_allclose(found[side], rows, rtol=1e-5, atol=1e-6)


def test_a_row_starts_as_a_copy_of_another_on_both_sides(made):
    config, base, _ = made
    tokens = init_tokens(base, config.decoder, ADDED, {53: [7], 56: [9]})
    model, variables = Backbone(config, dtype=jnp.float32, added=ADDED), {"params": base, "tokens": tokens}
    words = model.apply(variables, jnp.asarray([53, 7, 56, 9, 55]), method="embed_tokens")
    np.testing.assert_allclose(words[jnp.asarray([0, 2])], words[jnp.asarray([1, 3])], rtol=1e-6, atol=1e-6)
    scores = model.apply(variables, words, method="logits")
    np.testing.assert_allclose(scores[:, jnp.asarray([53, 56])], scores[:, jnp.asarray([7, 9])], rtol=1e-5, atol=1e-5)
    assert not np.any(tokens["input"][1])
    mean = init_tokens(base, config.decoder, ADDED, {53: [7, 9]})
    word = model.apply({**variables, "tokens": mean}, jnp.asarray(53), method="embed_tokens")
    np.testing.assert_allclose(word, (words[1] + words[3]) / 2, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused(made):
    config, base, tokens = made
    for added in ((55, 53), (53, 53), (53, toy.VOCAB), (-1, 3)):
        with pytest.raises(ValueError, match="give ascending rows of the 61 of this vocabulary"):
            Backbone(config, added=added).apply({"params": base}, TOKENS, method="embed_tokens")
    with pytest.raises(ValueError, match=r"moves 3 rows, the model was made with 1 added tokens"):
        Backbone(config, added=(53,)).apply({"params": base, "tokens": tokens}, TOKENS, method="embed_tokens")
    with pytest.raises(ValueError, match=r"rows \[54\] are to start as others and are no added tokens"):
        init_tokens(base, config.decoder, ADDED, {54: [7]})
    with pytest.raises(ValueError, match=r"\[99\]: give ascending rows"):
        init_tokens(base, config.decoder, ADDED, {53: [99]})
