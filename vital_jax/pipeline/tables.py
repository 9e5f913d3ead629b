"""Rows of a table, whatever form it has: JSON, JSON lines, CSV, TSV, Parquet, or Arrow as Hugging Face datasets save it.

Training data and benchmarks come in the same files, with the same faults, so both are read here:

- a missing cell may be null, NaN or Infinity (`json.dumps` of a pandas frame), or the word "nan"; its key is then left out of the row;
- text is in Unicode's composed form (NFC), for macOS writes names in the other one and "Jérôme" is one patient;
- a CSV may be separated by commas, semicolons, tabs or bars, and begin with Excel's `sep=;`.

A line that cannot be read costs itself only and is named; a file that cannot be read is an error. Parquet and Arrow need pyarrow, which
nothing else here does, so it is asked for only when such a file is met. Pickles are not read: they can run any program.
"""

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

Row = dict[str, Any]
_MAX_FIELD = 2**28  # of a CSV; images travel in some as text
_SEPARATORS = ",;\t|"
_MISSING = ("nan", "NaN")


class Table(Protocol):
    """A file of rows: its suffix in small letters, `open()` from the start, and `str()` to name it by."""

    @property
    def suffix(self) -> str: ...

    def open(self) -> IO[bytes]: ...


@dataclass(frozen=True)
class TableFile:
    """A `Table` that is a file on disk."""

    path: Path

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower()

    def open(self) -> IO[bytes]:
        return self.path.open("rb")

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Bad:
    """A line that is no row. `text` says why."""

    text: str


# --- values -----------------------------------------------------------------------------------------


