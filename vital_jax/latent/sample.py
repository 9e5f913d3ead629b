"""Answers from latents: think, then decode token by token, in one jitted program per shape.

The same `extend` that trains decodes. Suffix columns are the latent slots, then the answer's; a row with fewer steps than the loop has
simply does not see the slots that are not its own, and its answer's positions start earlier.

Where vectors are `given`, they stand in the latent slots in place of what the loop would feed back: recorded latents replayed, or others
put in their place to ask whether the answer depends on them. The whole span is then one causal pass instead of K steps.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vital_jax.latent.loop import Prompt, Variables, embed, empty_suffix, extend, grow, prefill, think
from vital_jax.models.attention import KeyValues
from vital_jax.models.backbone import Backbone


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen and when an answer ends. Part of a program: another value is another compilation.

    Attributes:
      length: T, the most tokens of an answer, the end token included. ends: tokens that end it; the first fills what follows.
      temperature: 0 takes the likeliest token; otherwise logits are divided by it and a token is drawn.
      top_p: draws from the smallest set of likeliest tokens that holds this much probability (equals of its last one included); 1 from all.

    Raises: ValueError for a number out of range.
    """

    length: int
    ends: tuple[int, ...]
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self):
        if self.length < 1 or not self.ends:
            raise ValueError(f"an answer needs room and an end: length={self.length}, ends={self.ends}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature}: 0 is greedy, larger draws")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: above 0, at most 1")
        if self.top_p < 1 and not self.temperature:
            raise ValueError(f"top_p={self.top_p} has no meaning at temperature 0, which takes the likeliest token")


class Sample(NamedTuple):
    """Decoded answers and the thoughts before them."""

    tokens: jax.Array  # [B, G, T] int32, the end token included, then the first of `ends`
    log_probs: jax.Array  # [B, G, T] float32 of the chosen tokens at temperature 1 among all tokens; zero after the end
    u: jax.Array  # [B, G, K, D] inputs of the latent slots, zero beyond a row's own steps
    z: jax.Array  # [B, G, K, D] their outputs, likewise
    z0: jax.Array  # [B, G, D] the state at the prefix's last column


def replay(model: Backbone, variables: Variables, prompt: Prompt, vectors: jax.Array) -> tuple[jax.Array, KeyValues]:
    """Runs given vectors [B, G, K, D] through the latent slots in one causal pass; returns as `think`, which it equals for its own u."""
    B, G, K, _ = vectors.shape
    vectors = vectors.astype(model.dtype)  # recorded ones come back as float32, and would make the whole pass so
    positions = prompt.next_position[:, None, None] + jnp.broadcast_to(jnp.arange(K), (B, G, K))
    causal = jnp.tril(jnp.ones((K, K), bool))[None, None]
    return extend(model, variables, prompt, empty_suffix(prompt, G, K), vectors, positions, causal, 0)


def _nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """Logits [..., V] with -inf outside the smallest set of likeliest tokens that holds `top_p` of the probability, equals together.

    Its smallest share is found bit by bit, as floats from zero up are ordered as their bits are: sorting a vocabulary of 150,000 for every
    token costs some thirty times more.
    """
    share = jax.nn.softmax(logits, axis=-1)
    kept = lambda bits: share >= jax.lax.bitcast_convert_type(bits, jnp.float32)  # noqa: E731

    def narrow(i, bits):
        higher = bits | (1 << (30 - i))
        enough = jnp.sum(jnp.where(kept(higher), share, 0), axis=-1, keepdims=True) >= top_p
        return jnp.where(enough, higher, bits)

    least = jax.lax.fori_loop(0, 31, narrow, jnp.zeros((*logits.shape[:-1], 1), jnp.int32))
    return jnp.where(kept(least), logits, -jnp.inf)


def choose(logits: jax.Array, decoding: Decoding, keys: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """A token for each row of logits [B, G, V], by its own key [B, G]; and its log-probability at temperature 1, float32."""
    if decoding.temperature:
        warm = logits / decoding.temperature
        warm = _nucleus(warm, decoding.top_p) if decoding.top_p < 1 else warm
        token = jax.vmap(jax.vmap(jax.random.categorical))(keys, warm)
    else:
        token = jnp.argmax(logits, axis=-1)
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), token[..., None], axis=-1)[..., 0]
    return token.astype(jnp.int32), log_prob


