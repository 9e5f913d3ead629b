"""Answers from latents: think, then decode token by token, in one jitted program per shape.

The same `extend` that trains decodes. Suffix columns are the latent slots, then the answer's; a row with fewer steps than the loop has
simply does not see the slots that are not its own, and its answer's positions start earlier.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vital_jax.latent.loop import Prompt, Variables, embed, empty_suffix, extend, grow, prefill, think
from vital_jax.models.qwen3_vl import Qwen3VL


class Sample(NamedTuple):
    """Decoded answers and the thoughts before them."""

    tokens: jax.Array  # [B, G, T] int32, the end token included, then `end`
    log_probs: jax.Array  # [B, G, T] float32 of the chosen tokens at temperature 1, zero after the end
    u: jax.Array  # [B, G, K, D] inputs
    z: jax.Array  # [B, G, K, D] outputs
    z0: jax.Array  # [B, G, D]


def sample(
    model: Qwen3VL,
    variables: Variables,
    prompt: Prompt,
    z0: jax.Array,
    latent_steps: jax.Array,
    max_steps: int,
    length: int,
    end: int,
    temperature: float = 0.0,
    key: jax.Array | None = None,
) -> Sample:
    """Thinks for each row's own number of steps and decodes up to `length` tokens, stopping when all rows have ended.

    Args:
      z0: [B, G, D]. latent_steps: [B, G] int32 in 1..max_steps (ignored when max_steps is 0).
      end: the token that ends an answer.
      temperature: 0 is greedy; otherwise `key` is needed.
    Raises: ValueError for a temperature without a key.
    """
    if temperature and key is None:
        raise ValueError(f"sampling at temperature {temperature} needs a key; temperature 0 is greedy")
    B, G, _ = z0.shape
    steps = latent_steps[..., None] if max_steps else jnp.zeros((B, G, 1), jnp.int32)
    if max_steps:
        looped, suffix = think(model, variables, prompt, z0, max_steps)
    else:
        looped, suffix = jnp.zeros((B, G, 0, z0.shape[-1]), z0.dtype), empty_suffix(prompt, G, 0)
    states = jnp.concatenate([z0[:, :, None], looped], axis=2)
    h = jnp.take_along_axis(states, steps[..., None], axis=2)
    suffix = grow(suffix, length)
    columns = jnp.arange(max_steps + length)
    mine = (columns < steps[..., None]) | (columns >= max_steps)  # [B, G, 1, U']

    def choose(h, t):
        logits = model.apply(variables, h[:, :, 0], method="logits")
        if temperature:
            token = jax.random.categorical(jax.random.fold_in(key, t), logits / temperature, axis=-1)
        else:
            token = jnp.argmax(logits, axis=-1)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), token[..., None], axis=-1)[..., 0]
        return token.astype(jnp.int32), log_prob

    def write(state, h, t):
        tokens, log_probs, done = state
        token, log_prob = choose(h, t)
        tokens = tokens.at[..., t].set(jnp.where(done, end, token))
        log_probs = log_probs.at[..., t].set(jnp.where(done, 0.0, log_prob))
        return tokens, log_probs, done | (token == end)

    def step(carry):
        t, suffix, state = carry
        word = model.apply(variables, state[0][..., t - 1][..., None], method="embed_tokens")
        position = prompt.next_position[:, None, None] + steps + t - 1
        slot = max_steps + t - 1
        h, suffix = extend(model, variables, prompt, suffix, word, position, mine & (columns <= slot), slot)
        return t + 1, suffix, write(state, h, t)

    state = (jnp.full((B, G, length), end, jnp.int32), jnp.zeros((B, G, length)), jnp.zeros((B, G), bool))
    state = write(state, h, 0)
    _, _, (tokens, log_probs, _) = jax.lax.while_loop(
        lambda carry: (carry[0] < length) & ~jnp.all(carry[2][2]), step, (1, suffix, state)
    )
    own = (jnp.arange(1, max_steps + 1) <= steps)[..., None]
    return Sample(tokens, log_probs, jnp.where(own, states[:, :, :max_steps], 0), jnp.where(own, looped, 0), z0)


# Takes the backbone alone, not the method: runs that differ in their scaffold share the compiled program.
@functools.partial(jax.jit, static_argnames=("model", "max_steps", "length", "end"))
def respond(
    model: Qwen3VL, variables: Variables, batch: Mapping[str, jax.Array], max_steps: int, length: int, end: int
) -> Sample:
    """Greedy answers to a batch of prompts (pipeline/batch.py), G = 1: embed, prefill and `sample` in one program."""
    z0, prompt = prefill(model, variables, embed(model, variables, batch), batch["next_position"])
    steps = jnp.asarray(batch["latent_steps"])[:, None]
    return sample(model, variables, prompt, z0[:, None], steps, max_steps, length, end)
