"""MedXpertQA, the MM part (Zuo et al., ICML 2025): expert multiple choice with five options and up to several images.

    MM/test.jsonl, MM/dev.jsonl            Hugging Face TsinghuaC3I/MedXpertQA: options {"A": text}, label "B", images ["MM-0-a.jpeg"]
    medxpertqa_mm_input.jsonl              the owners' evaluation: options [{"letter", "content"}], label ["B"], images [{"image_path"}]
    images/, or images.zip

The published question repeats the options at its end ("Answer Choices: (A) ..."). An item's question has them cut off, so that no prompt
shows them twice; the published text stays in the metadata ("published_question") for the official protocol. The owners' evaluation file is
tested whole, the rest on made files.
"""

from collections.abc import Iterator

from vital_jax.evaluate.benchmarks.files import Entry
from vital_jax.evaluate.benchmarks.reading import Fields, Reading, by_letter, hub
from vital_jax.evaluate.benchmarks.rows import needed, options_of, plain
from vital_jax.pipeline.tables import Row

FOLDERS = ("images", "")


def read(reading: Reading) -> None:
    """Collects a split's items: "test" or "dev"."""
    split = reading.split
    # The owners' evaluation file is their test split.
    own = ("medxpertqa_mm_input.jsonl", "*mm_input.jsonl") if split == "test" else ()

    def make(entry: Entry, number: int, row: Row) -> Iterator[Fields]:
        options = options_of(row.get("options"))
        published = plain(row.get("question"), "question")
        question = without_options(published, options)
        yield {
            "id": plain(row.get("id"), "id"),
            "images": reading.pictures(entry, needed(row, "images"), FOLDERS),
            "question": question,
            **by_letter(options, row.get("label")),
            "closed": True,
            "metadata": {
                "task": plain(row.get("medical_task"), "medical_task"),
                "site": plain(row.get("body_system"), "body_system"),
                "question_type": plain(row.get("question_type"), "question_type"),
                "language": "en",
                "group": plain(row.get("id"), "id"),
                "published_question": published if published != question else "",
            },
        }

    reading.take(
        reading.find(f"MM/{split}.jsonl", *own, *(f"MM/{name}" for name in hub(split)), f"./{split}.jsonl"), make
    )


def without_options(text: str, options: tuple[str, ...]) -> str:
    """The question before "Answer Choices: (A) ...", where what follows is exactly the options; otherwise all of it."""
    question, found, tail = text.rpartition("Answer Choices:")
    repeated = " ".join(f"({chr(ord('A') + place)}) {option}" for place, option in enumerate(options))
    same = found and tail.split() == repeated.split()
    return question.strip() if same and question.strip() else text
