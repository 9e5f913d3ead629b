"""Architectures as frozen dataclasses, read from a Hugging Face config.json.

transformers 4.57 writes `rope_scaling` and `rope_theta`, 5.x writes one `rope_parameters` table; `tie_word_embeddings` sits at the
top level, inside `text_config`, or in both. Both styles describe the same model, so both are read here and nowhere else.
Anything this package does not implement (a sliding window, another rope, another activation) is refused by name:
a config that is half understood computes something that looks right.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A Qwen3 text decoder: the backbone's language model and the scaffold's text decoder alike."""

    vocab: int  # V
    width: int  # D
    layers: int  # L
    heads: int  # N
    kv_heads: int  # M
    head_width: int  # H
    ffn: int  # F
    rope_theta: float
    eps: float = 1e-6
    tied: bool = False
    attention_bias: bool = False
    mrope_section: tuple[int, int, int] | None = None  # frequencies for time, row and column; None in a text model


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The Qwen3-VL vision tower."""

    width: int
    layers: int
    heads: int
    ffn: int
    out_width: int  # D of the language model
    deepstack_layers: tuple[int, ...]
    grid: int  # side of the square of learned position embeddings
    patch: int = 16
    temporal_patch: int = 2
    merge: int = 2
    channels: int = 3
    eps: float = 1e-6
    rope_theta: float = 10000.0

    @property
    def patch_width(self) -> int:
        """Numbers in one flattened patch: channels x temporal x patch x patch."""
        return self.channels * self.temporal_patch * self.patch * self.patch


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """A vision-language model: a decoder, a vision tower, and the token ids that join them.

    `family` is the row of `models/families.py` that it belongs to. A tower has a configuration of its family's own; every one of them has
    `width`, `layers`, `out_width`, `patch`, `merge` and `patch_width`.
    """

    family: str
    decoder: DecoderConfig
    vision: VisionConfig
    image_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int


@dataclasses.dataclass(frozen=True)
class SiglipVisionConfig:
    """The vision tower of SigLIP (MedSigLIP is the 448-pixel SO400M/14)."""

    width: int  # E
    layers: int
    heads: int
    ffn: int
    image: int
    patch: int
    channels: int = 3
    eps: float = 1e-6

    @property
    def grid(self) -> int:
        """Patches along one side of the square image."""
        return self.image // self.patch


@dataclasses.dataclass(frozen=True)
class ClipVisionConfig:
    """The vision tower of CLIP: a ViT with a class token (BiomedCLIP's is ViT-B/16 at 224, in timm's form)."""

    width: int  # E
    layers: int
    heads: int
    ffn: int
    image: int
    patch: int
    channels: int = 3
    eps: float = 1e-5
    activation: str = "quick_gelu"  # or "gelu"
    pre_norm: bool = (
        True  # a norm ahead of the blocks, and a patch embedding without bias; timm's plain ViT has neither
    )
    timm: bool = (
        False  # tensors as timm shapes them: one for q, k and v, and a leading axis of one on tokens and positions
    )

    @property
    def grid(self) -> int:
        """Patches along one side of the square image."""
        return self.image // self.patch


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on the language model's projections (VITAL B.2: rank 64, alpha 128, dropout 0.05)."""

    rank: int = 64
    alpha: float = 128.0
    dropout: float = 0.05


OPEN_CLIP = "open_clip_config.json"


def config_file(folder: str | Path) -> str:
    """The name of a model folder's configuration: config.json, or open_clip's where only that one is there."""
    found = [name for name in ("config.json", OPEN_CLIP) if (Path(folder) / name).is_file()]
    return (found or ["config.json"])[0]


def read_json(folder: str | Path, name: str = "config.json") -> dict[str, Any]:
    """Reads a JSON file of a model folder. Raises FileNotFoundError or ValueError that names the file."""
    path = Path(folder) / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: expected a Hugging Face model folder that holds {name}")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _refuse(where: str, key: str, value: Any, expected: Any) -> None:
    if value is not None and value != expected:
        raise ValueError(f"{where}: {key}={value!r} is not implemented (expected {expected!r})")


