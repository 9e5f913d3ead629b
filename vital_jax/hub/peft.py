"""Adapters in PEFT's format, both ways: our stacked `lora` tree to adapter_model.safetensors with adapter_config.json, and back.

Our matrices have PEFT's orientation (A [rank, in], B [out, rank], update alpha / rank B A), so a tensor is one layer of a leaf and nothing
is transposed. Which module a leaf belongs to is read from the one name table. PEFT is asked for its targets by a regular expression with
full names: a list of suffixes such as `gate_proj` would also reach the vision towers of other backbones.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vital_jax.hub.folders import ADAPTER
from vital_jax.hub.safetensors import read_header
from vital_jax.models.config import BackboneConfig, LoraConfig, read_json
from vital_jax.models.families import backbone_entries
from vital_jax.models.lora import init_lora
from vital_jax.models.tokens import TABLES, check_added, sides
from vital_jax.training.partition import flatten, unflatten

CONFIG, WEIGHTS = ADAPTER, "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SIDES = {"a": "lora_A", "b": "lora_B"}
# Settings of an adapter that would change what it computes, and the value under which it is what `layers.Linear` computes.
_PLAIN = {
    "bias": "none",
    "fan_in_fan_out": False,
    "use_dora": False,
    "lora_bias": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "alora_invocation_tokens": None,
    "target_parameters": None,
    "layer_replication": None,
    "use_qalora": False,
    "use_bdlora": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
}
# What `init_lora_weights` may say: every other way of starting takes from the base what it gives to the adapter (PiSSA, OLoRA, CorDA,
# LoRA-GA) or rounds it (LoftQ), and an adapter on the base as it was is then wrong by more than its whole training moved.
_BASE_LEFT_ALONE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
_MERGED = (
    "merge it with PEFT on the model that it was trained on, and load the merged folder (with the base's tokenizer files): python -c "
    '"from peft import PeftModel as P; from transformers import AutoModelForImageTextToText as M; '
    "P.from_pretrained(M.from_pretrained('BASE'), '{folder}').merge_and_unload().save_pretrained('MERGED')\""
)


class Leaf(NamedTuple):
    """One leaf of the `lora` tree in PEFT's terms: the whole leaf's shape, and its layers' names in the file."""

    shape: tuple[int, ...]  # [L, rank, in] of A, [L, out, rank] of B
    names: tuple[str, ...]


def adapter_leaves(config: BackboneConfig, lora: LoraConfig) -> dict[str, Leaf]:
    """Every leaf that the `lora` tree of this backbone can have, by path."""
    kernels = {entry.path: entry.names for entry in backbone_entries(config)}
    abstract = jax.eval_shape(lambda key: init_lora(config.decoder, lora, key), jax.random.key(0))
    leaves = {}
    for path, leaf in flatten(abstract).items():
        projection, _, side = path.rpartition("/")
        modules = [name.removesuffix(".weight") for name in kernels[f"{projection}/kernel"]]
        leaves[path] = Leaf(leaf.shape, tuple(f"{_PREFIX}{module}.{_SIDES[side]}.weight" for module in modules))
    return leaves


def token_modules(config: BackboneConfig) -> dict[str, str]:
    """The module whose rows each delta of the tree `tokens` moves, by side; PEFT shares those of a tied head as we do."""
    names = {entry.path: entry.names[0].removesuffix(".weight") for entry in backbone_entries(config)}
    return {side: names[TABLES[side]] for side in sides(config.decoder)}


def rows_name(module: str) -> str:
    """The tensor of a module's trained rows [n, D]."""
    return f"{_PREFIX}{module}.token_adapter.trainable_tokens_delta"


def adapter_config(
    paths: Iterable[str], lora: LoraConfig, base_name: str, tokens: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Any]:
    """The contents of adapter_config.json.

    Args:
      paths: of the `lora` tree's leaves. base_name: the model the adapter belongs to. tokens: rows that trained, by module.
    """
    modules: dict[str, set[str]] = {}
    for path in paths:
        _, _, module, projection, _ = path.split("/")
        modules.setdefault(module, set()).add(projection)
    targets = "|".join(rf"{module}\.({'|'.join(sorted(names))})" for module, names in sorted(modules.items()))
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": rf"model\.language_model\.layers\.\d+\.({targets})",
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        **({"trainable_token_indices": {module: list(rows) for module, rows in tokens.items()}} if tokens else {}),
    }


