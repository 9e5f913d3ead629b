"""Rows of a question file, whatever form it has: JSON, JSON lines, CSV, TSV, Parquet, or Arrow as Hugging Face datasets save it.

A line that cannot be read costs itself only and is named; a file that cannot be read is an error. Parquet and Arrow need pyarrow, which
nothing else here does, so it is asked for only when such a file is met. Pickles are not read: they can run any program.
"""

import ast
import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vital_jax.evaluate.benchmarks.files import Entry, Folder

Row = dict[str, Any]
_MAX_FIELD = 2**28  # of a CSV; images travel in some as text
_MAX_LITERAL = 100_000


@dataclass(frozen=True)
class Bad:
    """A line that is no row. `text` says why."""

    text: str


def read_rows(entry: Entry) -> Iterator[tuple[str, Row | Bad]]:
    """(place in the file, row) in order; a line that is no row as a `Bad`.

    Raises: ValueError, the file is not what its name says; ImportError, pyarrow is missing.
    """
    readers = {
        ".json": _json, ".jsonl": _lines, ".ndjson": _lines, ".csv": _csv, ".tsv": _csv,
        ".parquet": _parquet, ".arrow": _arrow,
    }  # fmt: skip
    if entry.suffix in (".pkl", ".pickle"):
        raise ValueError(f"{entry}: pickles are not read, they can run any program; take the Parquet or JSON form")
    if entry.suffix not in readers:
        raise ValueError(f"{entry}: cannot read {entry.suffix or 'a file without suffix'}; give {', '.join(readers)}")
    try:
        yield from readers[entry.suffix](entry)
    except OSError as error:
        raise ValueError(f"{entry}: cannot be read ({error.strerror or error})") from error


def _text(entry: Entry) -> str:
    with entry.open() as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{entry}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error


def _json(entry: Entry) -> Iterator[tuple[str, Row | Bad]]:
    try:
        rows = json.loads(_text(entry))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{entry}: not JSON ({error}); copy it again") from error
    if not isinstance(rows, list):
        raise ValueError(f"{entry}: holds no list of questions")
    for number, row in enumerate(rows):
        yield f"[{number}]", row if isinstance(row, dict) else Bad(f"not a JSON object but {type(row).__name__}")


def _lines(entry: Entry) -> Iterator[tuple[str, Row | Bad]]:
    with entry.open() as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
                row = Bad(f"not JSON ({error})")
            good = isinstance(row, dict | Bad)
            yield f":{number}", row if good else Bad(f"not a JSON object but {type(row).__name__}")


def _csv(entry: Entry) -> Iterator[tuple[str, Row | Bad]]:
    reader = csv.DictReader(io.StringIO(_text(entry), newline=""), delimiter="\t" if entry.suffix == ".tsv" else ",")
    before = csv.field_size_limit(_MAX_FIELD)
    try:
        for row in reader:
            if None in row:
                yield f":{reader.line_num}", Bad("more fields than the header has names")
            elif None in row.values():
                yield f":{reader.line_num}", Bad("fewer fields than the header has names")
            else:
                yield f":{reader.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{entry}:{reader.line_num}: not a CSV ({error}); save it again") from error
    finally:
        csv.field_size_limit(before)


def _pyarrow(entry: Entry) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{entry}: reading {entry.suffix} needs pyarrow: pip install pyarrow") from error
    return pyarrow


def _parquet(entry: Entry) -> Iterator[tuple[str, Row | Bad]]:
    arrow = _pyarrow(entry)
    source = entry.place.root / entry.name if isinstance(entry.place, Folder) else entry.open()
    try:
        with arrow.parquet.ParquetFile(source) as file:
            # Columns hold images, so a whole row group can be gigabytes.
            yield from _batches(file.iter_batches(batch_size=64))
    except arrow.ArrowException as error:
        raise ValueError(f"{entry}: not a Parquet file that can be read ({error}); download it again") from error


