"""What a run needs on disk, made once: records, small models where the recipe asks for them, region features.

Each product appears whole or not at all, carries the settings it was made with, and is left alone when they are the same. Settings that
differ from those of a product already there are an error, never a silent rebuild: the folder may be somebody's only copy.
"""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from vital_jax.construct import factory
from vital_jax.construct.build import assign_splits, build_records
from vital_jax.construct.pages import record_splits
from vital_jax.construct.sidecar import Extraction, batch_for, write_sidecar
from vital_jax.construct.sources import find_sources
from vital_jax.demo.flow import caption_records, flow_records
from vital_jax.demo.phantoms import phantoms
from vital_jax.demo.pretrain.tower import train_tower
from vital_jax.hub import tiny
from vital_jax.hub.encoders import identity, load_encoder
from vital_jax.models.config import read_json
from vital_jax.pipeline.features import FeatureSpec, RoiFeatures, distinctness, parts_folder
from vital_jax.pipeline.records import Record, RecordSource, new_folder, write_splits
from vital_jax.training.config import resolved

_LESSONS = 300  # boards whose questions and chains teach a tokenizer its words


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


def _texts(config: Any) -> Iterator[str]:
    """What a small model's tokenizer learns: the training split, and for captions also how questions and chains are worded."""
    records = RecordSource(config.data.records)
    build = config.data.build
    lessons = (
        flow_records(_LESSONS, build.seed, hops=(1, 2, 3, 4, 5), per_board=5, looks=6)
        if build.source == "captions"
        else ()
    )
    for record in (*lessons, *records):
        yield from (record.question, record.answer, *record.chain)


def _drawn(build: Any) -> Iterator[Record]:
    """The records of drawn images that a recipe's `data.build` describes. Raises: ValueError for an unknown source."""
    if build.source == "flow":
        return flow_records(build.count, build.seed, build.hops, build.questions, build.looks, noise=build.noise)
    if build.source == "captions":
        return caption_records(build.count, build.seed, build.questions)
    if build.source == "phantoms":
        samples = phantoms(build.count, build.seed)
        return build_records(samples, build.questions, build.seed, form=build.form, val=build.val, test=build.test)
    raise ValueError(
        f"unknown config.data.build.source={build.source!r}: use phantoms, captions, flow (drawn) or factory (files)"
    )


def make_records(config: Any) -> None:
    """Builds the record folder of `config.data.records` where `config.data.build` says how."""
    build, folder = config.data.build, Path(config.data.records)

    def make() -> None:
        write_splits(assign_splits(_drawn(build), build.val, build.test), folder)

    if build.source == "factory":
        _run_factory(build, folder)
    else:
        _once(folder, resolved(build), make)


def _run_factory(build: Any, folder: Path) -> None:
    """What `vital data build` does, in the folder that holds the records; it keeps its own settings, and goes on where it stopped.

    Raises: ValueError for a record folder that is not named so, or no source of the kinds asked for.
    """
    if folder.name != "records":
        raise ValueError(f"config.data.records={str(folder)!r}: the factory's records are in a folder named 'records'")
    sources = [source for source in find_sources(build.path) if source.kind in build.kinds]
    if not sources:
        raise ValueError(f"{build.path}: no source of kind {', '.join(build.kinds)} (config.data.build)")
    keys = {key: build[key] for key in ("questions", "form", "seed", "val", "test")}
    factory.build(folder.parent, sources, **keys)


def make_models(config: Any) -> None:
    """Writes the small random models of `config.model.tiny`; the tokenizer learns the training split's texts."""
    spec = config.model.tiny

    def write_backbone(out: Path) -> None:
        tiny.write_backbone(out, _texts(config), spec.seed, spec.width, spec.layers, depth=spec.get("depth", 4))
        if spec.get("tower"):
            train_tower(out, **spec.tower)

    makers = {
        config.model.folder: write_backbone,
        config.model.text_decoder: lambda out: tiny.write_text_decoder(out, config.model.folder, spec.seed + 1),
        config.data.encoder: lambda out: tiny.write_siglip(out, spec.seed + 2),
    }
    for folder, write in makers.items():

        def make(folder: Path = Path(folder), write: Callable[[Path], Any] = write) -> None:
            with new_folder(folder) as temporary:
                write(temporary)

        _once(Path(folder), resolved(spec), make)


