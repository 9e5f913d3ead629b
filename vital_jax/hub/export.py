"""A training run as a folder that transformers loads: merged weights, a PEFT adapter, or both, with the loop's code beside them.

What came from the base stays the base's, but for what the run had otherwise (hub/beside.py): a configuration written anew is what makes a
folder load in one version of transformers only. Tensors are read, merged and written one after the other, so that memory holds one of them
and not the model. Everything is written beside the target and renamed at the end.

    OUT/                        merged weights, or the adapter (`peft`), and all that inference needs beside them
    OUT/adapter/                the same for the adapter, where both are asked for
    OUT/custom_generate/        the loop for `model.generate`
    OUT/feedback.safetensors    a method's modules inside the loop, where it has some
    OUT/explain/                text decoder and projectors, which answering does not need
    OUT/vital.json, README.md   what this package needs to load it again; the model card
"""

import json
import math
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

import vital_jax
from vital_jax.hub import card, peft
from vital_jax.hub.beside import beside, copies
from vital_jax.hub.folders import FACTS
from vital_jax.hub.load import check_coverage, model_tensors
from vital_jax.hub.safetensors import Tensor, read_folder
from vital_jax.hub.tokens import FEEDBACK, feedback_name, moved, replacing
from vital_jax.hub.writing import (
    SHARD,
    Content,
    Pending,
    as_json,
    check_place,
    new_folder,
    shards,
    size_of,
    write_files,
)
from vital_jax.models.config import LoraConfig
from vital_jax.models.families import backbone_entries, read_config, read_text_config
from vital_jax.models.lora import merge_lora
from vital_jax.models.names import Entry, decoder_entries
from vital_jax.models.tokens import TABLES
from vital_jax.pipeline.images import ImageConfig
from vital_jax.training.partition import flatten

FORMS = ("merged", "peft", "both")
_GROUP = 1 << 28  # bytes of a checkpoint read at a time: a read has a price of its own
Kept = Callable[[Any], np.dtype]  # a tensor's own type to the one it is written in
_GENERATE = Path(__file__).parent / "custom_generate" / "generate.py"


class TrainedRun(Protocol):
    """What export reads of a training run's folder: `vital_jax.run.open.Run`, which stands on a floor above."""

    folder: Path
    config: ConfigDict
    meta: Mapping[str, Any]
    leaves: Mapping[str, Any]
    latent_steps: int
    latent_state: str
    exports: bool
    tokens: Mapping[str, int]
    images: ImageConfig
    answer_tokens: int
    encoders: Collection[str]
    base: Path
    text_decoder: Path

    def read_trained(self, parts: Collection[str], sharding: Any = None) -> dict[str, Any]:
        """The checkpoint's leaves at these paths, nested."""


class _Leaves(Mapping):
    """The parameters that a run trained, by path. They are read from the checkpoint in groups, and the two newest groups are kept."""

    def __init__(self, run: TrainedRun, group: int = _GROUP):
        self._run, self._held = run, {}
        self._group_of, size, number = {}, 0, 0
        for path, leaf in run.leaves.items():
            size += math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
            if size > group and self._group_of:
                size, number = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize, number + 1
            self._group_of[path] = number
        try:
            device = jax.local_devices(backend="cpu")[0]
        except RuntimeError:  # JAX was started without a CPU backend
            device = jax.local_devices()[0]
        self._sharding = jax.sharding.SingleDeviceSharding(device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._run.leaves)

    def __len__(self) -> int:
        return len(self._run.leaves)

    def __getitem__(self, path: str) -> np.ndarray:
        number = self._group_of[path]
        if number not in self._held:
            while len(self._held) > 1:
                del self._held[next(iter(self._held))]
            wanted = [other for other, own in self._group_of.items() if own == number]
            read = flatten(self._run.read_trained(wanted, self._sharding))
            self._held[number] = {other: np.asarray(read[other]) for other in wanted}
        return self._held[number][path]

    def shape(self, path: str) -> tuple[int, ...]:
        """Without reading it."""
        return tuple(self._run.leaves[path].shape)

    def under(self, prefix: str) -> list[str]:
        """The paths that start with this."""
        return [path for path in self._run.leaves if path.startswith(prefix)]


