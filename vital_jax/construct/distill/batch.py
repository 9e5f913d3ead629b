"""Batch mode: requests as files that an endpoint answers within a day at a lower price, for sets too large to wait beside.

Files hold one request a line and are cut by bytes: with a picture in each request that limit comes long before the one in requests.
A request in a file is not asked any other way until its batch is collected or dropped. What comes back passes the same gate into the same
store; what does not come back is pending again, and so is what was refused, whose next request names its violations.

    written -> submitting -> submitted -> collected        dropped: given up
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vital_jax.construct.distill.endpoint import Address, Refused, Settings, address, library
from vital_jax.construct.distill.overlay import teacher_view
from vital_jax.construct.distill.prompts import Prompts, request, request_hash
from vital_jax.construct.distill.replies import Prices, Reply, read_completion, settle
from vital_jax.construct.distill.store import Attempt, Store
from vital_jax.construct.gate import Violation

MAX_BYTES = 200_000_000
MAX_REQUESTS = 50_000
URL = "/v1/chat/completions"
WINDOW = "24h"
MARK = "vital_batch"  # metadata by which a batch is found again whose number was lost
OVER = ("completed", "expired", "cancelled", "failed")


@dataclass(frozen=True)
class Batch:
    """One file of requests: its name, whom it asks, how many requests and bytes, images not known as public, state and remote number."""

    name: str
    model: str
    prompt: str
    requests: int
    bytes: int
    private: int
    state: str
    remote: str


def batches(store: Store, *states: str) -> list[Batch]:
    """The batches in these states, or all."""
    with store.transaction() as db:
        found = [Batch(*row) for row in db.execute("SELECT * FROM batches ORDER BY name")]
    return [batch for batch in found if not states or batch.state in states]


def folder_of(store: Store) -> Path:
    """Where request files lie."""
    return store.path.parent / "batches"


def write(
    store: Store,
    ids: Iterable[str],
    settings: Settings,
    prompts: Prompts,
    mode: str,
    max_bytes: int = MAX_BYTES,
    max_requests: int = MAX_REQUESTS,
) -> list[Path]:
    """Writes request files for tasks; a file is whole before the store knows of it.

    Args:
      store, ids: the tasks, from `run.selected`.
      settings, prompts, mode: as in `prompts.request`.
      max_bytes, max_requests: of one file.

    Returns:
      The files.

    Raises:
      ValueError: one request alone is over `max_bytes`.
    """
    written, part = [], None
    for line, row in _lines(store, ids, settings, prompts, mode):
        if len(line) > max_bytes:
            raise ValueError(
                f"task {row[4]!r}: its request has {len(line)} bytes, a file may have {max_bytes}; raise --max-bytes"
            )
        if part and (part.size + len(line) > max_bytes or len(part.rows) == max_requests):
            written.append(part.finish())
            part = None
        part = part or _Part(store, settings.model, prompts.version)
        part.add(line, row)
    return written + ([part.finish()] if part else [])


def _lines(
    store: Store, ids: Iterable[str], settings: Settings, prompts: Prompts, mode: str
) -> Iterator[tuple[bytes, tuple[str, str, str, bool, str]]]:
    """(line, (custom id, digest, request hash, private, task id)) of each task; one whose image cannot be read is dropped."""
    for name in ids:
        task, digest = store.task(name), store.digest(name)
        try:
            view = teacher_view(task.image, task.mask, task.id)
        except ValueError as error:
            problem = Violation("unreadable-image", "image and mask can be read", "task", str(error))
            store.record(Attempt(name, prompts.version, settings.model, "", "dropped", violations=(problem,)))
            continue
        broken = [each for past in store.history(name, prompts.version, settings.model) for each in past]
        body = request(task, view, prompts, settings.model, mode, broken, settings.extra)
        tag = request_hash(body)
        custom = f"v{tag[:16]}-{os.urandom(6).hex()}"
        line = json.dumps({"custom_id": custom, "method": "POST", "url": URL, "body": body})
        yield line.encode() + b"\n", (custom, digest, tag, not task.public, name)


class _Part:
    """A file of requests on its way; what is left of one that was never finished is written over."""

    def __init__(self, store: Store, model: str, prompt: str):
        self._store, self._who = store, (model, prompt)
        self._name = f"{len(batches(store)) + 1:05d}"
        folder = folder_of(store)
        folder.mkdir(exist_ok=True)
        self._half, self._path = folder / f".{self._name}.part", folder / f"{self._name}.jsonl"
        self._file, self.size, self.rows = self._half.open("wb"), 0, []

    def add(self, line: bytes, row: tuple) -> None:
        self._file.write(line)
        self.size += len(line)
        self.rows.append(row)

    def finish(self) -> Path:
        """Gives the file its name, then enters it."""
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
        self._half.replace(self._path)
        with self._store.transaction() as db:
            row = (self._name, *self._who, len(self.rows), self.size, sum(row[3] for row in self.rows))
            db.execute(
                "INSERT INTO batches (name, model, prompt, requests, bytes, private, state) VALUES (?, ?, ?, ?, ?, ?, 'written')",
                row,
            )
            items = [(custom, self._name, digest, tag) for custom, digest, tag, *_ in self.rows]
            db.executemany("INSERT INTO items (custom, batch, digest, request) VALUES (?, ?, ?, ?)", items)
        return self._path


def submit(store: Store, allow_upload: bool) -> list[Batch]:
    """Uploads written files and starts their batches; one that was being started when a process died is looked for first.

    Returns:
      The batches that were started.

    Raises:
      ValueError: no key, a file is gone, or images that may not leave the machine.
      RuntimeError: the endpoint refuses; the line has no word of the server's.
    """
    waiting = batches(store, "written", "submitting")
    where = address()
    private = sum(batch.private for batch in waiting)
    if private and not allow_upload and not where.loopback:
        raise ValueError(
            f"images of {private} tasks, not known as public, would be sent to {where.host}; give --allow-upload if they may"
        )
    started = []
    with _client(where) as client:
        lost = {}
        if any(batch.state == "submitting" for batch in waiting):
            lost = {(found.metadata or {}).get(MARK): found.id for found in client.batches.list(limit=100)}
        for batch in waiting:
            path = folder_of(store) / f"{batch.name}.jsonl"
            tag = _tag(store, batch)
            remote = lost.get(tag)
            if remote is None:
                if not path.is_file():
                    raise ValueError(f"{path}: gone; give the batch up with `batch drop` and write again")
                _state(store, batch.name, "submitting")
                file = client.files.create(file=path, purpose="batch")
                made = client.batches.create(
                    input_file_id=file.id, endpoint=URL, completion_window=WINDOW, metadata={MARK: tag}
                )
                remote = made.id
            _state(store, batch.name, "submitted", remote)
            started.append(batch)
    return started


def collect(store: Store, tries: int, prices: Prices) -> dict[str, int]:
    """Fetches the results of batches that are over.

    Args:
      store: of the tasks.
      tries, prices: as in `replies.settle`.

    Returns:
      Counts: replies per status, "unanswered", "running" batches.

    Raises:
      ValueError: no key. RuntimeError: the endpoint refuses.
    """
    counts: dict[str, int] = {}
    where = address()
    with _client(where) as client:
        for batch in batches(store, "submitted"):
            found = client.batches.retrieve(batch.remote)
            if found.status not in OVER:
                counts["running"] = counts.get("running", 0) + 1
                continue
            if found.status != "completed":
                said = "; ".join(each.message or "" for each in (found.errors and found.errors.data) or ())
                print(where.clean(f"batch {batch.name}: {found.status} {said}".rstrip()), file=sys.stderr)
            for number in filter(None, (found.output_file_id, found.error_file_id)):
                text = where.clean(client.files.content(number).text)
                _add(counts, _take(store, text.split("\n"), tries, prices))
            _close(store, batch.name, counts)
    return counts


def read(store: Store, path: str | Path, tries: int, prices: Prices) -> dict[str, int]:
    """Takes a file of results that was fetched by hand, and closes the batches that it answers.

    Returns:
      Counts as in `collect`, "unknown" for results of no request in this store.

    Raises:
      FileNotFoundError: no such file.
      ValueError: none of its lines is a result.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no results here")
    counts: dict[str, int] = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        touched = _add(counts, _take(store, lines, tries, prices))
    if not touched and set(counts) <= {"bad-line"}:
        raise ValueError(f"{path}: holds no results of a batch (lines with custom_id and response)")
    for name in sorted(touched):
        _close(store, name, counts)
    return counts