def _rope(text: dict[str, Any], where: str) -> tuple[float, tuple[int, int, int] | None]:
    table = dict(text.get("rope_parameters") or text.get("rope_scaling") or {})
    theta = table.get("rope_theta", text.get("rope_theta"))
    if theta is None:
        raise ValueError(f"{where}: no rope_theta, neither in rope_parameters (5.x style) nor beside it (4.57 style)")
    _refuse(where, "rope_type", table.get("rope_type", table.get("type")), "default")
    section = table.get("mrope_section")
    if section is not None and not table.get("mrope_interleaved", False):
        raise ValueError(f"{where}: sectioned M-RoPE (mrope_interleaved false) is not implemented")
    return float(theta), tuple(section) if section else None


def decoder_config(text: dict[str, Any], where: str = "config.json", tied: bool | None = None) -> DecoderConfig:
    """Reads a Qwen3 text configuration.

    Args:
      text: the text model's table (`text_config` of a VL model, the whole file of a text model).
      where: named in errors.
      tied: the enclosing file's `tie_word_embeddings`, which wins where both are given.
    Raises: ValueError naming a key this decoder does not implement.
    """
    _refuse(where, "hidden_act", text.get("hidden_act"), "silu")
    if text.get("use_sliding_window"):
        raise ValueError(f"{where}: use_sliding_window is not implemented")
    if other := sorted(set(text.get("layer_types") or ()) - {"full_attention"}):
        raise ValueError(f"{where}: layer_types {', '.join(other)} are not implemented (expected full_attention)")
    theta, section = _rope(text, where)
    width, heads = text["hidden_size"], text["num_attention_heads"]
    head_width = text.get("head_dim") or width // heads
    if heads % text["num_key_value_heads"]:
        raise ValueError(
            f"{where}: {heads} query heads are not a multiple of {text['num_key_value_heads']} key/value heads"
        )
    if section is not None and sum(section) != head_width // 2:
        raise ValueError(f"{where}: mrope_section {list(section)} does not add up to half the head width {head_width}")
    return DecoderConfig(
        vocab=text["vocab_size"],
        width=width,
        layers=text["num_hidden_layers"],
        heads=heads,
        kv_heads=text["num_key_value_heads"],
        head_width=head_width,
        ffn=text["intermediate_size"],
        rope_theta=theta,
        eps=text.get("rms_norm_eps", 1e-6),
        tied=bool(text.get("tie_word_embeddings", False) if tied is None else tied),
        attention_bias=bool(text.get("attention_bias", False)),
        mrope_section=section,
    )


def qwen3_vl_config(table: dict[str, Any], where: str = "config.json") -> BackboneConfig:
    """Reads Qwen3-VL's config.json, in the 4.57 or the 5.x style. Raises as `decoder_config`."""
    decoder = decoder_config(table["text_config"], where, table.get("tie_word_embeddings"))
    if decoder.mrope_section is None:
        raise ValueError(f"{where}: no mrope_section in rope_parameters or rope_scaling of text_config")
    vision = table["vision_config"]
    _refuse(where, "vision_config.hidden_act", vision.get("hidden_act"), "gelu_pytorch_tanh")
    grid = round(vision["num_position_embeddings"] ** 0.5)
    if grid * grid != vision["num_position_embeddings"]:
        raise ValueError(f"{where}: num_position_embeddings={vision['num_position_embeddings']} is not a square")
    if vision["out_hidden_size"] != decoder.width:
        raise ValueError(
            f"{where}: vision out_hidden_size {vision['out_hidden_size']} is not the text width {decoder.width}"
        )
    deepstack = tuple(vision["deepstack_visual_indexes"])
    if len(deepstack) > decoder.layers or any(not 0 <= i < vision["depth"] for i in deepstack):
        raise ValueError(
            f"{where}: deepstack_visual_indexes {list(deepstack)} do not fit the depths of tower and decoder"
        )
    ids = {name: table[name] for name in ("image_token_id", "vision_start_token_id", "vision_end_token_id")}
    if lost := [f"{name}={number}" for name, number in ids.items() if not 0 <= number < decoder.vocab]:
        raise ValueError(
            f"{where}: {', '.join(lost)} are outside the {decoder.vocab} rows of the embeddings (vocab_size)"
        )
    if list(deepstack) != sorted(set(deepstack)):
        raise ValueError(f"{where}: deepstack_visual_indexes {list(deepstack)} are not in ascending order")
    return BackboneConfig(
        family="qwen3_vl",
        decoder=decoder,
        vision=VisionConfig(
            width=vision["hidden_size"],
            layers=vision["depth"],
            heads=vision["num_heads"],
            ffn=vision["intermediate_size"],
            out_width=vision["out_hidden_size"],
            deepstack_layers=deepstack,
            grid=grid,
            patch=vision["patch_size"],
            temporal_patch=vision["temporal_patch_size"],
            merge=vision["spatial_merge_size"],
            channels=vision.get("in_channels", 3),
            rope_theta=float((vision.get("rope_parameters") or {}).get("rope_theta", 10000.0)),
        ),
        **ids,
    )


