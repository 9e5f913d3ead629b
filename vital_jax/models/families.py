"""The model families that this package reads: one row each, by the `model_type` of config.json. A new family is a row, and a tower's file.

A family is what its configuration says, its vision tower, the names of its tensors, and how its images lie in patches and positions (the
NumPy half, pipeline/families.py). The decoder is one file for all of them (decoder.py), and so is how the two are joined (backbone.py).
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from flax import linen as nn

from vital_jax.models.config import BackboneConfig, DecoderConfig, decoder_config, qwen3_vl_config, read_json
from vital_jax.models.names import Entry, qwen3_vl_entries
from vital_jax.models.vision import VisionTower
from vital_jax.pipeline import families as images

Row = TypeVar("Row")


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of backbones.

    Attributes:
      config: (config.json, its name in errors) -> the architecture.
      tower: (vision configuration, attention) -> a module that turns patches [B, P, patch_width], and the arrays of the family's patch plan
        after them, into tokens [B, P / merge^2, D] and deepstack features [n, B, P / merge^2, D] (n may be 0).
      entries: the names of all tensors. geometry: the NumPy half of an architecture.
      meets: (regex of a kernel under `visual/`, what it multiplies: `patches`, or `merged` tokens) rows, for counting arithmetic.
    """

    config: Callable[[dict[str, Any], str], BackboneConfig]
    tower: Callable[..., nn.Module]
    entries: Callable[[BackboneConfig], list[Entry]]
    geometry: Callable[[BackboneConfig], images.Geometry]
    meets: tuple[tuple[str, str], ...]


FAMILIES = {
    "qwen3_vl": Family(
        config=qwen3_vl_config,
        tower=VisionTower,
        entries=qwen3_vl_entries,
        geometry=lambda c: images.LearnedGrid(c.image_token_id, c.vision.merge, c.vision.grid),
        meets=((r"(blocks|patch_embed)/.*kernel", "patches"), (r"(deepstack_mergers|merger)/.*kernel", "merged")),
    ),
}

# Text models for the scaffold; what their decoders have in common with a backbone's is all of it.
TEXT_DECODERS: dict[str, Callable[[dict[str, Any], str], DecoderConfig]] = {"qwen3": decoder_config}

# Folders that recipes name, by what they are called on the hub: what is missing can say where it is got.
PUBLISHED = {
    "qwen3_vl_2b": "Qwen/Qwen3-VL-2B-Instruct",
    "qwen3_vl_4b": "Qwen/Qwen3-VL-4B-Instruct",
    "qwen3_vl_8b": "Qwen/Qwen3-VL-8B-Instruct",
    "qwen3_vl_32b": "Qwen/Qwen3-VL-32B-Instruct",
    "qwen3_0_6b": "Qwen/Qwen3-0.6B",
    "qwen3_1_7b": "Qwen/Qwen3-1.7B",
    "medsiglip": "google/medsiglip-448",
}


def _row(folder: str | Path, rows: Mapping[str, Row], what: str) -> tuple[Row, dict[str, Any], str]:
    where, table = str(Path(folder) / "config.json"), read_json(folder)
    if (kind := table.get("model_type")) not in rows:
        raise ValueError(f"{where}: model_type={kind!r} is not read as a {what}; use one of {', '.join(rows)}")
    return rows[kind], table, where


def read_config(folder: str | Path) -> BackboneConfig:
    """Reads the config.json of a backbone's folder.

    Raises: FileNotFoundError without the file; ValueError for a family that is not in the table, or naming a key that is not implemented.
    """
    family, table, where = _row(folder, FAMILIES, "backbone")
    return family.config(table, where)


def read_text_config(folder: str | Path) -> DecoderConfig:
    """Reads the config.json of a text decoder's folder. Raises: as `read_config`."""
    read, table, where = _row(folder, TEXT_DECODERS, "text decoder")
    return read(table, where)


def family_of(config: BackboneConfig) -> Family:
    """The row of an architecture."""
    return FAMILIES[config.family]


def backbone_entries(config: BackboneConfig) -> list[Entry]:
    """The table of names of an architecture's tensors."""
    return family_of(config).entries(config)
