"""PathVQA (He et al., 2020): questions about pathology figures, half of them yes or no.

    data/test-*.parquet               Hugging Face flaviagiammarino/path-vqa: image, question, answer
    pvqa_test.json, pvqa_val.json     LXMERT's layout: per image, lists of questions and answers that run in step
    images/test/test_0000.jpg         its images

The owners' own `qas/*.pkl` are pickles, which can run any program: they are not read. LXMERT's layout is tested on the real file of the
validation split, Parquet on a made one. Ids of one layout are not those of the other.
"""

from collections.abc import Iterator

from vital_jax.evaluate.benchmarks.files import Entry
from vital_jax.evaluate.benchmarks.reading import Dropped, Fields, Reading, group_of, hub
from vital_jax.evaluate.benchmarks.rows import needed, plain
from vital_jax.pipeline.tables import Row

_SHORT = {"validation": "val"}


def read(reading: Reading) -> None:
    """Collects a split's items: "test", "validation" or "train"."""
    short = _SHORT.get(reading.split, reading.split)
    folders = (f"images/{short}", "images", short, "")

    def make(entry: Entry, number: int, row: Row) -> Iterator[Fields | Dropped]:
        if "sentf" not in row:
            value = needed(row, "image")
            images, group = reading.pictures(entry, value, folders), group_of(value)
            yield _fields(f"hub-{number}", images, row.get("question"), row.get("answer"), group)
            return
        name = plain(row.get("img_id"), "img_id")
        images = reading.pictures(entry, f"{name}.jpg", folders)
        for place, (question, answers) in enumerate(_pairs(row)):
            try:
                yield _fields(f"{name}/{place}", images, question, answers, name)
            except ValueError as error:
                yield Dropped("bad-line", f"question {place}: {error}")

    reading.take(reading.find(f"pvqa_{short}.json", *hub(reading.split), *hub(short)), make)


def _pairs(row: Row) -> Iterator[tuple[str, object]]:
    """Questions with their answers. Raises: ValueError, the two lists are none or do not run in step."""
    questions, answers = row["sentf"], row.get("labelf")
    if not isinstance(questions, dict) or not isinstance(answers, dict):
        raise ValueError("sentf and labelf must be objects of lists")
    for source in questions:
        asked, said = questions[source], answers.get(source)
        if not isinstance(asked, list) or not isinstance(said, list) or len(asked) != len(said):
            raise ValueError(f"the lists {source!r} of questions and answers do not run in step")
        yield from zip(asked, said, strict=True)


def _fields(number: str, images: tuple, question: object, answers: object, group: str) -> Fields:
    """Fields of an item. LXMERT gives {answer: score}: the best is the answer, the others are accepted too."""
    if isinstance(answers, dict):
        ranked = sorted(answers, key=lambda text: -float(answers[text]))
        answer, *others = [text.strip() for text in ranked if text.strip()] or [""]
    else:
        answer, others = plain(answers, "answer"), []
    metadata = {"modality": "pathology", "language": "en", "group": group, "image_name": group if "/" in number else ""}
    return {
        "id": number,
        "images": images,
        "question": plain(question, "question"),
        "answer": answer,
        "answers": tuple(others),
        "metadata": metadata,
    }
