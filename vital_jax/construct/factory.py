"""The five-tuple factory: from folders of segmentations to records, in five stages, to be stopped and gone on with at any moment.

    cut     every unit is read once, over processes and machines    OUT/samples          (construct/cut.py, parts.py)
    split   patients, volumes and near-duplicates get one side      in memory            (construct/splits.py)
    ask     questions; the teacher's lessons, or tasks for it        OUT/distill.sqlite   (construct/asking.py)
    gate    every chain through the quality gate                     OUT/rejects.jsonl
    write   records, without those that people rejected             OUT/records, OUT/report.md

The result is a function of the sources, of OUT/plan.json, of the tables in `data/` and of what an audit rejected
(OUT/audit_rejects.jsonl) alone: not of the number of processes, of how the work was divided over machines, of the order in which parts were
finished, nor of how often a run was killed. Only `cut` is slow. The stages after it work on what it measured. OUT/made.json says what the
records there were made of, and where that is the same they are left as they are; else these stages are run again, and `write` is left out
where it would write what OUT/records holds.

A sample that cannot be used is set aside with a code, and the rest goes on. Memory does not grow with images: per unit about 2 KB (what the
source lists and where the store has it), per picture 330 bytes, per sample 150 bytes and per record 250 (ids, so that none comes twice).

Research only, not a medical device.
"""

import fcntl
import hashlib
import json
import shutil
from base64 import b64decode
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path

from vital_jax.construct import cut
from vital_jax.construct.asking import Asked, Asker, Held
from vital_jax.construct.audit import read_rejects
from vital_jax.construct.build import record_id
from vital_jax.construct.cut import Job
from vital_jax.construct.parts import Entry, Parts, digest, sample_of
from vital_jax.construct.progress import Progress, Stage
from vital_jax.construct.report import EXPECTED, Report
from vital_jax.construct.settings import Settings, agree, keep_plan, open_jobs
from vital_jax.construct.source import Source, Unit
from vital_jax.construct.splits import Pictures, divide
from vital_jax.pipeline.records import FILES, Record, RecordSource, write_splits

FULL = cut.FULL
_RULES = (".py", ".json")  # endings of files that say how records are made
_BATCH = 1024  # questions that wait together for their lessons


