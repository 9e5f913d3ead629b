"""A rollout read again under the weights that drew it: every log-probability is the sampler's, so every ratio is one.

Prompts of unequal length with two images; groups whose chains end in all three ways: by writing the lead-in, at an end token, by budget.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
import toyfeed

from vital_jax.latent.choose import Decoding
from vital_jax.latent.loop import variables_of
from vital_jax.methods.base import Budgets
from vital_jax.methods.direct import Direct
from vital_jax.methods.text_cot import TextCot
from vital_jax.methods.vital import Vital
from vital_jax.models.config import LoraConfig
from vital_jax.pipeline.segments import FORCED, PADDING, TOKEN
from vital_jax.rl.replay import drawn, replay
from vital_jax.rl.rollout import Sampler, policy

G, T, W, LEAD = 5, 4, 4, 7
BANNED = ~np.isin(np.arange(toy.VOCAB), (LEAD, 11, 12, 13, toyfeed.END))


class Few(Sampler):
    """Of few tokens, so that chains end in every way there is."""

    banned = BANNED


def sampler(method, temperature=0.7, kind=Few, **options):
    engine = method.engine(toyfeed.Encoder(), ((14, 16),), Budgets(T, written=W))
    return kind(engine, Decoding(T, (toyfeed.END,), temperature, **options), G)


@pytest.fixture(scope="module")
def params():
    return toy.params(toy.method())


@pytest.fixture(scope="module")
def prompts():
    return toy.batch()


@pytest.fixture(scope="module", params=["direct", "text_cot"])
def rollout(request, params, prompts):
    """(method, sampler, what was drawn, the batch that replays it)."""
    model = toy.backbone()
    method = Direct(model) if request.param == "direct" else TextCot(model, lead_in=str(LEAD))
    own = sampler(method)
    found = own.draw(variables_of(params), prompts, np.arange(4))
    return method, own, found, prompts | recorded(found)


def recorded(found):
    return {"rollout_mode": np.asarray(found.modes), "rollout_tokens": np.asarray(found.tokens)}


def read(method, params, batch, own):
    run = jax.jit(lambda params, batch: replay(method, params, batch, own.decoding.temperature, own.banned))
    return run(params, batch)


def test_groups_are_ragged_and_chains_end_in_every_way(rollout):
    method, _, found, batch = rollout
    real = np.asarray(found.modes) != PADDING
    assert len(set(real.sum(-1).ravel().tolist())) > 2 and len(set(batch["lengths"].tolist())) > 1
    if isinstance(method, TextCot):
        forced, tokens = np.asarray(found.modes) == FORCED, np.asarray(found.tokens)
        before = np.where(np.roll(forced, -1, -1), tokens, -1).max(-1)
        assert (~forced.any(-1)).any(), "a row wrote the lead-in itself"
        assert (before == toyfeed.END).any() and (forced[..., W].any()), "others ended, or ran out"
    assert not np.isin(np.asarray(found.tokens)[np.asarray(found.modes) == TOKEN], np.flatnonzero(BANNED)).any()


def test_a_replay_at_equal_weights_is_the_sampler(rollout, params):
    method, own, found, batch = rollout
    own_tokens = np.asarray(drawn(batch))
    ratio = np.exp(np.asarray(read(method, params, batch, own).log_probs) - np.asarray(found.log_probs))
    assert own_tokens.sum() > 40
    np.testing.assert_allclose(ratio[own_tokens], 1, atol=1e-5)


def test_nothing_is_said_of_forced_tokens_and_padding(rollout, params):
    method, own, _, batch = rollout
    off = ~np.asarray(drawn(batch))
    assert off.any()
    for x in read(method, params, batch, own):
        assert not np.asarray(x)[off].any()


def test_probabilities_and_entropy_are_of_the_tokens_that_are_allowed(rollout, params):
    """By hand, for the first drawn token of a row: four tokens and the end, at the temperature."""
    method, own, _, batch = rollout
    found = read(method, params, batch, own)
    from vital_jax.latent.loop import embed, prefill

    v = variables_of(params)
    z0, _ = jax.jit(lambda v, b: prefill(method.model, v, embed(method.model, v, b), b["next_position"]))(v, batch)
    logits = np.asarray(method.model.apply(v, z0, method="logits"), np.float64)[:, ~BANNED] / own.decoding.temperature
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    place = np.searchsorted(np.flatnonzero(~BANNED), batch["rollout_tokens"][..., 0])
    np.testing.assert_allclose(found.log_probs[..., 0], np.log(np.take_along_axis(p, place, -1)), atol=2e-5)
    np.testing.assert_allclose(
        found.entropy[..., 0], np.broadcast_to(-(p * np.log(p)).sum(-1)[:, None], (4, G)), atol=2e-5
    )


def test_gradients_are_finite_and_reach_the_adapters(rollout, params):
    method, own, _, batch = rollout

    def total(lora, batch):
        return jnp.sum(replay(method, {**params, "lora": lora}, batch, own.decoding.temperature, own.banned).log_probs)

    grads = jax.jit(jax.grad(total))(params["lora"], batch)
    assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(grads))


def test_draws_depend_on_a_prompts_number_and_not_on_its_neighbours(rollout, params, prompts):
    _, own, found, _ = rollout
    alone = own.draw(variables_of(params), toy.row(prompts, 2), np.array([2]))
    np.testing.assert_array_equal(alone.tokens[0], found.tokens[2])
    other = own.draw(variables_of(params), toy.row(prompts, 2), np.array([9]))
    assert np.any(np.asarray(other.tokens) != np.asarray(alone.tokens))


def test_merged_adapters_are_the_same_policy_but_for_rounding(rollout, params, prompts):
    method, own, found, _ = rollout
    variables = policy(method.model, params, merge=True)
    assert "lora" not in variables
    merged = own.draw(variables, prompts, np.arange(4))
    same = np.asarray(merged.tokens) == np.asarray(found.tokens)
    assert same.mean() > 0.9
    np.testing.assert_allclose(np.asarray(merged.log_probs)[same & (np.asarray(found.modes) == TOKEN)][:5],
                               np.asarray(found.log_probs)[same & (np.asarray(found.modes) == TOKEN)][:5], atol=1e-4)  # fmt: skip
    assert policy(method.model, {"base": params["base"]}, merge=True).keys() == {"params"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_p": 0.9}, r"rollouts with top_p=0\.9"),
        ({"top_k": 5}, "rollouts with top_k=5"),
        ({"min_p": 0.1}, r"rollouts with min_p=0\.1"),
        ({"repetition_penalty": 1.1}, r"rollouts with repetition_penalty=1\.1"),
        ({"stops": ((1, 2),)}, "rollouts with stops"),
        ({"temperature": 0.0}, "temperature above 0"),
    ],
)
def test_what_would_draw_from_another_distribution_is_refused_by_name(options, said):
    with pytest.raises(ValueError, match=said):
        sampler(Direct(toy.backbone()), **options)


def test_latent_methods_and_groups_of_one_are_refused():
    with pytest.raises(ValueError, match="groups=1"):
        replace(sampler(Direct(toy.backbone())), groups=1)

    class Thinking(Vital):
        def asking(self, latent_steps, budgets, eval_k="fixed"):
            return super().asking(2, budgets, eval_k)

    with pytest.raises(ValueError, match="thinks in latent steps"):
        sampler(Thinking(toy.backbone()))


def test_the_control_tokens_of_the_vocabulary_are_banned(params, prompts):
    own = sampler(Direct(toy.backbone(lora=LoraConfig(4, 8.0, 0.0))), 1.5, Sampler)
    assert own.banned[toy.CONFIG.image_token_id] and not own.banned[toyfeed.END]
    found = own.draw(variables_of(params), prompts, np.arange(4))
    assert not np.isin(np.asarray(found.tokens)[np.asarray(found.modes) == TOKEN], np.flatnonzero(own.banned)).any()
