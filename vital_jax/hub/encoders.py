"""Frozen image encoders behind one interface: where the targets of the visual loss come from (VITAL, Table 14).

The paper compares an external medical encoder (MedSigLIP), a low-resolution one (BiomedCLIP), and the backbone's own vision tower
("self"). All look alike to region extraction: square images in SigLIP's normalisation to patch features, row by row. The folder's
configuration says which it is. The tower is read before its merger, where a feature still belongs to one patch and has the tower's width
(methods.md 1.7, item 10); what the language model gets is merged from four. CLIP's own normalisation is a part of its program here.

Extraction is the one job that needs no step to wait for another, so a program may split its images over several devices. Attention is
XLA's, the one form that is divided with no word from us.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jax.sharding import NamedSharding, PartitionSpec

from vital_jax.hub.load import fingerprint, load_clip, load_params, load_siglip
from vital_jax.models.backbone import Backbone, abstract_backbone
from vital_jax.models.config import OPEN_CLIP, BackboneConfig, clip_config, config_file, read_json, siglip_config
from vital_jax.models.families import FAMILIES, backbone_entries, family_of, read_config
from vital_jax.models.siglip import SiglipVision
from vital_jax.pipeline.images import MAX_PIXELS, ImageConfig
from vital_jax.training.sharding import ROWS, make_mesh

# Our names of the states that can be read, and the models'.
HOOKS = {"block": "last_block", "post_layernorm": "post_layernorm"}
TOWER_SIDE = 448  # MedSigLIP's side, so that "self" and it see the same pixels
_SIGLIP, _CLIP = ("siglip", "siglip_vision_model"), ("clip", "clip_vision_model")
_NOT_THE_TOWER = r"model\.language_model\..*|lm_head\.weight"
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_PROCESSOR = "preprocessor_config.json"


class Encoder(NamedTuple):
    """A frozen encoder, ready to run.

    `apply` takes images [n, size, size, 3] float32 in -1..1 and gives patch features [n, P, E] float32, row by row from the upper left,
    P = grid * grid, or [n, 1 + P, E] where a class token comes first; it compiles once per n. `size` is the image's side in pixels, `grid`
    the side of the patch grid, `width` is E. n must be a multiple of `devices`, which share the images of a call.
    """

    apply: Callable[[np.ndarray], jax.Array]
    size: int
    grid: int
    width: int
    devices: int = 1


class _Placement:
    """Parameters on every device, images split over them by rows."""

    def __init__(self, devices: Sequence[jax.Device] | None):
        mesh = make_mesh(devices=jax.local_devices()[:1] if devices is None else devices)
        self.count = mesh.size
        self.everywhere, self.rows = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), (ROWS,)))

    def sharding(self, path: str, shape: tuple[int, ...]) -> NamedSharding:
        del path, shape
        return self.everywhere

    def program(self, apply: Callable[[Any, jax.Array], jax.Array], params: Any) -> Callable:
        compiled = jax.jit(apply, in_shardings=(self.everywhere, self.rows), out_shardings=self.rows)
        return partial(compiled, params)


def load_encoder(
    folder: str | Path,
    hook: str,
    size: int | None = None,
    max_pixels: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Encoder:
    """Loads the encoder of a model folder: a SigLIP or a CLIP (whole, or the vision tower alone; transformers' layout, and open_clip's with
    a tower from timm, as BiomedCLIP), or the vision tower of a backbone.

    Args:
      hook: "block", the output of the last block (before the final norm, before the tower's merger), or "post_layernorm" (SigLIP, CLIP).
      size: image side in pixels. SigLIP and CLIP have one. The tower takes any multiple of patch x merge; by default the largest that is
        at most `TOWER_SIDE` and keeps to the pixels allowed.
      max_pixels: cap on a tower's image area, beside the folder's own; the run's, so that targets and inputs have the same resolution.
      devices: what shares the images of a call; by default this process's first device.

    Raises:
      FileNotFoundError: no model, or a tower without preprocessor_config.json.
      ValueError: another kind of model, a hook or size it does not have, another normalisation, or weights that do not fit.
    """
    if hook not in HOOKS:
        raise ValueError(f"unknown hook {hook!r}: use one of {', '.join(HOOKS)}")
    kind, place = _kind(folder), _Placement(devices)
    if kind in FAMILIES:
        return _load_tower(folder, hook, size, max_pixels, place)
    return (_load_clip if kind in (*_CLIP, OPEN_CLIP) else _load_siglip)(folder, hook, size, place)


def identity(folder: str | Path, max_pixels: int | None = None) -> str:
    """What features depend on besides their rule: the weights and, where the folder leaves it open, the image's side.

    Raises: as `load_encoder`.
    """
    side = f"-{_tower_side(folder, None, max_pixels)}px" if _kind(folder) in FAMILIES else ""
    return fingerprint(folder) + side


def _kind(folder: str | Path) -> str:
    if config_file(folder) == OPEN_CLIP:
        return OPEN_CLIP
    kind = read_json(folder).get("model_type")
    known = (*_SIGLIP, *_CLIP, *FAMILIES)
    if kind not in known:
        raise ValueError(
            f"{folder}/config.json: model_type={kind!r} is not read as an image encoder; use one of {', '.join(known)}"
        )
    return kind


def width(folder: str | Path) -> int:
    """E of the features that an encoder's folder makes, from its configuration alone. Raises: as `load_encoder`."""
    kind = _kind(folder)
    if kind in FAMILIES:
        return read_config(folder).vision.width
    return (clip_config if kind in (*_CLIP, OPEN_CLIP) else siglip_config)(folder).width


def _check_scale(folder: str | Path, found: dict) -> None:
    """Refuses a checkpoint that was trained on other pixels than `construct.roi.siglip_pixels` makes."""
    for key, values in found.items():
        if any(value != 0.5 for value in values):
            raise ValueError(
                f"{folder}: {key}={list(values)}, but region features are made with 0.5; use another encoder"
            )


def _processor(folder: str | Path) -> dict:
    # A tower saved alone often has no preprocessor; its family's own is then the only one it can have.
    return read_json(folder, _PROCESSOR) if (Path(folder) / _PROCESSOR).is_file() else {}


def _check_side(folder: str | Path, size: int | None, image: int) -> None:
    if size not in (None, image):
        raise ValueError(f"{folder} takes images of {image} pixels a side, not {size}")


def siglip_encoder(model: SiglipVision, params: dict, hook: str, place: _Placement | None = None) -> Encoder:
    """The encoder of a SigLIP tower in memory."""
    place, c = place or _Placement(None), model.config

    def apply(params, images):
        return model.apply({"params": params}, images, hook=HOOKS[hook])

    return Encoder(place.program(apply, params), c.image, c.grid, c.width, place.count)


def _load_siglip(folder: str | Path, hook: str, size: int | None, place: _Placement) -> Encoder:
    table = _processor(folder)
    _check_scale(folder, {key: table[key] for key in ("image_mean", "image_std") if key in table})
    model, params = load_siglip(folder, place.sharding, attention="xla")
    _check_side(folder, size, model.config.image)
    return siglip_encoder(model, params, hook, place)


def _clip_scale(folder: str | Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """CLIP's mean and standard deviation per channel, of values in 0..1: what the folder says, otherwise CLIP's own."""
    if config_file(folder) == OPEN_CLIP:
        table = read_json(folder, OPEN_CLIP).get("preprocess_cfg", {})
        mean, std = table.get("mean", _CLIP_MEAN), table.get("std", _CLIP_STD)
    else:
        table = _processor(folder)
        mean, std = table.get("image_mean", _CLIP_MEAN), table.get("image_std", _CLIP_STD)
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise ValueError(f"{folder}: mean {mean} and std {std} of the pixels must be three numbers each, std above 0")
    return tuple(mean), tuple(std)


def _load_clip(folder: str | Path, hook: str, size: int | None, place: _Placement) -> Encoder:
    mean, std = (np.asarray(values, np.float32) for values in _clip_scale(folder))
    model, params = load_clip(folder, place.sharding, attention="xla")
    c = model.config
    _check_side(folder, size, c.image)

    def apply(params, images):
        return model.apply({"params": params}, (images * 0.5 + 0.5 - mean) / std, hook=HOOKS[hook])

    return Encoder(place.program(apply, params), c.image, c.grid, c.width, place.count)


def _tower_side(folder: str | Path, size: int | None, max_pixels: int | None) -> int:
    config = read_config(folder).vision
    images = ImageConfig.from_folder(folder, MAX_PIXELS if max_pixels is None else max_pixels)
    _check_scale(folder, {"image_mean": images.mean, "image_std": images.std})
    step, most = config.patch * config.merge, math.isqrt(images.max_pixels)
    side = min(TOWER_SIDE, most) // step * step if size is None else size
    if side < step or side % step or side > most:
        raise ValueError(f"{folder}: an image side of {side} pixels; it must be a multiple of {step}, at most {most}")
    return side


def _load_tower(folder: str | Path, hook: str, size: int | None, max_pixels: int | None, place: _Placement) -> Encoder:
    if hook != "block":
        raise ValueError(
            f"{folder}: the vision tower of a backbone ends in a merger, it has no {hook}; use the hook 'block'"
        )
    side = _tower_side(folder, size, max_pixels)
    config = read_config(folder)
    entries = [entry for entry in backbone_entries(config) if entry.path.startswith("visual/")]
    abstract = {"visual": abstract_backbone(Backbone(config))["visual"]}
    params = load_params(folder, entries, abstract, jnp.float32, place.sharding, unused=_NOT_THE_TOWER)["visual"]
    apply = place.program(partial(_hidden, config, side), params)
    return Encoder(apply, side, side // config.vision.patch, config.vision.width, place.count)


def _hidden(config: BackboneConfig, side: int, params: dict, images: jax.Array) -> jax.Array:
    """Images [n, side, side, 3] to the state after the tower's last block [n, P, E], row by row. Raises: ValueError for another size."""
    if images.shape[1:] != (side, side, 3):
        raise ValueError(f"images are {list(images.shape)}, the encoder takes [n, {side}, {side}, 3]")
    inputs = tower_inputs(config, side, images)
    tower = family_of(config).tower(config.vision, attention="xla")
    _, states = tower.apply({"params": params}, *inputs, mutable=["intermediates"])
    (x,) = states["intermediates"]["last_block"]
    coords = np.asarray(_plan(config, side).patch_coords)
    return x[:, np.lexsort((coords[:, 1], coords[:, 0]))]


def _plan(config: BackboneConfig, side: int) -> NamedTuple:
    """One size, one plan: a constant of the program."""
    grid = side // config.vision.patch
    return family_of(config).geometry(config).plan([(1, grid, grid)], grid * grid, "square images")


def tower_inputs(config: BackboneConfig, side: int, images: jax.Array) -> tuple[jax.Array, ...]:
    """What the tower takes, of square images [n, side, side, 3] in -1..1, in the layout of pipeline.images.patchify."""
    merge, patch = config.vision.merge, config.vision.patch
    # Merge blocks, and within a patch channel, time, row, column.
    patches = rearrange(images, "n (R a h) (S b w) c -> n (R S a b) c h w", a=merge, b=merge, h=patch, w=patch)
    patches = repeat(patches, "n P c h w -> n P (c t h w)", t=config.vision.temporal_patch)
    return patches, *(jnp.broadcast_to(values, (len(images), *values.shape)) for values in _plan(config, side))
