"""The record: the one schema of a question about images, and its store on disk.

Everything that makes data (`construct`, the readers of public benchmarks) ends in a `Record`, and everything that
trains or scores starts from one, so the schema stands in a single place with a version number. The store is
ArrayRecord shards in the layout of TensorFlow Datasets, because that gives random access for Grain and a folder that
a stranger opens with two lines:

    builder = tensorflow_datasets.builder_from_directory(folder)
    source = builder.as_data_source("train")

TensorFlow itself is never imported: images and masks travel as the encoded bytes they came in, which also keeps them
lossless. Beside the shards lies `index-<split>.jsonl` (id, latent steps and metadata of every record), so that phases
and sidecars can be planned without reading a single image.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

FORMAT_VERSION = 2  # 2 added step_masks
FILES = ("images", "masks", "step_masks")  # fields of encoded files
# Metadata keys with a fixed meaning; a record may carry others, but these are checked wherever they appear.
METADATA_TYPES = {
    "source": str,  # the data set
    "licence": str,  # of image and masks
    "group": str,  # patient, case or volume: stays on one side of a split
    "modality": str,  # CT, MRI, ...
    "site": str,  # body region
    "target_name": str,  # what is asked about
    "target_type": str,  # organ, sub-structure, vessel, tissue, lesion, retinal or cell
    "neighbour": str,  # a second target that the question names
    "question_type": str,  # yesno, identify, location_choice, location, describe or reasoning
    "ask": str,  # what of it: presence, side, size, ...
    "form": str,  # open or closed
    "latent_steps": int,  # K
    "choices": int,  # of a free answer: how many are equally likely to who does not look
    "steps": list,  # per step of the chain, the name of what it is about
    "slots": list,  # per step of a measured chain, what the step says: the lists of data/sentences.json
    "teacher": str,  # who answered: measured-N, or a model's name
    "gate": str,  # the version of the quality gate that the chain passed
    "orientation": str,  # "image": as stored; "radiological": the patient's left on the image's right
    # [low, high]: the stored values that are black and white, never a name. An image deeper than 8 bits is shown so when it is decoded;
    # one of 8 bits was cut so, and decoding leaves it as it is.
    "window": list,
    # Of a CT: "shifted" (1024 was taken off, the intercept was lost) or "relative" (no Hounsfield units, shown between percentiles).
    "intensity": str,
    "spacing": list,  # [row to row, column to column] in mm
    "answer_type": str,  # as the source of finished questions says it (VQA-RAD: CLOSED, OPEN), likewise the three that follow
    "asked_for": str,  # PRES, SIZE, ...
    "phrasing": str,  # freeform, para, ...
    "source_split": str,  # the side it was on there
    "overlaps": list,  # benchmarks whose test images it shows, or near-duplicates of them, though it is for training
}
_STORE = "vital_records"
_DESCRIPTION = "Questions about medical images with answers and, optionally, chains, options, boxes and masks."


@dataclass(frozen=True)
class Record:
    """One question about one or more images. Empty optional fields mean "not there" and carry no loss.

    Attributes:
      id: unique within a data set.
      images: encoded image files (PNG, JPEG, ...), at least one.
      question, answer: text.
      chain: reasoning steps, one string each; a method says how many it takes, and how many latents one is worth.
      options, gold: multiple choice; `gold` is the letter of the right option ("A" is the first).
      boxes: (x_min, y_min, x_max, y_max) as fractions of the first image, kept with float32 precision.
      masks: encoded single-channel PNG files, none or one per image.
      step_masks: likewise, of the first image: none, or for each step of the chain the region that its sentence is about.
      metadata: JSON values; the keys of `METADATA_TYPES` have the types given there.
      format_version: the schema this record follows; one of an older schema is one of the newest, too.

    Raises:
      ValueError: a field is empty, of the wrong kind or contradicts another; the message names the record.
    """

    id: str
    images: tuple[bytes, ...]
    question: str
    answer: str
    chain: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    gold: str = ""
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    masks: tuple[bytes, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    step_masks: tuple[bytes, ...] = ()
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name in (*FILES, "chain", "options"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "boxes", tuple(tuple(float(np.float32(v)) for v in box) for box in self.boxes))
        _validate(self)
        object.__setattr__(self, "format_version", FORMAT_VERSION)

    @property
    def latent_steps(self) -> int | None:
        """K of this record: what the metadata says, otherwise the length of its chain; None where it states neither."""
        return self.metadata.get("latent_steps", len(self.chain) or None)


def _validate(record: Record) -> None:
    def check(ok: bool, message: str) -> None:
        if not ok:
            raise ValueError(f"record {record.id!r}: {message}")

    check(isinstance(record.format_version, int), "format_version must be a whole number")
    if record.format_version > FORMAT_VERSION:
        raise ValueError(_newer(f"record {record.id!r}", record.format_version))
    for name in ("id", "question", "answer"):
        value = getattr(record, name)
        check(isinstance(value, str) and bool(value.strip()), f"{name} must be a non-empty string, got {value!r}")
    check(record.id.isprintable(), "id must be printable text on one line")
    check(bool(record.images), "needs at least one image")
    for name, kind in (*((name, bytes) for name in FILES), ("chain", str), ("options", str)):
        for number, value in enumerate(getattr(record, name)):
            good = isinstance(value, kind) and bool(value.strip())
            check(good, f"{name}[{number}] must be non-empty {kind.__name__}, got {type(value).__name__}")
    check(
        len(record.masks) in (0, len(record.images)),
        f"{len(record.masks)} masks for {len(record.images)} images; give none or one per image",
    )
    check(
        len(record.step_masks) in (0, len(record.chain)),
        f"{len(record.step_masks)} step_masks for a chain of {len(record.chain)} steps; give none or one per step",
    )
    letters = [chr(ord("A") + i) for i in range(len(record.options))]
    check(not record.gold or record.gold in letters, f"gold {record.gold!r} is none of the options' letters {letters}")
    for box in record.boxes:
        good = len(box) == 4 and 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1
        check(good, f"box {box} must be (x_min, y_min, x_max, y_max) with 0 <= min < max <= 1")
    check(isinstance(record.metadata, dict), "metadata must be a dict")
    for key, wanted in METADATA_TYPES.items():
        if key in record.metadata:
            value = record.metadata[key]
            check(
                isinstance(value, wanted) and not isinstance(value, bool),
                f"metadata[{key!r}] has the wrong type: {value!r}",
            )
    check((record.latent_steps or 0) >= 0, f"metadata['latent_steps'] is negative: {record.latent_steps}")
    check(
        not record.chain or record.latent_steps == len(record.chain),
        f"metadata['latent_steps'] says {record.latent_steps}, the chain has {len(record.chain)} steps",
    )
    try:
        same = json.loads(json.dumps(record.metadata, allow_nan=False)) == record.metadata
    except (TypeError, ValueError) as error:
        raise ValueError(f"record {record.id!r}: metadata is not JSON ({error})") from error
    check(same, "metadata changes when written as JSON; use string keys, and lists for tuples")


def _newer(what: str, version: int) -> str:
    return f"{what} has record format {version}; this vital_jax reads up to {FORMAT_VERSION}: install a newer vital_jax"


def ids_hash(record_ids: Iterable[str]) -> str:
    """SHA-256 over the record ids in order, the key by which sidecars are joined to records."""
    return hashlib.sha256("\n".join(record_ids).encode()).hexdigest()


# --- writing --------------------------------------------------------------------------------------


def write_records(
    records: Iterable[Record], folder: str | Path, split: str = "train", name: str = _STORE, shard_size: int = 1024
) -> Path:
    """Writes one split; see `write_splits`."""
    return write_splits(((split, record) for record in records), folder, name=name, shard_size=shard_size)


def write_splits(
    pairs: Iterable[tuple[str, Record]], folder: str | Path, name: str = _STORE, shard_size: int = 1024
) -> Path:
    """Writes (split, record) pairs as a TFDS data set; a record's number is its position within its split.

    The folder is built beside its final place and renamed when complete, so a folder with this name is always whole.
    Pairs are consumed one by one; memory holds a few dozen records.

    Args:
      pairs: split name and record, in any mixture of splits.
      folder: the data set's folder.
      name: the data set's name in TFDS.
      shard_size: records per shard.

    Returns:
      The folder.

    Raises:
      FileExistsError: the folder exists and does not hold exactly these records.
      ValueError: no record at all, or an id that comes twice.
    """
    folder = Path(folder).absolute()
    occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    kept = _read_marker(folder) if occupied else None
    if occupied and kept is None:
        raise FileExistsError(f"{folder}: exists and is not a record folder; remove it or choose another")
    with new_folder(folder) as temporary:
        marker = _write_folder(pairs, temporary, name, shard_size)
        if kept is not None:
            if kept["splits"] != marker["splits"]:
                raise FileExistsError(f"{folder}: holds other records; remove it or choose another folder")
            shutil.rmtree(temporary)
    return folder


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Gives a temporary sibling to fill; renames it to `folder` at the end, or removes it where the body failed.

    A body that finds nothing new to keep removes the sibling itself, and nothing is renamed.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if temporary.exists():
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_folder(pairs: Iterable[tuple[str, Record]], folder: Path, name: str, shard_size: int) -> dict[str, Any]:
    """Writes shards, indexes and, last of all, the marker in `metadata.json`. Returns the marker."""
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=name, version=tfds.core.Version(f"{FORMAT_VERSION}.0.0"), data_dir=str(folder), module_name=__name__
        ),
        description=_DESCRIPTION,
        features=features(),
    )
    # TFDS's own builders shuffle by key; its sequential writer keeps the order, which gives records their numbers.
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=shard_size, file_format="array_record")
    hashes, counts, seen, indexes = {}, {}, set(), {}
    try:
        pairs = iter(pairs)
        while chunk := list(islice(pairs, 32)):  # the writer rewrites its description on every call
            for split, record in chunk:
                if record.id in seen:
                    raise ValueError(f"record {record.id!r} comes twice; ids must be unique")
                seen.add(record.id)
                if split not in hashes:
                    if not re.fullmatch(r"\w+", split):
                        raise ValueError(f"split name {split!r} must be letters, digits and _")
                    hashes[split], counts[split] = hashlib.sha256(), 0
                    indexes[split] = (folder / f"index-{split}.jsonl").open("w", encoding="utf-8")
                    writer.initialize_splits([split])
                hashes[split].update(_canonical(record))
                counts[split] += 1
                line = {"id": record.id, "latent_steps": record.latent_steps, "metadata": record.metadata}
                indexes[split].write(json.dumps(line, ensure_ascii=False) + "\n")
            examples: dict[str, list[Any]] = {}
            for split, record in chunk:
                examples.setdefault(split, []).append(to_example(record))
            writer.add_examples(examples)
    finally:
        for file in indexes.values():
            file.close()
    if not seen:
        raise ValueError(f"{folder.parent}: no records to write")
    writer.close_all()
    splits = {split: {"records": counts[split], "sha256": hashes[split].hexdigest()} for split in sorted(hashes)}
    files = {
        split: {path.name: path.stat().st_size for path in sorted(folder.glob(f"*-{split}.*"))} for split in splits
    }
    marker = {"format_version": FORMAT_VERSION, "store": _STORE, "splits": splits, "files": files}
    (folder / "metadata.json").write_text(json.dumps(marker), encoding="utf-8")
    return marker


def _canonical(record: Record) -> bytes:
    """The record's content as bytes that do not depend on how protocol buffers order their fields.

    They are those of the oldest schema that holds it, so that a schema which grew changes no fingerprint.
    """
    version, names = (2, FILES) if record.step_masks else (1, FILES[:2])
    files = [[hashlib.sha256(data).hexdigest() for data in getattr(record, name)] for name in names]
    text = [version, record.id, record.question, record.answer, record.chain, record.options, record.gold]
    return json.dumps([*text, record.boxes, files, record.metadata], sort_keys=True).encode() + b"\n"


def features() -> tfds.features.FeaturesDict:
    """The record as TFDS describes it: what `to_example` gives, images and masks as encoded files."""
    feature = tfds.features
    texts = {key: feature.Text() for key in ("id", "question", "answer", "gold", "metadata")}
    lists = {key: feature.Sequence(feature.Text()) for key in ("chain", "options")}
    return feature.FeaturesDict(
        {
            "format_version": np.int32,
            "images": feature.Sequence(feature.Image()),
            **{name: feature.Sequence(feature.Image(shape=(None, None, 1))) for name in FILES[1:]},
            "boxes": feature.Sequence(feature.BBoxFeature()),
            **texts,
            **lists,
        }
    )


def to_example(record: Record) -> dict[str, Any]:
    """The record as TFDS writes it, in the shape of `features`; `metadata` becomes JSON text."""
    return {
        "format_version": record.format_version,
        "id": record.id,
        "question": record.question,
        "answer": record.answer,
        "chain": list(record.chain),
        "options": list(record.options),
        "gold": record.gold,
        "boxes": [tfds.features.BBox(ymin=y0, xmin=x0, ymax=y1, xmax=x1) for x0, y0, x1, y1 in record.boxes],
        **{name: list(getattr(record, name)) for name in FILES},
        "metadata": json.dumps(record.metadata, ensure_ascii=False),
    }


# --- reading --------------------------------------------------------------------------------------


class _Encoded(tfds.decode.SkipDecoding):
    """SkipDecoding for sequences as well: TFDS 4.9.10 lacks that method on its NumPy path."""

    def decode_batch_example_np(self, serialized_example: Any) -> Any:
        return serialized_example


class RecordSource:
    """Random access to one split of a record folder; `source[i]` is the i-th record written.

    It travels to Grain's worker processes as (folder, split) and opens the shards there.

    Args:
      folder: what `write_records` or `write_splits` returned.
      split: the split's name.

    Attributes: fingerprint, the SHA-256 of the split's content.

    Raises:
      FileNotFoundError: the folder is absent, unfinished or lacks a shard.
      ValueError: the folder's format is newer than this code, the split is unknown, or a file was cut or changed.
      IndexError: on access, a number outside 0..len-1.
    """

    def __init__(self, folder: str | Path, split: str = "train"):
        self.folder, self.split = Path(folder).absolute(), split
        marker = _read_marker(self.folder)
        if marker is None:
            raise FileNotFoundError(f"{self.folder}: not a finished record folder; write it with write_records")
        if marker["format_version"] > FORMAT_VERSION:
            raise ValueError(_newer(str(self.folder), marker["format_version"]))
        if split not in marker["splits"]:
            raise ValueError(f"{self.folder}: no split {split!r}, only {sorted(marker['splits'])}")
        self._length, self.fingerprint = (marker["splits"][split][key] for key in ("records", "sha256"))
        for name, size in marker["files"][split].items():
            path = self.folder / name
            if not path.exists():
                raise FileNotFoundError(f"{path}: missing; copy the record folder again or rebuild it")
            if path.stat().st_size != size:
                raise ValueError(f"{path}: {path.stat().st_size} bytes instead of {size}; copy the folder again")

    @cached_property
    def _source(self) -> Any:
        builder = tfds.builder_from_directory(self.folder)
        held = [name for name in FILES if name in builder.info.features]  # folders of format 1 have no step_masks
        return builder.as_data_source(self.split, decoders={name: _Encoded() for name in held})

    @cached_property
    def index(self) -> list[dict[str, Any]]:
        """Per record {"id", "latent_steps", "metadata"}, read without touching any image."""
        lines = (self.folder / f"index-{self.split}.jsonl").read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]

    @property
    def ids(self) -> list[str]:
        """The record ids in order."""
        return [row["id"] for row in self.index]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> Record:
        number = number.__index__()
        if not 0 <= number < self._length:
            raise IndexError(
                f"{self.folder}: record {number} asked for, split {self.split!r} has 0..{self._length - 1}"
            )
        try:
            example = self._source[number]
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{self.folder}: record {number} of {self.split!r} is damaged; copy it again ({error})"
            ) from error
        return _from_example(example)

    def __iter__(self) -> Iterator[Record]:
        return (self[number] for number in range(len(self)))

    def __reduce__(self) -> tuple[type["RecordSource"], tuple[str, str]]:
        return RecordSource, (str(self.folder), self.split)


def _from_example(example: dict[str, Any]) -> Record:
    return Record(
        format_version=int(example["format_version"]),
        id=example["id"].decode(),
        question=example["question"].decode(),
        answer=example["answer"].decode(),
        chain=tuple(text.decode() for text in example["chain"]),
        options=tuple(text.decode() for text in example["options"]),
        gold=example["gold"].decode(),
        boxes=tuple((x0, y0, x1, y1) for y0, x0, y1, x1 in example["boxes"]),
        **{name: tuple(example.get(name, ())) for name in FILES},
        metadata=json.loads(example["metadata"]),
    )


def _read_marker(folder: Path) -> dict[str, Any] | None:
    """The marker that `_write_folder` writes last, or None where there is none."""
    try:
        marker = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return marker if isinstance(marker, dict) and marker.get("store") == _STORE else None
