"""The first stage of the factory: every unit of every source is read once and its samples go into the store.

It is the only stage that opens the sources, and the only slow one, so it is the one that is spread over processes and machines. What later
stages need of the pixels is measured here: the measurements that questions and answers are made of, the mask as records hold it, and each
picture's thumbnail. Units are handed out in chunks, a chunk is a part, so a kill costs at most the chunks in work.

A unit is read again where its files changed (size and time, and then their content), where its line or its reader's settings changed, and
where it was rejected for something outside its files. Everything else of it stays as it is; at which place in its manifest a line stands
matters only where a reject names the place.

Memory: one unit per process, and per unit of the corpus what the source lists (about 1 KB) and its entry in the store (another).
"""

import errno
import hashlib
import json
import logging
import multiprocessing
import os
import signal
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from vital_jax.construct.build import encode_mask
from vital_jax.construct.measure import look
from vital_jax.construct.near import describe
from vital_jax.construct.parts import VERSION as PARTS_VERSION
from vital_jax.construct.parts import Entry, Writer, digest, new_part, record_row, sample_row, source_folder
from vital_jax.construct.sample import Sample
from vital_jax.construct.source import Rejected, Source, Unit
from vital_jax.construct.splits import official
from vital_jax.construct.targets import DATA
from vital_jax.pipeline.images import decode
from vital_jax.pipeline.records import Record

_LOG = logging.getLogger(__name__)
CHUNK_UNITS, CHUNK_BYTES = 64, 1 << 25  # a part ends at whichever comes first
# Rejects that something else than the unit's files may mend: the machine, or a row in the table of targets.
AGAIN = ("reader-failed", "unknown-target", "unknown-modality")
_PLACED = {"bad-line", "path-escape"}  # rejects that name a line of a manifest
_ASKED = ("questions", "sentences", "targets", "gate", "licences")  # tables that later stages read afresh
FULL = (errno.ENOSPC, errno.EDQUOT)


def _tables() -> str:
    """Hash of the tables that readers look into."""
    found = [path for path in sorted(DATA.glob("*.json")) if path.stem not in _ASKED]
    return digest(b"".join(path.name.encode() + path.read_bytes() for path in found))


@dataclass(frozen=True)
class Job:
    """A source with what a worker needs beside it.

    Attributes:
      source: travels to the workers. settings: plain values that decide how it reads. options: those of them that were given.
      found: its reader was chosen by what lies in the folder, so that another may take it when the folder is mended.
      tables: hash of the tables that readers look into, as they were when the run began.
    """

    source: Source
    settings: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    found: bool = False
    tables: str = field(default_factory=_tables)


@dataclass(frozen=True)
class Tally:
    """What a chunk came to."""

    units: int
    samples: int


def mark_of(job: Job, unit: Unit, placed: bool = True) -> str:
    """Hash of what decides, beside the files themselves, what is read of a unit; without `placed`, but for the place of its line."""
    source = job.source
    facts = {key: value for key, value in unit.facts.items() if placed or key != "where"}
    what = [
        PARTS_VERSION,
        job.tables,
        source.kind,
        source.name,
        source.licence,
        dict(job.settings),
        unit.files,
        facts,
    ]
    return digest(json.dumps(what, sort_keys=True, default=str).encode())


def _inside(root: Path, name: str) -> Path | None:
    """A file by its name, through links: what a reader reads is what is compared, wherever it lies."""
    path = Path(name)
    return None if path.is_absolute() or ".." in path.parts else root / path


def sizes_of(source: Source, unit: Unit) -> list[tuple[str, int, int]]:
    """(name, size, time) of the unit's files; size -1 for one that is absent or named outside the source's folder."""
    found = []
    for name in unit.files:
        path = _inside(source.root, name)
        try:
            held = path.stat() if path else None
        except OSError:
            held = None
        found.append((name, held.st_size, held.st_mtime_ns) if held else (name, -1, 0))
    return found


def content_of(source: Source, unit: Unit) -> str:
    """SHA-256 over the contents of the unit's files, in their order."""
    found = hashlib.sha256()
    for name in unit.files:
        path = _inside(source.root, name)
        try:
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
        except (OSError, AttributeError):  # its reader says why
            found.update(b"absent")
    return found.hexdigest()


def current(entries: Sequence[Entry], job: Job, unit: Unit) -> Entry | None:
    """The entry that still says what the unit's files say, if there is one."""
    if not entries:
        return None
    marks = {mark_of(job, unit, placed) for placed in (True, False)}
    entries = [entry for entry in entries if entry.mark in marks]
    if not entries:
        return None
    files = _files_mark(job.source, unit)
    found = [entry for entry in entries if entry.files == files]
    if not found:  # copied or touched, then; the content decides
        content = content_of(job.source, unit)
        found = [entry for entry in entries if entry.content == content]
    return min(found, key=lambda entry: (again(entry), entry.part.name), default=None)


def _files_mark(source: Source, unit: Unit) -> str:
    return digest(json.dumps(sizes_of(source, unit)).encode())


def again(entry: Entry) -> bool:
    """Whether a unit has a reject that another run may mend though no file of it changed."""
    return not set(entry.codes).isdisjoint(AGAIN)


# --- one unit ------------------------------------------------------------------------------------------


def cut_units(samples: Path, job: Job, units: Sequence[Unit], stopped: Callable[[], bool] = lambda: False) -> Tally:
    """Reads units into one part. Raises: OSError where the disk is full, InterruptedError where `stopped` says so."""
    number = 0
    with new_part(source_folder(samples, job.source.name)) as writer:
        for unit in units:
            if stopped():
                raise InterruptedError("stopped")
            number += _cut(job, unit, writer)
    return Tally(len(units), number)


