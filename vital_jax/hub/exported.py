"""The way back: a folder that `export` wrote, or an adapter that PEFT trained elsewhere, as what a model for answering is built from.

A merged folder is a Hugging Face folder like any other; beside it vital.json says what it was trained for. An adapter needs its base.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vital_jax.hub import peft
from vital_jax.hub.encoders import identity
from vital_jax.hub.export import torch_name
from vital_jax.hub.folders import FACTS, is_adapter
from vital_jax.hub.load import load_backbone, load_text_decoder, types_of
from vital_jax.hub.place import check_base, located
from vital_jax.hub.safetensors import read_header
from vital_jax.hub.tokens import deltas, read_feedback
from vital_jax.models.config import LoraConfig, read_json
from vital_jax.models.families import read_config
from vital_jax.training.partition import unflatten

_FORMAT = 1


@dataclass(frozen=True)
class Exported:
    """What a folder holds, without its weights.

    Attributes:
      base: the folder with configuration, tokenizer and weights: the folder itself, or the adapter's base.
      lora: the adapter's settings, None in a merged folder.
      added, tokens: rows of the vocabulary that the tree `tokens` moves, and the texts of added tokens that the base does not know; both
        empty in a merged folder, whose tables and tokenizer hold them.
      latent_steps: the largest K it was trained with; 0 where nobody recorded one. latent_state: which state is fed back.
      dtype: to compute in.
      max_pixels, system, buckets, answer, written: as the run had them; None, None, (), None and 0 where not recorded.
      method: the settings of the method that trained it; empty where not recorded.
      text_decoder, chain: the folder that reads latents as text, where one came along, and the most tokens of a step.
      visual: of the visual projector, where one came along: its width, the encoder's name and hook, and what tells it from others.
      read_params: reads {base, lora?, tokens?, feedback?}, with `steps=True` the scaffold {pj_in, text_decoder} too, and of the scaffold
        the leaves whose paths are given.
    """

    base: Path
    lora: LoraConfig | None
    added: tuple[int, ...]
    tokens: tuple[str, ...]
    latent_steps: int
    latent_state: str
    dtype: Any
    max_pixels: int | None
    system: str | None
    buckets: tuple[tuple[int, int], ...]
    answer: int | None
    written: int
    method: dict[str, Any]
    text_decoder: Path | None
    chain: int
    visual: dict[str, Any]
    read_params: Callable[..., dict[str, Any]]

    def check_encoder(self, folder: str | Path) -> Path:
        """The folder. Raises: ValueError for another encoder than that of the training, where that was recorded; as `identity`."""
        recorded = self.visual.get("fingerprint")
        if recorded and recorded != (found := identity(folder, self.max_pixels)):
            raise ValueError(
                f"{folder} is encoder {found}, this model was trained on features of {recorded} ({self.visual['encoder']}); name that one"
            )
        return Path(folder)


def open_exported(folder: str | Path, base: str | Path | None = None, dtype: str | None = None) -> Exported:
    """Checks a folder and its base; reads no weights, but an adapter's.

    Args:
      base: the folder of an adapter's base, where it is not the one that adapter_config.json names.
      dtype: to compute in; by default what the run computed in, and where nobody recorded that, what the weights are stored in.
    Raises: FileNotFoundError or ValueError naming the folder: a base that is not there, is another one than the run's or does not fit,
      an adapter of another kind (see `peft.load_adapter`), a vital.json of a newer format; a base given for a merged folder.
    """
    folder = Path(folder)
    facts = _facts(folder)
    tree: dict[str, Any] = {}
    lora, home, added, rows = None, folder, (), {}
    if is_adapter(folder):
        home = _base_of(folder, base, facts)
        config = read_config(home)
        tree["lora"], lora = peft.load_adapter(folder, config)
        added, rows = peft.load_rows(folder, config)
    elif base is not None:
        raise ValueError(f"{folder} holds a whole model: a base is for adapters")
    model, data = facts.get("model", {}), facts.get("data", {})
    computed, kept = types_of(home, dtype or model.get("dtype"))
    text = folder / "explain" / "text_decoder"
    return Exported(
        base=home,
        lora=lora,
        added=added,
        tokens=tuple(facts.get("tokens", ())) if added else (),
        latent_steps=facts.get("latent_steps", 0),
        latent_state=facts.get("latent_state", "post_norm"),
        dtype=computed,
        max_pixels=data.get("max_pixels"),
        system=data.get("system"),
        buckets=tuple(map(tuple, data.get("buckets", ()))),
        answer=data.get("answer"),
        written=data.get("written", 0),
        method=facts.get("method", {}),
        text_decoder=text if text.is_dir() else None,
        chain=data.get("chain", 0),
        visual=read_json(folder / "explain").get("visual", {}) if (folder / "explain").is_dir() else {},
        read_params=partial(_read, folder, home, tree, (added, rows), jnp.dtype(model.get("param_dtype", kept))),
    )


def _facts(folder: Path) -> dict[str, Any]:
    if not (folder / FACTS).is_file():
        return {}
    facts = read_json(folder, FACTS)
    if not isinstance(facts, dict) or not isinstance(version := facts.get("format_version"), int):
        raise ValueError(f"{folder / FACTS} was not written by an export: {json.dumps(facts)[:80]}")
    if version > _FORMAT:
        raise ValueError(f"{folder / FACTS} has format {version}, this package reads up to {_FORMAT}: update vital_jax")
    return facts


def _base_of(folder: Path, given: str | Path | None, facts: dict[str, Any]) -> Path:
    named = read_json(folder, peft.CONFIG).get("base_model_name_or_path") or ""
    recorded = facts.get("base", {}).get("fingerprint")
    absent = (
        f"{folder} is an adapter to {named or 'a base it does not name'}, and {str(given or named)!r} is no model folder here: "
        "name the base's folder (--base FOLDER)"
    )

    def check(home: Path) -> None:
        if not (home / "config.json").is_file():
            raise FileNotFoundError(absent)
        if recorded:
            check_base(folder, home, recorded)

    return located([Path(given or named)], check, absent)


def _read(
    folder: Path,
    home: Path,
    tree: dict[str, Any],
    tokens: tuple[tuple[int, ...], dict[str, Any]],
    dtype: Any,
    steps: bool = False,
    scaffold: Sequence[str] = (),
) -> dict[str, Any]:
    model, base = load_backbone(home, None, dtype)
    found = {"base": base, **jax.tree.map(jnp.asarray, tree)}
    if tokens[0]:
        found["tokens"] = deltas(base, model.config.decoder, *tokens)
    if feedback := read_feedback(folder):
        found["feedback"] = feedback
    if steps:
        scaffold = (*scaffold, "pj_in/linear/kernel", "pj_in/linear/bias")
    if scaffold:
        tensors = read_header(folder / "explain" / "projector.safetensors")
        found["scaffold"] = unflatten({path: jnp.asarray(tensors[torch_name(path)].rows()) for path in scaffold})
    if steps:
        _, found["scaffold"]["text_decoder"] = load_text_decoder(folder / "explain" / "text_decoder")
    return found
