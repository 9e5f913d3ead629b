"""What an export writes of added tokens and of modules inside the loop, and reads back.

A merged folder holds the tokens' rows in its tables and their texts in its tokenizer, so that nobody has to know of them. An adapter holds
the rows as PEFT's `trainable_token_indices` does (hub/peft.py), beside tokenizer files that know the texts. Modules inside the loop are in
no Hugging Face model: they lie beside either in a file of their own.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vital_jax.hub.safetensors import read_header
from vital_jax.models.config import DecoderConfig, read_json
from vital_jax.models.tokens import TABLES, sides
from vital_jax.training.partition import flatten, unflatten

FEEDBACK = "feedback.safetensors"
Leaves = Mapping[str, np.ndarray]  # what a run trained, by path


def moved(read: Callable[[], np.ndarray], added: Sequence[int], leaves: Leaves, path: str, dtype: Any) -> np.ndarray:
    """A copy of a table [V, D] in `dtype` whose rows `added` are moved by the leaf at `path`, [n, D] float32, in full precision."""
    table = read()
    rows = np.asarray(table[list(added)], np.float32) + leaves[path]
    table = np.array(table, dtype)
    table[list(added)] = rows.astype(dtype)
    return table


def replacing(read: Callable[..., np.ndarray], added: Sequence[int], leaves: Leaves, path: str) -> np.ndarray:
    """The rows that stand in place of a table's own, [n, D] float32, which is how PEFT keeps what it trained of them."""
    return np.concatenate([read(row, row + 1) for row in added]).astype(np.float32) + leaves[path]


def deltas(
    base: Mapping[str, Any], config: DecoderConfig, added: Sequence[int], rows: Mapping[str, np.ndarray]
) -> dict[str, jax.Array]:
    """The tree `tokens` of rows [n, D] as they stand in an adapter; a side that it leaves alone is the base's."""
    tables, own = flatten(base), jnp.asarray(added)
    held = {side: jnp.asarray(tables[TABLES[side]][own], jnp.float32) for side in sides(config)}
    return {
        side: jnp.asarray(rows[side], jnp.float32) - x if side in rows else jnp.zeros_like(x)
        for side, x in held.items()
    }


def tokenizer_files(folder: Path, tokens: Mapping[str, int]) -> dict[str, bytes]:
    """The tokenizer files of a folder that have to change for these tokens to be known, by name; none for texts that it has."""
    written = {}

    def edit(name: str, table: dict[str, Any]) -> None:
        written[name] = (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()

    if not tokens:
        return {}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    whole = (folder / "tokenizer.json").is_file()
    if whole:
        table = read_json(folder, "tokenizer.json")
        known = {**table["model"]["vocab"], **{token["content"]: token["id"] for token in table["added_tokens"]}}
    else:
        settings = read_json(folder, "tokenizer_config.json").get("added_tokens_decoder", {})
        known = {**read_json(folder, "vocab.json"), **{token["content"]: int(i) for i, token in settings.items()}}
    new = {text: number for text, number in tokens.items() if text not in known}
    if not new:
        return {}
    if whole:
        table["added_tokens"] += [{"id": number, "content": text, **flags} for text, number in new.items()]
        edit("tokenizer.json", table)
    settings = read_json(folder, "tokenizer_config.json")
    if not whole or "added_tokens_decoder" in settings:
        more = {str(number): {"content": text, **flags} for text, number in new.items()}
        edit(
            "tokenizer_config.json",
            {**settings, "added_tokens_decoder": {**settings.get("added_tokens_decoder", {}), **more}},
        )
    if (folder / "added_tokens.json").is_file():
        edit("added_tokens.json", {**read_json(folder, "added_tokens.json"), **new})
    return written


def feedback_name(path: str) -> str:
    """`feedback/projector/w1/kernel` as `projector.w1.kernel`. Raises: ValueError for a key that holds a dot."""
    if "." in path:
        raise ValueError(f"{path} holds a dot, which separates names in {FEEDBACK}")
    return path.removeprefix("feedback/").replace("/", ".")


def read_feedback(folder: Path) -> dict[str, Any]:
    """The tree `feedback` beside a model; empty where there is none."""
    if not (folder / FEEDBACK).is_file():
        return {}
    tensors: Iterable[tuple[str, Any]] = read_header(folder / FEEDBACK).items()
    return unflatten({name.replace(".", "/"): jnp.asarray(tensor.rows()) for name, tensor in tensors})