def _cut(job: Job, unit: Unit, writer: Writer) -> int:
    """One unit; returns how many samples and records it has."""
    files, content = _files_mark(job.source, unit), content_of(job.source, unit)
    rejects, number, shown = [], 0, set()
    try:
        for found in job.source.read(unit):
            if isinstance(found, Rejected):
                rejects.append(found)
                continue
            try:
                _put(found, unit, writer, shown)
                number += 1
            except Rejected as reject:
                rejects.append(reject)
    except Rejected as reject:
        writer.drop()
        rejects, number = [reject], 0
    except Exception as error:
        # One file that makes a reader stumble costs nothing but itself; the disk is everybody's.
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        _LOG.debug("%s", unit.id, exc_info=True)
        writer.drop()
        name = unit.files[0] if unit.files else unit.id
        rejects, number = [Rejected("reader-failed", name, f"{type(error).__name__}: {error}")], 0
    lines = [{"code": r.code, "file": _relative(job, r.file), "reason": " ".join(r.reason.split())} for r in rejects]
    placed = not _PLACED.isdisjoint(line["code"] for line in lines)
    writer.close_unit(unit.id, mark_of(job, unit, placed), files, content, lines)
    return number


def _relative(job: Job, file: str) -> str:
    """A file's name within its source, so that rejects are the same wherever the source stands."""
    path, root = Path(file), Path(job.source.root)
    return path.relative_to(root).as_posix() if path.is_absolute() and path.is_relative_to(root) else file


def _put(found: Sample | Record, unit: Unit, writer: Writer, shown: set[str]) -> None:
    split = official(str(unit.facts.get("split", "")))
    if isinstance(found, Record):
        for data in found.images:
            _show(data, found.id, writer, shown)
        writer.item(record_row(found, writer, split))
        return
    found = replace(found, split=found.split or split)
    name = unit.files[0] if unit.files else found.id
    _show(found.image, name, writer, shown)
    try:
        if not found.region.any():
            raise Rejected("empty-mask", found.id, "nothing is marked")
        facts, mask = look(found), encode_mask(found)
        neighbours = {other: _redrawn(found.image, data) for other, data in found.neighbours}
    except Rejected:
        raise
    except ValueError as error:
        raise Rejected("unreadable-mask", found.id, str(error)) from error
    writer.item(sample_row(found, facts, writer, mask, neighbours))


def _show(data: bytes, name: str, writer: Writer, shown: set[str]) -> None:
    """A picture's line, once per unit."""
    key = digest(data)
    if key in shown:
        return
    try:
        thumb = describe(decode(data, "the image")[0])
    except ValueError as error:
        raise Rejected("unreadable-image", name, str(error)) from error
    shown.add(key)
    writer.item({"kind": "picture", "image": key, "thumb": b64encode(thumb).decode()})


@lru_cache(maxsize=256)
def _redrawn(image: bytes, mask: bytes) -> bytes:
    """A neighbour's mask as records hold masks; the targets of one image have each other as neighbours."""
    return encode_mask(Sample("", image, mask, "", "", "", "", "", ""))


# --- all units -----------------------------------------------------------------------------------------

_work: dict[str, Any] = {}


def _start(samples: Path, jobs: Sequence[Job], stop: Any) -> None:
    """Begins a worker: it ends with its parent, however that ends."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    _work.update(samples=samples, jobs=jobs, stop=stop)


def _run(number: int, units: Sequence[Unit]) -> Tally:
    return cut_units(_work["samples"], _work["jobs"][number], units, _work["stop"].is_set)


@contextmanager
def _deaf() -> Iterator[None]:
    """Holds Ctrl-C back. A process that is started within never hears it: its parent does, and tells it to stop."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def chunks(job: Job, units: Sequence[Unit], most: int = CHUNK_UNITS) -> Iterator[list[Unit]]:
    """Consecutive units, as many as make a part: `most`, or fewer where their files are large."""
    chunk, held = [], 0
    for unit in units:
        chunk.append(unit)
        held += sum(max(0, size) for _, size, _ in sizes_of(job.source, unit))
        if len(chunk) >= most or held >= CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def cut(
    samples: Path,
    jobs: Sequence[Job],
    pending: Sequence[Sequence[Unit]],
    processes: int = 1,
    tick: Callable[[Tally], None] = lambda tally: None,
) -> None:
    """Reads the pending units of every job into parts.

    Args:
      samples: the store's folder.
      jobs, pending: sources, and for each the units to read.
      processes: how many; one reads here.
      tick: is told of each part.

    Raises:
      OSError: the disk is full; parts that are whole stay.
      concurrent.futures.process.BrokenProcessPool: a worker died.
    """
    total = sum(map(len, pending))
    most = max(1, min(CHUNK_UNITS, total // (8 * processes)))  # a small corpus is divided too
    work = ((number, chunk) for number, job in enumerate(jobs) for chunk in chunks(job, pending[number], most))
    if processes <= 1 or total < 2:
        for number, chunk in work:
            tick(cut_units(samples, jobs[number], chunk))
        return
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(processes, context, _start, (samples, tuple(jobs), stop))
    running = set()
    try:
        for each in work:
            with _deaf():
                running.add(pool.submit(_run, *each))
            if len(running) >= 2 * processes:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    tick(future.result())
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                tick(future.result())
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def leftovers(samples: Path) -> Iterator[Path]:
    """Folders that a killed run left half filled."""
    return samples.glob("*/.*.tmp")