def decode(
    model: Backbone,
    variables: Variables,
    prompt: Prompt,
    states: jax.Array,
    suffix: KeyValues,
    steps: jax.Array,
    decoding: Decoding,
    keys: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Writes answers after latents, stopping when all rows have ended.

    Args:
      states: [B, G, K + 1, D], z_0..z_K. suffix: the cache of K slots. steps: [B, G] int32, K_i: a row's first token is read from z_{K_i}.
      keys: [B, G] random keys; a row's draws depend on its own alone.
    Returns: tokens [B, G, T] and log_probs [B, G, T] as `Sample`.
    """
    B, G, slots, _ = states.shape
    K, T, steps = slots - 1, decoding.length, steps[..., None]
    ends = jnp.asarray(decoding.ends)
    suffix = grow(suffix, T)
    columns = jnp.arange(K + T)
    mine = (columns < steps[..., None]) | (columns >= K)  # [B, G, 1, U']

    def write(state, h, t):
        tokens, log_probs, done = state
        logits = model.apply(variables, h[:, :, 0], method="logits")
        own = None if keys is None else jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(keys, t)
        token, log_prob = choose(logits, decoding, own)
        tokens = tokens.at[..., t].set(jnp.where(done, ends[0], token))
        log_probs = log_probs.at[..., t].set(jnp.where(done, 0.0, log_prob))
        return tokens, log_probs, done | (token[..., None] == ends).any(-1)

    def step(carry):
        t, suffix, state = carry
        word = model.apply(variables, state[0][..., t - 1][..., None], method="embed_tokens")
        position = prompt.next_position[:, None, None] + steps + t - 1
        slot = K + t - 1
        h, suffix = extend(model, variables, prompt, suffix, word, position, mine & (columns <= slot), slot)
        return t + 1, suffix, write(state, h, t)

    state = (jnp.full((B, G, T), ends[0], jnp.int32), jnp.zeros((B, G, T)), jnp.zeros((B, G), bool))
    state = write(state, jnp.take_along_axis(states, steps[..., None], axis=2), 0)
    going = lambda carry: (carry[0] < T) & ~jnp.all(carry[2][2])  # noqa: E731
    _, _, (tokens, log_probs, _) = jax.lax.while_loop(going, step, (1, suffix, state))
    return tokens, log_probs


def sample(
    model: Backbone,
    variables: Variables,
    prompt: Prompt,
    z0: jax.Array,
    latent_steps: jax.Array,
    max_steps: int,
    decoding: Decoding,
    keys: jax.Array | None = None,
    given: jax.Array | None = None,
) -> Sample:
    """Thinks for each row's own number of steps and decodes.

    Args:
      z0: [B, G, D]. latent_steps: [B, G] int32 in 1..max_steps (ignored when max_steps is 0).
      keys: [B, G] random keys, one per row; needed where the temperature is not 0.
      given: [B, G, max_steps, D] what stands in the latent slots in place of what the loop feeds back; see `replay`.
    Raises: ValueError for a temperature without keys, or vectors without latent slots.
    """
    if decoding.temperature and keys is None:
        raise ValueError(f"drawing at temperature {decoding.temperature} needs keys; temperature 0 is greedy")
    if given is not None and not max_steps:
        raise ValueError("vectors are given and there is no latent slot for them: max_steps is 0")
    if given is not None:
        z, suffix = replay(model, variables, prompt, given)
    elif max_steps:
        z, suffix = think(model, variables, prompt, z0, max_steps)
    else:
        z, suffix = jnp.zeros((*z0.shape[:2], 0, z0.shape[-1]), z0.dtype), empty_suffix(prompt, z0.shape[1], 0)
    states = jnp.concatenate([z0[:, :, None], z], axis=2)
    steps = latent_steps if max_steps else jnp.zeros_like(latent_steps)
    tokens, log_probs = decode(model, variables, prompt, states, suffix, steps, decoding, keys)
    own = (jnp.arange(1, max_steps + 1) <= steps[..., None])[..., None]
    u = states[:, :, :max_steps] if given is None else given.astype(z.dtype)
    return Sample(tokens, log_probs, jnp.where(own, u, 0), jnp.where(own, z, 0), z0)


def row_keys(seed: int, numbers: jax.Array, groups: int) -> jax.Array:
    """[B, G] keys from the prompts' own numbers [B], so that a prompt's draws do not depend on the batch it is in."""
    one = jax.random.key(seed)
    of = lambda number, g: jax.random.fold_in(jax.random.fold_in(one, number), g)  # noqa: E731
    return jax.vmap(lambda number: jax.vmap(lambda g: of(number, g))(jnp.arange(groups)))(jnp.asarray(numbers))


# Takes the backbone alone, not the method: runs that differ in their scaffold share the compiled program.
@functools.partial(jax.jit, static_argnames=("model", "max_steps", "decoding", "groups"))
def respond(
    model: Backbone,
    variables: Variables,
    batch: Mapping[str, jax.Array],
    max_steps: int,
    decoding: Decoding,
    groups: int = 1,
    keys: jax.Array | None = None,
    given: jax.Array | None = None,
) -> Sample:
    """G = `groups` answers to each prompt of a batch (pipeline/batch.py) in one program: one prefill per prompt, then `sample`."""
    z0, prompt = prefill(model, variables, embed(model, variables, batch), batch["next_position"])
    spread = lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], groups, *x.shape[1:]))  # noqa: E731
    steps = spread(jnp.asarray(batch["latent_steps"]))
    return sample(model, variables, prompt, spread(z0), steps, max_steps, decoding, keys, given)