def drop(store: Store, name: str) -> int:
    """Gives a batch up: its requests are pending again. Returns how many. Raises: ValueError where there is no such open batch."""
    if name not in {batch.name for batch in batches(store, "written", "submitting", "submitted")}:
        raise ValueError(f"{store.path}: no open batch {name!r}")
    _state(store, name, "dropped")
    with store.transaction() as db:
        return db.execute("SELECT count(*) FROM items WHERE batch = ? AND NOT answered", (name,)).fetchone()[0]


def _take(store: Store, lines: Iterable[str], tries: int, prices: Prices) -> Iterator[tuple[str, str]]:
    """(status, batch) of each line of results."""
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
            custom, response = str(row["custom_id"]), row.get("response") or {}
            status = response.get("status_code")
        except (ValueError, KeyError, AttributeError, TypeError):
            yield "bad-line", ""
            continue
        with store.transaction() as db:
            item = db.execute(
                "SELECT t.id, i.batch, i.request, i.answered, b.model, b.prompt FROM items i JOIN batches b ON b.name = i.batch "
                "LEFT JOIN tasks t ON t.digest = i.digest WHERE i.custom = ?",
                (custom,),
            ).fetchone()
        if item is None or item[0] is None:  # not ours, or its task has changed since
            yield "unknown", item[1] if item else ""
            continue
        name, batch, tag, answered, model, prompt = item
        if answered or store.accepted([name]):
            yield "seen", batch
            continue
        try:
            code = (row.get("error") or {}).get("code") or f"http-{status}"
            reply = read_completion(response.get("body")) if status == 200 else Reply(error=str(code).replace("_", "-"))
        except ValueError as error:
            reply = Reply(str(error), error="no-completion")
        with store.transaction() as db:
            rest = dict(prompt=prompt, model=model, request=tag, tries=tries, prices=prices)
            attempt = settle(store, store.task(name), reply, **rest)
            db.execute("UPDATE items SET answered = 1 WHERE custom = ?", (custom,))
        yield attempt.status, batch


