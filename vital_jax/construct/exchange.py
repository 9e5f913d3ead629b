"""Finished records out of and into plain files: JSON lines beside images, for those who read no ArrayRecord.

    records-train.jsonl     one record per line, images and masks by file name
    images/0f3a....png      the record's own bytes, under their SHA-256, so that ten questions about an image keep it once
    masks/77c1....png

    {"format_version": 2, "id": "7/location", "images": ["images/0f3a.png"], "question": "Where ...?", "answer": "...",
     "chain": ["...", "..."], "options": [], "gold": "", "boxes": [[0.1, 0.2, 0.4, 0.5]], "masks": ["masks/77c1.png"],
     "step_masks": [], "metadata": {...}}

What is written comes back equal in every field, and on the side that its file's name says. Lines made by hand need only images, question
and answer; an id or a group that they lack is made from the line's place and the image, and a mistake costs its own line only.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate, repeat
from pathlib import Path
from typing import Any, ClassVar

from vital_jax.construct.marked import check_image, inside, load, marked_pixels, refuse, refused
from vital_jax.construct.source import Rejected, Unit
from vital_jax.pipeline.records import Record, RecordSource, new_folder
from vital_jax.pipeline.tables import as_on_disk, read_json, without_placeholders

_SUFFIXES = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"RIFF": ".webp",
    b"BM": ".bmp",
}
_FIELDS = ("id", "question", "answer", "chain", "options", "gold", "boxes", "metadata", "format_version")
_FOLDERS = {"images": "images", "masks": "masks", "step_masks": "masks"}  # a step's region is often the record's


def write_jsonl(records: str | Path, out: str | Path) -> dict[str, int]:
    """Writes all splits of a record folder as JSON lines and images. The folder appears whole or not at all.

    Args:
      records: what `pipeline.records.write_splits` returned.
      out: a folder that does not exist yet.

    Returns:
      Records per split.

    Raises:
      FileExistsError: `out` is there. FileNotFoundError, ValueError: as `RecordSource`.
    """
    records, out = Path(records), Path(out).absolute()
    if out.exists():
        raise FileExistsError(f"{out}: exists; remove it or choose another folder")
    splits = sorted(path.stem.removeprefix("index-") for path in records.glob("index-*.jsonl"))
    if not splits:
        raise FileNotFoundError(f"{records}: not a finished record folder; write it with write_records")
    counts = {}
    with new_folder(out) as folder:
        for part in dict.fromkeys(_FOLDERS.values()):
            (folder / part).mkdir()
        for split in splits:
            source = RecordSource(records, split)
            counts[split] = len(source)
            with (folder / f"records-{split}.jsonl").open("w", encoding="utf-8") as lines:
                for record in source:
                    row = {name: getattr(record, name) for name in _FIELDS}
                    row |= {
                        part: [_keep(folder, under, data) for data in getattr(record, part)]
                        for part, under in _FOLDERS.items()
                    }
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    return counts


def _keep(folder: Path, part: str, data: bytes) -> str:
    """Writes a file under its content's hash unless it is there; its name from the folder."""
    suffix = next((suffix for start, suffix in _SUFFIXES.items() if data.startswith(start)), ".bin")
    name = f"{part}/{sha256(data).hexdigest()}{suffix}"
    if not (folder / name).exists():
        (folder / name).write_bytes(data)
    return name


