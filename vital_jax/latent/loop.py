"""VITAL's recurrent loop from three primitives: embed, prefill, extend (paper section 3.2, equations 1 and 2).

    embed(batch)                      -> Prefix     a value; token pruning edits it
    prefill(prefix)                   -> z_0, kv    once per prompt; a constant of everything after
    extend(kv, vectors, positions)    -> h, kv      a latent step, an answer, a replay: any vectors at any suffix slots

`u_k` is the vector placed as input at latent step k, `z_k` the state that comes out: u_k = z_{k-1}, and z_0 is the state at the prefix's
last real column. VITAL supervises the outputs z_1..z_K and reads the first answer token from z_K.

Suffix columns are shared by all rows whatever their prefix length or number of steps: first the latent slots, then the answer. What differs
per row (its number of steps K_i) is a mask and a position offset, data and never a Python branch. The scan over steps carries the suffix
cache of its few slots alone; carrying the prefix would keep K copies of it for the backward pass.

Training and decoding call the same functions. Training fuses the last latent step with the answer (`fused`): K_max - 1 loop steps, then
[u_{K_i}, answer] in one pass; the literal path of K_max steps is its oracle.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vital_jax.models.attention import Causal, KeyValues
from vital_jax.models.backbone import Backbone, Prefix

Variables = dict[str, Any]  # {"params": base, "lora"?, "tokens"?, "feedback"?}

KEPT = ("lora", "tokens", "feedback")  # trained trees that answering needs; `scaffold` is for training alone
LOOP = "latent_loop"  # the scope of its operations in a compiled program, backward pass included


class Prompt(NamedTuple):
    """A prompt after the prefix pass: what every later pass reads and none writes."""

    kv: KeyValues  # [L, B, S, M, H] each
    lengths: jax.Array  # [B]
    next_position: jax.Array  # [B] int32, position of the first latent or answer column


class Thoughts(NamedTuple):
    """What a teacher-forced pass yields."""

    u: jax.Array  # [B, G, K, D] inputs u_1..u_K, zero beyond a row's own steps
    z: jax.Array  # [B, G, K, D] outputs z_1..z_K, zero beyond a row's own steps
    z0: jax.Array  # [B, G, D]
    h: jax.Array  # [B, G, T, D] the states that predict answer tokens 1..T


def variables_of(params: Mapping[str, Any]) -> Variables:
    """What answering needs of a parameter tree {base, lora?, tokens?, feedback?, ...}, as the backbone's variables.

    Adapters and added tokens move the backbone where they are given; `feedback` is for the method's own modules inside the loop.
    """
    return {"params": params["base"], **{name: params[name] for name in KEPT if name in params}}


def _apply(model: Backbone, variables: Variables, key: jax.Array | None, *args: Any, **kwargs: Any) -> Any:
    rngs = None if key is None else {"dropout": key}
    return model.apply(variables, *args, method="decode", deterministic=key is None, rngs=rngs, **kwargs)


def embed(model: Backbone, variables: Variables, batch: dict[str, jax.Array]) -> Prefix:
    """Embeds the prompts and images of a batch. The vision tower is outside the gradient unless its parameters are inside it."""
    return model.apply(variables, batch, method="embed")


def prefill(
    model: Backbone, variables: Variables, prefix: Prefix, next_position: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, Prompt]:
    """Runs the prompt once.

    Args:
      next_position: [B] the position after the prompt (M-RoPE: one more than the largest).
      key: turns LoRA dropout on.
    Returns: z_0 [B, D], the state at each row's last real column, and the `Prompt`. What stands on padding, NaN too, reaches neither.
    """
    valid = (jnp.arange(prefix.x.shape[1]) < prefix.lengths[:, None])[..., None]
    clean = lambda x: None if x is None else jnp.where(valid, x, 0)  # noqa: E731
    h, (k, v) = _apply(
        model,
        variables,
        key,
        clean(prefix.x)[:, None],
        prefix.positions[:, :, None],
        Causal(prefix.lengths),
        deepstack=clean(prefix.deepstack),
    )
    z0 = jnp.take_along_axis(h[:, 0], (prefix.lengths - 1)[:, None, None], axis=1)[:, 0]
    return z0, Prompt((k[:, :, 0], v[:, :, 0]), prefix.lengths, next_position)


def empty_suffix(prompt: Prompt, groups: int, slots: int) -> KeyValues:
    """A suffix cache [L, B, G, slots, M, H] of zeros."""
    L, B, _, M, H = prompt.kv[0].shape
    return tuple(jnp.zeros((L, B, groups, slots, M, H), x.dtype) for x in prompt.kv)


def grow(suffix: KeyValues, slots: int) -> KeyValues:
    """The same cache with more empty slots at its end."""
    return tuple(jnp.pad(x, [(0, 0)] * 3 + [(0, slots)] + [(0, 0)] * 2) for x in suffix)


def extend(
    model: Backbone,
    variables: Variables,
    prompt: Prompt,
    suffix: KeyValues,
    vectors: jax.Array,
    positions: jax.Array,
    visible: jax.Array,
    slot: jax.Array | int,
    key: jax.Array | None = None,
) -> tuple[jax.Array, KeyValues]:
    """Runs vectors at suffix slots [slot, slot + U) over the shared prefix and the suffix so far.

    Args:
      vectors: [B, G, U, D]. positions: [B, G, U] int32, the same on all three axes (text-like).
      visible: boolean, broadcastable to [B, G, U, U'], the suffix slots a query may see, its own column included.
      slot: the first slot written, an integer or a traced scalar.
    Returns: states [B, G, U, D] and the suffix cache.
    """
    B, G, U, _ = vectors.shape
    S = prompt.kv[0].shape[2]
    inside = (jnp.arange(S) < prompt.lengths[:, None])[:, None, None]
    mask = jnp.concatenate([jnp.broadcast_to(m, (B, G, U, m.shape[-1])) for m in (inside, visible)], axis=-1)
    positions = jnp.broadcast_to(positions, (3, B, G, U))
    return _apply(model, variables, key, vectors, positions, mask, prompt.kv, suffix, slot)


def think(
    model: Backbone,
    variables: Variables,
    prompt: Prompt,
    z0: jax.Array,
    steps: int,
    key: jax.Array | None = None,
    probe: jax.Array | None = None,
) -> tuple[jax.Array, KeyValues]:
    """The loop, equation 1: z_k = f(z_{k-1}; prefix and earlier latent slots), for k = 1..steps.

    Args:
      z0: [B, G, D]. steps: how many, the same for all rows; a row that needs fewer ignores the rest.
      probe: [B, G, steps, D] added to the outputs, for gradients with respect to them.
    Returns: z_1..z_steps [B, G, steps, D] and the suffix cache of `steps` slots.
    """
    B, G, _ = z0.shape
    first = jnp.broadcast_to(prompt.next_position[:, None, None], (B, G, 1))

    def step(carry, k):
        z, suffix = carry
        visible = (jnp.arange(steps) <= k)[None, None, None]
        step_key = None if key is None else jax.random.fold_in(key, k)
        h, suffix = extend(model, variables, prompt, suffix, z[:, :, None], first + k, visible, k, step_key)
        z = h[:, :, 0] if probe is None else h[:, :, 0] + jax.lax.dynamic_index_in_dim(probe, k, 2, keepdims=False)
        return (z, suffix), z

    with jax.named_scope(LOOP):
        (_, suffix), z = jax.lax.scan(step, (z0, empty_suffix(prompt, G, steps)), jnp.arange(steps))
    return jnp.moveaxis(z, 0, 2), suffix


def teacher_force(
    model: Backbone,
    variables: Variables,
    prompt: Prompt,
    z0: jax.Array,
    answer: jax.Array,
    latent_steps: jax.Array,
    max_steps: int,
    fused: bool = True,
    key: jax.Array | None = None,
    probe: jax.Array | None = None,
) -> Thoughts:
    """Thinks, then reads a given answer (equation 2): a_1 from z_K, a_t from [prefix, latents, a_<t].

    Args:
      z0: [B, G, D]. answer: [B, G, T] int32, padded with any token.
      latent_steps: [B, G] int32 K_i in 1..max_steps (ignored when max_steps is 0: then a_1 is read from z_0).
      max_steps: K_max, the static size of the loop; 0 is a program of its own.
      fused: run the last latent step together with the answer. False: the literal loop.
      key: turns LoRA dropout on, with masks of their own for every pass.
      probe: [B, G, max_steps, D] added to the outputs z_1..z_K.
    """
    T = answer.shape[-1]
    loop_key, answer_key = (None, None) if key is None else jax.random.split(key)
    steps = latent_steps[..., None] if max_steps else jnp.zeros((*z0.shape[:2], 1), jnp.int32)  # [B, G, 1]
    in_loop = max_steps - 1 if fused and max_steps else max_steps
    if in_loop:
        looped, suffix = think(
            model, variables, prompt, z0, in_loop, loop_key, None if probe is None else probe[:, :, :in_loop]
        )
    else:
        looped, suffix = jnp.zeros((*z0.shape[:2], 0, z0.shape[-1]), z0.dtype), empty_suffix(prompt, z0.shape[1], 0)
    states = jnp.concatenate([z0[:, :, None], looped], axis=2)  # z_0 .. z_in_loop
    words = model.apply(variables, answer[..., : T - 1], method="embed_tokens")
    at = lambda k: jnp.take_along_axis(states, jnp.clip(k, 0, in_loop)[..., None], axis=2)  # noqa: E731

    # A row sees the latent slots that are its own: all K_i of them, less the one that is part of this pass when fused.
    lead = 1 if fused and max_steps else 0
    vectors = jnp.concatenate([at(steps - 1), words], axis=2) if lead else words
    U = T - 1 + lead
    first = prompt.next_position[:, None, None] + steps - lead
    own = jnp.arange(in_loop) < (steps - lead)[..., None]  # [B, G, 1, in_loop]
    causal = jnp.tril(jnp.ones((U, U), bool))
    visible = jnp.concatenate(
        [jnp.broadcast_to(own, (*own.shape[:2], U, in_loop)), jnp.broadcast_to(causal, (*own.shape[:2], U, U))], axis=-1
    )
    if U:
        h, _ = extend(
            model, variables, prompt, grow(suffix, U), vectors, first + jnp.arange(U), visible, in_loop, answer_key
        )
    else:
        h = words
    ks = jnp.arange(1, max_steps + 1)
    mine = (ks <= steps)[..., None]  # [B, G, K, 1]
    u = jnp.where(mine, states[:, :, :max_steps], 0)
    if not lead:
        return Thoughts(u, jnp.where(mine, looped, 0), z0, jnp.concatenate([at(steps), h], axis=2))
    last = h[:, :, :1]
    if probe is not None:
        last = last + jnp.take_along_axis(probe, (steps - 1)[..., None], axis=2)
        h = jnp.concatenate([last, h[:, :, 1:]], axis=2)
    padded = jnp.concatenate([looped, jnp.zeros_like(last)], axis=2)
    z = jnp.where((ks == steps)[..., None], last, padded)
    return Thoughts(u, jnp.where(mine, z, 0), z0, h)
