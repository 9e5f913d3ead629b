"""The store of cut samples: what was read from the sources once, so that nothing later opens a source again.

    OUT/samples/<source>/<part>/files.zip     images and masks, each once, named by the SHA-256 of its bytes, not compressed again
                                items.jsonl   one line per picture, sample or finished record, with what was measured
                                units.jsonl   one line per unit: its files as they were, where its items stand, what was rejected
                                part.json     the sizes of the three; a part without it, or of other sizes, does not count

A part is a folder that is filled beside its place and renamed, so a kill at any moment costs at most the part that was being filled. It is
named by what it holds and knows nothing of other parts: parts of several machines are merged by copying their folders together. A unit that
was cut twice (its file was replaced) is found by the state of its files. Plain zip and JSON lines, so anybody can look inside; no pickle.

In memory while reading: about 1 KB per unit, and the tables of contents of the last few zip files.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from zipfile import BadZipFile, ZipFile, ZipInfo

from vital_jax.construct.measure import Facts, Measurement
from vital_jax.construct.sample import Sample
from vital_jax.pipeline.records import FILES, Record

VERSION = 3  # 2: other thumbnails of small pictures; 1: neither sides of official splits nor the unit of CT values
_FILES = ("files.zip", "items.jsonl", "units.jsonl")
_OPEN = 32  # zip files held open: the parts that consecutive units are spread over, as after a merge of shards


@dataclass(frozen=True, slots=True)
class Entry:
    """A unit in the store.

    Attributes:
      part: its folder. line: where its line stands in units.jsonl, start: where its first item stands in items.jsonl, in bytes.
      items: how many lines.
      mark: hash of everything but the files that decides what is read; files: of their names, sizes and times; content: of their bytes.
      codes: of what was rejected.
    """

    part: Path
    line: int
    start: int
    items: int
    mark: str
    files: str
    content: str
    codes: tuple[str, ...]


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


# --- writing -------------------------------------------------------------------------------------------


class Writer:
    """Fills one part; made by `new_part`."""

    def __init__(self, folder: Path):
        self._zip = ZipFile(folder / _FILES[0], "w")
        self._items = (folder / _FILES[1]).open("wb")
        self._units = (folder / _FILES[2]).open("wb")
        self._names: set[str] = set()
        self._start = self._count = 0

    def put(self, data: bytes) -> str:
        """Keeps a file; returns its name."""
        name = digest(data)
        if name not in self._names:
            self._names.add(name)
            self._zip.writestr(ZipInfo(name), data)  # a fixed date: the same units make the same bytes
        return name

    def item(self, row: dict) -> None:
        """Adds a line to the unit that is open."""
        self._items.write(_line(row))
        self._count += 1

    def drop(self) -> None:
        """Takes back the items of the unit that is open."""
        self._items.seek(self._start)
        self._items.truncate()
        self._count = 0

    def close_unit(self, unit: str, mark: str, files: str, content: str, rejects: Sequence[dict]) -> None:
        """Ends the unit that is open, with the hashes of `Entry` and {"code", "file", "reason"} of each reject."""
        row = {"unit": unit, "start": self._start, "items": self._count, "mark": mark, "files": files}
        self._units.write(_line(row | {"content": content, "rejects": list(rejects)}))
        self._start, self._count = self._items.tell(), 0

    def close(self) -> None:
        for file in (self._zip, self._items, self._units):
            file.close()


def _line(row: dict) -> bytes:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"


@contextmanager
def new_part(folder: Path) -> Iterator[Writer]:
    """Gives the writer of a part among those in `folder`; it appears there when the body is done, whole, or not at all.

    Its name is the hash of its content, so what was cut again and came out the same is there once.
    """
    temporary = folder / f".{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        writer = Writer(temporary)
        try:
            yield writer
        finally:
            writer.close()
        sizes = {name: (temporary / name).stat().st_size for name in _FILES}
        (temporary / "part.json").write_text(json.dumps({"version": VERSION, "files": sizes}), encoding="utf-8")
        # The lines name the files in the zip by their hashes, so they stand for them.
        part = folder / digest(b"".join((temporary / name).read_bytes() for name in _FILES[1:]))[:20]
        if not is_whole(part):
            shutil.rmtree(part, ignore_errors=True)
            temporary.rename(part)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def source_folder(samples: Path, source: str) -> Path:
    """Where the parts of a source stand. Raises: ValueError for a name that is none of a folder."""
    if not re.fullmatch(r"[^/\\\0]+", source) or source.startswith(".") or not source.isprintable():
        raise ValueError(f"source name {source!r} cannot be a folder's name; give the source another one")
    return samples / source


# --- reading -------------------------------------------------------------------------------------------


@dataclass
class Parts:
    """Reads the parts under a folder `samples`.

    Attributes:
      broken: folders that look like parts but are not whole, such as a copy that was cut short.
    """

    samples: Path
    broken: list[Path] = field(default_factory=list)
    _zips: "OrderedDict[Path, ZipFile]" = field(default_factory=OrderedDict, init=False)

    def entries(self, source: str) -> Iterator[tuple[str, Entry]]:
        """(unit id, entry) of everything a source has in the store, part by part in the order of their names."""
        folder = source_folder(self.samples, source)
        for part in sorted(folder.iterdir()) if folder.is_dir() else ():
            if part.name.startswith("."):
                continue
            if not is_whole(part):
                self.broken.append(part)
                continue
            with (part / "units.jsonl").open("rb") as lines:
                place = 0
                for line in lines:
                    row = json.loads(line)
                    codes = tuple(sorted({sys.intern(reject["code"]) for reject in row["rejects"]}))
                    numbers = place, row["start"], row["items"]
                    yield row["unit"], Entry(part, *numbers, row["mark"], row["files"], row["content"], codes)
                    place += len(line)

    def rejects(self, entry: Entry) -> list[dict]:
        """What was rejected of a unit."""
        with (entry.part / "units.jsonl").open("rb") as file:
            file.seek(entry.line)
            return json.loads(file.readline())["rejects"]

    def items(self, entry: Entry) -> Iterator[dict]:
        """A unit's lines, one by one."""
        with (entry.part / "items.jsonl").open("rb") as file:
            file.seek(entry.start)
            for _ in range(entry.items):
                yield json.loads(file.readline())

    def read(self, part: Path, name: str) -> bytes:
        """A file's bytes. Raises: ValueError where the part was damaged after it was written."""
        try:
            if part not in self._zips:
                self._zips[part] = ZipFile(part / "files.zip")
                if len(self._zips) > _OPEN:
                    self._zips.popitem(last=False)[1].close()
            self._zips.move_to_end(part)
            return self._zips[part].read(name)
        except (BadZipFile, KeyError, FileNotFoundError) as error:
            raise ValueError(
                f"{part}: damaged ({error}); remove this folder, and the next run makes it again"
            ) from error

    def close(self) -> None:
        """Closes the zip files."""
        while self._zips:
            self._zips.popitem()[1].close()


