"""PMC-VQA (Zhang et al., 2023): multiple choice about figures of open-access papers. Three files are three benchmarks:

    test.csv         version 1: Figure_path, Question, Answer, Choice A..D ("A:Diffuse uptake"), Answer_label; images.zip
    test_clean.csv   version 1, the 2,000 questions of the "clean" test set, in the same columns
    test_2.csv       version 2, figures that are not compound: index, Figure_path, Caption, Question, Choice A..D, Answer (a letter), split;
                     images_2.zip

This is written against the layout that the data card and code around it describe, and tested on made files only. Captions are not given to
the model and stay out of the items.
"""

from collections.abc import Callable, Iterator

from vital_jax.evaluate.benchmarks.files import Entry
from vital_jax.evaluate.benchmarks.reading import Fields, Reading, by_letter, by_text
from vital_jax.evaluate.benchmarks.rows import first, options_of, plain, unlettered
from vital_jax.pipeline.tables import Row

FOLDERS = ("images", "figures", "images_2", "")
_CHOICES = ("Choice A", "Choice B", "Choice C", "Choice D")


def read(file: str) -> Callable[[Reading], None]:
    """The reader of one of the three files."""

    def collect(reading: Reading) -> None:
        def make(entry: Entry, number: int, row: Row) -> Iterator[Fields]:
            if missing := [name for name in ("Figure_path", "Question", *_CHOICES) if name not in row]:
                raise ValueError(f"columns {missing} missing; the file has {sorted(map(str, row))}")
            options = unlettered(options_of([row[name] for name in _CHOICES]))
            said = plain(first(row, "Answer", "Anwser"), "Answer")  # the owners' code spells it either way
            label = plain(row.get("Answer_label"), "Answer_label") or said
            name = plain(row["Figure_path"], "Figure_path")
            chosen = by_letter(options, label) if len(label) == 1 else by_text(options, label)
            yield {
                "id": f"{entry.stem}-{plain(row.get('index'), 'index') or number}",
                "images": reading.pictures(entry, name, FOLDERS),
                "question": plain(row["Question"], "Question"),
                **chosen,
                "closed": True,
                "metadata": {"language": "en", "image_name": name, "group": name.partition("_")[0]},
            }

        reading.take(reading.find(file, one=True), make)

    return collect