def _facts(run: TrainedRun, form: str, base_name: str, dtype: str | None) -> dict[str, Any]:
    """What vital.json records: nothing that names a folder of this machine."""
    data, model = run.config.data, run.config.model
    return {
        "format_version": 1,
        "writer": f"vital_jax {vital_jax.__version__}",
        "form": form,
        "latent_steps": run.latent_steps,
        "latent_state": run.latent_state,
        "tokens": dict(run.tokens),
        "base": {"name": base_name, "fingerprint": run.meta["base_fingerprint"]},
        "model": {"dtype": dtype or model.dtype, "param_dtype": dtype or model.param_dtype},
        "data": {
            "min_pixels": run.images.min_pixels,
            "max_pixels": run.images.max_pixels,
            "system": data.system,
            "buckets": [list(bucket) for bucket in data.buckets],
            "answer": data.answer,
            "chain": data.chain,
            "written": data.written,
        },
        "method": run.config.method.to_dict(),
        "switches": dict(run.meta["switches"]),
        "step": run.meta["step"],
    }


# --- what is written ----------------------------------------------------------------------------------------------


def _weights(
    entries: Iterable[Entry],
    folder: Path,
    leaves: _Leaves,
    prefix: str,
    kept: Kept,
    lora: LoraConfig | None = None,
    added: Sequence[int] = (),
) -> dict[str, Pending]:
    """A model's tensors in the order of the name table: the folder's, or where the run trained a leaf that one, adapters merged in.

    Going leaf by leaf, a stacked leaf of the checkpoint is read once; a layer-by-layer order would read all of them for every layer.
    """
    entries, pending = list(entries), {}
    tensors = model_tensors(folder, entries)
    deltas = {f"base/{path}": f"tokens/{side}" for side, path in TABLES.items() if f"tokens/{side}" in leaves}
    for entry in entries:
        for layer, name in enumerate(entry.names):
            dtype = kept(tensors[name].dtype)
            make = partial(_tensor, entry, layer, tensors[name], leaves, prefix, lora)
            if (delta := deltas.get(f"{prefix}/{entry.path}")) is not None:
                make = partial(moved, make, added, leaves, delta, dtype)
            pending[name] = Pending(tensors[name].shape, dtype, make)
    return pending


def _tensor(
    entry: Entry, layer: int, tensor: Tensor, leaves: _Leaves, prefix: str, lora: LoraConfig | None
) -> np.ndarray:
    path = f"{prefix}/{entry.path}"
    value = tensor.rows() if path not in leaves else leaves[path][layer] if entry.stacked else leaves[path]
    adapter = f"lora/{entry.path.removesuffix('/kernel')}"
    if lora is None or f"{adapter}/a" not in leaves:
        return value
    # In full precision: an accelerator's own choice for products would lose the last bits of every weight.
    with jax.default_matmul_precision("highest"):
        sides = {side: leaves[f"{adapter}/{side}"][layer : layer + 1] for side in ("a", "b")}
        base = {"kernel": np.asarray(value, np.float32).reshape(1, *tensor.shape)}
        return np.asarray(merge_lora(base, sides, lora)["kernel"][0])


def _merged(run: TrainedRun, leaves: _Leaves, kept: Kept, largest: int) -> dict[str, Content]:
    config = read_config(run.base)
    lora = LoraConfig(**run.config.lora) if run.config.lora.rank else None
    pending = _weights(backbone_entries(config), run.base, leaves, "base", kept, lora, sorted(run.tokens.values()))
    return shards(pending, largest)