def is_whole(part: Path) -> bool:
    """Whether a folder is a part with all its bytes."""
    try:
        marker = json.loads((part / "part.json").read_text(encoding="utf-8"))
        sizes = {name: (part / name).stat().st_size for name in _FILES}
        return marker["version"] == VERSION and marker["files"] == sizes
    except (OSError, ValueError, KeyError, TypeError):
        return False


# --- what the lines say --------------------------------------------------------------------------------


_TEXTS = (
    "id",
    "target",
    "target_type",
    "modality",
    "site",
    "group",
    "source",
    "licence",
    "orientation",
    "intensity",
    "split",
)


def sample_row(sample: Sample, facts: Facts, writer: Writer, mask: bytes, neighbours: dict[str, bytes]) -> dict:
    """A sample's line; its image, mask and neighbours' masks go into the writer's zip file."""
    plain = {name: getattr(sample, name) for name in _TEXTS}
    lists = {name: list(getattr(sample, name)) for name in ("present", "absent", "window", "spacing")}
    return {
        "kind": "sample",
        **plain,
        **lists,
        "image": writer.put(sample.image),
        "mask": writer.put(mask),
        "neighbours": [[name, writer.put(data)] for name, data in neighbours.items()],
        "own": _measured(facts.own),
        "others": {name: _measured(m) for name, m in facts.others.items()},
        "within": sorted(facts.within),
        "holds": sorted(facts.holds),
        "shared": sorted(facts.shared),
    }


def _measured(m: Measurement) -> dict:
    """NumPy numbers as Python's, which JSON writes and reads without loss."""
    as_plain = lambda v: [float(x) for x in v] if isinstance(v, tuple) else int(v) if isinstance(v, int) else float(v)  # noqa: E731
    return {name: as_plain(value) for name, value in asdict(m).items()}


def sample_of(row: dict, files: tuple[Parts, Path] | None = None) -> tuple[Sample, Facts]:
    """The sample of a line and its measurements; its image and masks are empty where `files` (store and part) is not given."""
    read = (lambda name: files[0].read(files[1], name)) if files else (lambda name: b"")
    plain = {name: row[name] for name in _TEXTS}
    lists = {name: tuple(row[name]) for name in ("present", "absent", "window", "spacing")}
    neighbours = tuple((name, read(data)) for name, data in row["neighbours"])
    others = {name: _measurement(m) for name, m in row["others"].items()}
    sets = (frozenset(row[name]) for name in ("within", "holds", "shared"))
    facts = Facts(_measurement(row["own"]), others, *sets)
    return Sample(image=read(row["image"]), mask=read(row["mask"]), neighbours=neighbours, **plain, **lists), facts


def _measurement(row: dict) -> Measurement:
    return Measurement(**{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()})


_RECORD = ("id", "question", "answer", "chain", "options", "gold", "boxes", "metadata")


def record_row(record: Record, writer: Writer, split: str = "") -> dict:
    """A finished record's line, with the side that its source puts it on; its images and masks go into the writer's zip file."""
    fields = {name: getattr(record, name) for name in _RECORD}
    files = {name: [writer.put(data) for data in getattr(record, name)] for name in FILES}
    return {"kind": "record", **files, "fields": fields, "split": record.metadata.get("source_split", split)}