def _lora_config(folder: Path) -> LoraConfig:
    table = read_json(folder, CONFIG)
    where = f"{folder}/{CONFIG}"
    if table.get("peft_type") != "LORA":
        raise ValueError(f"{where}: peft_type={table.get('peft_type')!r} is not read; use a LORA adapter")
    for key, plain in _PLAIN.items():
        if (value := table.get(key)) and value != plain:
            raise ValueError(f"{where}: {key}={value!r} is not read; {_MERGED.format(folder=folder)}")
    start = table.get("init_lora_weights")
    if (start.lower() if isinstance(start, str) else start) not in _BASE_LEFT_ALONE:
        raise ValueError(
            f"{where}: init_lora_weights={start!r} changed the base before training, and without that change this adapter computes "
            "something else. Either save it again where it was trained, with save_pretrained(OUT, "
            "path_initial_model_for_weight_conversion=START), START being the adapter saved before training: that is an ordinary adapter, "
            "and its adapter_config.json says init_lora_weights=true (not for loftq). Or merge it there (merge_and_unload) and load the "
            "merged model"
        )
    try:
        rank, alpha = int(table["r"]), float(table["lora_alpha"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: no usable r and lora_alpha ({error!r})") from error
    if rank < 1:
        raise ValueError(f"{where}: r={rank}: an adapter has a rank of at least 1")
    # Rank-stabilised adapters scale by alpha / sqrt(r): the same update under another alpha.
    scaled = alpha * rank**0.5 if table.get("use_rslora") else alpha
    return LoraConfig(rank, scaled, float(table.get("lora_dropout") or 0.0))


def load_adapter(folder: str | Path, config: BackboneConfig) -> tuple[dict[str, Any], LoraConfig]:
    """A PEFT folder as (our `lora` tree in float32, its settings). A projection without adapter has no leaves, a layer without one zeros.

    What it trained of a vocabulary's rows is `load_rows`'s.

    Raises: FileNotFoundError without its two files; ValueError naming the file for another kind of adapter, for tensors that belong to no
      projection of this language model (those of a vision tower, say) or do not fit it.
    """
    folder = Path(folder)
    lora, path = _lora_config(folder), folder / WEIGHTS
    if not path.is_file():
        pickle = folder / "adapter_model.bin"
        hint = f"; {pickle.name} is a pickle and is not read: save it as safetensors" if pickle.is_file() else ""
        raise FileNotFoundError(f"{path} not found{hint}")
    tensors, leaves = read_header(path), {}
    for module in _indices(folder, config).values():
        tensors.pop(rows_name(module[0]), None)
    for place, leaf in adapter_leaves(config, lora).items():
        if found := {layer: tensors.pop(name) for layer, name in enumerate(leaf.names) if name in tensors}:
            leaves[place] = np.zeros(leaf.shape, np.float32)
            for layer, tensor in found.items():
                if tensor.shape != leaf.shape[1:]:
                    needed = f"this base with r={lora.rank} needs {list(leaf.shape[1:])}"
                    raise ValueError(f"{path}: {leaf.names[layer]} is {list(tensor.shape)}, {needed}")
                leaves[place][layer] = tensor.rows()
    if tensors:
        some = ", ".join(sorted(tensors)[:3])
        raise ValueError(
            f"{path}: {len(tensors)} tensors belong to no projection of this language model, where alone adapters are read: {some}; "
            + _MERGED.format(folder=folder)
        )
    halves = {place[:-1]: {other[-1] for other in leaves if other[:-1] == place[:-1]} for place in leaves}
    if lone := [place for place, sides in halves.items() if sides != set(_SIDES)]:
        raise ValueError(f"{path}: {lone[0].rstrip('/')} has one of lora_A and lora_B only")
    if not leaves:
        raise ValueError(f"{path} holds no adapter")
    return unflatten(leaves), lora


def _indices(folder: Path, config: BackboneConfig) -> dict[str, tuple[str, list[int]]]:
    """side -> (module, rows) of `trainable_token_indices`: a list for the embeddings, or lists by the end of a module's name."""
    where, modules = f"{folder}/{CONFIG}", token_modules(config)
    given = read_json(folder, CONFIG).get("trainable_token_indices") or {}
    found: dict[str, tuple[str, list[int]]] = {}
    for name, rows in (given if isinstance(given, dict) else {modules["input"]: given}).items():
        side = next((side for side, module in modules.items() if f".{module}".endswith(f".{name}")), None)
        if side is None and config.decoder.tied and name == "lm_head":
            continue  # shared with the embeddings
        if side is None:
            raise ValueError(
                f"{where}: trainable_token_indices of {name!r} are not read; use {' and '.join(modules.values())}"
            )
        found[side] = modules[side], list(rows)
    if len({tuple(rows) for _, rows in found.values()}) > 1:
        raise ValueError(f"{where}: trainable_token_indices differ between {' and '.join(found)}; train the same rows")
    return found


def load_rows(folder: str | Path, config: BackboneConfig) -> tuple[tuple[int, ...], dict[str, np.ndarray]]:
    """The rows of the vocabulary that a PEFT adapter trained: their numbers, ascending, and by side what stands there [n, D] float32.

    Raises: ValueError naming the file for rows of other modules, rows that differ between the two sides or do not fit the base.
    """
    folder = Path(folder)
    indices, rows = _indices(folder, config), {}
    if not indices:
        return (), {}
    tensors, path = read_header(folder / WEIGHTS), folder / WEIGHTS
    (_, numbers), *_ = indices.values()
    order = np.argsort(numbers)
    for side, (module, _) in indices.items():
        tensor = tensors.get(rows_name(module))
        if tensor is None or tensor.shape != (len(numbers), config.decoder.width):
            held = "not there" if tensor is None else list(tensor.shape)
            raise ValueError(
                f"{path}: {rows_name(module)} is {held}, this base needs {[len(numbers), config.decoder.width]}"
            )
        rows[side] = tensor.rows().astype(np.float32)[order]
    added = tuple(int(numbers[i]) for i in order)
    check_added(added, config.decoder)
    return added, rows
