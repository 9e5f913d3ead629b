"""SLAKE (Liu et al., ISBI 2021): questions in English and Chinese about radiology images.

    train.json, validate.json (validation.json on the hub), test.json      both languages mixed, `q_lang` tells which
    imgs/xmlab1/source.jpg, or imgs.zip                                    the image that `img_name` "xmlab1/source.jpg" names

`slake` holds both languages, `slake_en` and `slake_zh` one each; published numbers differ by which of the three they mean. The JSON layout
is tested on the real files of train and validation, Parquet copies of the English part (image, question, answer) on a made one.
"""

from collections.abc import Callable, Iterator

from vital_jax.evaluate.benchmarks.files import Entry
from vital_jax.evaluate.benchmarks.reading import Dropped, Fields, Reading, closed_of, group_of, hub
from vital_jax.evaluate.benchmarks.rows import first, needed, plain
from vital_jax.pipeline.tables import Row

FOLDERS = ("imgs", "", "images")
_NAMES = {"validation": ("validate", "validation", "val")}


def read(language: str = "") -> Callable[[Reading], None]:
    """The reader of a split in one language ("en", "zh"), or in both."""

    def collect(reading: Reading) -> None:
        names = _NAMES.get(reading.split, (reading.split,))

        def make(entry: Entry, number: int, row: Row) -> Iterator[Fields]:
            spoken = plain(row.get("q_lang"), "q_lang") or "en"
            if language and spoken != language:
                raise Dropped("other-language")
            value = needed(row, "img_name", "image")
            qid = plain(first(row, "qid"), "qid")
            yield {
                "id": qid or f"hub-{number}",
                "images": reading.pictures(entry, value, FOLDERS),
                "question": plain(row.get("question"), "question"),
                "answer": plain(row.get("answer"), "answer"),
                "closed": closed_of(row.get("answer_type")),
                "metadata": {
                    "modality": plain(row.get("modality"), "modality"),
                    "site": plain(row.get("location"), "location"),
                    "question_type": plain(row.get("content_type"), "content_type"),
                    "task": plain(row.get("base_type"), "base_type"),
                    "language": spoken,
                    "image_name": plain(row.get("img_name"), "img_name"),
                    "group": group_of(value),
                },
            }

        patterns = [f"{name}.json" for name in names] + [pattern for name in names for pattern in hub(name)]
        reading.take(reading.find(*patterns), make)

    return collect
