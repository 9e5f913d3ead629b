"""What all readers of benchmarks share: where items are collected, and where what cannot be used is counted by its reason.

Nothing leaves silently. A row that becomes no item is counted under one of these codes, with its place and why:

    bad-line          not a row of this benchmark: broken JSON, a field missing or of the wrong kind, an answer that is none of the options
    no-answer         the question has no answer, or its benchmark hides it
    duplicate-id      an earlier row had this id; the first is kept, for a second one would count a question twice
    path-escape       an image's name leads out of the folder
    other-language    a row in another language than the one asked for
    other-subject     a row of a subject that does not belong to the benchmark
    missing-file, unreadable-image, no-image   only where images are asked for (`need_images`)
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from typing import Any

from vital_jax.evaluate.benchmarks.files import Entry, Files
from vital_jax.evaluate.benchmarks.rows import first, literal_list, plain
from vital_jax.evaluate.items import Item, Picture, read_picture
from vital_jax.pipeline.tables import Bad, Row, read_rows
from vital_jax.scoring.choice import letter


class Dropped(ValueError):
    """A row that becomes no item: the code that counts it, and why."""

    def __init__(self, code: str, text: str = ""):
        super().__init__(text or code)
        self.code, self.text = code, text


Fields = dict[str, Any]  # of an `Item`, without benchmark and split
Make = Callable[[Entry, int, Row], Iterable[Fields | Dropped]]


@dataclass
class Reading:
    """One benchmark being read.

    Attributes:
      benchmark, split: what every item of it says. files: where it is read from.
      items: so far. dropped: rows that became no item, by code.
      details: "place: why [code]" of each, where there is more to say than the code.
    """

    benchmark: str
    split: str
    files: Files
    items: list[Item] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    _seen: dict[str, str] = field(default_factory=dict)
    _bytes: dict[str, bytes] = field(default_factory=dict)

    def find(self, *patterns: str, one: bool = False) -> list[Entry]:
        """The question files of the first pattern that fits. Raises: FileNotFoundError, none does."""
        found = self.files.find(patterns, one)
        if not found:
            names = ", ".join(list(dict.fromkeys(patterns))[:6])
            raise FileNotFoundError(f"no question file of split {self.split!r} (looked for {names} and the like)")
        return found

    def take(self, entries: Iterable[Entry], make: Make) -> None:
        """Reads files and collects what `make(entry, number of the row, row)` gives for each row: fields of items, or why there is none.

        `make` gives nothing for a row of another split, and raises ValueError for one that is wrong.
        Raises: ValueError, a file cannot be read.
        """
        numbers = count()  # over all files: rows without an id are numbered by it
        for entry in entries:
            for place, row in read_rows(entry):
                number = next(numbers)
                where = f"{entry.name}{place}"
                try:
                    if isinstance(row, Bad):
                        raise ValueError(row.text)
                    found = list(make(entry, number, row))
                except ValueError as error:
                    found = [error if isinstance(error, Dropped) else Dropped("bad-line", str(error))]
                for fields in found:
                    self.add(where, fields)

    def add(self, where: str, fields: Fields | Dropped) -> None:
        """Keeps an item, or counts why there is none."""
        try:
            if isinstance(fields, Dropped):
                raise fields
            if not fields["answer"]:
                raise Dropped("no-answer", f"{fields['id']!r} has no answer")
            metadata = {key: value for key, value in fields.get("metadata", {}).items() if value not in ("", None, [])}
            item = Item(**{**fields, "metadata": metadata}, benchmark=self.benchmark, split=self.split)
            if item.id in self._seen:
                raise Dropped("duplicate-id", f"id {item.id!r} is that of {self._seen[item.id]} too")
        except Dropped as reason:
            self.dropped[reason.code] += 1
            if reason.text:
                self.details.append(f"{where}: {reason.text} [{reason.code}]")
        except ValueError as error:
            self.dropped["bad-line"] += 1
            self.details.append(f"{where}: {error} [bad-line]")
        else:
            self._seen[item.id] = where
            self.items.append(item)

    def pictures(self, entry: Entry, value: Any, folders: Sequence[str] = ("",), up: int = 0) -> tuple[Picture, ...]:
        """Images as a row gives them: a file name, bytes, {"bytes", "path"} as Hugging Face writes them, or a list of these.

        Args:
          entry: the question file. value: what the row holds. folders, up: where files of that name lie, see `Files.picture`.
        Raises: Dropped, path-escape; ValueError, it is none of these.
        """
        if value is None or value == "":
            return ()
        if isinstance(value, list | tuple):
            return tuple(picture for part in value for picture in self.pictures(entry, part, folders, up))
        if isinstance(value, dict):
            value = next((value[key] for key in ("bytes", "path", "image_path") if value.get(key)), None)
            if value is None:
                raise ValueError("an image holds neither bytes nor a path")
        if isinstance(value, bytes):
            # Ten questions about an image repeat its bytes in every row; one copy is enough.
            return (self._bytes.setdefault(sha256(value).hexdigest(), value),)
        name = plain(value, "image")
        try:
            return (self.files.picture(entry, name, folders, up),)
        except ValueError as error:
            raise Dropped("path-escape", str(error)) from error

    def keep_readable(self) -> None:
        """Drops items of which an image is missing or cannot be read, and those without any."""
        checked: dict[Picture, Dropped | None] = {}

        def check(picture: Picture) -> Dropped | None:
            try:
                read_picture(picture)
            except FileNotFoundError as error:
                return Dropped("missing-file", str(error))
            except ValueError as error:
                return Dropped("unreadable-image", str(error))
            return None

        items, self.items = self.items, []
        for item in items:
            reasons = [] if item.images else [Dropped("no-image", f"{item.id!r} has no image")]
            for picture in item.images:
                if picture not in checked:
                    checked[picture] = check(picture)
                reasons.append(checked[picture])
            bad = next((reason for reason in reasons if reason), None)
            if bad is None:
                self.items.append(item)
                continue
            self.dropped[bad.code] += 1
            self.details.append(f"{self._seen[item.id]}: {bad.text} [{bad.code}]")


# --- answers ----------------------------------------------------------------------------------------


def letters_of(value: Any, count: int) -> str:
    """The right letters, in order: from "B", "(B)", "B.", "A,C", "A C" or ["A", "C"].

    Args:
      value: what a benchmark writes. count: options there are.
    Raises: ValueError, these are no letters of the options.
    """
    if isinstance(value, str):
        value = literal_list(value, "answer")
    parts = value if isinstance(value, list | tuple) else re.split(r"[,;\s]+", plain(value, "answer"))
    found = {re.sub(r"^\(?([A-Za-z])[).:]?$", r"\1", plain(part, "answer")).upper() for part in parts if part}
    letters = [letter(place) for place in range(count)]
    if not found or not found <= set(letters):
        raise ValueError(f"answer {value!r} is none of the letters {letters}")
    return "".join(sorted(found))


def by_letter(options: Sequence[str], value: Any) -> Fields:
    """{"options", "gold", "answer"} where the benchmark names the right option by its letter. Raises: ValueError as `letters_of`."""
    gold = letters_of(value, len(options))
    texts = [options[ord(one) - ord("A")] for one in gold]
    return {"options": tuple(options), "gold": gold, "answer": "; ".join(texts)}


def by_text(options: Sequence[str], value: Any) -> Fields:
    """The same where the benchmark repeats the right option's text; case, spaces and a point at its end do not count.

    Where options are equal, the first is meant.
    Raises: ValueError, no option has this text.
    """

    def loose(text: str) -> str:
        return " ".join(text.lower().rstrip(" .").split())

    answer = plain(value, "answer")
    for same in (str, loose):
        for place, option in enumerate(options):
            if same(option) == same(answer):
                return {"options": tuple(options), "gold": letter(place), "answer": option}
    raise ValueError(f"answer {answer!r} is none of the options {list(options)}")


def closed_of(value: Any) -> bool | None:
    """What "CLOSED", "CLOSED " or "open" says; None where nothing is said. Raises: ValueError for anything else."""
    said = plain(value, "answer_type").upper()
    if said not in ("", "CLOSED", "OPEN"):
        raise ValueError(f"answer_type {value!r} is neither OPEN nor CLOSED")
    return {"CLOSED": True, "OPEN": False}.get(said)


def group_of(value: Any) -> str:
    """What questions about the same image share, from what a row holds: the image's name, or a digest of its bytes."""
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    if isinstance(value, dict):
        value = first(value, "bytes", "path", "image_path")
    return sha256(value).hexdigest()[:16] if isinstance(value, bytes) else plain(value, "image")


def json_values(row: Row, without: Iterable[str]) -> Fields:
    """The other fields of a row, those that JSON can hold."""
    found = {}
    for key in row.keys() - set(without):
        value = row[key]
        try:
            if not (isinstance(value, float) and math.isnan(value)) and json.loads(json.dumps(value)) == value:
                found[key] = value
        except (TypeError, ValueError):
            continue
    return dict(sorted(found.items()))


def hub(split: str) -> Iterator[str]:
    """Names of a split's files as the Hugging Face hub and `datasets` write them: Parquet, saved Arrow, and Arrow of the cache."""
    yield from (f"{split}-*.parquet", f"data/{split}-*.parquet", f"{split}.parquet", f"{split}/*.parquet")
    yield from (f"{split}/data-*.arrow", f"*-{split}.arrow", f"*-{split}-*.arrow", "./data-*.arrow")
