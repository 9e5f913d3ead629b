"""The predictions file: JSON lines, one for each question.

    {"id", "question", "gold", "prediction", "parsed", "correct", "K", "tokens", "latency"}

Scoring needs "id" and "prediction" only; "benchmark" where ids of several benchmarks clash, and "judge" where a judge was asked. A scored
file has more: the measures of its protocol, and the image that questions share.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_predictions(path: str | Path) -> list[Row]:
    """The rows of a predictions file, ids as text.

    Raises: FileNotFoundError; ValueError, a line that is no JSON object, has no id or a benchmark that is no text, or answers what an
    earlier line has answered; the message names file and line.
    """
    path = Path(path)
    rows, lines = [], {}
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: not JSON ({error}); is the last line cut off?") from error
            if not isinstance(row, dict) or not isinstance(row.get("id"), str | int) or isinstance(row["id"], bool):
                raise ValueError(f"{path}:{number}: needs an object with an 'id'")
            if not isinstance(row.get("benchmark") or "", str):
                raise ValueError(f"{path}:{number}: 'benchmark' must be text, got {row['benchmark']!r}")
            row["id"] = str(row["id"])
            key = (row.get("benchmark") or "", row["id"])
            if key in lines:
                raise ValueError(f"{path}:{number}: {row['id']!r} is answered in line {lines[key]} too; keep one")
            lines[key] = number
            rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no predictions in it")
    return rows


def write_predictions(path: str | Path, rows: Iterable[Row]) -> Path:
    """Writes rows whole or not at all. Returns the path."""
    path = Path(path)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    return part.replace(path)