def _adapter(run: TrainedRun, leaves: _Leaves, base_name: str) -> dict[str, Content]:
    if not leaves.under("lora/"):
        raise ValueError(f"{run.folder} trained no adapters (lora.rank={run.config.lora.rank}): export it as merged")
    if trained := leaves.under("base/"):
        raise ValueError(
            f"{run.folder} trained {len(trained)} leaves of its base too ({trained[0]}), which no adapter can hold: export it as merged"
        )
    lora = LoraConfig(**run.config.lora)
    config = read_config(run.base)
    known, pending, paths = peft.adapter_leaves(config, lora), {}, []
    for path in leaves.under("lora/"):
        leaf = known[path.removeprefix("lora/")]
        paths.append(path.removeprefix("lora/"))
        for layer, name in enumerate(leaf.names):
            make = lambda path=path, layer=layer: leaves[path][layer]  # noqa: E731
            pending[name] = Pending(leaf.shape[1:], np.float32, make)
    modules, added = {}, sorted(run.tokens.values())
    base = model_tensors(run.base, backbone_entries(config)) if added else {}
    for side, module in peft.token_modules(config).items() if added else ():
        modules[module] = added
        make = partial(replacing, base[f"{module}.weight"].rows, added, leaves, f"tokens/{side}")
        pending[peft.rows_name(module)] = Pending(leaves.shape(f"tokens/{side}"), np.float32, make)
    settings = as_json(peft.adapter_config(paths, lora, base_name, modules))
    return {peft.CONFIG: settings, peft.WEIGHTS: pending}


def _feedback(leaves: _Leaves) -> dict[str, Content]:
    paths = leaves.under("feedback/")
    make = {path: partial(leaves.__getitem__, path) for path in paths}
    tensors = {feedback_name(path): Pending(leaves.shape(path), np.float32, make[path]) for path in paths}
    return {FEEDBACK: tensors} if tensors else {}


def _explain(run: TrainedRun, leaves: _Leaves, kept: Kept, largest: int) -> dict[str, Content]:
    """The scaffold: what reads a latent as text, and what places it in the space of image regions. Empty where none was trained."""
    method, data = run.config.method, run.config.data
    text, visual = leaves.under("scaffold/pj_in/"), leaves.under("scaffold/visual_projector/")
    if not text and not visual:
        return {}
    files: dict[str, Content] = {}
    if text:
        folder = run.text_decoder
        pending = _weights(decoder_entries(read_text_config(folder)), folder, leaves, "scaffold/text_decoder", kept)
        inside = copies(folder) | shards(pending, largest)
        files |= {f"explain/text_decoder/{name}": content for name, content in inside.items()}
    projectors = {
        torch_name(path.removeprefix("scaffold/")): Pending(
            leaves.shape(path), np.float32, partial(leaves.__getitem__, path)
        )
        for path in [*text, *visual]
    }
    table: dict[str, Any] = {
        "latent_steps": run.latent_steps,
        "latent_state": run.latent_state,
        "tensors": {name: list(tensor.shape) for name, tensor in projectors.items()},
    }
    if text:
        table["text"] = {"first_input": "pj_in(z_k)", "decoder": "text_decoder", "longest_step": data.chain}
    if visual:
        table["visual"] = {
            "kind": method.projector,
            "output_norm": method.output_norm,
            "width": leaves.shape("scaffold/visual_projector/w2/kernel")[0],
            "target": method.visual_target,
            "encoder": Path(data.encoder).name,
            "fingerprint": next(iter(run.encoders), "") if len(run.encoders) == 1 else "",
            "hook": data.hook,
            "roi_threshold": data.roi_threshold,
            "roi_margin": data.roi_margin,
        }
    return {**files, "explain/projector.safetensors": projectors, "explain/config.json": as_json(table)}


def torch_name(path: str) -> str:
    """`pj_in/linear/kernel` as torch would call it; kernels are [out, in] on both sides. Attention keeps flax's names."""
    name = path.replace("/", ".")
    return name if ".attention." in name else re.sub(r"\.(kernel|scale)$", ".weight", name)


