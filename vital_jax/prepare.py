"""What a run needs on disk, made once: records, small models where the recipe asks for them, region features.

Each product appears whole or not at all, carries the settings it was made with, and is left alone when they are the same. Settings that
differ from those of a product already there are an error, never a silent rebuild: the folder may be somebody's only copy.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from vital_jax.construct.build import assign_splits, build_records
from vital_jax.construct.folders import MaskFolder, Sample
from vital_jax.construct.phantoms import phantoms
from vital_jax.construct.roi import record_rows
from vital_jax.hub import tiny
from vital_jax.hub.load import fingerprint, load_siglip
from vital_jax.pipeline.features import FeatureSpec, write_features
from vital_jax.pipeline.records import RecordSource, new_folder, write_splits
from vital_jax.training.config import resolved

_HOOKS = {"block": "last_block", "post_layernorm": "post_layernorm"}


def _say(message: str) -> None:
    print(f"prepare: {message}", file=sys.stderr, flush=True)


def _once(folder: Path, settings: dict[str, Any], make: Callable[[], None]) -> None:
    """Runs `make` unless `folder` is there with the same settings, which lie beside it."""
    note = folder.with_name(folder.name + ".settings.json")
    if folder.exists():
        held = json.loads(note.read_text()) if note.exists() else {}
        if held != settings:
            changed = sorted(key for key in {*held, *settings} if held.get(key) != settings.get(key))
            raise ValueError(f"{folder} was made with another {', '.join(changed)}; remove it, or name another folder")
        return
    _say(f"making {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The note first: a kill in between leaves a note without a product, which the next run makes again.
    note.write_text(json.dumps(settings, indent=2))
    make()


def _samples(build: Any) -> Iterator[Sample]:
    """The samples a recipe's `data.build` describes. Raises: ValueError for an unknown source."""
    if build.source == "phantoms":
        yield from phantoms(build.count, build.seed)
    elif build.source == "folders":
        root = Path(build.path)
        found = sorted(path.parent for path in root.glob("*/manifest.jsonl"))
        if not found:
            raise FileNotFoundError(f"{root}: no folder with a manifest.jsonl in it (config.data.build.path)")
        for folder in found:
            reader = MaskFolder(folder)
            yield from reader
            _say(reader.summary())
    else:
        raise ValueError(f"unknown config.data.build.source={build.source!r}: use phantoms or folders")


def make_records(config: Any) -> None:
    """Builds the record folder of `config.data.records` where `config.data.build` says how."""
    build, folder = config.data.build, Path(config.data.records)

    def make() -> None:
        records = build_records(_samples(build), build.questions, build.seed)
        write_splits(assign_splits(records, build.val, build.test), folder)

    _once(folder, resolved(build), make)


def make_models(config: Any) -> None:
    """Writes the small random models of `config.model.tiny`; the tokenizer learns the training split's texts."""
    spec = config.model.tiny
    texts = lambda: (  # noqa: E731
        text for r in RecordSource(config.data.records) for text in (r.question, r.answer, *r.chain)
    )
    makers = {
        config.model.folder: lambda out: tiny.write_backbone(out, texts(), spec.seed, spec.width, spec.layers),
        config.model.text_decoder: lambda out: tiny.write_text_decoder(out, config.model.folder, spec.seed + 1),
        config.data.encoder: lambda out: tiny.write_siglip(out, spec.seed + 2),
    }
    for folder, write in makers.items():

        def make(folder=Path(folder), write=write) -> None:
            with new_folder(folder) as temporary:
                write(temporary)

        _once(Path(folder), resolved(spec), make)


def make_features(config: Any) -> None:
    """Extracts the region features of every split that lacks them, with the encoder of `config.data.encoder`.

    Raises: FileNotFoundError or ValueError naming the encoder's folder or a record whose image cannot be read.
    """
    data = config.data
    if data.hook not in _HOOKS:
        raise ValueError(f"unknown config.data.hook={data.hook!r}: use one of {', '.join(_HOOKS)}")
    spec = FeatureSpec(Path(data.encoder).name, data.hook, data.roi_threshold, data.roi_margin, "")
    if spec.name != data.features:
        raise ValueError(f"config.data.features={data.features!r}, but its settings make {spec.name!r}; name it so")
    splits = [path.stem.removeprefix("index-") for path in Path(data.records).glob("index-*.jsonl")]
    missing = [split for split in splits if not (Path(data.records) / data.features / split).exists()]
    if not missing:
        return
    model, params = load_siglip(data.encoder)
    apply = jax.jit(lambda params, images: model.apply({"params": params}, images, hook=_HOOKS[data.hook]))
    spec = dataclasses.replace(spec, fingerprint=fingerprint(data.encoder))
    for split in missing:
        source = RecordSource(data.records, split)
        _say(f"region features of {len(source)} records, split {split}")

        rows = record_rows(
            source,
            functools.partial(apply, params),
            batch_size=8,
            grid=model.config.grid,
            size=model.config.image,
            threshold=data.roi_threshold,
            margin=data.roi_margin,
        )
        write_features(data.records, spec, source.ids, rows, split)


def prepare(config: Any) -> None:
    """Makes whatever the recipe says how to make; the rest must be there already."""
    if config.data.get("build"):
        make_records(config)
    if config.model.get("tiny"):
        make_models(config)
    if config.data.features:
        make_features(config)
