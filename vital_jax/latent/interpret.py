"""Runs a method's suffix (`pipeline/segments.py`) over prompts: which columns exist, where they stand, what they see, what they are.

Neighbouring columns that do not wait for one another are one pass. Latents are a scan: each waits for the state before it. The last latent
of a segment waits no longer than what follows it, so both are one pass (`fused`). The literal form, in which the scan takes every latent,
is its oracle. The scan carries the suffix cache alone: keys and values of the prompt are a constant of it.

Rows differ in data only. A row with fewer latents than the segment has padding before them, and carries its last real state over it; a row
with none is read from the state before the span.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vital_jax.latent.loop import LOOP, Prompt, Variables, empty_suffix, extend, grow
from vital_jax.models.attention import KeyValues
from vital_jax.models.backbone import Backbone
from vital_jax.pipeline.segments import LATENT, PADDING, Segment, Suffix

Arrays = Mapping[str, jax.Array]
# (z, k, key) -> u: the input of a row's k-th latent (1, 2, ...) from the state z that would predict it.
Feed = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]


class Columns(NamedTuple):
    """What the suffix's columns became, by segment.

    `states` come out at a column. `reads` are what a column is predicted from: the state at the last real column before it. Both are right
    on real columns and finite elsewhere; latents are zero off a row's own.
    """

    z0: jax.Array  # [B, G, D] the state at the prompt's last column
    states: dict[str, jax.Array]  # [B, G, U, D]
    reads: dict[str, jax.Array]  # [B, G, U, D]
    inputs: dict[str, jax.Array]  # [B, G, K, D] u, of latent segments
    real: dict[str, jax.Array]  # [B, G, U] bool
    taps: dict[
        str, jax.Array
    ]  # [L + 1, B, G, n, D] states before every layer and the head's input, of the segments asked for

    def steps(self, name: str) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(u_1..u_K, z_1..z_K, own) of a latent segment with a row's first step in front: [B, G, K, D] twice and [B, G, K] bool."""
        real = self.real[name]
        K = real.shape[-1]
        taken = jnp.sum(real, axis=-1, keepdims=True)
        own = jnp.arange(K) < taken
        place = jnp.where(own, jnp.arange(K) + K - taken, 0)[..., None]

        def first(x: jax.Array) -> jax.Array:
            return jnp.where(own[..., None], jnp.take_along_axis(x, place, axis=2), 0)

        return first(self.inputs[name]), first(self.states[name]), own


@dataclass(frozen=True)
class Given:
    """What is handed in beside the batch.

    vectors: of given segments that the method makes, [B, G, U, D]. feed: makes latents' inputs; None feeds states back as they are.
    probe: of latent segments, added to what comes out, [B, G, K, D], for gradients with respect to it.
    taps: segments whose states are handed out at every layer: `all` columns, or the `last` real one.
    """

    vectors: Arrays = field(default_factory=dict)
    feed: Feed | None = None
    probe: Arrays = field(default_factory=dict)
    taps: tuple[tuple[str, str], ...] = ()


def real_columns(suffix: Suffix, batch: Arrays, B: int, G: int) -> jax.Array:
    """[B, G, U] bool: the suffix columns that exist."""

    def of(segment: Segment) -> jax.Array:
        U = segment.budget
        if segment.kind == "latent":
            found = jnp.arange(U) >= U - batch[f"{segment.name}_steps"][..., None]
        elif segment.kind == "recorded":
            found = batch[f"{segment.name}_mode"] != PADDING
        elif segment.fixed:
            found = jnp.ones((1, U), bool)
        else:
            found = batch[f"{segment.name}_mask"]
        return jnp.broadcast_to(_grouped(found, 2), (B, G, U))

    parts = [of(segment) for segment in suffix.segments]
    return jnp.concatenate(parts, axis=-1) if parts else jnp.zeros((B, G, 0), bool)


def _grouped(x: jax.Array, rank: int) -> jax.Array:
    """An array [B, ...] of `rank` axes with a group axis put in, or one that has it."""
    return x[:, None] if x.ndim == rank else x


