"""Questions about images without masks: finished records, for nothing is left to ask or to measure.

`questions.jsonl`, or a list in `questions.json`, holds one question each; `image` and the answer's options may be lists:

    {"image": "images/7.png", "question": "Is there an effusion?", "answer": "no"}
    {"image": "8.jpg", "question": "Which plane?", "answer": "axial", "options": ["axial", "coronal"], "id": "8-1", "group": "patient-3"}

VQA-RAD is read as distributed (Lau et al. 2018: `VQA_RAD Dataset Public.json` and a folder of images); its later layouts, and others whose
keys are in `_KEYS`, are read where `file` names them. Real answers are numbers, carry spaces at their ends and tabs inside; all of
that becomes plain text. VQA-RAD's own split shares images between its sides, so the split stands in the metadata and is not followed: a
group is an image, or what `group` says.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vital_jax.construct.marked import check_image, inside, json_lines, load, refuse, refused
from vital_jax.construct.source import Rejected, Unit
from vital_jax.pipeline.records import Record

_FILES = ("questions.jsonl", "questions.json", "VQA_RAD Dataset Public.json", "VQA_RAD_Dataset_Public.json")
_FOLDERS = ("", "images/", "imgs/", "VQA_RAD Image Folder/", "VQA_RAD_Image_Folder/")
_KEYS = {"image": ("image", "image_name", "img_name"), "id": ("id", "qid")}
_SITES = {"ABD": "abdomen", "CHEST": "chest", "HEAD": "head"}  # VQA-RAD's words
# A question's own key, and the key it has in the metadata.
_METADATA = {
    "source": "source", "modality": "modality", "site": "site", "image_organ": "site", "licence": "licence",
    "answer_type": "answer_type", "phrase_type": "phrasing", "question_type": "asked_for", "content_type": "asked_for",
}  # fmt: skip


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

    def units(self) -> Sequence[Unit]:
        """One per image (or set of images) with all its questions, in the order of the file; and one per line that is none.

        Raises: FileNotFoundError, no file of questions; ValueError, it holds no list of questions.
        """
        file = self.file or next((file for file in _FILES if (self.root / file).is_file()), _FILES[0])
        found, bad, seen = defaultdict(list), [], set()
        for where, row in self._rows(file):
            try:
                if isinstance(row, Rejected):
                    raise row
                images, row = _asked(row, where)
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

    def _rows(self, file: str) -> Iterator[tuple[str, dict | Rejected]]:
        path = self.root / file
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; questions are looked for in {', '.join(_FILES)}")
        if path.suffix == ".jsonl":
            yield from json_lines(path)
            return
        try:
            rows = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not JSON ({error}); copy it again") from error
        if not isinstance(rows, list):
            raise ValueError(f"{path}: holds no list of questions")
        for number, row in enumerate(rows):
            where = f"{file}[{number}]"
            yield where, row if isinstance(row, dict) else Rejected("bad-line", where, "not a JSON object")

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
            row, where = asked["row"], asked["where"]
            metadata = {
                "source": self.name,
                "licence": self.licence,
                "group": f"{self.name}/{row.get('group', unit.id)}",
            }
            metadata |= {_METADATA[key]: _text(row[key]) for key in _METADATA if key in row}
            metadata["site"] = _SITES.get(metadata.get("site", ""), metadata.get("site", ""))
            if str(row.get("phrase_type", "")).startswith("test"):
                metadata["source_split"] = "test"
            try:
                options, answer, gold = _choice(row)
                yield Record(
                    id=f"{self.name}/{asked['id']}",
                    images=images,
                    question=_text(row["question"]),
                    answer=answer,
                    options=options,
                    gold=gold,
                    metadata={key: value for key, value in metadata.items() if value != ""},
                )
            except ValueError as error:
                yield Rejected("bad-line", where, str(error))

    def _place(self, name: str) -> str:
        """Where an image is, from the root; the name itself where it is nowhere."""
        for folder in _FOLDERS:
            try:
                inside(self.root, f"{folder}{name}", "")
                return f"{folder}{name}"
            except Rejected:
                continue
        return name


def _asked(row: dict, where: str) -> tuple[tuple[str, ...], dict]:
    """The images a question is about, and the question under its usual keys. Raises: Rejected, bad-line."""
    row = dict(row)
    for key, names in _KEYS.items():
        if found := next((name for name in names if name in row), None):
            row[key] = row[found]
    if missing := [key for key in ("image", "question", "answer") if row.get(key) in (None, "")]:
        raise Rejected("bad-line", where, f"{', '.join(missing)} missing")
    images = row["image"] if isinstance(row["image"], list) else [row["image"]]
    if not images or not all(isinstance(image, str) and image for image in images):
        raise Rejected("bad-line", where, f"image {row['image']!r} is no file name and no list of them")
    for key in ("id", "group", "question", "answer"):
        if key in row and (isinstance(row[key], bool) or not isinstance(row[key], str | int | float)):
            raise Rejected("bad-line", where, f"{key} must be text or a number, not {row[key]!r}")
    if "id" in row:
        row["id"] = _text(row["id"])
    return tuple(images), row


def _text(value: Any) -> str:
    """Plain text on one line: numbers as they are written, one space where there are several."""
    return " ".join(str(value).split())


def _choice(row: dict) -> tuple[tuple[str, ...], str, str]:
    """Options, answer and the letter of the right option; the answer may itself be that letter.

    Raises: ValueError, options that the answer or `gold` does not fit.
    """
    answer, options = _text(row["answer"]), row.get("options", ())
    if isinstance(options, dict):
        options = [options[letter] for letter in sorted(options)]
    if not isinstance(options, list | tuple) or any(isinstance(option, list | dict) for option in options):
        raise ValueError(f"options must be a list of texts, not {options!r}")
    options = tuple(_text(option) for option in options)
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
