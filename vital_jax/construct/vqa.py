"""Questions about images without masks: finished records, for nothing is left to ask or to measure.

`questions.jsonl`, a list in `questions.json`, or `questions.csv` holds one question each; `image` and the answer's options may be lists:

    {"image": "images/7.png", "question": "Is there an effusion?", "answer": "no"}
    {"image": "8.jpg", "question": "Which plane?", "answer": "axial", "options": ["axial", "coronal"], "id": "8-1", "group": "patient-3"}

VQA-RAD is read as distributed (Lau et al. 2018: `VQA_RAD Dataset Public.json` and a folder of images); its later layouts, and others whose
keys are in `_KEYS`, are read where `file` names them. Real answers are numbers, carry spaces at their ends and tabs inside; all of
that becomes plain text, and other trainers' image placeholders are taken out (`pipeline.tables`).

The side of the source's own split stands in the metadata (`source_split`): what `split` says, VQA-RAD's `phrase_type`, or the name of the
file ("testset.json"). A group is an image, or what `group` says; VQA-RAD's own split has images on both sides, and the report names them.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vital_jax.construct.marked import check_image, inside, load, refuse, refused
from vital_jax.construct.source import Rejected, Unit
from vital_jax.construct.splits import official
from vital_jax.pipeline.records import Record
from vital_jax.pipeline.tables import Bad, TableFile, as_on_disk, is_placeholder, named, read_rows, without_placeholders

_FILES = (
    "questions.jsonl",
    "questions.json",
    "questions.csv",
    "questions.tsv",
    "VQA_RAD Dataset Public.json",
    "VQA_RAD_Dataset_Public.json",
)
FOLDERS = ("", "images/", "imgs/", "VQA_RAD Image Folder/", "VQA_RAD_Image_Folder/")
_KEYS = {"image": ("image", "images", "image_name", "img_name"), "id": ("id", "qid")}
_SITES = {"ABD": "abdomen", "CHEST": "chest", "HEAD": "head"}  # VQA-RAD's words
# A question's own key, and the key it has in the metadata.
_METADATA = {
    "source": "source", "modality": "modality", "site": "site", "image_organ": "site", "licence": "licence",
    "answer_type": "answer_type", "phrase_type": "phrasing", "question_type": "asked_for", "content_type": "asked_for",
}  # fmt: skip
_NAMES = ("image", "images", "question", "answer", "options", "gold", "id", "group", "split", *_METADATA)


@dataclass
class Vqa:
    """A `Source` of questions about images.

    Args:
      root: the folder that holds the questions and their images.
      file: of the questions, where it is none of the usual names.
      licence: of the data, where questions do not state one.
      name: another name than the folder's, where two sources would have the same.
    """

    root: Path
    file: str = ""
    licence: str = ""
    name: str = ""
    kind: ClassVar[str] = "vqa"

    def __post_init__(self):
        self.root = Path(self.root).resolve()
        self.name = self.name or self.root.name

    @classmethod
    def claims(cls, root: Path) -> bool:
        """Whether there is a file of questions under one of the usual names."""
        return any((root / file).is_file() for file in _FILES)

    def files(self) -> list[str]:
        """The files of questions: the one that was named, or the first of the usual names."""
        return [self.file or next((file for file in _FILES if (self.root / file).is_file()), _FILES[0])]

    def units(self) -> Sequence[Unit]:
        """One per image (or set of images) with all its questions, in the order of the file; and one per line that is none.

        Raises: FileNotFoundError, no file of questions; ValueError, it holds no list of questions.
        """
        found, bad, seen = defaultdict(list), [], set()
        for file in self.files():
            for where, row in self.rows(file):
                try:
                    if isinstance(row, Rejected):
                        raise row
                    row = {"split": Path(file).stem} | plain_row(row, where)
                    images = _images(row, where)
                    number = row.get("id", where.removeprefix(file))
                    if number in seen:
                        raise Rejected("duplicate-id", where, f"id {number!r} comes twice")
                    seen.add(number)
                    found[images].append({"where": where, "id": number, "row": row})
                except Rejected as reason:
                    bad.append(refused(where, reason))
        units = []
        for images, asked in found.items():
            files = tuple(self._place(name) for name in images)
            units.append(Unit(" ".join(images), files, {"questions": asked}))
        return units + bad

    def rows(self, file: str) -> Iterator[tuple[str, dict | Rejected]]:
        """(place, row) of a file of questions, or why there is none. Raises: FileNotFoundError, ValueError."""
        path = self.root / file
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; questions are looked for in {', '.join(_FILES)}")
        for place, row in read_rows(TableFile(path)):
            where = f"{file}{place}"
            yield where, Rejected("bad-line", where, row.text) if isinstance(row, Bad) else row

    def read(self, unit: Unit) -> Iterator[Record | Rejected]:
        """The records about one image; a question that cannot be used as a `Rejected`.

        Raises:
          Rejected: bad-line, duplicate-id, path-escape, missing-file or unreadable-image.
        """
        refuse(unit)
        where = unit.facts["questions"][0]["where"]
        images = []
        for name in unit.files:
            images.append(load(self.root, name, where, "unreadable-image"))
            check_image(images[-1], name)
        for asked in unit.facts["questions"]:
            group = f"{self.name}/{asked['row'].get('group', unit.id)}"
            yield record_of(asked["row"], f"{self.name}/{asked['id']}", images, group, self, asked["where"])

    def _place(self, name: str) -> str:
        """Where an image is, from the root; the name itself where it is nowhere."""
        for folder in FOLDERS:
            try:
                inside(self.root, f"{folder}{name}", "")
                return as_on_disk(self.root, f"{folder}{name}")
            except Rejected:
                continue
        return name


def plain_row(row: Mapping[str, Any], where: str) -> dict:
    """A question under its usual keys. Raises: Rejected, bad-line."""
    row = named(row, _NAMES)
    for key, names in _KEYS.items():
        if found := next((name for name in names if name in row), None):
            row[key] = row[found]
    if missing := [key for key in ("image", "question", "answer") if row.get(key) in (None, "", b"")]:
        raise Rejected(
            "bad-line", where, f"{', '.join(missing)} missing; the row has {', '.join(sorted(row)) or 'nothing'}"
        )
    for key in ("id", "group", "question", "answer"):
        if key in row and (isinstance(row[key], bool) or not isinstance(row[key], str | int | float)):
            raise Rejected("bad-line", where, f"{key} must be text or a number, not {row[key]!r}")
    for key in ("id", "group"):
        if key in row:
            row[key] = _text(row[key])
    return row


def _images(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The names of the images a question is about. Raises: Rejected, bad-line."""
    images = row["image"] if isinstance(row["image"], list) else [row["image"]]
    if not images or not all(isinstance(image, str) and image for image in images):
        raise Rejected("bad-line", where, f"image {row['image']!r} is no file name and no list of them")
    return tuple(images)


