"""Tasks, and every reply to them, in one SQLite file: what makes asking a paid teacher safe to stop at any moment.

A reply is committed before its task is asked again, so that a killed run loses what was under way and nothing else. A reply belongs to the
content of its task (`digest`): a task whose question or picture changes is asked anew, and an earlier content that comes back has its
answer already. Images and masks are kept once, by their content. There is no place for a key or an address in any table.

    accepted   passed the gate                   rejected   did not, another try follows
    dropped    did not, and was the last try     error      no reply came (timeout, refusal, ...); the task stays pending
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vital_jax.construct.gate import Violation
from vital_jax.construct.tasks import Task
from vital_jax.construct.teacher import Lesson
from vital_jax.pipeline.images import image_size

VERSION = 1
REPLIES = ("accepted", "rejected", "dropped")  # statuses of an attempt that a reply came to
_FACTS = (
    *("question", "question_type", "ask", "target", "target_type", "modality", "site"),
    *("options", "steps", "names", "source", "licence", "public"),
)
_BESIDE = ("source", "licence", "public")  # facts that change no reply
_SCHEMA = """
CREATE TABLE IF NOT EXISTS images (hash TEXT PRIMARY KEY, data BLOB NOT NULL, height INTEGER, width INTEGER);
CREATE TABLE IF NOT EXISTS tasks (
  number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, digest TEXT NOT NULL, image TEXT NOT NULL, mask TEXT NOT NULL,
  type TEXT NOT NULL, facts TEXT NOT NULL, round INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS attempts (
  number INTEGER PRIMARY KEY, task TEXT NOT NULL, digest TEXT NOT NULL, prompt TEXT NOT NULL, model TEXT NOT NULL,
  attempt INTEGER NOT NULL, round INTEGER NOT NULL, request TEXT NOT NULL, status TEXT NOT NULL, raw TEXT NOT NULL,
  parsed TEXT, codes TEXT NOT NULL, violations TEXT NOT NULL, tokens_in INTEGER, tokens_out INTEGER, cost REAL,
  latency REAL, time REAL NOT NULL, UNIQUE (digest, prompt, model, attempt));
CREATE INDEX IF NOT EXISTS attempts_status ON attempts (digest, status);
CREATE TABLE IF NOT EXISTS batches (
  name TEXT PRIMARY KEY, model TEXT NOT NULL, prompt TEXT NOT NULL, requests INTEGER NOT NULL, bytes INTEGER NOT NULL,
  private INTEGER NOT NULL, state TEXT NOT NULL, remote TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS items (
  custom TEXT PRIMARY KEY, batch TEXT NOT NULL, digest TEXT NOT NULL, request TEXT NOT NULL, answered INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS items_digest ON items (digest);
"""
_WAITING = """EXISTS (SELECT 1 FROM items i JOIN batches b ON b.name = i.batch WHERE i.digest = t.digest
  AND NOT i.answered AND b.state IN ('written', 'submitting', 'submitted'))"""
_DROPPED = "a.digest = t.digest AND a.status = 'dropped' AND a.round = t.round"


@dataclass(frozen=True)
class Attempt:
    """One request and what came of it.

    Attributes:
      task: id. prompt: version of the prompts. model: whom was asked. request: hash of the body.
      status: accepted, rejected, dropped or error. raw: the reply's text, or the error's. codes: of the violations or the error.
      lesson: of an accepted reply. tokens_in, tokens_out: as the endpoint counted. cost: in the currency of the prices.
      latency: seconds of the last request.
    """

    task: str
    prompt: str
    model: str
    request: str
    status: str
    raw: str = ""
    violations: tuple[Violation, ...] = ()
    lesson: Lesson | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    cost: float | None = None
    latency: float | None = None

    @property
    def codes(self) -> tuple[str, ...]:
        """The different codes in the order of the violations."""
        return tuple(dict.fromkeys(violation.code for violation in self.violations))


class Store:
    """The file; a context manager that closes it.

    Args:
      path: of the file; made where it is absent.
      create: whether it may be made.

    Raises:
      FileNotFoundError: it is absent and may not be made.
      ValueError: it is no store, or one of a newer version.
    """

    def __init__(self, path: str | Path, create: bool = True):
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise FileNotFoundError(
                f"{self.path}: no tasks here; `vital data build` with --teacher endpoint makes them"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        try:
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise ValueError(
                    f"{self.path}: store version {version}, this vital_jax reads {VERSION}: install a newer one"
                )
            if version < VERSION:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        except sqlite3.DatabaseError as error:
            self._db.close()
            if isinstance(error, sqlite3.OperationalError):
                raise
            raise ValueError(f"{self.path}: not a store of tasks ({error})") from error

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file and folds its log into it."""
        self._db.close()

    def __len__(self) -> int:
        return self._db.execute("SELECT count(*) FROM tasks").fetchone()[0]

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is done within is kept, or nothing of it; within another one, it is part of that."""
        if self._db.in_transaction:
            yield self._db
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk may have rolled it back already
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Holds off other processes that ask, which would ask the same twice; it ends with the process, however that ends.

        Raises:
          ValueError: another process is asking.
        """
        lock = sqlite3.connect(f"{self.path}.lock", timeout=0, isolation_level=None)
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            lock.close()
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            raise ValueError(f"{self.path}: another process is at work on it; wait for it or stop it") from error
        try:
            yield
        finally:
            lock.close()

    # --- tasks ---------------------------------------------------------------------------------------------------

    def add(self, tasks: Iterable[Task]) -> int:
        """Takes tasks in; one that is there already is left as it is, one whose content changed takes its place.

        Returns:
          How many are there for the first time.

        Raises:
          ValueError: an image that cannot be read.
        """
        tasks, before = iter(tasks), len(self)
        while chunk := list(islice(tasks, 64)):
            with self.transaction() as db:
                for task in chunk:
                    self._add(db, task)
        return len(self) - before

    def _add(self, db: sqlite3.Connection, task: Task) -> None:
        facts = {key: getattr(task, key) for key in _FACTS}
        hashes = [_keep(db, data, task.id) for data in (task.image, task.mask)]
        content = {key: value for key, value in facts.items() if key not in _BESIDE}
        digest = hashlib.sha256(json.dumps([task.id, *hashes, content], sort_keys=True).encode()).hexdigest()
        row = (task.id, digest, *hashes, task.question_type, json.dumps(facts, ensure_ascii=False))
        db.execute(
            "INSERT INTO tasks (id, digest, image, mask, type, facts) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
            "digest = excluded.digest, image = excluded.image, mask = excluded.mask, type = excluded.type, facts = excluded.facts",
            row,
        )

    def task(self, task: str) -> Task:
        """A task by its id. Raises: KeyError."""
        row = self._db.execute(
            "SELECT i.data, coalesce(m.data, x''), facts FROM tasks t JOIN images i ON i.hash = t.image "
            "LEFT JOIN images m ON m.hash = t.mask WHERE t.id = ?",
            (task,),
        ).fetchone()
        if row is None:
            raise KeyError(task)
        facts = json.loads(row[2])
        lists = {key: tuple(facts.pop(key)) for key in ("options", "steps", "names")}
        return Task(id=task, image=row[0], mask=row[1], **facts, **lists)

    def digest(self, task: str) -> str:
        """The hash of a task's content."""
        return self._db.execute("SELECT digest FROM tasks WHERE id = ?", (task,)).fetchone()[0]

    def facts(self, tasks: Collection[str] | None = None) -> Iterator[tuple[str, dict, tuple[int, int]]]:
        """(id, facts, (height, width) of its image) of tasks, without reading an image."""
        rows = self._db.execute(
            "SELECT t.id, t.facts, t.mask, i.height, i.width FROM tasks t JOIN images i ON i.hash = t.image ORDER BY t.number"
        )
        for task, facts, mask, height, width in rows:
            if tasks is None or task in tasks:
                yield task, json.loads(facts) | {"mask": mask}, (height, width)

    # --- what is asked, and what came of it ------------------------------------------------------------------------

    def pending(self, prompt: str, model: str, again: bool = False) -> list[str]:
        """Ids of tasks to ask, in the order they came in.

        An accepted answer settles a task, whoever gave it. One that these prompts and this model failed waits for `retry`; one in a
        batch waits for that.

        Args:
          prompt, model: who would be asked.
          again: ask too where the accepted answer is another model's or was given to other prompts, to compare teachers.
        """
        mine = "AND a.prompt = :prompt AND a.model = :model"
        rows = self._db.execute(
            "SELECT id FROM tasks t WHERE NOT EXISTS (SELECT 1 FROM attempts a WHERE a.digest = t.digest AND "
            f"a.status = 'accepted' {mine if again else ''}) AND NOT EXISTS (SELECT 1 FROM attempts a WHERE {_DROPPED} {mine}) "
            f"AND NOT {_WAITING} ORDER BY number",
            {"prompt": prompt, "model": model},
        )
        return [row[0] for row in rows]

    def history(self, task: str, prompt: str, model: str) -> list[tuple[Violation, ...]]:
        """The violations of each reply so far in this round; as many tries are used up."""
        rows = self._db.execute(
            "SELECT a.violations FROM attempts a JOIN tasks t ON t.digest = a.digest AND t.round = a.round WHERE t.id = ? AND "
            "a.prompt = ? AND a.model = ? AND a.status IN ('rejected', 'dropped') ORDER BY a.attempt",
            (task, prompt, model),
        )
        return [tuple(Violation(**row) for row in json.loads(text)) for (text,) in rows]

    def asked(self, task: str, model: str, request: str) -> bool:
        """Whether the task's present content has met this very request."""
        found = self._db.execute(
            "SELECT 1 FROM attempts a JOIN tasks t ON t.digest = a.digest WHERE t.id = ? AND a.model = ? AND a.request = ?",
            (task, model, request),
        )
        return found.fetchone() is not None

    def record(self, attempt: Attempt) -> None:
        """Keeps what came of a request. Raises: KeyError where the task is not here."""
        lesson = attempt.lesson
        parsed = lesson and json.dumps(
            {"final_answer": lesson.answer, "reasoning_chain": lesson.chain}, ensure_ascii=False
        )
        violations = json.dumps([vars(violation) for violation in attempt.violations], ensure_ascii=False)
        with self.transaction() as db:
            row = db.execute("SELECT digest, round FROM tasks WHERE id = ?", (attempt.task,)).fetchone()
            if row is None:
                raise KeyError(attempt.task)
            who = (row[0], attempt.prompt, attempt.model)
            last = db.execute(
                "SELECT coalesce(max(attempt), 0) FROM attempts WHERE digest = ? AND prompt = ? AND model = ?", who
            ).fetchone()[0]
            sums = (attempt.tokens_in, attempt.tokens_out, attempt.cost, attempt.latency, time.time())
            said = (attempt.request, attempt.status, attempt.raw, parsed, json.dumps(attempt.codes), violations)
            db.execute(
                f"INSERT INTO attempts VALUES (NULL{', ?' * 17})", (attempt.task, *who, last + 1, row[1], *said, *sums)
            )

    def accepted(self, ids: Collection[str] | None = None) -> dict[str, Lesson]:
        """The lessons that passed the gate, by task; of several the last."""
        among, values = _among(ids)
        rows = self._db.execute(
            "SELECT t.id, a.parsed FROM tasks t JOIN attempts a ON a.digest = t.digest "
            f"WHERE a.status = 'accepted' {among} ORDER BY a.number",
            values,
        )
        parsed = {task: json.loads(text) for task, text in rows}
        return {task: Lesson(tuple(row["reasoning_chain"]), row["final_answer"], ()) for task, row in parsed.items()}

    def dropped(self, ids: Collection[str] | None = None) -> dict[str, tuple[str, ...]]:
        """Codes of tasks that used up their tries without an accepted answer from anybody, by task."""
        return self._codes(
            ids, f"AND EXISTS (SELECT 1 FROM attempts a WHERE {_DROPPED})", "a.status IN ('rejected', 'dropped')"
        )

    def unanswered(self, ids: Collection[str] | None = None) -> dict[str, tuple[str, ...]]:
        """Tasks that are neither accepted nor dropped, with the codes of the errors they met, if any: a next run asks them."""
        return self._codes(ids, f"AND NOT EXISTS (SELECT 1 FROM attempts a WHERE {_DROPPED})", "a.status = 'error'")

    def _codes(self, ids: Collection[str] | None, which: str, status: str) -> dict[str, tuple[str, ...]]:
        among, values = _among(ids)
        rows = self._db.execute(
            f"SELECT t.id, a.codes FROM tasks t LEFT JOIN attempts a ON a.digest = t.digest AND a.round = t.round AND {status} "
            "WHERE NOT EXISTS (SELECT 1 FROM attempts a WHERE a.digest = t.digest AND a.status = 'accepted') "
            f"{which} {among} ORDER BY t.number, a.number",
            values,
        )
        found = {}
        for task, codes in rows:
            found[task] = (*found.get(task, ()), *json.loads(codes or "[]"))
        return {task: tuple(dict.fromkeys(codes)) for task, codes in found.items()}

    def retry(self, code: str = "") -> int:
        """Puts dropped tasks back, those with a code or all; they get all their tries again. Returns how many."""
        back = [task for task, codes in self.dropped().items() if not code or code in codes]
        with self.transaction() as db:
            db.executemany("UPDATE tasks SET round = round + 1 WHERE id = ?", [(task,) for task in back])
        return len(back)

    def attempts(self) -> Iterator[sqlite3.Row]:
        """Every attempt at a task's present content, in order, without its text."""
        cursor = self._db.cursor()
        cursor.row_factory = sqlite3.Row
        yield from cursor.execute(
            "SELECT t.id, t.type, a.prompt, a.model, a.attempt, a.status, a.codes, a.tokens_in, a.tokens_out, a.cost, a.latency "
            "FROM attempts a JOIN tasks t ON t.digest = a.digest ORDER BY a.number"
        )

    def waiting(self) -> list[str]:
        """Ids of tasks whose request lies in a batch."""
        return [row[0] for row in self._db.execute(f"SELECT id FROM tasks t WHERE {_WAITING}")]


def _keep(db: sqlite3.Connection, data: bytes, name: str) -> str:
    """Keeps an image under its hash, which it returns; nothing has the empty hash."""
    if not data:
        return ""
    key = hashlib.sha256(data).hexdigest()
    if not db.execute("SELECT 1 FROM images WHERE hash = ?", (key,)).fetchone():
        db.execute("INSERT INTO images VALUES (?, ?, ?, ?)", (key, data, *image_size(data, f"task {name!r}")))
    return key


def _among(ids: Collection[str] | None) -> tuple[str, tuple[str, ...]]:
    """A condition that keeps a query to some tasks, with its value; none for all of them."""
    if ids is None:
        return "", ()
    return "AND t.id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),)