def _arrow(entry: Entry) -> Iterator[tuple[str, Row | Bad]]:
    arrow = _pyarrow(entry)
    try:
        with entry.open() as file:
            try:
                reader = arrow.ipc.open_stream(file)
            except arrow.ArrowInvalid:  # the other of Arrow's two forms
                file.seek(0)
                table = arrow.ipc.open_file(file)
                reader = (table.get_batch(number) for number in range(table.num_record_batches))
            yield from _batches(reader)
    except arrow.ArrowException as error:
        raise ValueError(f"{entry}: not an Arrow file that can be read ({error}); save the data set again") from error


def _batches(batches: Any) -> Iterator[tuple[str, Row]]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, 64):
            for row in batch.slice(start, 64).to_pylist():
                yield f"[{number}]", row
                number += 1


# --- values -----------------------------------------------------------------------------------------


def first(row: Row, *names: str) -> Any:
    """The first value that is not empty, by the names it may have; None where there is none."""
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def needed(row: Row, *names: str) -> Any:
    """As `first`. Raises: ValueError, the row has none: it is one of another benchmark."""
    value = first(row, *names)
    if value is None:
        raise ValueError(f"no {' or '.join(names)}; the row has {', '.join(sorted(map(str, row)))}")
    return value


def plain(value: Any, name: str) -> str:
    """Text without spaces at its ends: numbers as they are written, nothing as "".

    Raises: ValueError, it is neither text nor a number; a yes or no must be written as such.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name} must be text or a number, not {type(value).__name__}: {str(value)[:80]}")
    return str(value).strip()


def several(value: Any, name: str) -> list[str]:
    """One text or a list of texts, as a list; Python's way of writing a list is read too. Raises: ValueError as `plain`."""
    if isinstance(value, str):
        value = literal_list(value, name)
    values = value if isinstance(value, list | tuple) else [value]
    return [text for text in (plain(part, name) for part in values) if text]


def literal_list(value: str, name: str) -> list | str:
    """A text that holds a Python list, as MMMU writes options, becomes that list; any other text stays as it is.

    It is read as a literal, never evaluated. Raises: ValueError, it opens like a list and is none.
    """
    text = value.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return value
    try:
        if len(text) > _MAX_LITERAL:
            raise ValueError("too long")
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{name} {text[:80]!r} is no list that can be read") from error
    return found if isinstance(found, list) else value


def options_of(value: Any) -> tuple[str, ...]:
    """Options in the order of their letters: from a list, a text that holds a list, {"A": text}, or [{"letter": "A", "content": text}].

    Empty ones at the end are left out.

    Raises: ValueError, it is none of these, or letters are not A, B, C ...
    """
    if isinstance(value, str):
        value = literal_list(value, "options")
    if isinstance(value, list | tuple) and value and all(isinstance(part, dict) for part in value):
        value = {part.get("letter"): part.get("content") for part in value}
    if isinstance(value, dict):
        lettered = {key: text for key, text in value.items() if text is not None}
        expected = [chr(ord("A") + place) for place in range(len(lettered))]
        if sorted(map(str, lettered)) != expected:
            raise ValueError(f"options have the letters {sorted(map(str, value))}, not {expected}")
        value = [lettered[key] for key in expected]
    if value is None or value == "":
        return ()
    if not isinstance(value, list | tuple):
        raise ValueError(f"options must be a list of texts, not {str(value)[:80]!r}")
    texts = [plain(part, "options") for part in value]
    while texts and not texts[-1]:
        texts.pop()
    return tuple(texts)


def unlettered(options: Sequence[str]) -> tuple[str, ...]:
    """Options without their own letter before a colon: "B:axial" -> "axial" in the second place."""
    cut = (
        re.sub(rf"^\(?{chr(ord('A') + place)}\)?\s*:\s*", "", option) or option for place, option in enumerate(options)
    )
    return tuple(cut)
