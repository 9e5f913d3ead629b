"""Recorded replies instead of a teacher: another lab's, a person's, or another store's; same gate, same store."""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from vital_jax.construct.distill.progress import ReplyLine
from vital_jax.construct.distill.replies import Reply, settle
from vital_jax.construct.distill.run import Outcome
from vital_jax.construct.distill.store import Store
from vital_jax.construct.gate import KEYS

MODEL = "replay"


def replay(store: Store, path: str | Path, shown: bool = True) -> Outcome:
    """Takes recorded replies.

    A task takes the first of its replies that passes. A reply that was refused before is not judged again; a corrected one is.

    Args:
      store: of the tasks; accepted ones are left as they are.
      path: JSON lines {"id", "final_answer", "reasoning_chain"}, or another store.
      shown: a live line, and lines about what was not taken, on stderr.

    Returns:
      What came of the tasks that had no accepted answer; those without a recorded reply are pending.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another process is at work on the store, or the other store is none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no recorded replies here")
    with store.exclusive():
        wanted = set(store.dropped()) | set(store.unanswered())
        total, progress = len(wanted), ReplyLine(len(wanted), shown)
        try:
            for name, raw in _recorded(path):
                text = json.dumps(raw, ensure_ascii=False)
                request = hashlib.sha256(text.encode()).hexdigest()
                if name not in wanted or store.asked(name, MODEL, request):
                    continue
                task = store.task(name)
                attempt = settle(store, task, Reply(text), prompt="", model=MODEL, request=request, tries=1)
                progress.add(attempt)
                if attempt.status == "accepted":
                    wanted.remove(name)
        finally:
            progress.close()
        dropped = len(store.dropped(wanted))
    return Outcome(total - len(wanted), dropped, 0, pending=len(wanted) - dropped)


def _recorded(path: Path) -> Iterator[tuple[str, Mapping]]:
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"SQLite format 3"):
        with Store(path, create=False) as other:
            for name, lesson in other.accepted().items():
                yield name, dict(zip(KEYS, (lesson.answer, list(lesson.chain)), strict=True))
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                name = row.pop("id")
            except (ValueError, KeyError, AttributeError, TypeError):
                print(f"{path}:{number}: no JSON object with an id; passed over [bad-line]", file=sys.stderr)
                continue
            yield str(name), row