Listed = tuple[
    Job, list[Unit], dict[str, Entry | None]
]  # a source, its units, and by their ids where the store has them


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
      records: the record folder; None where there is none yet, because this was a shard or lessons are awaited.
      failed: source -> why nothing of it could be listed; the others were read.
      counts: records per split. set_aside: what could not be used, without `EXPECTED` codes; waiting: lessons that are awaited.
      benchmarks: a line for each official test set among the sources: whether it is held out.
    """

    records: Path | None
    counts: Mapping[str, int] = field(default_factory=dict)
    set_aside: int = 0
    waiting: int = 0
    failed: Mapping[str, str] = field(default_factory=dict)
    benchmarks: Sequence[str] = ()


def build(
    out: str | Path,
    sources: Sequence[str | Path | Mapping | Source],
    *,
    jobs: int = 1,
    shard: tuple[int, int] = (0, 1),
    shown: bool = True,
    **settings,
) -> Result:
    """Builds, or goes on building, the records of `sources` in the folder `out`.

    Args:
      out: the folder; whatever it holds of an earlier run with the same sources and settings is used.
      sources: as `settings.open_jobs` takes them: folders, {"path", "kind", options}, or open sources.
      jobs: processes that read; more than one are started afresh (spawn), so a script needs its `if __name__ == "__main__"`.
      shard: (i, n) reads every n-th unit from the i-th on and ends there. The folders `samples` of all n, copied together, are what one
        machine would have made; a run without shard makes the records.
      shown: a line of progress, and a line for each of the first rejects, on stderr.
      settings: of `Settings`.

    Raises:
      FileNotFoundError, ValueError: a mistake in the sources or settings, other settings than those of OUT/plan.json, OUT within a source
        or a source within OUT, no source that can be listed, no record at all.
      FileExistsError: OUT/records was made by something else.
      BlockingIOError: another run is at work in OUT.
      OSError: the disk is full, for one; what is done is kept.
    """
    out, options = Path(out), Settings(**settings)
    number, of = shard
    if not 0 <= number < of:
        raise ValueError(f"shard {number}/{of}: the first of 3 is 0/3 and the last 2/3")
    if jobs < 1:
        raise ValueError(f"jobs {jobs}: at least one process reads")
    if of == 1 and options.answers and not Path(options.answers).is_file():
        raise FileNotFoundError(f"{options.answers}: no recorded answers here")
    # What is written anew takes the place of what was there; without the note beside it, that is somebody else's.
    if (out / "records").exists() and not (out / "records.json").exists():
        raise FileExistsError(f"{out}/records: not made by `vital data build`; move it away, or name another folder")
    opened = open_jobs(sources)
    _apart(out, opened)
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out), Progress(shown) as progress:
        plan, opened, moved = agree(out, opened, options)
        with closing(Parts(out / "samples")) as parts:
            run = _Run(out, options, parts, progress)
            run.find(opened, shard, moved)
            keep_plan(out, plan)
            run.cut(jobs)
            if of > 1:
                return Result(None, set_aside=run.report.set_aside, failed=run.report.failed)
            return run.records()


def _apart(out: Path, jobs: Sequence[Job]) -> None:
    """Raises: ValueError where OUT and a source lie in each other: what is written would be read, or what is read written over."""
    out = out.resolve()
    for root in (Path(job.source.root).resolve() for job in jobs):
        if out.is_relative_to(root) or root.is_relative_to(out):
            what = f"OUT lies in the source {root}" if out.is_relative_to(root) else f"the source {root} lies in OUT"
            raise ValueError(f"{out}: {what}; give OUT a folder of its own outside the data")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Holds off another run in the same folder; the lock ends with the process, however that ends."""
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"{out}: another run is at work here; wait for it or stop it") from error
        yield


