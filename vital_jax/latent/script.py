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


def items(suffix: Suffix) -> list[tuple[int, tuple[int, ...] | str | int]]:
    """(FORCED, tokens), (LATENT, name of the segment) and (TOKEN, budget) in their order, up to the last free text.

    Raises: ValueError for a segment that nobody can write, or a suffix without free text.
    """
    found: list[tuple[int, tuple[int, ...] | str | int]] = []
    for segment in suffix.segments:
        if segment.branch or not (segment.budget or segment.text):
            continue
        if segment.text:
            raise ValueError(f"segment {segment.name!r}: its text is not bound to tokens (Suffix.bound)")
        if segment.kind not in ("tokens", "latent") or segment.seen_by or segment.own_positions:
            raise ValueError(
                f"segment {segment.name!r}: {segment.kind} columns of this kind are for training, not for answers"
            )
        if segment.kind == "latent":
            found.append((LATENT, segment.name))
            continue
        kind, value = (FORCED, segment.ids) if segment.fixed else (TOKEN, segment.budget)
        if found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1] + value)  # type: ignore[operator]
        else:
            found.append((kind, value))
    last = max((place for place, (kind, _) in enumerate(found) if kind == TOKEN), default=None)
    if last is None:
        raise ValueError(
            f"nothing to write: of the segments {', '.join(suffix.starts) or '(none)'} none is text of a record"
        )
    return found[: last + 1]


def columns(suffix: Suffix) -> tuple[int, int]:
    """(U, R): the most columns that a suffix can take when it is written, and the latents among them."""
    latents = sum(suffix[value].budget for kind, value in items(suffix) if kind == LATENT)
    text = sum(len(value) if kind == FORCED else value for kind, value in items(suffix) if kind != LATENT)
    return latents + text, latents


def script_of(suffix: Suffix, batch: Mapping[str, jax.Array], length: jax.Array) -> Script:
    """The script of every row.

    Args:
      suffix: its literal texts bound to tokens. batch: holds K_i [B] of each latent segment, `<name>_steps`.
      length: [B, G] the most tokens of the last free text; its segment's budget bounds it.
    """
    found, (B, G) = items(suffix), length.shape
    W = max([1, *(len(value) for kind, value in found if kind == FORCED)])
    counts = []
    for kind, value in found:
        if kind == LATENT:
            steps = jnp.minimum(jnp.asarray(batch[f"{value}_steps"]), suffix[value].budget)
            counts.append(jnp.broadcast_to(steps.reshape(B, -1), (B, G)))
        else:
            counts.append(jnp.full((B, G), len(value) if kind == FORCED else value))
    counts[-1] = jnp.minimum(counts[-1], length)
    ids = [
        [NONE] * (W - len(own)) + list(own) for own in (v if k == FORCED else () for k, v in (*found, (PADDING, ())))
    ]
    N = len(found) + 1
    return Script(
        jnp.broadcast_to(jnp.asarray([*(kind for kind, _ in found), PADDING], jnp.int32), (B, G, N)),
        jnp.stack([*counts, jnp.ones((B, G))], axis=-1).astype(jnp.int32),
        jnp.broadcast_to(jnp.asarray(ids, jnp.int32), (B, G, N, W)),
    )
