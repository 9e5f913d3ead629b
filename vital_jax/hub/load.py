"""Weights from a Hugging Face folder into sharded arrays, one leaf at a time, biggest first.

Each process reads only the byte ranges of its own devices, directly into the stacked buffer that becomes the device array. Peak host memory
is therefore one leaf, and where host and device are one (a CPU) the model and nothing beside it.

A leaf that the model wants as int8 (models/quantize.py) is read and quantised row by row; its scales become the leaf beside it.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vital_jax.hub.safetensors import Tensor, read_folder
from vital_jax.models import names
from vital_jax.models.backbone import Backbone, abstract_backbone
from vital_jax.models.clip import ClipVision, abstract_clip
from vital_jax.models.config import DecoderConfig, clip_config, config_file, read_json, siglip_config
from vital_jax.models.decoder import Decoder, abstract_decoder
from vital_jax.models.families import backbone_entries, read_config, read_text_config
from vital_jax.models.names import Entry
from vital_jax.models.quantize import is_scale, quantize, scale_of
from vital_jax.models.siglip import SiglipVision, abstract_siglip
from vital_jax.training.partition import flatten, unflatten

_LISTED = 12


def _listing(items: Iterable[str]) -> str:
    items = list(items)
    return ", ".join(items[:_LISTED]) + (f" and {len(items) - _LISTED} more" if len(items) > _LISTED else "")


def _coverage(
    entries: Iterable[Entry], leaves: Mapping[str, Any], tensors: Iterable[str], unused: str | None
) -> dict[str, list[str]]:
    ours = [entry.path for entry in entries]
    wanted = [name for entry in entries for name in entry.names]
    held = {name for name in tensors if not (unused and re.fullmatch(unused, name))}
    return {
        "leaves without a name": sorted(set(leaves) - set(ours)),
        "names without a leaf": sorted(set(ours) - set(leaves)),
        "named twice": sorted(x for xs in (ours, wanted) for x, times in Counter(xs).items() if times > 1),
        "missing tensors": sorted(set(wanted) - held),
        "extra tensors": sorted(held - set(wanted)),
    }


def _misshapen(entries: Iterable[Entry], leaves: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[str]:
    wrong = []
    for entry in entries:
        if entry.path not in leaves:
            continue
        shape = tuple(leaves[entry.path].shape)
        if entry.stacked and shape[0] != len(entry.names):
            wrong.append(f"{entry.path} stacks {len(entry.names)} tensors, the model has {shape[0]}")
        inner = shape[1:] if entry.stacked else shape
        for name in entry.names:
            if name not in tensors:
                continue
            held = tensors[name].shape
            # A patch embedding is a convolution in the file and a matrix here: [out, c, t, h, w] is [out, c t h w].
            flat = (held[0], int(np.prod(held[1:]))) if len(inner) == 2 and len(held) > 2 else held
            if flat != inner:
                wrong.append(f"{name} is {list(held)}, the model needs {list(inner)}")
    return wrong


def _refuse(where: str, problems: Mapping[str, list[str]]) -> None:
    found = [f"{kind}: {_listing(items)}" for kind, items in problems.items() if items]
    if found:
        hint = f"; {names.HEAD} follows tie_word_embeddings of config.json" if names.HEAD in str(found) else ""
        raise ValueError(f"{where} does not fit the model: {'; '.join(found)}{hint}")


def check_coverage(
    entries: Iterable[Entry], leaves: Mapping[str, Any], tensors: Iterable[str], where: str, unused: str | None = None
) -> None:
    """Every leaf of ours and every tensor of the file is named exactly once, or an error lists the ones that are not.

    Args:
      entries: the name table. leaves: our leaves by path. tensors: names in the file. where: named in the error.
      unused: a regex of tensors this model has no use for.
    Raises: ValueError.
    """
    _refuse(where, _coverage(list(entries), leaves, tensors, unused))


def _empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An empty array at a multiple of 64 bytes: JAX on the CPU takes such a buffer for its own, where it would copy another."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _lengths(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(len(range(*part.indices(size))) for part, size in zip(index, shape, strict=True))


def _reader(entry: Entry, shape: tuple[int, ...], dtype: Any, tensors: Mapping[str, Tensor]) -> Callable:
    """A callback for `jax.make_array_from_callback`: the slice of a leaf that one device holds."""

    def fill(out: np.ndarray, tensor: Tensor, index: tuple[slice, ...], inner: tuple[int, ...]) -> None:
        if not inner:
            out[...] = tensor.rows()
            return
        start, stop, _ = index[0].indices(inner[0])
        if tensor.dtype == out.dtype and out.shape[1:] == inner[1:]:
            tensor.rows(start, stop, out)
        elif tensor.shape == inner and len(inner) == 2:
            made = out if tensor.dtype == out.dtype else np.empty(out.shape, tensor.dtype)
            tensor.block(start, stop, *index[1].indices(inner[1])[:2], made)
            if made is not out:
                out[...] = made
        else:
            out[...] = tensor.rows(start, stop).reshape(stop - start, *inner[1:])[(slice(None), *index[1:])]

    def read(index: tuple[slice, ...]) -> np.ndarray:
        out = _empty(_lengths(index, shape), dtype)
        if not entry.stacked:
            fill(out, tensors[entry.names[0]], index, shape)
            return out
        for slot, layer in enumerate(range(*index[0].indices(shape[0]))):
            fill(out[slot], tensors[entry.names[layer]], index[1:], shape[1:])
        return out

    return read


def _quantizing_readers(
    entry: Entry, shape: tuple[int, ...], dtype: Any, tensors: Mapping[str, Tensor]
) -> tuple[Callable, Callable]:
    """Callbacks as `_reader`'s for a stack of kernels [L, out, in] as int8, and for its scales [L, out] in `dtype`, to be called after.

    A row's scale is that of the whole row, on however many devices its columns lie.
    """
    scales = np.full(shape[:2], np.nan, dtype)

    def rows(layer: int, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(shape[1])
        kernel, scales[layer, part] = quantize(tensors[entry.names[layer]].rows(start, stop), dtype)
        return kernel

    def kernels(index: tuple[slice, ...]) -> np.ndarray:
        out = _empty(_lengths(index, shape), np.int8)
        for slot, layer in enumerate(range(*index[0].indices(shape[0]))):
            out[slot] = rows(layer, index[1])[:, index[2]]
        return out

    def known(index: tuple[slice, ...]) -> np.ndarray:
        for layer in range(*index[0].indices(shape[0])):
            if np.isnan(scales[layer, index[1]]).any():
                rows(layer, index[1])
        return scales[index]

    return kernels, known


def model_tensors(folder: str | Path, entries: Iterable[Entry]) -> dict[str, Tensor]:
    """What the files of a model's folder hold, a tied head once: under the embeddings' name.

    Files may hold a tied head beside the embeddings, or in their place; transformers takes either for the one table that it is.

    Raises: FileNotFoundError or ValueError as `read_folder`; ValueError for a tied head that differs, of which transformers 4 knows nothing
      and which 5 keeps apart from the embeddings.
    """
    tensors, wanted = read_folder(folder), {entry.path.split("language_model/")[-1]: entry.names for entry in entries}
    embeddings = wanted.get(names.EMBEDDING)
    if embeddings is None or "lm_head" in wanted or (head := tensors.pop(names.HEAD, None)) is None:
        return tensors
    rows = tensors.setdefault(embeddings[0], head)
    if differing := _differing_rows(rows, head):
        raise ValueError(
            f"{folder}: config.json says tie_word_embeddings=true, but {names.HEAD} differs from {embeddings[0]} {differing}: set it to "
            "false to score answers with this head, as transformers 5 does, or remove that tensor to score them with the embeddings"
        )
    return tensors


def _differing_rows(one: Tensor, other: Tensor, at_once: int = 8192) -> str:
    """Where two tables differ, in words; empty where they do not."""
    if one is other or one.shape != other.shape:
        return "" if one is other else f"in shape ({list(other.shape)} and {list(one.shape)})"
    found = np.concatenate(
        [
            np.flatnonzero((one.rows(i, stop) != other.rows(i, stop)).any(-1)) + i
            for i in range(0, one.shape[0], at_once)
            for stop in [min(i + at_once, one.shape[0])]
        ]
    )
    return f"in {len(found)} of {one.shape[0]} rows (the first is {found[0]})" if len(found) else ""


def check_folder(
    folder: str | Path, entries: Iterable[Entry], abstract: Mapping[str, Any], unused: str | None = None
) -> dict[str, Tensor]:
    """What the files of a folder hold, once it is sure that every leaf can be read from it. Reads headers, and a tied head if it is there.

    Args: as `load_params`.
    Raises: ValueError that lists missing, extra or misshapen tensors; FileNotFoundError naming absent shards.
    """
    entries, leaves = list(entries), flatten(abstract)
    tensors = model_tensors(folder, entries)
    stored = {path: leaf for path, leaf in leaves.items() if not is_scale(path)}
    problems = _coverage(entries, stored, tensors, unused)
    _refuse(str(folder), {**problems, "misshapen tensors": _misshapen(entries, leaves, tensors)})
    return tensors


def check_weights(backbone: str | Path, text_decoder: str | Path | None = None) -> None:
    """Refuses, before anything is read, folders whose weights are not whole. Raises: as `check_folder`."""
    model = Backbone(read_config(backbone))
    check_folder(backbone, backbone_entries(model.config), abstract_backbone(model))
    if text_decoder is not None:
        config = read_text_config(text_decoder)
        check_folder(text_decoder, names.decoder_entries(config), abstract_decoder(Decoder(config)))


def load_params(
    folder: str | Path,
    entries: Iterable[Entry],
    abstract: Mapping[str, Any],
    dtype: Any = jnp.bfloat16,
    sharding: Callable[[str, tuple[int, ...]], jax.sharding.Sharding] | None = None,
    unused: str | None = None,
) -> dict[str, Any]:
    """Reads a parameter tree.

    Args:
      folder: holds model.safetensors, or shards with an index.
      entries: the name table of the model.
      abstract: the tree of shapes (`jax.eval_shape` of the model's init); int8 kernels are quantised, into the scales beside them.
      dtype: of the arrays made, int8 ones excepted.
      sharding: path and shape to sharding; the first device by default.
      unused: a regex of tensors to leave alone.
    Raises: ValueError that lists missing, extra or misshapen tensors; FileNotFoundError.
    """
    entries, leaves = list(entries), flatten(abstract)
    tensors = check_folder(folder, entries, abstract, unused)
    sharding = sharding or (lambda path, shape: jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    dtype = np.dtype(dtype)
    loaded = {}
    for entry in sorted(entries, key=lambda entry: -int(np.prod(leaves[entry.path].shape))):
        shape = tuple(leaves[entry.path].shape)
        parts = {entry.path: (shape, _reader(entry, shape, dtype, tensors))}
        if leaves[entry.path].dtype == np.int8:
            kernel, scale = _quantizing_readers(entry, shape, dtype, tensors)
            parts = {entry.path: (shape, kernel), scale_of(entry.path): (shape[:2], scale)}
        for path, (size, read) in parts.items():
            loaded[path] = jax.make_array_from_callback(size, sharding(path, size), read).block_until_ready()
    return unflatten({path: loaded[path] for path in leaves})


def to_tensors(
    entries: Iterable[Entry], params: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, np.ndarray]:
    """The way back: a parameter tree as Hugging Face tensors (host arrays). `shapes` overrides a tensor's shape (the convolution)."""
    leaves = flatten(params)
    tensors = {}
    for entry in entries:
        array = np.asarray(leaves[entry.path])
        for i, name in enumerate(entry.names):
            tensors[name] = (array[i] if entry.stacked else array).reshape(
                (shapes or {}).get(name, array.shape[int(entry.stacked) :])
            )
    return tensors


def fingerprint(folder: str | Path) -> str:
    """A short identity of a model folder: names, shapes and dtypes of all tensors, and both ends of each one's bytes.

    It tells two checkpoints of one architecture apart without reading 16 GB.
    """
    digest = hashlib.sha256(json.dumps(read_json(folder, config_file(folder)), sort_keys=True).encode())
    for name, tensor in sorted(read_folder(folder).items()):
        digest.update(f"{name}{tensor.shape}{tensor.dtype}".encode())
        last = tensor.shape[0] if tensor.shape else 1
        for start, stop in ((0, min(1, last)), (max(0, last - 1), last)):
            digest.update(tensor.rows(start, stop).tobytes()[:4096])
    return digest.hexdigest()[:16]


def types_of(folder: str | Path, asked: Any = None) -> tuple[np.dtype, np.dtype]:
    """What to compute in, and what to keep parameters in, where nothing but a folder of weights says so.

    Computed is in the type that most of its numbers are stored in, or in the one asked for. float16 is computed in float32: its range is
    too small for states of these models. Kept is what is stored, or the type computed in where that is narrower. Reads headers only.
    """
    numbers: Counter[np.dtype] = Counter()
    for tensor in read_folder(folder).values():
        numbers[tensor.dtype] += math.prod(tensor.shape)
    (stored, _), *_ = numbers.most_common(1)
    kept = np.dtype(np.float32) if stored == np.float64 else stored
    computed = np.dtype(asked) if asked else np.dtype(np.float32) if kept == np.float16 else kept
    return computed, computed if computed.itemsize < kept.itemsize else kept


def load_backbone(
    folder: str | Path, sharding: Callable | None = None, param_dtype: Any = jnp.bfloat16, **options: Any
):
    """A backbone's folder as (model, parameters).

    `options` go to `Backbone` (with `quantize="int8"` the decoder's kernels become int8); `param_dtype` is what the base is kept in.
    """
    model = Backbone(read_config(folder), **options)
    entries = backbone_entries(model.config)
    return model, load_params(folder, entries, abstract_backbone(model), param_dtype, sharding)


def load_text_decoder(
    folder: str | Path, sharding: Callable | None = None, param_dtype: Any = jnp.float32, **options: Any
):
    """A text decoder's folder as (model, parameters)."""
    config: DecoderConfig = read_text_config(folder)
    model = Decoder(config, **options)
    return model, load_params(folder, names.decoder_entries(config), abstract_decoder(model), param_dtype, sharding)


def load_siglip(folder: str | Path, sharding: Callable | None = None, param_dtype: Any = jnp.float32, **options: Any):
    """The vision tower of a SigLIP folder as (model, parameters), from a whole SigLIP or a tower saved alone."""
    model = SiglipVision(siglip_config(folder), **options)
    prefixed = any(name.startswith("vision_model.") for name in read_folder(folder))
    entries = names.siglip_entries(model.config, "vision_model." if prefixed else "")
    return model, load_params(folder, entries, abstract_siglip(model), param_dtype, sharding, names.SIGLIP_UNUSED)


def load_clip(folder: str | Path, sharding: Callable | None = None, param_dtype: Any = jnp.float32, **options: Any):
    """The vision tower of a CLIP folder as (model, parameters): transformers' (whole or alone), or open_clip's with a tower from timm."""
    model = ClipVision(clip_config(folder), **options)
    tensors = read_folder(folder)
    prefix = "visual.trunk." if model.config.timm else "vision_model."
    entries = names.clip_entries(model.config, prefix if any(name.startswith(prefix) for name in tensors) else "")
    return model, load_params(folder, entries, abstract_clip(model), param_dtype, sharding, names.CLIP_UNUSED)
