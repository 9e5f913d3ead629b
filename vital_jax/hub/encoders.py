"""Frozen image encoders behind one door: where the targets of the visual loss come from (VITAL, Table 14).

The paper compares an external medical encoder, a low-resolution one, and the backbone's own vision tower ("self"). All three look alike
to region extraction: square images in SigLIP's normalisation to patch features, row by row. The folder's config.json says which it is. The
tower is read before its merger, where a feature still belongs to one patch and has the tower's width (methods.md 1.7, item 10); what the
language model gets is merged from four.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from vital_jax.hub.load import fingerprint, load_params, load_siglip
from vital_jax.hub.names import qwen3_vl_entries
from vital_jax.models.config import VisionConfig, qwen3_vl_config, read_json
from vital_jax.models.qwen3_vl import Qwen3VL, abstract_qwen3_vl
from vital_jax.models.vision import VisionTower
from vital_jax.pipeline.images import MAX_PIXELS, ImageConfig
from vital_jax.pipeline.patches import PatchPlan, plan

# Our names of the states that can be read, and SigLIP's.
HOOKS = {"block": "last_block", "post_layernorm": "post_layernorm"}
TOWER_SIDE = 448  # MedSigLIP's side, so that "self" and it see the same pixels
_SIGLIP, _TOWER = ("siglip", "siglip_vision_model"), "qwen3_vl"
_NOT_THE_TOWER = r"model\.language_model\..*|lm_head\.weight"


class Encoder(NamedTuple):
    """A frozen encoder, ready to run.

    `apply` takes images [n, size, size, 3] float32 in -1..1 and gives patch features [n, grid * grid, E] float32, row by row from the upper
    left; it compiles once per n. `size` is the image's side in pixels, `grid` the side of the patch grid, `width` is E.
    """

    apply: Callable[[np.ndarray], jax.Array]
    size: int
    grid: int
    width: int


def load_encoder(folder: str | Path, hook: str, size: int | None = None, max_pixels: int | None = None) -> Encoder:
    """Loads the encoder of a Hugging Face folder: a SigLIP (whole, or its vision tower alone), or the vision tower of a Qwen3-VL.

    Args:
      hook: "block", the output of the last block (before SigLIP's final norm, before the tower's merger), or "post_layernorm" (SigLIP).
      size: image side in pixels. SigLIP has one. The tower takes any multiple of patch x merge; by default the largest that is at most
        `TOWER_SIDE` and keeps to the pixels allowed.
      max_pixels: cap on a tower's image area, beside the folder's own; the run's, so that targets and inputs have the same resolution.

    Raises:
      FileNotFoundError: no model, or a tower without preprocessor_config.json.
      ValueError: another kind of model, a hook or size it does not have, another normalisation, or weights that do not fit.
    """
    if hook not in HOOKS:
        raise ValueError(f"unknown hook {hook!r}: use one of {', '.join(HOOKS)}")
    return _load_tower(folder, hook, size, max_pixels) if _is_tower(folder) else _load_siglip(folder, hook, size)


def identity(folder: str | Path, max_pixels: int | None = None) -> str:
    """What features depend on besides their rule: the weights and, where the folder leaves it open, the image's side.

    Raises: as `load_encoder`.
    """
    side = f"-{_tower_side(folder, None, max_pixels)}px" if _is_tower(folder) else ""
    return fingerprint(folder) + side


def _is_tower(folder: str | Path) -> bool:
    kind = read_json(folder).get("model_type")
    if kind not in (*_SIGLIP, _TOWER):
        known = ", ".join((*_SIGLIP, _TOWER))
        raise ValueError(
            f"{folder}/config.json: model_type={kind!r} is not read as an image encoder; use one of {known}"
        )
    return kind == _TOWER


def _check_scale(folder: str | Path, found: dict) -> None:
    """Refuses a checkpoint that was trained on other pixels than `construct.roi.siglip_pixels` makes."""
    for key, values in found.items():
        if any(value != 0.5 for value in values):
            raise ValueError(
                f"{folder}: {key}={list(values)}, but region features are made with 0.5; use another encoder"
            )


def _load_siglip(folder: str | Path, hook: str, size: int | None) -> Encoder:
    # A tower saved alone often has no preprocessor; SigLIP's own is then the only one it can have.
    name = "preprocessor_config.json"
    table = read_json(folder, name) if (Path(folder) / name).is_file() else {}
    _check_scale(folder, {key: table[key] for key in ("image_mean", "image_std") if key in table})
    model, params = load_siglip(folder)
    config = model.config
    if size not in (None, config.image):
        raise ValueError(f"{folder} takes images of {config.image} pixels a side, not {size}")
    apply = jax.jit(lambda params, images: model.apply({"params": params}, images, hook=HOOKS[hook]))
    return Encoder(partial(apply, params), config.image, config.grid, config.width)


def _tower_side(folder: str | Path, size: int | None, max_pixels: int | None) -> int:
    config = qwen3_vl_config(folder).vision
    images = ImageConfig.from_folder(folder, MAX_PIXELS if max_pixels is None else max_pixels)
    _check_scale(folder, {"image_mean": images.mean, "image_std": images.std})
    step, most = config.patch * config.merge, math.isqrt(images.max_pixels)
    side = min(TOWER_SIDE, most) // step * step if size is None else size
    if side < step or side % step or side > most:
        raise ValueError(f"{folder}: an image side of {side} pixels; it must be a multiple of {step}, at most {most}")
    return side


def _load_tower(folder: str | Path, hook: str, size: int | None, max_pixels: int | None) -> Encoder:
    if hook != "block":
        raise ValueError(
            f"{folder}: the vision tower of Qwen3-VL ends in a merger, it has no {hook}; use the hook 'block'"
        )
    side = _tower_side(folder, size, max_pixels)
    config = qwen3_vl_config(folder)
    entries = [entry for entry in qwen3_vl_entries(config) if entry.path.startswith("visual/")]
    abstract = {"visual": abstract_qwen3_vl(Qwen3VL(config))["visual"]}
    params = load_params(folder, entries, abstract, jnp.float32, unused=_NOT_THE_TOWER)["visual"]
    apply = jax.jit(partial(_hidden, config.vision, side))
    return Encoder(partial(apply, params), side, side // config.vision.patch, config.vision.width)


def _hidden(config: VisionConfig, side: int, params: dict, images: jax.Array) -> jax.Array:
    """Images [n, side, side, 3] to the state after the tower's last block [n, P, E], row by row. Raises: ValueError for another size."""
    if images.shape[1:] != (side, side, 3):
        raise ValueError(f"images are {list(images.shape)}, the encoder takes [n, {side}, {side}, 3]")
    inputs = tower_inputs(config, side, images)
    _, states = VisionTower(config).apply({"params": params}, *inputs, mutable=["intermediates"])
    (x,) = states["intermediates"]["last_block"]
    coords = np.asarray(_plan(config, side).patch_coords)
    return x[:, np.lexsort((coords[:, 1], coords[:, 0]))]


def _plan(config: VisionConfig, side: int) -> PatchPlan:
    """One size, one plan: a constant of the program."""
    grid = side // config.patch
    return plan([(1, grid, grid)], grid * grid, config.merge, config.grid, "square images")


def tower_inputs(config: VisionConfig, side: int, images: jax.Array) -> tuple[jax.Array, ...]:
    """What `VisionTower` takes, of square images [n, side, side, 3] in -1..1, in the layout of pipeline.images.patchify."""
    merge, patch = config.merge, config.patch
    # Merge blocks, and within a patch channel, time, row, column.
    patches = rearrange(images, "n (R a h) (S b w) c -> n (R S a b) c h w", a=merge, b=merge, h=patch, w=patch)
    patches = repeat(patches, "n P c h w -> n P (c t h w)", t=config.temporal_patch)
    return patches, *(jnp.broadcast_to(values, (len(images), *values.shape)) for values in _plan(config, side))