def _add(counts: dict[str, int], taken: Iterable[tuple[str, str]]) -> set[str]:
    """Counts statuses; returns the batches they belong to."""
    touched = set()
    for status, batch in taken:
        counts[status] = counts.get(status, 0) + 1
        touched |= {batch} - {""}
    return touched


def _close(store: Store, name: str, counts: dict[str, int]) -> None:
    with store.transaction() as db:
        left = db.execute("SELECT count(*) FROM items WHERE batch = ? AND NOT answered", (name,)).fetchone()[0]
        db.execute("UPDATE batches SET state = 'collected' WHERE name = ?", (name,))
    if left:
        counts["unanswered"] = counts.get("unanswered", 0) + left


def _state(store: Store, name: str, state: str, remote: str = "") -> None:
    with store.transaction() as db:
        db.execute("UPDATE batches SET state = ?, remote = ? WHERE name = ?", (state, remote, name))


def _tag(store: Store, batch: Batch) -> str:
    """What marks a batch at the endpoint: one of its requests' names, which no other batch has."""
    with store.transaction() as db:
        return db.execute("SELECT min(custom) FROM items WHERE batch = ?", (batch.name,)).fetchone()[0]


@contextmanager
def _client(where: Address) -> Iterator:
    """The endpoint's client; what it refuses becomes one line without the server's words, which may hold part of the key."""
    openai = library()
    http = openai.DefaultHttpxClient(trust_env=not where.loopback)
    try:
        with openai.OpenAI(api_key=where.key or "none", base_url=where.url, max_retries=5, http_client=http) as client:
            yield client
    except openai.APIStatusError as error:
        raise Refused(
            f"{where.host} refuses the batch (HTTP {error.status_code}); nothing was lost, try again later"
        ) from None
    except openai.APIError as error:
        raise Refused(
            f"no answer of {where.host} ({type(error).__name__}); nothing was lost, try again later"
        ) from None