def clean(value: Any) -> Any:
    """A JSON value with None for what is no number (NaN, Infinity, the word "nan"), without the keys of None, and with text in NFC."""
    if isinstance(value, str):
        return None if value in _MISSING else composed(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        pairs = ((key, clean(part)) for key, part in value.items())
        return {composed(str(key)): part for key, part in pairs if part is not None}
    if isinstance(value, list | tuple):
        return [clean(part) for part in value]
    return value


def read_json(text: str | bytes) -> Any:
    """`json.loads`, then `clean`. Raises: ValueError, RecursionError as `json.loads`."""
    return clean(json.loads(text))


def composed(name: str) -> str:
    """Text in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", name)


def as_on_disk(root: Path, name: str) -> str:
    """A relative name as the file system spells it, whichever of Unicode's forms either has; as given where there is no such file."""
    parts, here = name.split("/"), root
    if name.isascii() or "\0" in name or ".." in parts or name.startswith("/"):
        return name
    try:
        for place, part in enumerate(parts):
            if not (here / part).exists():
                held = here.iterdir() if here.is_dir() else ()
                parts[place] = next((each.name for each in held if composed(each.name) == composed(part)), part)
            here /= parts[place]
    except OSError:  # too long to be a name; whoever opens it says so
        return name
    return "/".join(parts)


def named(row: Row, names: Iterable[str]) -> Row:
    """The row with its keys spelt as in `names` where they differ by capitals and spaces only ("Question ", "ANSWER")."""
    known = {name.lower(): name for name in names}
    spelt = {key: known.get(str(key).strip().lower(), key) for key in row}
    # A column that is spelt right goes before one that is not.
    return {spelt[key]: row[key] for key in sorted(row, key=lambda key: spelt[key] == key)}


# Other trainers mark in the text where an image stands: LLaVA, MiniCPM, InternLM, InternVL, Qwen, Phi, Llama, Gemma, Pixtral, GLM, Idefics,
# MMMU.
_AROUND = "fake_token_around_image"
_OPEN = rf"(?:<\|?(?:vision_start|im_start|begin_of_image|{_AROUND})\|?>\s*)"
_CLOSE = rf"(?:\s*<\|?(?:vision_end|im_end|end_of_image|{_AROUND})\|?>)"
_PATCHES = r"(?:<(?:img_context|im_patch)>\s*)"  # one image stands as many of them
_KINDS = (
    r"<\|begin_of_image\|><\|endoftext\|><\|end_of_image\|>",
    r"\(?<image>\./</image>\)?",
    rf"<img>\s*{_PATCHES}*</img>",
    r"<img>[^<>]*</img>",
    r"<\|?image[ _-]?(?P<number>\d+)\|?>",
    r"(?:<\|?\s*image(?:[ _-]?(?:pad|placeholder|here|content|token|soft_token))?\s*/?\|?>)",
    r"<\|?(?:img|start_of_image|begin_of_image)\|?>",
    rf"{_PATCHES}+",
    r"\[img\]",
)
_MARK = re.compile(rf"(?:picture \d+:\s*)?{_OPEN}?(?:{'|'.join(_KINDS)}){_CLOSE}?", re.IGNORECASE)
_BEFORE = re.compile(r"\b(?:the|this|that|each|every|an?)\s+$", re.IGNORECASE)
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")


def without_placeholders(text: str, images: int) -> str:
    """A question without the placeholders that other trainers put where an image stands.

    A model here is given the images in front of the question. So a placeholder at either end, or on a line of its own, goes; one within a
    sentence becomes "the image", or "the second image" where there are several.

    Args:
      text: the question. images: how many images it comes with.

    Raises: ValueError, it marks more images than it comes with, or nothing else is left.
    """
    marks = list(_MARK.finditer(text))
    if not marks:
        return text
    numbers = [int(mark["number"] or place) for place, mark in enumerate(marks, 1)]
    if max(numbers) > images:
        raise ValueError(f"the question marks {max(numbers)} images with {marks[-1][0]!r}, but comes with {images}")
    made, start = "", 0
    for mark, number in zip(marks, numbers, strict=True):
        made += text[start : mark.start()]
        start = mark.end()
        line = made.rpartition("\n")[2]
        rest = text[start:].partition("\n")[0]
        ends = (made, text[start:], line + rest)
        if any(not _MARK.sub("", end).strip() for end in ends):
            continue
        word = "image" if images == 1 else f"{_ORDINALS[number - 1]} image" if number <= 9 else f"image {number}"
        if number <= 9 and not _BEFORE.search(made):
            word = f"{'The' if made.rstrip().endswith(('.', '?', '!')) else 'the'} {word}"
        made += word
    made = (made + text[start:]).strip()
    if not text[: marks[0].start()].strip():
        made = made.lstrip(",;:. ")  # of "<image>, what is this?"
    if not made:
        raise ValueError(f"the question is nothing but {marks[0][0]!r}")
    return made


def is_placeholder(text: str) -> bool:
    """Whether a text is nothing but such placeholders."""
    return bool(text.strip()) and not _MARK.sub("", text).strip()


# --- files ------------------------------------------------------------------------------------------


def read_rows(table: Table) -> Iterator[tuple[str, Row | Bad]]:
    """(place in the file, row) in order; a line that is no row as a `Bad`. Missing cells have no key.

    Raises: ValueError, the file is not what its name says; ImportError, pyarrow is missing.
    """
    readers = {
        ".json": _json, ".jsonl": _lines, ".ndjson": _lines, ".csv": _csv, ".tsv": _csv,
        ".parquet": _parquet, ".arrow": _arrow,
    }  # fmt: skip
    if table.suffix in (".pkl", ".pickle"):
        raise ValueError(f"{table}: pickles are not read, they can run any program; take the Parquet or JSON form")
    if table.suffix not in readers:
        raise ValueError(f"{table}: cannot read {table.suffix or 'a file without suffix'}; give {', '.join(readers)}")
    try:
        for where, row in readers[table.suffix](table):
            yield where, row if isinstance(row, Bad) else clean(row)
    except OSError as error:
        raise ValueError(f"{table}: cannot be read ({error.strerror or error})") from error


def _text(table: Table) -> str:
    with table.open() as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{table}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error


def _json(table: Table) -> Iterator[tuple[str, Row | Bad]]:
    try:
        rows = json.loads(_text(table))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{table}: not JSON ({error}); copy it again") from error
    if not isinstance(rows, list):
        raise ValueError(f"{table}: holds no list of questions")
    for number, row in enumerate(rows):
        yield f"[{number}]", row if isinstance(row, dict) else Bad(f"not a JSON object but {type(row).__name__}")


def _lines(table: Table) -> Iterator[tuple[str, Row | Bad]]:
    with table.open() as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
                row = Bad(f"not a JSON object ({error})")
            good = isinstance(row, dict | Bad)
            yield f":{number}", row if good else Bad(f"not a JSON object but {type(row).__name__}")


def _csv(table: Table) -> Iterator[tuple[str, Row | Bad]]:
    text = _text(table)
    told = re.match(r'"?sep=(.)"?\r?\n', text)
    header = re.sub('"[^"]*"', "", text[told.end() if told else 0 :].lstrip("\r\n").partition("\n")[0])
    usual = "\t" if table.suffix == ".tsv" else ","
    separator = told[1] if told else max(usual + _SEPARATORS, key=header.count)
    reader = csv.DictReader(io.StringIO(text[told.end() if told else 0 :], newline=""), delimiter=separator)
    before = csv.field_size_limit(_MAX_FIELD)
    line = int(bool(told))
    try:
        for row in reader:
            where = f":{reader.line_num + line}"
            if None in row:
                yield where, Bad("more fields than the header has names")
            elif None in row.values():
                yield where, Bad("fewer fields than the header has names")
            else:
                yield where, row
    except csv.Error as error:
        raise ValueError(f"{table}:{reader.line_num + line}: not a CSV ({error}); save it again") from error
    finally:
        csv.field_size_limit(before)


def pyarrow_for(table: Table) -> Any:
    """The module that reads Parquet and Arrow. Raises: ImportError naming the table and the way out."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{table}: reading {table.suffix} needs pyarrow: pip install pyarrow") from error
    return pyarrow


def _parquet(table: Table) -> Iterator[tuple[str, Row | Bad]]:
    yield from ((f"[{number}]", row) for number, row in enumerate(parquet_rows(table)))


def parquet_rows(table: Table, groups: Sequence[int] | None = None) -> Iterator[Row]:
    """Rows of a Parquet file, or of some of its row groups, as they are stored. Raises: ValueError, ImportError."""
    arrow = pyarrow_for(table)
    try:
        with table.open() as opened, arrow.parquet.ParquetFile(opened) as file:
            # Columns hold images, so a whole row group can be gigabytes.
            yield from _batches(file.iter_batches(batch_size=64, row_groups=groups))
    except arrow.ArrowException as error:
        raise ValueError(f"{table}: not a Parquet file that can be read ({error}); download it again") from error


def _arrow(table: Table) -> Iterator[tuple[str, Row | Bad]]:
    arrow = pyarrow_for(table)
    try:
        with table.open() as file:
            try:
                reader = arrow.ipc.open_stream(file)
            except arrow.ArrowInvalid:  # the other of Arrow's two forms
                file.seek(0)
                held = arrow.ipc.open_file(file)
                reader = (held.get_batch(number) for number in range(held.num_record_batches))
            yield from ((f"[{number}]", row) for number, row in enumerate(_batches(reader)))
    except arrow.ArrowException as error:
        raise ValueError(f"{table}: not an Arrow file that can be read ({error}); save the data set again") from error


def _batches(batches: Any) -> Iterator[Row]:
    for batch in batches:
        for start in range(0, batch.num_rows, 64):
            yield from batch.slice(start, 64).to_pylist()
