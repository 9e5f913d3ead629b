"""GEMeX (Liu et al., ICCV 2025), the public subset: 80 questions about chest X-rays, 20 of each form.

    open_ended_question.jsonl, closed_ended_question.jsonl     q_id, question, answer, reason, visual_regions, visual_locations,
                                                               type, image_path
    single_choice_question.jsonl, multi_choice_question.jsonl  with choices ["A: ...", ...]; answer "C", or ["A", "B", "D"]

The images are MIMIC-CXR-JPG's (credentialed access at PhysioNet): put or link its `files` folder beside the questions. The whole
benchmark is not public. No real file was at hand: this is written against what users of Hugging Face BoKelvin/GEMeX-VQA document, and
tested on made files only.

With one right option `gold` is its letter; with several it is all of them ("ABD"). `task` in the metadata tells the four forms apart.
"""

from collections.abc import Iterator

from vital_jax.evaluate.benchmarks.files import Entry
from vital_jax.evaluate.benchmarks.reading import Fields, Reading, by_letter
from vital_jax.evaluate.benchmarks.rows import first, needed, options_of, plain, several, unlettered
from vital_jax.pipeline.tables import Row

FOLDERS = ("", "files", "images")
FORMS = ("open_ended", "closed_ended", "single_choice", "multi_choice")


def read(reading: Reading) -> None:
    """Collects the items of all four forms."""

    def make(entry: Entry, number: int, row: Row) -> Iterator[Fields]:
        form = next((form for form in FORMS if entry.stem.startswith(form)), "")
        if not form:
            raise ValueError(f"the file's name starts with none of {', '.join(FORMS)}")
        options = unlettered(options_of(first(row, "choices", "options")))
        if form.endswith("choice"):
            answer = by_letter(options, row.get("answer"))
            if form == "single_choice" and len(answer["gold"]) != 1:
                raise ValueError(f"answer {row.get('answer')!r} names {len(answer['gold'])} options where one is right")
        else:
            text = (several(row.get("answer"), "answer") or [""])[0]
            # "Yes." and "No." are the two answers of a closed question; the point is no part of them.
            answer = {"answer": text.rstrip(".") if form == "closed_ended" else text}
        name = plain(needed(row, "image_path", "image"), "image_path")
        images = reading.pictures(entry, name, FOLDERS)
        yield {
            "id": f"{form}_{plain(first(row, 'q_id', 'question_id', 'id'), 'q_id') or number}",
            "images": images,
            "question": plain(row.get("question"), "question"),
            **answer,
            "closed": form != "open_ended",
            "metadata": {
                "modality": "X-Ray",
                "site": "chest",
                "task": form,
                "question_type": plain(first(row, "type", "question_type"), "type"),
                "regions": row.get("visual_regions"),
                "locations": row.get("visual_locations"),
                "language": "en",
                "image_name": name,
                "group": name,
            },
        }

    reading.take(reading.find(*(f"{place}*_question*.json*" for place in ("./", "test/", ""))), make)
