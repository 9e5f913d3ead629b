"""Answers, one column of every row at a time: a forced token, a latent, or a token that the model chooses.

Everything that a row depends on is data of that row: where it stands in its script, its cache's next slot, its key and temperature. So rows
of one program may think for another number of steps, be in their latents while others write, open a latent span when they write a token,
or be replaced by another prompt while the rest goes on (`insert`). A step is `step`; `respond` is a prompt's whole answer.

    begin    embed, prefill, and the choice of the first column   -> State
    step     runs the column chosen last, and chooses the next    -> State; the head is passed over while all rows are inside latents
    respond  begin, and steps until every row is done             -> Decoded, all that a replay needs

Free text that is followed by forced text (a chain of thought before its lead-in) ends when the model has written that text itself, at an
end token, or with its budget; in the last two cases the text is forced. The last free text, the answer, ends at an end token, a stop
sequence or its budget. A `span` (start token, n, closing token) opens n latents and forces the closing token whenever a row writes the
start token; all of its columns count for the budget, and where that is used up the span is cut.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vital_jax.latent.choose import Sampling, choose, drawn_from, folded
from vital_jax.latent.loop import Prompt, Variables, embed, empty_suffix, extend, prefill
from vital_jax.latent.script import NONE, Script, columns, items, script_of
from vital_jax.models.attention import KeyValues
from vital_jax.models.backbone import Backbone
from vital_jax.pipeline.segments import FORCED, LATENT, PADDING, TOKEN, Suffix

# (variables, z, k, key) -> u: the input [B, G, D] of a row's k-th latent (1, 2, ...) from the state z that would predict it; k and keys are
# [B, G]. What it reads beside the backbone has to be among the variables.
Feed = Callable[[Variables, jax.Array, jax.Array, jax.Array], jax.Array]
Span = tuple[int, int, int]  # start token, latents, closing token
_LATENT_KEYS = 2**32 - 1  # no number of a token


class Plan(NamedTuple):
    """What is a part of the compiled program.

    Attributes:
      suffix: what is written, its literal texts bound to tokens (`latent/script.py`). feed: makes the inputs of latents; None feeds states
      back as they are. span: latents that a token opens.
      drawn: record log-probabilities under the distribution that free tokens are drawn from (`choose.drawn_from`), not at temperature 1
        among all tokens: what reinforcement learning compares a replay with.
    """

    suffix: Suffix
    feed: Feed | None = None
    span: Span | None = None
    drawn: bool = False


class Asked(NamedTuple):
    """What a row is asked for; no step writes it."""

    script: Script
    sampling: Sampling
    prompt: jax.Array  # [B, G, S] int32, the prompt's tokens; V on padding
    given: jax.Array | None  # [B, G, R, D] what stands in the latents in place of what would be fed back


class Rows(NamedTuple):
    """Where every row stands, and what is recorded of it.

    U: columns; R: latents a row may take; W: tokens that an end is looked for in, 0 where nothing but a single token ends a text.
    """

    cache: KeyValues  # [L, B, G, U, M, H] each
    x: jax.Array  # [B, G, D] the input of the column chosen last
    mode: jax.Array  # [B, G] int32, what that column is
    slot: jax.Array  # [B, G] int32, columns chosen so far: the next one's place behind the prompt
    cursor: jax.Array  # [B, G] int32, the item of the script
    left: jax.Array  # [B, G] int32, columns left of it
    span: jax.Array  # [B, G] int32, columns left of an open span, its closing token included; 0 where none is open
    latents: jax.Array  # [B, G] int32, latents taken
    chosen: jax.Array  # [B, G] int32, tokens the model has chosen
    tail: jax.Array  # [B, G, W] int32, the last tokens of the item; NONE before its first, and for latents
    done: jax.Array  # [B, G] bool
    complete: jax.Array  # [B, G] bool, whether the answer has ended by itself
    answer: jax.Array  # [B, G] int32, the column at which the answer begins
    tokens: jax.Array  # [B, G, U] int32; 0 where a column is no token
    log_probs: (
        jax.Array
    )  # [B, G, U] float32 of tokens, forced ones too, at temperature 1 among all tokens (see `Plan.drawn`); 0 elsewhere
    modes: jax.Array  # [B, G, U] int32
    u: jax.Array  # [B, G, R, D] inputs of latents, a row's first in front; 0 off its own
    z: (
        jax.Array
    )  # [B, G, R, D] what came out of them; 0 of a latent that the budget ends with, on which nothing follows


class State(NamedTuple):
    """Rows at work. banned: [V] bool, tokens that are never chosen."""

    prompt: Prompt
    asked: Asked
    banned: jax.Array | None
    rows: Rows


class Decoded(NamedTuple):
    """Finished rows, fields as in `Rows`."""

    tokens: jax.Array  # [B, G, U]
    log_probs: jax.Array  # [B, G, U]
    modes: jax.Array  # [B, G, U]
    answer: jax.Array  # [B, G]
    complete: jax.Array  # [B, G]
    u: jax.Array  # [B, G, R, D]
    z: jax.Array  # [B, G, R, D]
    z0: jax.Array  # [B, G, D] the state at the prompt's last column

    def answers(self, length: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
        """The answers alone, on the host: tokens [B, G, T], `fill` behind the end, and log_probs, zero there; T = `length`."""
        tokens, log_probs, modes, answer = map(np.asarray, jax.device_get(self[:4]))
        text = (np.arange(tokens.shape[-1]) >= answer[..., None]) & np.isin(modes, (TOKEN, FORCED))
        order = np.argsort(~text, axis=-1, kind="stable")[..., :length]
        own = np.take_along_axis(text, order, axis=-1)

        def pick(x: np.ndarray, other: float | np.float32) -> np.ndarray:
            return np.where(own, np.take_along_axis(x, order, axis=-1), other)

        return pick(tokens, fill), pick(log_probs, np.float32(0))

    def recorded(self, name: str) -> dict[str, jax.Array]:
        """The arrays of a `recorded` segment that replays these columns (pipeline/segments.py): modes, tokens, and inputs [B, G, U, D]."""
        latent = self.modes == LATENT
        R = self.u.shape[2]
        inputs = jnp.zeros((*latent.shape, self.u.shape[-1]), self.u.dtype)
        if R:
            place = jnp.clip(jnp.cumsum(latent, axis=-1) - 1, 0, R - 1)
            inputs = jnp.where(latent[..., None], jnp.take_along_axis(self.u, place[..., None], axis=2), 0)
        return {f"{name}_mode": self.modes, f"{name}_tokens": self.tokens, f"{name}_inputs": inputs}


def _at(x: jax.Array, place: jax.Array) -> jax.Array:
    """Of x [B, G, n, ...] the entry at [B, G]."""
    return jnp.take_along_axis(x, place.reshape(*place.shape, *(1,) * (x.ndim - 2)), axis=2)[:, :, 0]


def _put(x: jax.Array, place: jax.Array, value: jax.Array, where: jax.Array) -> jax.Array:
    """x [B, G, n, ...] with a value [B, G, ...] at [B, G], where that is wanted."""
    here = (jnp.arange(x.shape[2]) == place[..., None]) & where[..., None]
    return jnp.where(here.reshape(*here.shape, *(1,) * (x.ndim - 3)), value[:, :, None], x)


def _next(script: Script, cursor: jax.Array) -> jax.Array:
    """[B, G]: the first item behind these that has columns."""
    return jnp.argmax((jnp.arange(script.kind.shape[-1]) > cursor[..., None]) & (script.count > 0), axis=-1)


def _ends_in(tail: jax.Array, text: jax.Array) -> jax.Array:
    """Whether the last tokens [..., W] are those of a text [..., n], n <= W, which has NONE before its first."""
    tail = tail[..., tail.shape[-1] - text.shape[-1] :]
    return jnp.all((text == NONE) | (text == tail), axis=-1) & (text[..., -1] != NONE)


def start(
    model: Backbone,
    variables: Variables,
    batch: Mapping[str, jax.Array],
    prompt: Prompt,
    z0: jax.Array,
    plan: Plan,
    sampling: Sampling,
    given: jax.Array | None = None,
    *,
    banned: jax.Array | None = None,
) -> State:
    """Prompts after their prefill with the first column of each row chosen. Arguments as `respond`; z0: [B, D]."""
    B, G = sampling.length.shape
    z0 = jnp.broadcast_to(z0[:, None], (B, G, z0.shape[-1]))
    U, R = columns(plan.suffix)
    R = R if plan.span is None else U
    if given is not None and not R:
        raise ValueError("vectors are given and there is no latent column for them: the layout has no latents")
    if given is not None:
        given = jnp.asarray(given).astype(model.dtype)
        given = jnp.pad(given, [(0, 0), (0, 0), (0, max(0, R - given.shape[2])), (0, 0)])
    script = script_of(plan.suffix, batch, sampling.length)
    inside = jnp.arange(batch["tokens"].shape[1]) < prompt.lengths[:, None]
    said = jnp.where(inside, batch["tokens"], model.config.decoder.vocab)[:, None]
    asked = Asked(script, sampling, jnp.broadcast_to(said, (B, G, said.shape[-1])), given)
    zero, no = jnp.zeros((B, G), jnp.int32), jnp.zeros((B, G), bool)
    cursor = _next(script, zero - 1)
    written = items(plan.suffix)
    ends_in_text = any(a.kind == TOKEN and b.kind == FORCED for a, b in itertools.pairwise(written))
    Q, W = sampling.stops.shape[2:]
    W = max(script.ids.shape[-1] if ends_in_text else 0, W if Q else 0)
    rows = Rows(
        cache=empty_suffix(prompt, G, U),
        x=z0,
        mode=zero,
        slot=zero,
        cursor=cursor,
        left=_at(script.count, cursor),
        span=zero,
        latents=zero,
        chosen=zero,
        tail=jnp.full((B, G, W), NONE),
        done=no,
        complete=no,
        answer=zero,
        tokens=jnp.zeros((B, G, U), jnp.int32),
        log_probs=jnp.zeros((B, G, U)),
        modes=jnp.full((B, G, U), PADDING),
        u=jnp.zeros((B, G, R, z0.shape[-1]), z0.dtype),
        z=jnp.zeros((B, G, R, z0.shape[-1]), z0.dtype),
    )
    state = State(prompt, asked, None if banned is None else jnp.asarray(banned), rows)
    return state._replace(rows=_choose(model, variables, state, z0, plan))


def begin(
    model: Backbone,
    variables: Variables,
    batch: Mapping[str, jax.Array],
    plan: Plan,
    sampling: Sampling,
    given: jax.Array | None = None,
    banned: jax.Array | None = None,
) -> State:
    """Prompts with the first column of each row chosen: one prefill a prompt, G rows over it. Arguments as `respond`."""
    z0, prompt = prefill(model, variables, embed(model, variables, batch), batch["next_position"])
    return start(model, variables, batch, prompt, z0, plan, sampling, given, banned=banned)


def step(model: Backbone, variables: Variables, state: State, plan: Plan) -> State:
    """Runs the column that every row chose last, and chooses the next. Rows that are done stay as they are."""
    prompt, _, _, rows = state
    B, G, U = rows.tokens.shape
    place = rows.slot - 1
    position = prompt.next_position[:, None] + place
    everything = jnp.ones((B, G, U), bool)  # a column sees those up to its own
    h, cache, _ = extend(
        model, variables, prompt, rows.cache, rows.x[:, :, None], position[..., None], everything, place
    )
    rows, h = rows._replace(cache=cache), h[:, :, 0]
    if rows.z.shape[2]:
        rows = rows._replace(z=_put(rows.z, rows.latents - 1, h, (rows.mode == LATENT) & ~rows.done))
    return state._replace(rows=_choose(model, variables, state._replace(rows=rows), h, plan))


def _choose(model: Backbone, variables: Variables, state: State, h: jax.Array, plan: Plan) -> Rows:
    """The next column of every row, chosen from the states h [B, G, D] that predict it, and what follows from it."""
    _, asked, banned, rows = state
    script, sampling, cursor = asked.script, asked.sampling, rows.cursor
    going, kind, ids = ~rows.done, _at(script.kind, cursor), _at(script.ids, cursor)
    latent, forced, free = (going & (kind == which) for which in (LATENT, FORCED, TOKEN))
    k, token = _at(script.count, cursor) - rows.left + 1, _at(ids, jnp.maximum(ids.shape[-1] - rows.left, 0))
    if plan.span is not None:
        opening, n, closing = plan.span
        opened, closes = free & (rows.span > 1), free & (rows.span == 1)
        k, token = jnp.where(opened, n + 2 - rows.span, k), jnp.where(closes, closing, token)
        latent, forced, free = latent | opened, forced | closes, free & (rows.span == 0)

    def write() -> tuple[jax.Array, jax.Array]:
        logits = model.apply(variables, h, method="logits")
        said = jnp.where((rows.modes == TOKEN) | (rows.modes == FORCED), rows.tokens, logits.shape[-1])
        seen = jnp.concatenate([asked.prompt, said], axis=-1)
        own = jnp.where(free, choose(logits, sampling, seen, rows.chosen, banned), token)
        if plan.drawn:
            logits = drawn_from(logits, sampling.temperature[..., None], banned)
        return own, _at(logits, own) - jax.nn.logsumexp(logits, axis=-1)

    text = forced | free
    token, log_prob = jax.lax.cond(jnp.any(text), write, lambda: (jnp.zeros_like(token), jnp.zeros(token.shape)))
    x = model.apply(variables, token, method="embed_tokens")
    if rows.u.shape[2]:
        u = h if asked.given is None else _at(asked.given, jnp.minimum(rows.latents, asked.given.shape[2] - 1))
        if plan.feed is not None and asked.given is None:
            u = plan.feed(variables, h, k, folded(_latent_keys(sampling.key), rows.latents)).astype(h.dtype)
        x = jnp.where(latent[..., None], u, x)
        rows = rows._replace(u=_put(rows.u, rows.latents, u, latent))
    mode = jnp.select([latent, forced, free], [LATENT, FORCED, TOKEN], PADDING).astype(jnp.int32)
    rows = rows._replace(
        x=jnp.where(going[..., None], x, rows.x),
        mode=mode,
        tokens=_put(rows.tokens, rows.slot, token, text),
        log_probs=_put(rows.log_probs, rows.slot, log_prob, text),
        modes=_put(rows.modes, rows.slot, mode, going),
        latents=rows.latents + latent,
        chosen=rows.chosen + free,
        slot=rows.slot + going,
        left=rows.left - going,
    )
    if plan.span is not None:
        opens = free & (token == opening)
        rows = rows._replace(span=jnp.where(opens, n + 1, jnp.maximum(rows.span - going, 0)))
    if rows.tail.shape[-1]:
        tail = jnp.concatenate([rows.tail[..., 1:], jnp.where(text, token, NONE)[..., None]], axis=-1)
        rows = rows._replace(tail=tail)
    return _turn(script, sampling, rows, going, free, token)


def _turn(script: Script, sampling: Sampling, rows: Rows, going: jax.Array, free: jax.Array, token: jax.Array) -> Rows:
    """Rows whose item of the script is over go on to the next one. free: [B, G] bool, rows that have chosen this `token` themselves."""
    behind = _next(script, rows.cursor)
    following = _at(script.kind, behind)
    last = following == PADDING
    stopped = free & jnp.any(token[..., None] == sampling.ends, axis=-1)
    if sampling.stops.shape[2]:
        stopped |= free & last & jnp.any(_ends_in(rows.tail[:, :, None], sampling.stops), axis=-1)
    over = going & ((rows.left == 0) | stopped)
    cursor = behind
    if rows.tail.shape[-1] >= script.ids.shape[-1]:  # it is shorter only where no forced text follows free text
        written = free & (following == FORCED) & _ends_in(rows.tail, _at(script.ids, behind))
        over |= going & written
        cursor = jnp.where(written, _next(script, behind), behind)
    cursor = jnp.where(over, cursor, rows.cursor)
    done = rows.done | (_at(script.kind, cursor) == PADDING)
    # The answer is the last item before the end.
    starts = over & ~done & (_at(script.kind, _next(script, cursor)) == PADDING)
    return rows._replace(
        cursor=cursor,
        left=jnp.where(over, _at(script.count, cursor), rows.left),
        span=jnp.where(over, 0, rows.span),
        tail=jnp.where(over[..., None], NONE, rows.tail),
        done=done,
        complete=rows.complete | (last & stopped),
        answer=jnp.where(starts, rows.slot, rows.answer),
    )


def _latent_keys(key: jax.Array) -> jax.Array:
    keys = folded(key, jnp.full(key.shape[:2], _LATENT_KEYS, jnp.uint32))
    return jax.random.key_data(keys)


def insert(state: State, row: int | jax.Array, other: State) -> State:
    """The rows at work with prompt `row` and its G rollouts replaced by those of another state: one prompt, otherwise the same shapes."""

    def put(old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), row, axis)

    def first(old: Any, new: Any) -> Any:
        return jax.tree.map(lambda a, b: put(a, b, 0), old, new)

    def second(old: KeyValues, new: KeyValues) -> KeyValues:
        return jax.tree.map(lambda a, b: put(a, b, 1), old, new)

    return State(
        first(state.prompt, other.prompt)._replace(kv=second(state.prompt.kv, other.prompt.kv)),
        first(state.asked, other.asked),
        state.banned,
        first(state.rows, other.rows)._replace(cache=second(state.rows.cache, other.rows.cache)),
    )


def proceed(model: Backbone, variables: Variables, state: State, plan: Plan, only: int | None = None) -> Rows:
    """Steps until all rows are done, or (`only`) none stands at a column of this mode."""

    def goes_on(rows: Rows) -> jax.Array:
        return jnp.any(~rows.done if only is None else ~rows.done & (rows.mode == only))

    # What no step writes is a constant of the loop.
    return jax.lax.while_loop(
        goes_on, lambda rows: step(model, variables, state._replace(rows=rows), plan).rows, state.rows
    )


def decoded(rows: Rows, z0: jax.Array) -> Decoded:
    """What is recorded of rows; z0: [B, D], the states at the prompts' last columns."""
    z0 = jnp.broadcast_to(z0[:, None], (*rows.slot.shape, z0.shape[-1]))
    return Decoded(rows.tokens, rows.log_probs, rows.modes, rows.answer, rows.complete, rows.u, rows.z, z0)


# Takes the backbone alone, not the method: runs that differ in their scaffold share the compiled program.
@functools.partial(jax.jit, static_argnames=("model", "plan"))
def respond(
    model: Backbone,
    variables: Variables,
    batch: Mapping[str, jax.Array],
    plan: Plan,
    sampling: Sampling,
    given: jax.Array | None = None,
    banned: jax.Array | None = None,
) -> Decoded:
    """G answers to each prompt of a batch in one program.

    Args:
      batch: prompts (pipeline/batch.py), and K_i [B] of each latent segment of the suffix, `<name>_steps`.
      sampling: of B x G rows; see `Decoding.rows`.
      given: [B, G, K, D] what stands in the latents, in their order, in place of what would be fed back.
      banned: [V] bool, tokens that are never chosen.
    Raises: ValueError as `script.items`, or for vectors without latents.
    """
    z0, prompt = prefill(model, variables, embed(model, variables, batch), batch["next_position"])
    state = start(model, variables, batch, prompt, z0, plan, sampling, given, banned=banned)
    return decoded(proceed(model, variables, state, plan), z0)
