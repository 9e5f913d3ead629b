"""VQA-RAD (Lau et al., Scientific Data 2018): questions of clinicians about radiology images of the head, chest and abdomen.

Three layouts are read; the first that is there, or the file that the path names:

    VQA_RAD Dataset Public.json       the owners' own, 2,248 questions; test items are those whose `phrase_type` starts with "test_"
    trainset.json, testset.json       the layout of MEVF and later code; the training set also holds "frame" rewordings
    data/test-*.parquet               Hugging Face flaviagiammarino/vqa-rad: image, question, answer and nothing else

Ids carry the layout, for the numbers of one are not those of another. Train and test share images in every one of them. The first two are
tested on real files, the third on a made one.
"""

from collections.abc import Iterator

from vital_jax.evaluate.benchmarks.files import Entry
from vital_jax.evaluate.benchmarks.reading import Fields, Reading, closed_of, group_of, hub
from vital_jax.evaluate.benchmarks.rows import first, needed, plain
from vital_jax.pipeline.tables import Row

FOLDERS = ("images", "VQA_RAD Image Folder", "VQA_RAD_Image_Folder", "imgs", "")
_PUBLIC = ("VQA_RAD Dataset Public.json", "VQA_RAD_Dataset_Public.json", "VQA_RAD*Public.json")
_SITES = {"ABD": "abdomen", "CHEST": "chest", "HEAD": "head"}


def read(reading: Reading) -> None:
    """Collects a split's items: "test", "train", or "all" of the public JSON."""
    split = reading.split
    sets = () if split == "all" else (f"{split}set.json", *hub(split))

    def make(entry: Entry, number: int, row: Row) -> Iterator[Fields]:
        phrasing = plain(row.get("phrase_type"), "phrase_type")
        layout = "public" if "qid_linked_id" in row else entry.stem if "qid" in row else "hub"
        if layout == "public" and split != "all" and (split == "test") != phrasing.startswith("test_"):
            return
        value = needed(row, "image_name", "image")
        site = plain(row.get("image_organ"), "image_organ")
        yield {
            "id": f"{layout}-{plain(first(row, 'qid'), 'qid') or number}",
            "images": reading.pictures(entry, value, FOLDERS),
            "question": plain(row.get("question"), "question"),
            "answer": plain(row.get("answer"), "answer"),
            "closed": closed_of(row.get("answer_type")),
            "metadata": {
                "site": _SITES.get(site, site),
                "question_type": plain(row.get("question_type"), "question_type"),
                "phrase_type": phrasing,
                "language": "en",
                "image_name": plain(row.get("image_name"), "image_name"),
                "group": group_of(value),
            },
        }

    reading.take(reading.find(*_PUBLIC, *sets), make)
