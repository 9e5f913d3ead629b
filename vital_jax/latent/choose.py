"""Which token comes next: penalties, temperature and cuts as arrays, so that other numbers are no other program.

Definitions and order are those of transformers' logits processors: repetition penalty, then, where a token is drawn, temperature, top-k,
top-p and min-p. Greedy choice takes the likeliest after the penalty. Two things differ on purpose: equals of the last token kept are kept
with it, and a cut is found by its threshold, bit by bit: sorting a vocabulary of 150,000 for every token costs some thirty times more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vital_jax.latent.script import NONE


class Sampling(NamedTuple):
    """How each row chooses its tokens and when its answer ends.

    E end tokens, Q stop sequences of at most W tokens; NONE where a row has fewer.
    """

    key: jax.Array  # [B, G, 2] uint32, the data of a random key; a row's draws depend on its own alone
    temperature: jax.Array  # [B, G] float32; 0 is greedy
    top_p: jax.Array  # [B, G] float32; 1 keeps all
    top_k: jax.Array  # [B, G] int32; 0 keeps all
    min_p: jax.Array  # [B, G] float32; 0 keeps all
    repetition_penalty: jax.Array  # [B, G] float32; 1 changes nothing
    length: jax.Array  # [B, G] int32, the most tokens of an answer
    ends: jax.Array  # [B, G, E] int32
    stops: jax.Array  # [B, G, Q, W] int32, each at the right end


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen and when an answer ends.

    Attributes:
      length: T, the most tokens of an answer, the end token included. ends: tokens that end it.
      temperature: 0 takes the likeliest token; otherwise logits are divided by it and a token is drawn.
      top_p: draws from the smallest set of likeliest tokens that holds this much probability (equals of its last one included); 1 from all.
      top_k: draws from the k likeliest tokens (equals of the last one included); 0 from all.
      min_p: draws from tokens that have at least this part of the likeliest one's probability; 0 from all.
      repetition_penalty: divides positive logits of tokens that the prompt or the text so far holds, and multiplies negative ones.
      stops: sequences of tokens that end an answer as end tokens do.

    Raises: ValueError for a number out of range.
    """

    length: int
    ends: tuple[int, ...]
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stops: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.length < 1 or not self.ends:
            raise ValueError(f"an answer needs room and an end: length={self.length}, ends={self.ends}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature}: 0 is greedy, larger draws")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: above 0, at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: 0 keeps all tokens, a positive number that many")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p}: from 0 to 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty={self.repetition_penalty}: above 0; 1 changes nothing")
        if not all(self.stops):
            raise ValueError("a stop sequence holds no token")
        for name, neutral in (("top_p", 1), ("top_k", 0), ("min_p", 0)):
            if getattr(self, name) != neutral and not self.temperature:
                raise ValueError(
                    f"{name}={getattr(self, name)} has no meaning at temperature 0, which takes the likeliest token"
                )

    def rows(self, B: int, G: int = 1, keys: jax.Array | None = None) -> Sampling:
        """The same for every row, as arrays.

        Args:
          keys: [B, G] random keys; needed where the temperature is not 0.
        Raises: ValueError for a temperature without keys.
        """
        if self.temperature and keys is None:
            raise ValueError(f"drawing at temperature {self.temperature} needs keys; temperature 0 is greedy")

        def full(value: float, dtype: type) -> np.ndarray:
            return np.full((B, G), value, dtype)

        data = np.broadcast_to(_no_key(), (B, G, 2)) if keys is None else np.asarray(jax.random.key_data(keys))
        W = max(map(len, self.stops), default=1)
        stops = np.asarray([[NONE] * (W - len(own)) + list(own) for own in self.stops], np.int32).reshape(-1, W)
        return Sampling(
            data,
            full(self.temperature, np.float32),
            full(self.top_p, np.float32),
            full(self.top_k, np.int32),
            full(self.min_p, np.float32),
            full(self.repetition_penalty, np.float32),
            full(self.length, np.int32),
            np.broadcast_to(np.asarray(self.ends, np.int32), (B, G, len(self.ends))),
            np.broadcast_to(stops, (B, G, *stops.shape)),
        )


@cache
def _no_key() -> np.ndarray:
    return np.asarray(jax.random.key_data(jax.random.key(0)))


def row_keys(seed: int, numbers: jax.Array, groups: int) -> jax.Array:
    """[B, G] keys from the prompts' own numbers [B], so that a prompt's draws do not depend on the batch it is in."""
    one = jax.random.key(seed)

    def of(number: jax.Array, g: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(one, number), g)

    return jax.vmap(lambda number: jax.vmap(lambda g: of(number, g))(jnp.arange(groups)))(jnp.asarray(numbers))


