"""A prompt and what follows it, from three primitives: embed, prefill, extend (VITAL section 3.2).

    embed(batch)                      -> Prefix     a value; token pruning edits it
    prefill(prefix)                   -> z_0, kv    once per prompt; a constant of everything after
    extend(kv, vectors, positions)    -> h, kv      a latent step, an answer, a replay: any vectors at any suffix slots

`u_k` is the vector placed as input at latent step k, `z_k` the state that comes out; z_0 is the state at the prefix's last real column. The
plain recurrence is u_k = z_{k-1} (equation 1). Training (`interpret.py`) and decoding (`decode.py`) call the same functions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vital_jax.models.attention import Causal, KeyValues, Suffix
from vital_jax.models.backbone import Backbone, Prefix

Variables = dict[str, Any]  # {"params": base, "lora"?, "tokens"?, "feedback"?}

KEPT = ("lora", "tokens", "feedback")  # trained trees that answering needs; `scaffold` is for training alone
LOOP = "latent_loop"  # the scope of its operations in a compiled program, backward pass included


class Prompt(NamedTuple):
    """A prompt after the prefix pass: what every later pass reads and none writes."""

    kv: KeyValues  # [L, B, S, M, H] each
    lengths: jax.Array  # [B]
    next_position: jax.Array  # [B] int32, position of the first latent or answer column


def variables_of(params: Mapping[str, Any]) -> Variables:
    """What answering needs of a parameter tree {base, lora?, tokens?, feedback?, ...}, as the backbone's variables.

    Adapters and added tokens move the backbone where they are given; `feedback` is for the method's own modules inside the loop.
    """
    return {"params": params["base"], **{name: params[name] for name in KEPT if name in params}}


def _apply(model: Backbone, variables: Variables, key: jax.Array | None, *args: Any, **kwargs: Any) -> Any:
    rngs = None if key is None else {"dropout": key}
    return model.apply(variables, *args, method="decode", deterministic=key is None, rngs=rngs, **kwargs)


def embed(model: Backbone, variables: Variables, batch: Mapping[str, jax.Array]) -> Prefix:
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

    def clean(x: jax.Array) -> jax.Array:
        return jnp.where(valid, x, 0)

    h, (k, v), _ = _apply(
        model,
        variables,
        key,
        clean(prefix.x)[:, None],
        prefix.positions[:, :, None],
        Causal(prefix.lengths),
        deepstack=None if prefix.deepstack is None else clean(prefix.deepstack),
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
    cache: KeyValues,
    vectors: jax.Array,
    positions: jax.Array,
    real: jax.Array,
    slot: jax.Array | int,
    *,
    between: jax.Array | None = None,
    key: jax.Array | None = None,
    taps: jax.Array | None = None,
) -> tuple[jax.Array, KeyValues, jax.Array | None]:
    """Runs vectors at suffix slots [slot, slot + U) over the shared prefix and the suffix so far.

    Args:
      cache: of U' slots. vectors: [B, G, U, D]. positions: int32 [3, B, G, U], or [B, G, U] where the three axes are the same (text-like).
      real: [B, G, U'] bool, the slots that exist; of them a column sees those up to its own.
      slot: the first slot written, an integer or a traced scalar; or [B, G], where rows write single columns at slots of their own.
      between: [U, U'] bool, the slots that are on a column's branch; None where there is one branch.
      taps: [B, G, n] int32, columns of this call whose state is handed out at every layer.
    Returns: states [B, G, U, D], the cache, and the states at `taps` [L + 1, B, G, n, D].
    """
    B, G, U, _ = vectors.shape
    last = jnp.asarray(slot)[..., None] + jnp.arange(U)
    mask = Suffix(prompt.lengths, real, jnp.broadcast_to(last, (B, G, U)), between)
    positions = positions if positions.ndim == 4 else jnp.broadcast_to(positions, (3, B, G, U))
    return _apply(model, variables, key, vectors, positions, mask, prompt.kv, cache, slot, taps=taps)