def record_of(
    row: Mapping[str, Any], number: str, images: Sequence[bytes], group: str, source: Any, where: str
) -> Record | Rejected:
    """The record of a question, or why there is none.

    Args:
      row: of `plain_row`. number: the record's id. images: encoded files, checked.
      group: what stays together. source: whose name and licence it has where the row states none. where: what a rejection calls it.
    """
    metadata = {"source": source.name, "licence": source.licence, "group": group}
    metadata |= {_METADATA[key]: _text(row[key]) for key in _METADATA if key in row}
    metadata["site"] = _SITES.get(metadata.get("site", ""), metadata.get("site", ""))
    phrasing = _text(row.get("phrase_type", ""))
    sides = {official(_text(row.get("split", ""))), "test" if phrasing.startswith("test") else "train" * bool(phrasing)}
    metadata["source_split"] = next((side for side in ("test", "val", "train") if side in sides), "")
    try:
        options, answer, gold = _choice(row)
        return Record(
            id=number,
            images=images,
            question=_text(without_placeholders(_text(row["question"], lines=True), len(images))),
            answer=answer,
            options=options,
            gold=gold,
            metadata={key: value for key, value in metadata.items() if value != ""},
        )
    except ValueError as error:
        return Rejected("bad-line", where, str(error))


def _text(value: Any, lines: bool = False) -> str:
    """Plain text: numbers as they are written, one space where there are several; on one line, or with its `lines`."""
    text = str(value)
    return "\n".join(" ".join(line.split()) for line in text.splitlines()) if lines else " ".join(text.split())


def _choice(row: Mapping[str, Any]) -> tuple[tuple[str, ...], str, str]:
    """Options, answer and the letter of the right option; the answer may itself be that letter.

    Raises: ValueError, options that the answer or `gold` does not fit, or that are images.
    """
    answer, options = _text(row["answer"]), row.get("options", ())
    if isinstance(options, dict):
        keys = sorted(options)
        if all(re.fullmatch("[A-Za-z]", key) for key in keys) and [ord(key.upper()) - 65 for key in keys] != [
            *range(len(keys))
        ]:
            raise ValueError(f"options have the letters {', '.join(keys)}, not A, B, ... without a gap")
        options = [options[key] for key in keys]
    if not isinstance(options, list | tuple) or any(isinstance(option, list | dict) for option in options):
        raise ValueError(f"options must be a list of texts, not {options!r}")
    options = list(options)
    while options and options[-1] in (None, ""):  # cells of a table that has room for more
        options.pop()
    if None in options:
        raise ValueError(f"option {chr(ord('A') + options.index(None))} is missing")
    options = tuple(_text(option) for option in options)
    if picture := next((text for text in (answer, *options) if is_placeholder(text)), ""):
        raise ValueError(f"{picture!r} is an image, not a text, among answer and options")
    if not options:
        return (), answer, ""
    letters = [chr(ord("A") + number) for number in range(len(options))]
    plain = [option.lower() for option in options]
    gold = _text(row.get("gold", ""))
    if not gold and plain.count(answer.lower()) == 1:
        gold = letters[plain.index(answer.lower())]
    elif not gold and re.fullmatch("[A-Z]", answer):
        gold = answer
    if gold not in letters:
        raise ValueError(f"answer {answer!r} (gold {gold!r}) is none of the {len(options)} options")
    return options, options[letters.index(gold)] if answer == gold else answer, gold