class _Run:
    """The stages, in order."""

    def __init__(self, out: Path, settings: Settings, parts: Parts, progress: Progress):
        self.out, self.settings, self.parts, self.progress = out, settings, parts, progress
        self.report = Report()
        self.units: list[Held] = []  # in the order of the plan
        self._found: list[Listed] = []
        audited = out / "audit_rejects.jsonl"
        self.asker = Asker(settings, parts, self.units, read_rejects(audited) if audited.exists() else {})

    # --- cut ---------------------------------------------------------------------------------------------

    def find(self, jobs: Sequence[Job], shard: tuple[int, int], moved: Mapping[str, str]) -> None:
        """Lists every source's units, and what the store has of them. One that cannot be listed is reported, and the others go on.

        Raises: ValueError for a source of `moved` (name -> where it lay) of which nothing is what was read there, or where no source can be
        listed.
        """
        refused: set[tuple[Path, str]] = set()
        for job in jobs:
            try:
                listed = self._listed(job, refused)[shard[0] :: shard[1]]
            except Exception as error:  # a reader that stumbles over one folder costs nothing but that folder
                if len(jobs) == 1 and isinstance(error, ValueError | OSError):
                    raise
                told = str(error) if isinstance(error, ValueError | OSError | ImportError) else repr(error)
                self.report.failed[job.source.name] = " ".join(told.split())
                self.progress.say(f"{job.source.name}: cannot be read, the others go on ({told})")
                continue
            held = self._held(job, {unit.id for unit in listed})
            if job.source.name in moved:
                self._recognise(job, listed, held, moved[job.source.name])
            self._found.append(
                (job, listed, {unit.id: cut.current(held.get(unit.id, ()), job, unit) for unit in listed})
            )
        if not self._found:
            raise ValueError("; ".join(self.report.failed.values()))
        for part in self.parts.broken:
            self.progress.say(f"{part}: not whole, or of another version; left aside, and what it held is read again")
        self.parts.broken.clear()

    def cut(self, processes: int) -> None:
        """Reads what the store lacks, and finds every unit's entry."""
        for folder in cut.leftovers(self.parts.samples):
            shutil.rmtree(folder, ignore_errors=True)
        pending = [
            [unit for unit in listed if entries[unit.id] is None or cut.again(entries[unit.id])]
            for _, listed, entries in self._found
        ]
        jobs = [job for job, *_ in self._found]
        with self.progress.stage("cut", sum(map(len, pending)), "units") as stage:
            cut.cut(self.parts.samples, jobs, pending, processes, lambda tally: stage.add(tally.units, tally.samples))
        for (job, listed, entries), fresh in zip(self._found, pending, strict=True):
            held = self._held(job, {unit.id for unit in fresh}) if fresh else {}
            entries |= {unit.id: cut.current(held.get(unit.id, ()), job, unit) for unit in fresh}
            self.units += [(job.source.name, unit.id, entries[unit.id]) for unit in listed]
        self._found.clear()
        for unit in self.units:
            for reject in self.asker.rejects(*unit):
                self._reject(reject)

    def _listed(self, job: Job, refused: set[tuple[Path, str]]) -> list[Unit]:
        """The source's units, without lines that another reader of the same folder has refused (`refused`: folder and line).

        Raises: ValueError where two have one id, which a reader is to sort out.
        """
        units = {}
        for unit in job.source.units():
            if "rejected" in unit.facts:
                if (job.source.root, unit.id) in refused:
                    continue
                refused.add((job.source.root, unit.id))
            if units.setdefault(unit.id, unit) is not unit:
                raise ValueError(f"{job.source.root}: its reader ({job.source.kind}) lists unit {unit.id!r} twice")
        return list(units.values())

    def _recognise(self, job: Job, units: Sequence[Unit], held: Mapping[str, list[Entry]], lay: str) -> None:
        """A folder of the same name and form may still be another set; so one file at least has to be what it was."""
        source = job.source
        known = [unit for unit in units if unit.files and unit.id in held]
        contents = ((cut.content_of(source, unit), {entry.content for entry in held[unit.id]}) for unit in known)
        if known and not any(content in before for content, before in contents):
            raise ValueError(
                f"{source.root}: no file of it is what was read as {source.name} in {lay}; give that folder as it lies today, or name "
                "another OUT"
            )
        self.progress.say(f"{source.name}: read from {source.root}, formerly {lay}")

    def _held(self, job: Job, wanted: set[str]) -> dict[str, list[Entry]]:
        held = defaultdict(list)
        for unit, entry in self.parts.entries(job.source.name):
            if unit in wanted:
                held[unit].append(entry)
        return held

    # --- split -------------------------------------------------------------------------------------------

    def split(self) -> None:
        """Gives every part of a group its side."""
        settings, weights = self.settings, defaultdict(Counter)
        with closing(Pictures(self.out)) as pictures, self.progress.stage("split", len(self.units), "units") as stage:
            for source, unit, entry in self.units:
                described, added, number = {}, set(), 0
                for row in self.parts.items(entry) if entry else ():
                    if row["kind"] == "picture":
                        described[row["image"]] = b64decode(row["thumb"])
                        continue
                    key, strata = self.asker.strata(source, unit, row)
                    weights[key].update(strata)
                    number += 1
                    for image in row["images"] if row["kind"] == "record" else [row["image"]]:
                        if (key.group, image) not in added:
                            added.add((key.group, image))
                            pictures.add(key.group, image, described[image])
                stage.add(1, number)
            self.report.united = pictures.unite()
            components = pictures.components()
        self.asker.sides, self.asker.overlaps = divide(weights, components, settings.val, settings.test)
        sides = {(components[key.group], side) for key, side in self.asker.sides.items()}
        self.report.groups = Counter(side for _, side in sides)

    # --- ask, teach and gate -----------------------------------------------------------------------------

    def records(self) -> Result:
        """The stages after cut, or what an earlier run made of the same."""
        note, made_of = self.out / "made.json", self._made_of()
        if held := self._held_result(note, made_of):
            self.progress.say("split, ask, write: nothing has changed, the records are there")
            for line in held.benchmarks:
                self.progress.say(line)
            return held
        note.unlink(missing_ok=True)  # from here on until the end, what lies in OUT may be of two runs
        result = self._make()
        if made_of and result.records:
            kept = {"counts": result.counts, "set_aside": result.set_aside, "benchmarks": result.benchmarks}
            with _replaced(note) as file:
                json.dump({"made_of": made_of, **kept}, file)
        return result

    def _made_of(self) -> str:
        """Hash of all that the records follow from; empty where a teacher's replies, which come in from elsewhere, are part of it."""
        if self.settings.teacher != "measured":
            return ""
        found = hashlib.sha256(_rules().encode())
        for each in (asdict(self.settings), self.report.failed, dict(self.asker.audited)):
            found.update(json.dumps(each, sort_keys=True).encode())
        for source, unit, entry in self.units:
            # A part is named by its content.
            place = entry and (entry.part.relative_to(self.parts.samples).as_posix(), entry.line)
            found.update(json.dumps((source, unit, place)).encode())
        return found.hexdigest()

    def _held_result(self, note: Path, made_of: str) -> Result | None:
        """What an earlier run came to, if it is all there and was made of the same."""
        beside = (self.out / name for name in ("records.json", "rejects.jsonl", "report.md"))
        if not made_of or not all(path.is_file() for path in (note, *beside)):
            return None
        held = json.loads(note.read_text(encoding="utf-8"))
        if held.pop("made_of") != made_of or not _whole(self.out / "records", held["counts"]):
            return None
        return Result(self.out / "records", failed=self.report.failed, **held)

    def _make(self) -> Result:
        self.split()
        known = self.report.empty(self.settings, written=False)  # before a teacher is paid
        for line in known:
            self.progress.say(line)
        if self.settings.teacher != "measured":
            self._give_tasks()
        lines = self.out / ".lines.tmp"
        try:
            waiting, content = self._ask(lines)
            if not waiting:
                self._write(lines, content)
        finally:
            lines.unlink(missing_ok=True)
        for line in self.report.empty(self.settings, not waiting):
            if line not in known:
                self.progress.say(line)
        told = self.report.benchmarks()
        for line in told:
            self.progress.say(line)
        self.report.write(self.out, self.settings, self.progress.stages, waiting)
        records = None if waiting else self.out / "records"
        return Result(records, self.report.splits, self.report.set_aside, waiting, self.report.failed, told)

    def _give_tasks(self) -> None:
        """Puts every open question into the store of tasks, and replays recorded answers."""
        from vital_jax.construct.distill.replay import replay
        from vital_jax.construct.distill.store import Store
        from vital_jax.construct.tasks import task_of

        with Store(self.out / "distill.sqlite") as store:
            with self.progress.stage("tasks", len(self.units), "units") as stage:
                asked = filter(_needs_lesson, self.asker.questions(stage))
                store.add(
                    task_of(sample_of(one.row, (self.parts, one.entry.part))[0], one.question, self.asker.targets)
                    for one in asked
                )
            if self.settings.teacher == "replay":
                replay(store, self.settings.answers, self.progress.shown)

    @contextmanager
    def _lessons(self) -> Iterator:
        """A function from ids of tasks to their lessons, the models that gave them, and the codes of those given up."""
        if self.settings.teacher == "measured":
            yield lambda ids: ({}, {}, {})
            return
        from vital_jax.construct.distill.store import Store

        with Store(self.out / "distill.sqlite") as store:
            models = {row["id"]: row["model"] for row in store.attempts() if row["status"] == "accepted"}
            yield lambda ids: (store.accepted(ids), models, store.dropped(ids)) if ids else ({}, {}, {})

    def _ask(self, path: Path) -> tuple[int, str]:
        """Writes a line per record into `path`, and OUT/rejects.jsonl. Returns how many lessons are awaited, and a hash of the records."""
        waiting, content, self.report.rejects = 0, hashlib.sha256(), Counter()
        with (
            path.open("w", encoding="utf-8") as lines,
            _replaced(self.out / "rejects.jsonl") as rejects,
            self._lessons() as lessons,
            self.progress.stage("ask", len(self.units), "units") as stage,
        ):
            found = self.asker.questions(stage)
            while batch := list(islice(found, _BATCH)):
                ids = [record_id(one.sample, one.question) for one in batch if _needs_lesson(one)]
                known = lessons(ids)
                for one in batch:
                    if isinstance(one, Asked):
                        one = self.asker.answered(one, *known)
                    elif one.get("kind") == "record":
                        one = self.asker.finished(one)
                    if one is None:
                        waiting += 1
                    elif "code" in one:
                        rejects.write(json.dumps(one, ensure_ascii=False) + "\n")
                        self._reject(one, shown=one["stage"] != "cut")  # those of cut were shown when it ended
                    else:
                        lines.write(json.dumps(one, ensure_ascii=False) + "\n")
                        content.update(json.dumps(one | {"part": ""}, ensure_ascii=False).encode())
                        self.report.record(one)
        return waiting, content.hexdigest()

    def _reject(self, reject: dict, shown: bool = True) -> None:
        self.report.reject(reject)
        if shown and reject["code"] not in EXPECTED:
            self.progress.reject(reject)

    # --- write -------------------------------------------------------------------------------------------

    def _write(self, lines: Path, content: str) -> None:
        """Writes OUT/records, unless it holds these very records."""
        folder, note = self.out / "records", self.out / "records.json"
        if not sum(self.report.splits.values()):
            raise ValueError(f"{self.out}: no record could be made; {self.out}/rejects.jsonl says why")
        told = json.dumps({"content": content})
        if note.exists() and note.read_text(encoding="utf-8") == told and _whole(folder, self.report.splits):
            self.progress.say("write: the records are there")
            return
        beside = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.exists() else []
        if beside:
            raise ValueError(
                f"{folder}: these records are to be written anew, but {', '.join(beside)} in it was made for the old ones; "
                "move or remove the folder, then run again"
            )
        fresh, old = self.out / "records.next", self.out / ".records.old.tmp"
        for left in (fresh, old, *self.out.glob(f".{fresh.name}.*.tmp")):
            shutil.rmtree(left, ignore_errors=True)
        with self.progress.stage("write", sum(self.report.splits.values()), "records") as stage:
            write_splits(self._pairs(lines, stage), fresh)
            # In this order a kill leaves no records without their note, and no note that speaks of other records.
            if folder.exists():
                folder.rename(old)
            with _replaced(note) as file:
                file.write(told)
            fresh.rename(folder)
            shutil.rmtree(old, ignore_errors=True)

    def _pairs(self, lines: Path, stage: Stage) -> Iterator[tuple[str, Record]]:
        with lines.open(encoding="utf-8") as file:
            for row in map(json.loads, file):
                part = self.parts.samples / row["part"]
                files = {key: tuple(self.parts.read(part, name) for name in row[key]) for key in FILES}
                yield row["split"], Record(**files, **row["fields"])
                stage.add(1, 1)


@cache
def _rules() -> str:
    """Hash of the code and tables that make records of samples."""
    package = Path(__file__).parent.parent
    found = [
        path
        for part in ("construct", "pipeline")
        for path in sorted((package / part).rglob("*.*"))
        if path.suffix in _RULES
    ]
    return digest(b"".join(path.name.encode() + path.read_bytes() for path in found))


def _needs_lesson(one: Asked | dict) -> bool:
    return isinstance(one, Asked) and one.lesson is None


def _whole(folder: Path, splits: Mapping[str, int]) -> bool:
    """Whether a record folder has all its files, and these numbers of records."""
    try:
        return all(len(RecordSource(folder, split)) == number for split, number in splits.items())
    except (FileNotFoundError, ValueError):
        return False


@contextmanager
def _replaced(path: Path) -> Iterator:
    """A text file that takes its place when the body is done."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        yield file
    temporary.replace(path)
