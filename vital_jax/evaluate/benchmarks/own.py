"""Questions of one's own: a split of a record folder, or a file with one question per row.

A file is JSON lines, a JSON list, CSV, TSV or Parquet, given itself or as `<split>.jsonl` (or questions.jsonl) in a folder. Its fields:

    question       text
    answer         text or a number; a list gives further accepted answers; with options the right option's text, or its letter
    image, images  a file's name seen from the file (or from images/ beside it), or a list of them; may be absent
    options        a list of texts, {"A": text}, or a text that holds a list; absent for open questions
    gold           the right letter, "AC" or ["A", "C"] where several are right; it goes before `answer`
    id             unique; the row's number where it is absent
    closed         true or false; absent where nobody says

Capitals in these names do not count, and other trainers' image placeholders ("<image>") are taken out of questions. Every other field
becomes metadata. Tables know modality, question_type, language, and group: what shares an image or a patient.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vital_jax.construct.pages import records_folder
from vital_jax.evaluate.benchmarks.files import Entry
from vital_jax.evaluate.benchmarks.reading import (
    Dropped,
    Fields,
    Reading,
    by_letter,
    by_text,
    group_of,
    json_values,
    letters_of,
)
from vital_jax.evaluate.benchmarks.rows import first, literal_list, needed, options_of, plain, several
from vital_jax.pipeline.records import RecordSource
from vital_jax.pipeline.tables import Row, named, without_placeholders

_FIELDS = ("id", "question", "answer", "image", "images", "options", "gold", "closed")
_SUFFIXES = ("jsonl", "json", "csv", "tsv", "parquet")


def read_file(reading: Reading) -> None:
    """Collects the rows of a user's file."""

    def make(entry: Entry, number: int, row: Row) -> Iterator[Fields]:
        row = named(row, _FIELDS)
        options = options_of(row.get("options"))
        value = first(row, "images", "image")
        value = literal_list(value, "images") if isinstance(value, str) else value
        images = reading.pictures(entry, value, ("", "images"))
        metadata = {"group": group_of(value)} | json_values(row, _FIELDS)
        yield {
            "id": plain(first(row, "id"), "id") or f"row-{number}",
            "images": images,
            "question": without_placeholders(plain(needed(row, "question"), "question"), max(1, len(images))),
            **_answer(options, row),
            "closed": _closed(row.get("closed")),
            "metadata": metadata,
        }

    names = (f"{stem}.{suffix}" for stem in (reading.split, "questions") for suffix in _SUFFIXES)
    reading.take(reading.find(*names, f"{reading.split}-*.parquet"), make)


def _answer(options: tuple[str, ...], row: Row) -> Fields:
    if not options:
        answer, *others = several(row.get("answer"), "answer") or [""]
        return {"answer": answer, "answers": tuple(others)}
    gold = first(row, "gold")
    if gold is not None:
        return by_letter(options, list(gold) if isinstance(gold, str) and gold.isalpha() else gold)
    said = row.get("answer")
    if said in (None, "", []):
        raise Dropped("no-answer", "neither gold nor answer says which option is right")
    if isinstance(said, list) and len(said) > 1:
        found = "".join(sorted({_one(options, part) for part in said}))
        return by_letter(options, list(found))
    return by_letter(options, _one(options, said[0] if isinstance(said, list) else said))


def _one(options: tuple[str, ...], said: Any) -> str:
    """The letter that an answer means: an option's text before a letter, for options may be letters themselves."""
    try:
        return by_text(options, said)["gold"]
    except ValueError:
        if len(plain(said, "answer").strip("(). :")) != 1:
            raise
        return letters_of(said, len(options))


def _closed(value: Any) -> bool | None:
    if value in (None, ""):
        return None
    said = {"true": True, "false": False, "closed": True, "open": False}.get(str(value).strip().lower())
    if said is None:
        raise ValueError(f"closed must be true or false, not {value!r}")
    return said


@dataclass(frozen=True)
class InRecord:
    """An image inside a record folder.

    Attributes:
      folder, split, number: of the record. place: of the image in it.
    """

    folder: Path
    split: str
    number: int
    place: int

    def read_bytes(self) -> bytes:
        """The encoded file. Raises: FileNotFoundError, ValueError as `RecordSource`."""
        return _source(self.folder, self.split)[self.number].images[self.place]

    def __str__(self) -> str:
        return f"{self.folder} ({self.split}, record {self.number}, image {self.place + 1})"


@lru_cache(maxsize=4)
def _source(folder: Path, split: str) -> RecordSource:
    return RecordSource(folder, split)


def read_records(reading: Reading) -> None:
    """Collects a split of a record folder (`pipeline.records`), closed or open as the records' `form` says; images stay in the shards."""
    folder = records_folder(reading.files.path).absolute()
    source = RecordSource(folder, reading.split)
    for number, record in enumerate(source):
        metadata = dict(record.metadata)
        if record.latent_steps is not None:
            metadata["latent_steps"] = record.latent_steps
        form = metadata.get("form")
        fields = {
            "id": record.id,
            "images": [InRecord(folder, reading.split, number, place) for place in range(len(record.images))],
            "question": record.question,
            "answer": record.answer,
            "options": record.options,
            "gold": record.gold,
            "closed": None if form is None else form == "closed",
            "metadata": metadata,
        }
        reading.add(f"record {number}", fields)