@dataclass
class Exchange:
    """A `Source` of finished records: a folder that `write_jsonl` wrote, or one made by hand in its form.

    Args:
      root: the folder that holds records-*.jsonl, or records.jsonl.
      licence: of the data, where records do not state one.
      name: another name than the folder's, where two sources would have the same; records keep their own ids.
    """

    root: Path
    licence: str = ""
    name: str = ""
    kind: ClassVar[str] = "records"

    def __post_init__(self):
        self.root = Path(self.root).resolve()
        self.name = self.name or self.root.name

    @classmethod
    def claims(cls, root: Path) -> bool:
        """Whether there is a file of records."""
        return bool(_files(root))

    def units(self) -> Sequence[Unit]:
        """One per line, by its place in the file; its text is read again when its turn comes, so units stay small.

        Raises: FileNotFoundError, no file of records.
        """
        files = _files(self.root)
        if not files:
            raise FileNotFoundError(f"{self.root}: no records-*.jsonl; write it with write_jsonl")
        units, seen = [], {}
        for path in files:
            with path.open("rb") as lines:
                units += [
                    self._unit(path.name, number, line, seen) for number, line in enumerate(lines) if line.strip()
                ]
        return units

    def _unit(self, file: str, number: int, line: bytes, seen: dict[bytes, str]) -> Unit:
        where = f"{file}:{number + 1}"
        try:
            row = _row(line, where)
            name = row.get("id", where)
            # A digest, for a set of a million ids is otherwise the largest thing in memory.
            key = sha256(str(name).encode()).digest()[:12]
            if key in seen:
                raise Rejected("duplicate-id", where, f"id {name!r} is that of {seen[key]} too")
            seen[key] = where
        except Rejected as reason:
            return refused(where, reason)
        files = tuple(as_on_disk(self.root, name) for part in _FOLDERS for name in row.get(part, ()))
        facts = {"file": file, "number": number, "sha256": sha256(line).hexdigest()}
        return Unit(where, files, facts | {"split": Path(file).stem.removeprefix("records-")})

    def read(self, unit: Unit) -> Iterator[Record | Rejected]:
        """The one record of a line.

        Raises:
          Rejected: bad-line, duplicate-id, path-escape, missing-file, unreadable-image, unreadable-mask or size-mismatch.
        """
        refuse(unit)
        where = unit.id
        path = self.root / unit.facts["file"]
        with path.open("rb") as lines:
            lines.seek(_starts(path, path.stat().st_mtime_ns)[unit.facts["number"]])
            row = _row(lines.readline(), where)
        images = [_image(inside(self.root, name, where), name) for name in row["images"]]
        masks = {
            part: self._masks(row.get(part, ()), on, where)
            for part, on in (("masks", images), ("step_masks", repeat(images[0])))
        }
        metadata = row.get("metadata", {})
        if isinstance(metadata, dict) and "group" not in metadata:  # made by hand, for whatever is built has one
            given = {"source": self.name, "licence": self.licence, "group": f"{self.name}/{row['images'][0]}"}
            metadata = {key: value for key, value in given.items() if value} | metadata
        fields = {name: row[name] for name in _FIELDS if name in row} | {"metadata": metadata}
        try:
            if isinstance(row["question"], str):
                fields["question"] = without_placeholders(row["question"], len(images))
            record = Record(**{"id": f"{self.name}/{where}", **fields}, images=[data for data, _ in images], **masks)
        except (ValueError, TypeError) as error:
            raise Rejected("bad-line", where, _plain(error)) from error
        yield record

    def _masks(self, names: Sequence[str], images: Iterable[tuple[bytes, dict]], where: str) -> list[bytes]:
        """The files of masks, each fit for its image."""
        masks = [load(self.root, name, where, "unreadable-mask") for name in names]
        for name, mask, (_, info) in zip(names, masks, images, strict=False):
            marked_pixels(mask, name, info)
        return masks


@lru_cache(maxsize=8)
def _starts(path: Path, _time: int) -> array:
    """Where each line of a file starts, in bytes."""
    with path.open("rb") as lines:
        return array("q", accumulate((len(line) for line in lines), initial=0))


@lru_cache(maxsize=2)
def _image(path: Path, name: str) -> tuple[bytes, dict]:
    """An image and what `decode` says about it; the records of an image follow each other, so it is mostly decoded once."""
    data = load(path.parent, path.name, name, "unreadable-image")
    return data, check_image(data, name)


def _files(root: Path) -> list[Path]:
    return sorted([*root.glob("records-*.jsonl"), *root.glob("records.jsonl")])


def _row(line: bytes, where: str) -> dict[str, Any]:
    """A line's object, with what `units` and `read` need of it. Raises: Rejected, bad-line."""
    try:
        row = read_json(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Rejected("bad-line", where, f"not a JSON object ({_plain(error)})") from error
    if not isinstance(row, dict):
        raise Rejected("bad-line", where, "not a JSON object")
    if missing := [key for key in ("images", "question", "answer") if not row.get(key)]:
        raise Rejected("bad-line", where, f"{', '.join(missing)} missing")
    if unknown := sorted(row.keys() - {*_FIELDS, *_FOLDERS}):
        raise Rejected(
            "bad-line", where, f"unknown field {unknown[0]!r}; what is no field of a record belongs into metadata"
        )
    for part in (*_FOLDERS, "chain", "options", "boxes"):
        kind = list if part == "boxes" else str
        if not isinstance(row.get(part, []), list) or not all(isinstance(value, kind) for value in row.get(part, [])):
            raise Rejected("bad-line", where, f"{part} must be a list of {'boxes' if part == 'boxes' else 'texts'}")
    return row


def _plain(error: Exception) -> str:
    return " ".join(str(error).split())
