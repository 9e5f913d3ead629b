"""Questions as other trainers keep them: LLaVA's and ShareGPT's conversations in JSON, and Hugging Face's Parquet.

    [{"image": "7.png", "conversations": [{"from": "human", "value": "<image> Which organ?"}, {"from": "gpt", "value": "Liver."}]}]
    [{"images": ["7.png"], "messages": [{"role": "user", "content": "Which organ?"}, {"role": "assistant", "content": "Liver."}]}]
    data/train-00000-of-00004.parquet, data/test-...       columns image or images, with question and answer or with such a conversation

Every question with its answer is one record: what was said before it is not shown, so a set whose later turns lean on earlier ones should
be cut to its first. Image placeholders are taken out (`pipeline.tables`). The name of a file says its side ("train", "test"), and a split
that holds something out is kept. Parquet needs pyarrow.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from vital_jax.construct.marked import check_image, load, refuse
from vital_jax.construct.source import Rejected, Unit
from vital_jax.construct.vqa import Vqa, plain_row, record_of
from vital_jax.pipeline.records import Record
from vital_jax.pipeline.tables import TableFile, clean, parquet_rows, pyarrow_for

_TALKS = ("conversations", "messages")
_HEAD = 1 << 16  # bytes of a file that show whether it holds conversations
_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant", "model")


def turns(row: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    """(question, answer) of a conversation; what the system says is passed over. Raises: Rejected, bad-line."""
    talk = next((row[key] for key in _TALKS if key in row), None)
    said = [
        (part.get("from", part.get("role")), part.get("value", part.get("content"))) for part in _dicts(talk, where)
    ]
    said = [(who, text) for who, text in said if who != "system"]
    if not said or len(said) % 2:
        raise Rejected("bad-line", where, f"a conversation of {len(said)} parts is no list of questions and answers")
    for (asker, question), (answerer, answer) in zip(said[::2], said[1::2], strict=True):
        if asker not in _ASKS or answerer not in _ANSWERS or not all(isinstance(t, str) for t in (question, answer)):
            raise Rejected("bad-line", where, f"{asker!r} and {answerer!r} do not ask and answer in text")
        yield question, answer


def _dicts(talk: Any, where: str) -> list[dict]:
    if not isinstance(talk, list) or not all(isinstance(part, dict) for part in talk):
        raise Rejected("bad-line", where, "a conversation is a list of objects")
    return talk


@dataclass
class Llava(Vqa):
    """A `Source` of the conversations in a folder's JSON files. Args: as `Vqa`; without `file` all of them are read."""

    kind: ClassVar[str] = "llava"

    @classmethod
    def claims(cls, root: Path) -> bool:
        """Whether a JSON file in the folder begins with a conversation."""
        return bool(_talking(root))

    def files(self) -> list[str]:
        return [self.file] if self.file else _talking(self.root)

    def rows(self, file: str) -> Iterator[tuple[str, dict | Rejected]]:
        for where, row in super().rows(file):
            if isinstance(row, Rejected):
                yield where, row
                continue
            try:
                plain = {key: value for key, value in row.items() if key not in (*_TALKS, "id")}
                for turn, (question, answer) in enumerate(turns(row, where), 1):
                    # Ids come twice in many such files; the place does not.
                    yield where, plain | {"question": question, "answer": answer, "id": f"{where}-{turn}"}
            except Rejected as reason:
                yield where, reason


def _talking(root: Path) -> list[str]:
    found = []
    for path in sorted([*root.glob("*.json"), *root.glob("*.jsonl")]):
        with path.open("rb") as file:
            if re.search(rb'"(conversations|messages)"\s*:\s*\[', file.read(_HEAD)):
                found.append(path.name)
    return found


@dataclass
class Parquet:
    """A `Source` of the questions in a folder's Parquet files (in it or in `data/`), images within.

    Args:
      root: the folder. licence: of the data. name: another than the folder's.
    """

    root: Path
    licence: str = ""
    name: str = ""
    kind: ClassVar[str] = "parquet"

    def __post_init__(self):
        self.root = Path(self.root).resolve()
        self.name = self.name or self.root.name

    @classmethod
    def claims(cls, root: Path) -> bool:
        """Whether there is a Parquet file."""
        return any(_tables(root))

    def units(self) -> Sequence[Unit]:
        """One per row group. What the file's end says of its parts stands for its content.

        Raises: FileNotFoundError, no such file; ValueError, one that is none or has no questions; ImportError, no pyarrow.
        """
        units, files = [], list(_tables(self.root))
        if not files:
            raise FileNotFoundError(f"{self.root}: no *.parquet in it or in its folder data")
        for path in files:
            table, file = TableFile(path), path.relative_to(self.root).as_posix()
            arrow = pyarrow_for(table)
            try:
                held = arrow.parquet.read_metadata(path)
            except arrow.ArrowException as error:
                raise ValueError(f"{path}: not a Parquet file that can be read ({error}); download it again") from error
            columns = {name.lower() for name in held.schema.to_arrow_schema().names}
            if not (columns & {*_TALKS} or {"question", "answer"} <= columns) or not columns & {"image", "images"}:
                raise ValueError(
                    f"{path}: columns {', '.join(sorted(columns))}, but image or images with question and answer, or with "
                    "conversations, are needed"
                )
            known = sha256(repr(held.to_dict()).encode()).hexdigest()
            split = re.split(r"[-.]", path.name)[0]
            first = 0
            for group in range(held.num_row_groups):
                facts = {"file": file, "group": group, "first": first, "known": known, "split": split}
                units.append(Unit(f"{file}:{group}", (), facts))
                first += held.row_group(group).num_rows
        return units

    def read(self, unit: Unit) -> Iterator[Record | Rejected]:
        """The records of a row group; a row that cannot be used as a `Rejected`."""
        refuse(unit)
        facts = unit.facts
        for place, row in enumerate(
            parquet_rows(TableFile(self.root / facts["file"]), [facts["group"]]), facts["first"]
        ):
            where = f"{facts['file']}[{place}]"
            try:
                yield from self._records(clean(row), where, facts["split"])
            except Rejected as reason:
                yield reason

    def _records(self, row: dict, where: str, split: str) -> Iterator[Record | Rejected]:
        talks = any(key in row for key in _TALKS)
        asked = list(turns(row, where)) if talks else [(None, None)]
        images = None
        for turn, (question, answer) in enumerate(asked, 1):
            told = {"question": question, "answer": answer} if talks else {}
            plain = {"split": split} | plain_row(row | told, where)
            if images is None:
                images = [self._image(image, where) for image in _list(plain["image"])]
            group = plain.get("group") or sha256(b"".join(images)).hexdigest()[:16]
            number = f"{self.name}/{where}-{turn}" if talks else f"{self.name}/{plain.get('id', where)}"
            yield record_of(plain, number, images, f"{self.name}/{group}", self, where)

    def _image(self, image: Any, where: str) -> bytes:
        """An image's bytes: as they are, {"bytes", "path"}, or a file's name in the folder. Raises: Rejected."""
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        data = image if isinstance(image, bytes) else load(self.root, image, where, "unreadable-image")
        check_image(data, where)
        return data


def _list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _tables(root: Path) -> Iterator[Path]:
    yield from sorted([*root.glob("*.parquet"), *root.glob("data/*.parquet")])
