"""The folder of an evaluation: what it was asked under, the answers so far, and one process at a time.

    settings.json    written before the first question; another run with other settings is refused, key by key
    answers.jsonl    a line per answer, appended batch by batch and on the disk before the next batch is asked
    .lock            held by the process that answers; the system lets go of it however that process ends

Half a line at the end of the file is what a killed process leaves: it is cut off, and that question is asked again. So a kill costs one
batch at most, and no question has two answers.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vital_jax.evaluate.score import Row

SETTINGS, ANSWERS, LOCK = "settings.json", "answers.jsonl", ".lock"


class Answers:
    """An evaluation's folder, held by this process; a context manager that lets go of it.

    Args:
      folder: made where it is absent. settings: JSON values under text keys, compared with those of an earlier process.

    Attributes:
      folder, settings: as given. rows: {id: row} of what has been answered.

    Raises:
      FileExistsError: a folder with other files, or a file.
      RuntimeError: another process answers into it.
      ValueError: other settings, naming every key with both values; or files that somebody has edited.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]):
        self.folder, self.settings = Path(folder), dict(settings)
        refuse(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / LOCK).open("a")
        try:
            self._hold()
            self._agree()
            self.rows = self._read()
            self._file = (self.folder / ANSWERS).open("ab")
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self._lock.close()

    def append(self, rows: Sequence[Row]) -> None:
        """Keeps a batch's rows, each with its "id": all of them are on the disk when this returns."""
        self._file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows |= {row["id"]: row for row in rows}

    def _hold(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"{self.folder}: another process is answering into it; wait for it, stop it, or name another folder"
            ) from error

    def _agree(self) -> None:
        path = self.folder / SETTINGS
        if not path.exists():
            part = path.with_name(path.name + ".part")
            with part.open("w", encoding="utf-8") as file:
                json.dump(self.settings, file, indent=2, ensure_ascii=False)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            return
        try:
            held = dict(_flat(json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path}: not the settings of an evaluation ({error}); name another folder") from error
        asked = dict(_flat(json.loads(json.dumps(self.settings))))
        absent = "(absent)"
        pairs = [(key, held.get(key, absent), asked.get(key, absent)) for key in {**held, **asked}]
        if other := [f"{key} was {old!r}, this run has {new!r}" for key, old, new in pairs if old != new]:
            raise ValueError(
                f"{path}: {'; '.join(other)}; ask as before to go on, or name another folder to begin anew"
            )

    def _read(self) -> dict[str, Row]:
        path, rows = self.folder / ANSWERS, {}
        if not path.exists():
            return rows
        whole = path.read_bytes()
        lines = whole.split(b"\n")
        end = len(whole) - len(lines.pop())
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                key, _ = row["id"], row["prediction"]
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines):  # a power cut leaves zeros where a line was to be
                    end -= len(line) + 1
                    break
                raise ValueError(
                    f"{path}:{number}: no answer ({line[:60]!r}); mend the line, or name another folder"
                ) from error
            if key in rows:
                raise ValueError(f"{path}:{number}: {key!r} is answered in an earlier line too; keep one")
            rows[key] = row
        if end < len(whole):
            with path.open("r+b") as file:
                file.truncate(end)
                os.fsync(file.fileno())
        return rows


def refuse(folder: Path) -> None:
    """Raises: FileExistsError, it is a file, or a folder that no evaluation made."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file; name a folder")
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    there = [name for name in names if name not in (LOCK, f"{SETTINGS}.part")]
    if there and SETTINGS not in there:
        raise FileExistsError(f"{folder}: holds {', '.join(there[:3])} and no {SETTINGS}; name another folder")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """{"model": {"step": 3}} as ("model.step", 3)."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