def folded(key: jax.Array, number: jax.Array) -> jax.Array:
    """[B, G] keys from the data of keys [B, G, 2] and a number [B, G] of each."""
    return jax.vmap(jax.vmap(jax.random.fold_in))(jax.random.wrap_key_data(key), number)


def drawn_from(logits: jax.Array, temperature: jax.Array | float, banned: jax.Array | None) -> jax.Array:
    """Scores [..., V] of the distribution that tokens are drawn from, where no cut and no penalty changes it further."""
    logits = logits if banned is None else jnp.where(banned, -jnp.inf, logits)
    return logits / temperature


def choose(
    logits: jax.Array, sampling: Sampling, seen: jax.Array, number: jax.Array, banned: jax.Array | None = None
) -> jax.Array:
    """[B, G] int32: a token for each row of logits [B, G, V].

    Args:
      seen: [B, G, n] int32 tokens of the prompt and of the text so far, for the repetition penalty; V or more in place of none.
      number: [B, G] int32, how many tokens the row has chosen before; makes the key of this one.
      banned: [V] bool, tokens that are never chosen.
    """
    if banned is not None:
        logits = jnp.where(banned, -jnp.inf, logits)
    penalty, warm = sampling.repetition_penalty, sampling.temperature > 0

    def otherwise() -> jax.Array:
        x = jax.lax.cond(jnp.any(penalty != 1), lambda: _penalised(logits, penalty, seen), lambda: logits)
        likeliest = jnp.argmax(x, axis=-1).astype(jnp.int32)
        x = x / jnp.where(warm, sampling.temperature, 1)[..., None]
        for asked, cut in (
            (sampling.top_k > 0, lambda x: _top_k(x, sampling.top_k)),
            (sampling.top_p < 1, lambda x: _nucleus(x, sampling.top_p)),
            (sampling.min_p > 0, lambda x: _min_p(x, sampling.min_p)),
        ):
            x = jax.lax.cond(
                jnp.any(asked), lambda x, asked=asked, cut=cut: jnp.where(asked[..., None], cut(x), x), lambda x: x, x
            )
        drawn = jax.vmap(jax.vmap(jax.random.categorical))(folded(sampling.key, number), x)
        return jnp.where(warm, drawn.astype(jnp.int32), likeliest)

    # Most decoding is greedy and without penalty: that pays for one comparison of the vocabulary, and for no copy of it.
    return jax.lax.cond(
        jnp.any(warm | (penalty != 1)), otherwise, lambda: jnp.argmax(logits, axis=-1).astype(jnp.int32)
    )


def _penalised(logits: jax.Array, penalty: jax.Array, seen: jax.Array) -> jax.Array:
    """CTRL's repetition penalty (Keskar et al. 2019), as transformers has it: once for a token, however often it is seen."""
    own = jnp.take_along_axis(logits, jnp.minimum(seen, logits.shape[-1] - 1), axis=-1)
    own = jnp.where(own < 0, own * penalty[..., None], own / penalty[..., None])
    return jax.vmap(jax.vmap(lambda row, place, value: row.at[place].set(value, mode="drop")))(logits, seen, own)


def _at_least(x: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """[..., V] bool: x at or above the largest threshold at which `enough` of what is kept is still true.

    Floats of one sign are ordered as their bits are; with the others turned round all are.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    order = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))

    def narrow(i: jax.Array, least: jax.Array) -> jax.Array:
        higher = least | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(enough(order >= higher), higher, least)

    return order >= jax.lax.fori_loop(0, 32, narrow, jnp.zeros((*x.shape[:-1], 1), jnp.uint32))


def _nucleus(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """Logits [B, G, V] with -inf outside the smallest set of likeliest tokens that holds `top_p` of the probability, equals together."""
    share = jax.nn.softmax(logits, axis=-1)
    enough = lambda kept: jnp.sum(jnp.where(kept, share, 0), axis=-1, keepdims=True) >= top_p[..., None]  # noqa: E731
    return jnp.where(_at_least(share, enough), logits, -jnp.inf)


def _top_k(logits: jax.Array, top_k: jax.Array) -> jax.Array:
    """Logits [B, G, V] with -inf below the k-th largest."""
    k = jnp.minimum(top_k, logits.shape[-1])[..., None]
    return jnp.where(_at_least(logits, lambda kept: jnp.sum(kept, axis=-1, keepdims=True) >= k), logits, -jnp.inf)


def _min_p(logits: jax.Array, min_p: jax.Array) -> jax.Array:
    """Logits [B, G, V] with -inf where the probability is below `min_p` times the largest one (Nguyen et al. 2024)."""
    share = jax.nn.softmax(logits, axis=-1)
    return jnp.where(share < min_p[..., None] * jnp.max(share, axis=-1, keepdims=True), -jnp.inf, logits)