def positions_of(suffix: Suffix, batch: Arrays, real: jax.Array, start: jax.Array) -> jax.Array:
    """Positions [3, B, G, U] of suffix columns behind prompts whose next position is `start` [B].

    A column stands behind as many positions as there are real columns before it on its branch. A segment with positions of its own stands
    at its offsets from where it begins, and moves what follows by its advance.
    """
    weight = real.astype(jnp.float32)  # whole numbers far below 2^24: products of matrices are exact
    for segment in suffix.segments:
        if segment.own_positions and segment.budget:
            s = suffix.starts[segment.name]
            advance = _grouped(batch[f"{segment.name}_advance"], 1).astype(jnp.float32)
            weight = weight.at[..., s : s + segment.budget].set(0).at[..., s].set(advance)
    counted = jnp.einsum("bgj,ij->bgi", weight, jnp.asarray(suffix.before, jnp.float32)).astype(jnp.int32)
    positions = jnp.broadcast_to(start[:, None, None] + counted, (3, *counted.shape))
    for segment in suffix.segments:
        if segment.own_positions and segment.budget:
            s = suffix.starts[segment.name]
            offsets = jnp.moveaxis(_grouped(batch[f"{segment.name}_positions"], 3), 2, 0)
            positions = positions.at[..., s : s + segment.budget].set(positions[..., s : s + 1] + offsets)
    return positions


def run(
    model: Backbone,
    variables: Variables,
    prompt: Prompt,
    z0: jax.Array,
    suffix: Suffix,
    batch: Arrays,
    given: Given | None = None,
    *,
    fused: bool = True,
    key: jax.Array | None = None,
) -> Columns:
    """Runs the columns of a suffix.

    Args:
      z0: [B, G, D], the state at the prompt's end. suffix: its literal texts bound to tokens.
      batch: the arrays that `segments.arrays_of` names, [B, ...], or [B, G, ...] where rollouts differ.
      fused: run the last latent of a segment together with what follows it.
      key: turns LoRA dropout on, with masks of their own for every pass.
    """
    return _Run(model, variables, prompt, z0, suffix, batch, given or Given(), key).all(fused)