def siglip_config(folder: str | Path) -> SiglipVisionConfig:
    """Reads the vision part of a SigLIP config.json (a whole SigLIP or its vision tower alone).

    Keys the file leaves out take transformers' own defaults (the base model's), as transformers reads them.
    Raises: ValueError naming a key that is not implemented.
    """
    table = read_json(folder)
    where = str(Path(folder) / "config.json")
    vision = table.get("vision_config", table)
    _refuse(where, "hidden_act", vision.get("hidden_act"), "gelu_pytorch_tanh")
    for key in ("image_size", "patch_size"):
        if not isinstance(vision.get(key, 1), int):
            raise ValueError(f"{where}: {key}={vision[key]!r} is not implemented (expected one integer: a square)")
    return SiglipVisionConfig(
        width=vision.get("hidden_size", 768),
        layers=vision.get("num_hidden_layers", 12),
        heads=vision.get("num_attention_heads", 12),
        ffn=vision.get("intermediate_size", 3072),
        image=vision.get("image_size", 224),
        patch=vision.get("patch_size", 16),
        channels=vision.get("num_channels", 3),
        eps=vision.get("layer_norm_eps", 1e-6),
    )


def clip_config(folder: str | Path) -> ClipVisionConfig:
    """Reads the vision part of a CLIP: transformers' config.json (whole, or the tower alone), or open_clip's with a tower from timm.

    Keys that transformers' file leaves out take its own defaults. open_clip's names a timm model, whose shape follows from that name.
    Raises: ValueError naming a key that is not implemented.
    """
    name = config_file(folder)
    table, where = read_json(folder, name), str(Path(folder) / name)
    if name == OPEN_CLIP:
        return _timm_config(table.get("model_cfg", {}).get("vision_cfg", {}), where)
    vision = table.get("vision_config", table)
    activation = vision.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        _refuse(where, "hidden_act", activation, "quick_gelu or gelu")
    return ClipVisionConfig(
        width=vision.get("hidden_size", 768),
        layers=vision.get("num_hidden_layers", 12),
        heads=vision.get("num_attention_heads", 12),
        ffn=vision.get("intermediate_size", 3072),
        image=vision.get("image_size", 224),
        patch=vision.get("patch_size", 32),
        channels=vision.get("num_channels", 3),
        eps=vision.get("layer_norm_eps", 1e-5),
        activation=activation,
    )


# Width, layers and heads of timm's plain vision transformers.
_TIMM_SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


def _timm_config(vision: dict[str, Any], where: str) -> ClipVisionConfig:
    name = vision.get("timm_model_name")
    if name is None:
        raise ValueError(
            f"{where}: no timm_model_name in vision_cfg; open_clip's own towers are read as transformers saves them (CLIPVisionModel)"
        )
    found = re.fullmatch(rf"vit_({'|'.join(_TIMM_SIZES)})_patch(\d+)(_clip)?(_quickgelu)?_(\d+)(\..*)?", name)
    if not found:
        _refuse(where, "timm_model_name", name, f"vit_SIZE_patchN_M with a SIZE of {', '.join(_TIMM_SIZES)}")
    size, patch, clip, quick, image, _ = found.groups()
    width, layers, heads = _TIMM_SIZES[size]
    return ClipVisionConfig(
        width=width,
        layers=layers,
        heads=heads,
        ffn=4 * width,
        image=vision.get("image_size", int(image)),
        patch=int(patch),
        eps=1e-5 if clip else 1e-6,
        activation="quick_gelu" if quick else "gelu",
        pre_norm=bool(clip),
        timm=True,
    )
