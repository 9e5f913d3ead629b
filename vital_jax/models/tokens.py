"""Added tokens: what training moves of their rows, as an overlay on frozen tables.

A method's control tokens stand on rows of the vocabulary that are there and unused (Qwen3-VL pads 151,669 tokens to 151,936 rows), so no
table grows. Their rows are the table's own plus a delta, float32: the tree `tokens` holds `input` and `head`, [n, D] each. A tied head is
the embeddings, so a tied model has `input` alone, which moves both sides: two deltas would have no tied table to be merged into, and PEFT's
`trainable_token_indices` shares one in the same way. Applying them is the backbone's business; here is only the tree.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vital_jax.models.config import DecoderConfig

TABLES = {
    "input": "language_model/embed_tokens/embedding",
    "head": "language_model/lm_head",
}  # what each delta moves, by path


def check_added(added: Sequence[int], config: DecoderConfig) -> None:
    """Raises: ValueError for rows that are not ascending numbers within the vocabulary."""
    if list(added) != sorted(set(added)) or (added and not 0 <= added[0] <= added[-1] < config.vocab):
        raise ValueError(f"added tokens {list(added)}: give ascending rows of the {config.vocab} of this vocabulary")


def sides(config: DecoderConfig) -> tuple[str, ...]:
    """The deltas that an architecture has."""
    return ("input",) if config.tied else ("input", "head")


def delta_of(side: str, config: DecoderConfig) -> str:
    """Which delta moves this side."""
    return "input" if config.tied else side


def moved_rows(table: Any, added: Sequence[int], delta: Any) -> jax.Array:
    """Rows `added` of a table [V, D], moved by `delta` [n, D]: [n, D] float32. Raises: ValueError for a delta of other rows."""
    if len(delta) != len(added):
        raise ValueError(
            f"the tree `tokens` moves {len(delta)} rows, the model was made with {len(added)} added tokens"
        )
    return table[jnp.asarray(added)].astype(jnp.float32) + delta


def init_tokens(
    base: Mapping[str, Any],
    config: DecoderConfig,
    added: Sequence[int],
    start: Mapping[int, Sequence[int]] | None = None,
) -> dict[str, jax.Array]:
    """The tree `tokens` {input, head?} of a base, [n, D] float32 each.

    Args:
      base: the backbone's parameters. added: rows, ascending.
      start: added row -> the rows that it starts as the mean of, on both sides (Coconut: that of "<<"). Others start as the base has them.
    Raises: ValueError as `check_added`, for a source outside the vocabulary or for a row that is not added.
    """
    start = dict(start or {})
    check_added(added, config)
    check_added(sorted({row for rows in start.values() for row in rows}), config)
    if strange := sorted({*start} - {*added}):
        raise ValueError(f"rows {strange} are to start as others and are no added tokens: {list(added)}")
    sources, own = [jnp.asarray(start.get(row, (row,))) for row in added], jnp.asarray(added)
    language = base["language_model"]
    tables = {"input": language["embed_tokens"]["embedding"], "head": language.get("lm_head")}
    rows = lambda table, which: table[which].astype(jnp.float32)  # noqa: E731
    first = lambda table: jnp.stack([rows(table, source).mean(0) for source in sources])  # noqa: E731
    return {side: first(tables[side]) - rows(tables[side], own) for side in sides(config)}