def features_name(config: Any) -> str:
    """The folder of region features beside the records that `config.data` asks for; empty where it asks for none.

    It follows from the encoder and the rule of extraction; `data.features` is "auto", or that name spelt out, or empty.

    Raises: ValueError where `data.features` names another.
    """
    data = config.data
    name = FeatureSpec(Path(data.encoder).name, data.hook, data.roi_threshold, data.roi_margin, "").name
    if data.features not in ("", "auto", name):
        raise ValueError(
            f'config.data.features={data.features!r}, but its settings make {name!r}; name it so, or "auto"'
        )
    return name if data.features else ""


def has_features(config: Any) -> bool:
    """Whether every split has the region features that are asked for: they may travel without the encoder that made them."""
    data, name = config.data, features_name(config)
    splits = record_splits(data.records)
    return bool(splits) and all((Path(data.records) / name / split).exists() for split in splits)


def make_features(config: Any) -> None:
    """Extracts the region features of every split that lacks them, with the encoder of `config.data.encoder`.

    Raises: FileNotFoundError or ValueError naming the encoder's folder, features there that another encoder made, or a record whose image
    cannot be read.
    """
    data, name = config.data, features_name(config)
    if not name:
        return
    if has_features(config) and not Path(data.encoder).exists():
        return
    made = extract_features(
        data.records,
        record_splits(data.records),
        data.encoder,
        hook=data.hook,
        threshold=data.roi_threshold,
        margin=data.roi_margin,
        max_pixels=data.max_pixels,
    )
    if faults := [fault for extraction in made.values() for fault in extraction.faults]:
        raise ValueError("; ".join(faults))


def extract_features(
    records: str | Path,
    splits: Iterable[str],
    encoder: str | Path,
    *,
    hook: str,
    threshold: float,
    margin: float,
    max_pixels: int | None = None,
    batch_size: int | None = None,
    share: tuple[int, int] = (0, 1),
    say: Callable[[str], None] = _say,
) -> dict[str, Extraction]:
    """Extracts the region features of those splits that lack them, with the images of a call split over this process's devices.

    Args:
      records: a record folder. encoder: a model folder; its name is the features'. hook, max_pixels: as for `load_encoder`.
      threshold, margin: T and P. batch_size: images per call; by default 8 a device. share: as for `write_sidecar`.

    Returns: what was left of every split that was worked on.
    Raises: as `make_features`.
    """
    encoder = Path(encoder)
    made_by = identity(encoder, max_pixels)
    spec = FeatureSpec(encoder.absolute().name, hook, threshold, margin, made_by)
    missing = []
    for split in splits:
        folder = Path(records) / spec.name / split
        if not folder.exists():
            missing.append(split)
        elif (held := read_json(folder, "info.json")["fingerprint"]) != made_by:
            raise ValueError(
                f"{folder} was made with encoder {held}, but {str(encoder)!r} is {made_by}; "
                "remove the features, or give one encoder's folder another name"
            )
        else:  # what a kill left between the sidecar's last file and the end
            shutil.rmtree(parts_folder(folder), ignore_errors=True)
    if not missing:
        return {}
    loaded = load_encoder(encoder, hook, max_pixels=max_pixels, devices=jax.local_devices())
    spec = dataclasses.replace(spec, grid=loaded.grid)
    found = {}
    for split in missing:
        source = RecordSource(records, split)
        say(f"region features of {len(source):,} records, split {split}")
        batch = batch_for(len(source), loaded.devices, batch_size)
        found[split] = write_sidecar(source, spec, loaded.apply, loaded.size, batch, share, say)
        if written := found[split].folder:
            held = RoiFeatures(written, source.ids)
            if held.valid.sum() > 1:
                cosine, energy = distinctness(held.roi[held.valid])
                say(
                    f"{held.valid.sum():,} regions: mean cosine of two {cosine:.3f}; the strongest 8 of {held.roi.shape[1]} "
                    f"channels hold {100 * energy:.0f} % of the energy"
                )
    return found


def prepare(config: Any) -> None:
    """Makes whatever the recipe says how to make; the rest must be there already."""
    if config.data.get("build"):
        make_records(config)
    if config.model.get("tiny"):
        make_models(config)
    if config.data.features:
        make_features(config)