class _Run:
    """The passes of one call, in the order of the columns. Every pass adds to `h`, the states of all columns so far."""

    def __init__(
        self,
        model: Backbone,
        variables: Variables,
        prompt: Prompt,
        z0: jax.Array,
        suffix: Suffix,
        batch: Arrays,
        given: Given,
        key: jax.Array | None,
    ):  # as `run`
        self.model, self.variables, self.prompt, self.suffix, self.batch = model, variables, prompt, suffix, batch
        self.given, self.key, self.passes = given, key, 0
        B, G, D = z0.shape
        self.real = real_columns(suffix, batch, B, G)
        self.positions = positions_of(suffix, batch, self.real, prompt.next_position)
        self.cache = empty_suffix(prompt, G, 0)
        self.z0 = z0.astype(model.dtype)
        self.h = jnp.zeros((B, G, 0, D), model.dtype)
        self.carried: dict[str, jax.Array] = {}  # [B, G, K, D] the state at the last real column up to each latent
        self.single = bool((suffix.between | ~np.tri(suffix.width, dtype=bool)).all())  # one branch, nothing hidden
        real = {segment.name: self.cut(self.real, segment) for segment in suffix.segments}
        self.out = Columns(self.z0, {}, {}, {}, real, {})

    def all(self, fused: bool) -> Columns:
        """Runs everything."""
        group: list[
            tuple[Segment, int]
        ] = []  # segments of the next pass, and the first column of each that is still to be run
        for segment in self.suffix.segments:
            if segment.kind != "latent":
                group.append((segment, 0))
                continue
            self.together(group)
            looped = max(segment.budget - 1, 0) if fused else segment.budget
            self.loop(segment, looped)
            group = [(segment, looped)] if looped < segment.budget else []
        self.together(group)
        for segment in self.suffix.segments:
            name, own = segment.name, self.out.real[segment.name][..., None]
            self.out.states[name], self.out.reads[name] = self.cut(self.h, segment), self.reads(segment)
            if segment.kind == "latent":
                self.out.states[name] = jnp.where(own, self.out.states[name], 0)
                self.out.inputs[name] = jnp.where(own, self.out.inputs[name], 0)
        return self.out

    # --- where columns stand and what comes before them --------------------------------------------------------------

    def cut(self, x: jax.Array, segment: Segment) -> jax.Array:
        """[B, G, all columns, ...] -> a segment's."""
        start = self.suffix.starts[segment.name]
        return x[:, :, start : start + segment.budget]

    def sees(self, column: int) -> list[int]:
        """The columns before this one that it may look at."""
        return np.flatnonzero(self.suffix.before[column] & self.suffix.between[column]).tolist()

    def searched(self, start: int, columns: int) -> jax.Array:
        """[B, G, columns, D]: the states that predict neighbouring columns, by a search for the last real column before each."""
        done, rows = self.h.shape[2], slice(start, start + columns)
        sees = (self.suffix.before & self.suffix.between)[rows, :done]
        place = jnp.max(jnp.where(self.real[:, :, None, :done] & sees, jnp.arange(1, done + 1), 0), axis=-1, initial=0)
        stack = jnp.concatenate([self.z0[:, :, None], self.h], axis=2)
        return jnp.take_along_axis(stack, place[..., None], axis=2)

    def predicts(self, column: int) -> jax.Array:
        """[B, G, D]: the state that predicts a column; searched for only where rows may differ in which one it is."""
        sees = self.sees(column)
        if not sees:
            return self.z0
        last = next(s for s in self.suffix.segments if 0 <= sees[-1] - self.suffix.starts[s.name] < s.budget)
        start = self.suffix.starts[last.name]
        if last.fixed:
            return self.h[:, :, sees[-1]]
        if last.kind == "latent" and sees == [*self.sees(start), *range(start, sees[-1] + 1)]:
            return self.carried[last.name][:, :, sees[-1] - start]
        return self.searched(column, 1)[:, :, 0]

    def reads(self, segment: Segment) -> jax.Array:
        """[B, G, U, D]: the states that predict a segment's columns. In all but recorded ones, the column before a real one is real."""
        start = self.suffix.starts[segment.name]
        if segment.kind == "recorded":
            return self.searched(start, segment.budget)
        states = self.carried[segment.name] if segment.kind == "latent" else self.cut(self.h, segment)
        if not segment.budget:
            return states
        return jnp.concatenate([self.predicts(start)[:, :, None], states[:, :, :-1]], axis=2)

    # --- passes ------------------------------------------------------------------------------------------------------

    def pass_key(self) -> jax.Array | None:
        """A key for one pass, or None."""
        self.passes += 1
        return None if self.key is None else jax.random.fold_in(self.key, self.passes)

    def extend(
        self, vectors: jax.Array, cache: KeyValues, slot: Any, seen_as: Sequence[int], key: Any, taps: Any
    ) -> Any:
        """`extend` for the columns from `slot` on, each of which sees what its entry in `seen_as` sees."""
        slots = cache[0].shape[3]
        between = None if self.single else jnp.asarray(self.suffix.between[np.asarray(seen_as), :slots])
        positions = jax.lax.dynamic_slice_in_dim(self.positions, slot, vectors.shape[2], axis=-1)
        real = self.real[:, :, :slots]
        return extend(
            self.model,
            self.variables,
            self.prompt,
            cache,
            vectors,
            positions,
            real,
            slot,
            between=between,
            key=key,
            taps=taps,
        )

    def latent_input(self, segment: Segment, state: jax.Array, column: Any, key: jax.Array | None) -> jax.Array:
        """[B, G, D]: what stands at a latent's column, from the state that would predict it."""
        if self.given.feed is None:
            return state
        k = jnp.sum(self.out.real[segment.name] & (jnp.arange(segment.budget) <= column), axis=-1)
        return self.given.feed(state, k, key).astype(state.dtype)

    def latent_output(
        self, segment: Segment, h: jax.Array, before: jax.Array, column: Any
    ) -> tuple[jax.Array, jax.Array]:
        """(z, the state at the last real column up to here), [B, G, D] each."""

        def at(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_index_in_dim(x, column, 2, keepdims=False)

        if (probe := self.given.probe.get(segment.name)) is not None:
            h = h + at(probe).astype(h.dtype)
        return h, jnp.where(at(self.out.real[segment.name])[..., None], h, before)

    def loop(self, segment: Segment, steps: int) -> None:
        """The scan over a segment's first `steps` latents (VITAL equation 1)."""
        name, start = segment.name, self.suffix.starts[segment.name]
        self.out.inputs[name], self.carried[name] = self.h[:, :, :0], self.h[:, :, :0]
        if not steps:
            return
        key, asked = self.pass_key(), dict(self.given.taps).get(name)
        tap = None if asked is None else jnp.zeros((*self.z0.shape[:2], 1), jnp.int32)

        def step(carry: tuple[jax.Array, KeyValues], k: jax.Array) -> tuple[tuple[jax.Array, KeyValues], Any]:
            before, cache = carry
            keys = (None, None) if key is None else jax.random.split(jax.random.fold_in(key, k))
            u = self.latent_input(segment, before, k, keys[0])
            h, cache, tapped = self.extend(u[:, :, None], cache, start + k, [start], keys[1], tap)
            z, last = self.latent_output(segment, h[:, :, 0], before, k)
            return (last, cache), (u, z, last, tapped)

        with jax.named_scope(LOOP):
            first = (self.predicts(start), grow(self.cache, steps))
            (_, self.cache), (u, z, last, tapped) = jax.lax.scan(step, first, jnp.arange(steps))
        u, z, self.carried[name] = (jnp.moveaxis(x, 0, 2) for x in (u, z, last))
        self.out.inputs[name], self.h = u, jnp.concatenate([self.h, z], axis=2)
        if tapped is not None:
            self.out.taps[name] = jnp.moveaxis(tapped[..., 0, :], 0, 3)

    def together(self, group: Sequence[tuple[Segment, int]]) -> None:
        """One pass over columns that do not wait for one another; the first of them may be a segment's last latent."""
        group = [(segment, first) for segment, first in group if first < segment.budget]
        if not group:
            return
        key, vectors, taps = self.pass_key(), [], []
        seen_as: list[int] = []
        keys = (None, None) if key is None else jax.random.split(key)
        begin = self.h.shape[2]
        for segment, first in group:
            start, U = self.suffix.starts[segment.name], segment.budget
            taps.append(self.tapped(segment, start + first - begin, U - first))
            seen_as += range(start + first, start + U)
            if segment.kind == "latent":
                before = self.carried[segment.name][:, :, -1] if first else self.predicts(start)
                u = self.latent_input(segment, before, first, keys[0])[:, :, None]
                self.out.inputs[segment.name] = jnp.concatenate([self.out.inputs[segment.name], u], axis=2)
                vectors.append(u)
            else:
                vectors.append(self.vectors(segment))
        x, tap = jnp.concatenate(vectors, axis=2), jnp.concatenate(taps, axis=2)
        cache = grow(self.cache, x.shape[2])
        h, self.cache, tapped = self.extend(x, cache, begin, seen_as, keys[1], tap if tap.shape[2] else None)
        segment, first = group[0]
        if segment.kind == "latent":
            z, last = self.latent_output(segment, h[:, :, 0], before, first)
            h = jnp.concatenate([z[:, :, None], h[:, :, 1:]], axis=2)
            self.carried[segment.name] = jnp.concatenate([self.carried[segment.name], last[:, :, None]], axis=2)
        self.h = jnp.concatenate([self.h, h], axis=2)
        ends = np.cumsum([x.shape[2] for x in taps])
        for (segment, _), end, own in zip(group, ends, taps, strict=True):
            if own.shape[2]:
                here = tapped[:, :, :, end - own.shape[2] : end]
                before = self.out.taps.get(segment.name, here[:, :, :, :0])
                self.out.taps[segment.name] = jnp.concatenate([before, here], axis=3)

    def tapped(self, segment: Segment, column: int, columns: int) -> jax.Array:
        """[B, G, n] int32: the columns of a pass that a segment's taps are about; `column` is its first there."""
        asked = dict(self.given.taps).get(segment.name)
        if asked is None:
            return jnp.zeros((*self.z0.shape[:2], 0), jnp.int32)
        if asked == "all":
            return jnp.broadcast_to(column + jnp.arange(columns), (*self.z0.shape[:2], columns))
        real = self.out.real[segment.name]
        return column + jnp.maximum(jnp.sum(real, axis=-1, keepdims=True) - 1, 0)

    def vectors(self, segment: Segment) -> jax.Array:
        """[B, G, U, D]: the inputs of columns that wait for nothing; zeros where nothing is real."""
        name, (B, G, D) = segment.name, self.z0.shape

        def words(ids: jax.Array) -> jax.Array:
            return self.model.apply(self.variables, ids, method="embed_tokens")

        if segment.kind == "given":
            x = self.given.vectors[name] if name in self.given.vectors else self.batch[name]
            x = _grouped(x, 3).astype(self.model.dtype)
        elif segment.kind == "recorded":
            mode, tokens = (_grouped(self.batch[f"{name}_{part}"], 2) for part in ("mode", "tokens"))
            x = words(tokens)
            if f"{name}_inputs" in self.batch:  # a rollout without latents has none
                recorded = _grouped(self.batch[f"{name}_inputs"], 3).astype(self.model.dtype)
                x = jnp.where((mode == LATENT)[..., None], recorded, x)
        else:
            ids = jnp.asarray([[segment.ids]], jnp.int32) if segment.fixed else _grouped(self.batch[name], 2)
            return jnp.broadcast_to(words(ids), (B, G, segment.budget, D))
        own = self.out.real[name][..., None]
        return jnp.where(own, jnp.broadcast_to(x, (B, G, segment.budget, D)), 0)
