"""OmniMedVQA (Hu et al., CVPR 2024), the open-access part: multiple choice over 42 data sets and many modalities, scored by modality.

    OmniMedVQA/QA_information/Open-access/*.json     lists of {dataset, question_id, question_type, question, gt_answer, image_path,
                                                     option_A.., modality_type}; gt_answer repeats an option's text
    OmniMedVQA/Images/...                            image_path starts there

The restricted part comes without images and is another benchmark; it is not read. This is written against the published layout and tested
on made files only. The data's one known slip, `modality` for `modality_type` in a row of "Chest CT Scan.json", is read as meant.
"""

from collections.abc import Iterator

from vital_jax.evaluate.benchmarks.files import Entry
from vital_jax.evaluate.benchmarks.reading import Fields, Reading, by_letter, by_text
from vital_jax.evaluate.benchmarks.rows import first, needed, options_of, plain
from vital_jax.pipeline.tables import Row


def read(reading: Reading) -> None:
    """Collects all items; the benchmark has one split."""

    def make(entry: Entry, number: int, row: Row) -> Iterator[Fields]:
        options = options_of([row.get(f"option_{letter}") for letter in "ABCDEFGHIJ"])
        if not options:
            raise ValueError("no option_A, option_B ...")
        answer = plain(row.get("gt_answer"), "gt_answer")
        try:
            chosen = by_text(options, answer)
        except ValueError:
            # Copies of the data name the right option by its letter.
            if len(answer) != 1:
                raise
            chosen = by_letter(options, answer)
        name = plain(needed(row, "image_path"), "image_path")
        yield {
            # Numbers are counted within a file.
            "id": f"{entry.stem}/{plain(first(row, 'question_id'), 'question_id') or number}",
            "images": reading.pictures(entry, name, up=2),  # beside QA_information
            "question": plain(row.get("question"), "question"),
            **chosen,
            "closed": True,
            "metadata": {
                "modality": plain(first(row, "modality_type", "modality"), "modality"),
                "question_type": plain(row.get("question_type"), "question_type"),
                "subset": plain(row.get("dataset"), "dataset"),
                "language": "en",
                "image_name": name,
                "group": name,
            },
        }

    reading.take(reading.find("QA_information/Open-access/*.json"), make)
