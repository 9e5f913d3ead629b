"""A toy whose optimum is known: a backbone of which one vector trains, and a reward for the first token.

What is to be maximised is then a mean of probabilities, which can be written down and climbed exactly. Grouped learning, which knows it
from draws alone, has to come as far with the same optimizer in the same number of steps.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import toy
import toyfeed
from learning import GROUP, GRPO

from vital_jax.latent.choose import drawn_from
from vital_jax.latent.loop import embed, prefill, variables_of
from vital_jax.rl.experience import Schedule
from vital_jax.rl.rewards import Reward
from vital_jax.training.partition import merge

A, STEPS = 11, 25
TABLE = (("base/language_model/norm/.*", "trainable"), ("base/(?!language_model/norm/).*", "frozen"))


def first(record, reply):
    return float(reply.tokens[0] == A)


def test_grouped_learning_reaches_what_exact_ascent_reaches(trainer):
    own = trainer(
        params=toy.params(toy.method(), lora=False), table=TABLE, rewards=(Reward("first", 1.0, first),),
        objective=dataclasses.replace(GRPO, kl="none", kl_coefficient=0.0),
        normalisation=dataclasses.replace(GROUP, scale="none"),
        schedule=Schedule(64), group=16, length=1, ends=(toyfeed.END,), optimizer=optax.adam(0.1), micro_batches=1,
        more={"page_every": 0},
    )  # fmt: skip
    model, banned, prompts = own.experience.method.model, own.experience.sampler.banned, own.block()
    frozen, start = own.frozen, own.state["trainable"]

    def expected(trainable):
        """The mean probability of A as the first token, over all prompts."""
        v = variables_of(merge(trainable, frozen))
        z0, _ = prefill(model, v, embed(model, v, prompts), prompts["next_position"])
        p = jax.nn.softmax(drawn_from(model.apply(v, z0, method="logits"), 1.0, banned))
        return jnp.mean(p[:, A])

    climbed, moments = jax.tree.map(jnp.copy, start), own.optimizer.init(start)
    ascent = jax.jit(jax.value_and_grad(lambda trainable: -expected(trainable)))
    before = -float(ascent(climbed)[0])
    for _ in range(STEPS):
        updates, moments = own.optimizer.update(ascent(climbed)[1], moments)
        climbed = optax.apply_updates(climbed, updates)
        metrics, _ = own.step()
    best, reached = (-float(ascent(tree)[0]) for tree in (climbed, own.state["trainable"]))
    assert best > 10 * before, (before, best)
    np.testing.assert_allclose(metrics["reward"], reached, atol=0.1)
    assert reached >= 0.95 * best, (before, best, reached)
