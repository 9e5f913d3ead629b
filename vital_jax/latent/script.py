"""What an answer is to be made of, column by column: forced tokens, latent steps and free text, for every row as data.

A method's suffix (`pipeline/segments.py`) says it: literal text becomes forced tokens, a latent segment its row's K_i latents, and text of
a record is free text that the model writes, within the segment's budget. Only the main branch is written; what stands behind the last free
text, the answer, is left out. Neighbouring free texts are one: where one ends is the model's own decision.

    VITAL     latent K, free T                      Coconut   force <bot>, latent K, force <eot>, free chain and answer
    text CoT  free chain, force lead-in, free T
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vital_jax.pipeline.segments import FORCED, LATENT, PADDING, TOKEN, Suffix

NONE = -1  # in place of a token


class Script(NamedTuple):
    """N items a row, the last of which is the end; an item without columns is passed over. W: tokens of the longest forced text."""

    kind: jax.Array  # [B, G, N] int32: FORCED, LATENT, TOKEN, or PADDING at the end
    count: jax.Array  # [B, G, N] int32, columns of each, of free text the most
    ids: jax.Array  # [B, G, N, W] int32, of forced text its tokens, at the right end; NONE before them


class Item(NamedTuple):
    """One item as the suffix says it. most: the columns it takes, at most. ids: of forced text. name: of a latent segment."""

    kind: int
    most: int
    ids: tuple[int, ...] = ()
    name: str = ""


def items(suffix: Suffix) -> list[Item]:
    """What is written, in its order, up to the last free text.

    Raises: ValueError for a segment that nobody can write, or a suffix without free text.
    """
    found: list[Item] = []
    for segment in suffix.segments:
        if segment.branch or not (segment.budget or segment.text):
            continue
        if segment.text:
            raise ValueError(f"segment {segment.name!r}: its text is not bound to tokens (Suffix.bound)")
        if segment.kind not in ("tokens", "latent") or segment.seen_by or segment.own_positions:
            raise ValueError(f"segment {segment.name!r}: {segment.kind} columns of this kind are read, not written")
        if segment.kind == "latent":
            found.append(Item(LATENT, segment.budget, name=segment.name))
            continue
        kind = FORCED if segment.fixed else TOKEN
        before = found.pop() if found and found[-1].kind == kind else Item(kind, 0)
        found.append(Item(kind, before.most + segment.budget, before.ids + segment.ids))
    last = max((place for place, item in enumerate(found) if item.kind == TOKEN), default=None)
    if last is None:
        there = ", ".join(suffix.starts) or "(none)"
        raise ValueError(f"nothing to write: of the segments {there} none is text of a record")
    return found[: last + 1]


def columns(suffix: Suffix) -> tuple[int, int]:
    """(U, R): the most columns that a suffix can take when it is written, and the latents among them."""
    found = items(suffix)
    return sum(item.most for item in found), sum(item.most for item in found if item.kind == LATENT)


def script_of(suffix: Suffix, batch: Mapping[str, jax.Array], length: jax.Array) -> Script:
    """The script of every row.

    Args:
      suffix: its literal texts bound to tokens. batch: holds K_i [B] of each latent segment, `<name>_steps`.
      length: [B, G] the most tokens of the last free text; its segment's budget bounds it.
    """
    found, (B, G) = [*items(suffix), Item(PADDING, 1)], length.shape
    W = max(1, *(len(item.ids) for item in found))

    def count(item: Item) -> jax.Array:
        steps = jnp.asarray(batch[f"{item.name}_steps"])[:, None] if item.kind == LATENT else item.most
        return jnp.broadcast_to(jnp.minimum(steps, item.most), (B, G)).astype(jnp.int32)

    counts = [count(item) for item in found]
    counts[-2] = jnp.minimum(counts[-2], length)  # the last free text
    kinds = jnp.asarray([item.kind for item in found], jnp.int32)
    ids = jnp.asarray([(*[NONE] * (W - len(item.ids)), *item.ids) for item in found], jnp.int32)
    return Script(
        jnp.broadcast_to(kinds, (B, G, len(found))),
        jnp.stack(counts, axis=-1),
        jnp.broadcast_to(ids, (B, G, len(found), W)),
    )