def _loop(run: TrainedRun) -> bytes:
    """The loop's code with this model's two settings written in."""
    code = _GENERATE.read_text(encoding="utf-8")
    for line, value in (
        ("LATENT_STEPS = None\n", run.latent_steps),
        ('LATENT_STATE = "post_norm"\n', run.latent_state),
    ):
        if code.count(line) != 1:
            raise RuntimeError(f"{_GENERATE} has no line {line.strip()!r} to write this model's value in")
        code = code.replace(line, f"{line.split()[0]} = {json.dumps(value)}\n")
    return code.encode()


# --- where it is written ------------------------------------------------------------------------------------------


def export(
    run: TrainedRun,
    out: str | Path,
    *,
    form: str = "merged",
    explain: bool = True,
    dtype: str | None = None,
    base_name: str = "",
    about: card.About | None = None,
    overwrite: bool = False,
    shard: int = SHARD,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> Path:
    """Writes a run's checkpoint as a Hugging Face folder. With several processes all read and the first writes.

    Args:
      run: as `vital_jax.run.open.open_run` opened it. out: the folder to make.
      form: `merged`, `peft` or `both`.
      explain: also write the scaffold, where the checkpoint holds one.
      dtype: of merged weights and of the computation; by default as the run computed, in weights that are no narrower than that (an
        8B of bfloat16: bfloat16). Merging is done in float32.
      base_name: what the base is called for others, such as its name on a hub; by default its folder's name.
      about: what the model card says beside what the run records.
      overwrite: replace a folder that an export made before.
      shard: most bytes of a weight file. say: takes a line of progress.
    Returns: `out`.
    Raises: FileNotFoundError, FileExistsError, ValueError for a run or form that does not fit, naming the folder and the way out;
      OSError for a place that cannot be written or lacks room, before anything is written.
    """
    out, leaves = Path(out), _Leaves(run)
    if not run.exports:
        raise ValueError(
            f"{run.folder}: this run is {run.config.method.name!r}, whose inference the exported loop (custom_generate) cannot run: its "
            "latents do not stand right behind the prompt; answer with the run's folder"
        )
    if form not in FORMS:
        raise ValueError(f"no form {form!r}: use {', '.join(FORMS)}")

    def kept(own: Any) -> np.dtype:
        return np.dtype(dtype) if dtype else np.promote_types(own, run.config.model.dtype)

    scaffold = _explain(run, leaves, kept, shard) if explain else {}
    if explain and not scaffold:
        say(f"{run.folder}: the checkpoint holds no scaffold (text decoder, projectors), so there is no explain/")
    base_name = base_name or run.base.resolve().name

    def whole(form: str, parts: Sequence[str]) -> dict[str, Content]:
        facts = _facts(run, "peft" if form == "peft" else "merged", base_name, dtype)
        files = beside(run.base, run.images, facts["model"]["dtype"], run.tokens, lambda: run.answer_tokens)
        files |= _adapter(run, leaves, base_name) if form == "peft" else _merged(run, leaves, kept, shard)
        page = card.render(facts, form, parts, about or card.About())
        files |= {"custom_generate/generate.py": _loop(run), FACTS: as_json(facts), "README.md": page.encode()}
        return files | _feedback(leaves)

    files = whole(form, sorted({name.split("/")[1] for name in scaffold})) | scaffold
    if form == "both":
        files |= {f"adapter/{name}": content for name, content in whole("peft", ()).items()}
    sources = {path.resolve() for path in (run.folder, run.base)}
    check_place(out, sum(map(size_of, files.values())), FACTS, overwrite, sources)
    with new_folder(out) as part:
        write_files(part, files, say)
        if part and form != "peft":
            entries = backbone_entries(read_config(run.base))
            check_coverage(entries, {e.path: None for e in entries}, read_folder(part), str(out))
    return out
