"""MMMU (Yue et al., CVPR 2024) and MMMU-Pro (2024): their five Health & Medicine subjects.

    Clinical_Medicine/validation-*.parquet     MMMU, a folder per subject: id, question, options, image_1..image_7, question_type, answer
    standard (10 options)/test-*.parquet       MMMU-Pro with up to ten options, all subjects mixed; "standard (4 options)" beside it
    *.jsonl, images/<id>_<k>.png               the same rows as lines, as MMMU's own evaluation writes them

`options` is a text that holds a Python list; it is read as a literal, never evaluated. The markers `<image k>` stay in question and
options: the k-th image of an item is the one they mean. MMMU's open questions have no options and may accept several answers. The answers
of MMMU's test split are hidden, so it cannot be scored here. MMMU-Pro's "vision" setting shows the question inside the image; its items
have no text and are not read.

The lines are tested on 193 real questions of MMMU-Pro with four images, Parquet on a made file.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from vital_jax.evaluate.benchmarks.files import Entry
from vital_jax.evaluate.benchmarks.reading import Dropped, Fields, Reading, by_letter, hub
from vital_jax.evaluate.benchmarks.rows import options_of, plain, several
from vital_jax.pipeline.tables import Row

SUBJECTS = (
    "Basic_Medical_Science",
    "Clinical_Medicine",
    "Diagnostics_and_Laboratory_Medicine",
    "Pharmacy",
    "Public_Health",
)
FOLDERS = ("images", "")
_IMAGES = tuple(f"image_{number}" for number in range(1, 8))


def read(setting: str = "") -> Callable[[Reading], None]:
    """The reader of MMMU, or of one setting of MMMU-Pro: "standard (10 options)", "standard (4 options)"."""

    def collect(reading: Reading) -> None:
        def make(entry: Entry, number: int, row: Row) -> Iterator[Fields]:
            name = plain(row.get("id"), "id")
            subject = plain(row.get("subject"), "subject").replace(" ", "_") or _subject(name)
            if subject not in SUBJECTS:
                raise Dropped("other-subject")
            if not setting and name.partition("_")[0] in {"dev", "validation", "test"} - {reading.split}:
                return
            question = plain(row.get("question"), "question")
            options = options_of(row.get("options"))
            if row.get("answer") in (None, "", "?"):
                raise Dropped("no-answer", f"{name!r}: the answer is hidden")
            answer = by_letter(options, row["answer"]) if options else _open(row["answer"])
            yield {
                "id": name,
                "images": _images(reading, entry, name, row, question + " ".join(options)),
                "question": question,
                **answer,
                "closed": bool(options),
                "metadata": {
                    "subject": subject,
                    "question_type": plain(row.get("question_type"), "question_type"),
                    "difficulty": plain(row.get("topic_difficulty"), "topic_difficulty"),
                    "subfield": plain(row.get("subfield"), "subfield"),
                    "image_type": several(row.get("img_type"), "img_type"),
                    "language": "en",
                    "group": name,
                },
            }

        reading.take(reading.find(*_patterns(setting, reading.split)), make)

    return collect


def _patterns(setting: str, split: str) -> Iterator[str]:
    if not setting:
        for subject in ("*", ""):  # a folder per subject, or one of them alone
            prefix = f"{subject}/" if subject else ""
            yield f"{prefix}{split}-*.parquet"
        yield from hub(split)
        yield from (f"*mmmu*{split}*.jsonl", f"{split}.jsonl")
        return
    for pattern in hub(split):
        yield f"{setting}/{pattern}" if not pattern.startswith("./") else pattern
    count = setting.partition("(")[2].partition(" ")[0]
    yield from (f"*standard{count}*.jsonl", f"*standard({count} options)*.jsonl", f"*standard_{count}*.jsonl")


def _subject(name: str) -> str:
    """MMMU's ids hold it: "validation_Clinical_Medicine_2"."""
    found = re.fullmatch(r"[a-z]+_(\w+?)_\d+", name)
    return found[1] if found else ""


def _open(answer: Any) -> Fields:
    answer, *others = several(answer, "answer") or [""]
    return {"answer": answer, "answers": tuple(others)}


def _images(reading: Reading, entry: Entry, name: str, row: Row, text: str) -> tuple:
    """The images in the order of their numbers. Raises: ValueError, a number is left out, so that markers would mean the wrong image."""
    if any(key in row for key in _IMAGES):
        held = [row.get(key) for key in _IMAGES]
        while held and held[-1] is None:
            held.pop()
        if None in held:
            raise ValueError(f"image_{held.index(None) + 1} is empty, and one after it is not")
        return tuple(picture for value in held for picture in reading.pictures(entry, value, FOLDERS))
    numbers = sorted({int(number) for number in re.findall(r"<image (\d+)>", text)})
    if numbers and numbers[-1] > len(_IMAGES):
        raise ValueError(f"marker <image {numbers[-1]}>, but there are at most {len(_IMAGES)} images")
    return reading.pictures(entry, [f"{name}_{k}.png" for k in range(1, max(numbers, default=0) + 1)], FOLDERS)
