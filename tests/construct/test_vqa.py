"""Questions without masks: VQA-RAD as distributed against its own table, our own form, mistakes one line each."""

import json
import unicodedata
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from vital_jax.construct.build import assign_splits
from vital_jax.construct.source import Rejected, Unit
from vital_jax.construct.vqa import Vqa
from vital_jax.pipeline.records import METADATA_TYPES, Record


def read_all(source):
    records, rejected = [], []
    for unit in source.units():
        try:
            for item in source.read(unit):
                records.append(item) if isinstance(item, Record) else rejected.append(
                    (item.code, item.file, item.reason)
                )
        except Rejected as reason:
            rejected.append((reason.code, reason.file, reason.reason))
    return records, rejected


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "quiz"
    (root / "images").mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.full((20, 30), 50 * number, np.uint8)).save(root / f"images/{number}.png")
    return root


def write(root, *rows):
    (root / "questions.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


def ask(**fields):
    return {"image": "images/0.png", "question": "Is there an effusion?", "answer": "no"} | fields


def test_vqa_rad_as_distributed(real):
    root = real("vqa_rad")
    assert Vqa.claims(root)
    source = Vqa(root, licence="CC0-1.0")
    units = source.units()
    assert len(units) == 209 and all(len(unit.files) == 1 for unit in units)
    # All images are decoded once in the test of the sources; here 60 are enough to see every trap's question.
    rows = {str(row["qid"]): row for row in json.loads((root / "VQA_RAD_Dataset_Public.json").read_text())}
    assert all((root / name).is_file() for unit in units for name in unit.files)
    odd = {row["image_name"] for row in rows.values() if not isinstance(row["answer"], str) or "\t" in row["answer"]}
    chosen = [unit for number, unit in enumerate(units) if number % 5 == 0 or unit.id in odd]
    records = [record for unit in chosen for record in source.read(unit)]
    assert len(odd) >= 4 and all(isinstance(record, Record) for record in records)
    groups = defaultdict(set)
    for record in records:
        row = rows[record.id.removeprefix("vqa_rad/")]
        assert record.question == " ".join(row["question"].split())
        assert record.answer == " ".join(str(row["answer"]).split()) and isinstance(record.answer, str)
        assert record.images == ((root / "images" / row["image_name"]).read_bytes(),)
        assert (record.chain, record.masks, record.latent_steps) == ((), (), None)
        meta = record.metadata
        assert meta.keys() <= METADATA_TYPES.keys()
        assert meta["answer_type"] == row["answer_type"].strip() and meta["asked_for"] == row["question_type"].strip()
        assert (meta.get("source_split") == "test") == row["phrase_type"].startswith("test")
        assert meta["site"] == {"CHEST": "chest", "HEAD": "head", "ABD": "abdomen"}[row["image_organ"]]
        assert (meta["licence"], meta["source"]) == ("CC0-1.0", "vqa_rad")
        groups[row["image_name"]].add(meta["group"])
    assert all(len(found) == 1 for found in groups.values()) and len(groups) == len(chosen)
    # The source's own split has images on both sides; it is kept, and no image is on two sides of a stream.
    both = defaultdict(set)
    for record in records:
        both[record.metadata["group"]].add(record.metadata["source_split"])
    assert max(map(len, both.values())) == 2
    sides = defaultdict(set)
    for split, record in assign_splits(records, val=0.3, test=0.3):
        assert split == record.metadata["source_split"]
        sides[record.images].add(split)
    assert all(len(found) == 1 for found in sides.values())


def test_another_file_of_the_same_folder(real):
    source = Vqa(real("vqa_rad"), file="testset.json")
    asked = [question for unit in source.units() for question in unit.facts["questions"]]
    assert len(asked) == 284
    record = next(iter(source.read(source.units()[0])))
    assert isinstance(record, Record) and record.metadata["source_split"] == "test"


def test_our_own_form(root):
    write(
        root,
        ask(id=7, modality="X-Ray", site="chest", group="patient-3", licence="CC0-1.0", source="clinic"),
        ask(question="  How\tmany nodules? ", answer=3, question_type="COUNT "),
        ask(image="1.png", question="Which plane?", answer="Coronal", options=["axial", "coronal"]),
        ask(image="1.png", question="Which plane?", answer="B", options={"B": "coronal", "A": "axial"}),
        ask(image="1.png", question="Which plane?", answer="It is coronal.", options=["axial", "coronal"], gold="B"),
        "",
        ask(image=["1.png", "2.png"], question="Which is brighter?", answer="the second"),
    )
    source = Vqa(root, licence="CC BY 4.0")
    assert source.name == "quiz" and Vqa.claims(root) and not Vqa.claims(root / "images")
    records, rejected = read_all(source)
    assert rejected == []
    first, second, *planes, pair = records
    assert (first.id, first.answer) == ("quiz/7", "no")
    assert first.metadata == {
        "source": "clinic", "licence": "CC0-1.0", "group": "quiz/patient-3", "modality": "X-Ray", "site": "chest",
    }  # fmt: skip
    assert (second.id, second.question, second.answer) == ("quiz/:2", "How many nodules?", "3")
    assert second.metadata == {
        "source": "quiz", "licence": "CC BY 4.0", "group": "quiz/images/0.png", "asked_for": "COUNT",
    }  # fmt: skip
    assert [(r.options, r.gold) for r in planes] == [(("axial", "coronal"), "B")] * 3
    assert [r.answer for r in planes] == ["Coronal", "coronal", "It is coronal."]
    assert len(pair.images) == 2 and pair.images[0] == planes[0].images[0]
    assert Counter(len(unit.facts["questions"]) for unit in source.units()) == {2: 1, 3: 1, 1: 1}
    unit = source.units()[0]
    again = Unit(unit.id, unit.files, json.loads(json.dumps(unit.facts)))
    assert list(source.read(again)) == records[:2]


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-30])


BAD_ROWS = [
    ("{", "bad-line", "not a JSON object"),
    ("[1]", "bad-line", "not a JSON object"),
    (ask(question=""), "bad-line", "question missing"),
    ({"image": "images/0.png"}, "bad-line", "question, answer missing"),
    (ask(answer="  "), "bad-line", "answer must be a non-empty string"),
    (ask(answer=True), "bad-line", "answer must be text or a number, not True"),
    (ask(answer=["a"]), "bad-line", r"answer must be text or a number, not \['a'\]"),
    (ask(image=7), "bad-line", "image 7 is no file name"),
    (ask(image=[]), "bad-line", r"image \[\] is no file name"),
    (ask(options="['a', 'b']"), "bad-line", "options must be a list"),
    (ask(options=["yes", "maybe"]), "bad-line", r"answer 'no' \(gold ''\) is none of the 2 options"),
    (ask(options=["yes", "no"], gold="C"), "bad-line", "gold 'C'"),
    (ask(options=["yes", None, "no"]), "bad-line", "option B is missing"),
    (ask(options={"A": "yes", "C": "no"}), "bad-line", "options have the letters A, C"),
    (ask(options=["<image 1>", "no"]), "bad-line", "'<image 1>' is an image"),
    (ask(question="<image>"), "bad-line", "nothing but '<image>'"),
    (ask(answer=float("nan")), "bad-line", "answer missing; the row has image, question"),
    (ask(question=float("inf")), "bad-line", "question missing"),
    (ask(image=float("nan")), "bad-line", "image missing"),
    (ask(modality=3), None, ""),
    (ask(id="a"), "duplicate-id", "id 'a' comes twice"),
]


@pytest.mark.parametrize(("row", "code", "reason"), BAD_ROWS)
def test_a_bad_line_costs_only_itself(root, row, code, reason):
    write(root, ask(id="a"), row, ask(image="images/1.png"))
    records, rejected = read_all(Vqa(root))
    assert [record.id for record in records if record.id != "quiz/:2"] == ["quiz/a", "quiz/:3"]
    if code is None:
        assert rejected == [] and records[1].metadata["modality"] == "3"
        return
    ((found, where, told),) = rejected
    assert (found, where) == (code, "questions.jsonl:2")
    with pytest.raises(ValueError, match=reason):
        raise ValueError(told)


def test_missing_cells_are_absent_whatever_the_field(root):
    odd = float("nan")
    write(root, ask(options=["yes", "no", odd], group=odd, modality=odd, id=odd, licence=-float("inf"), split="nan"))
    (record,), rejected = read_all(Vqa(root))
    assert rejected == [] and (record.id, record.options) == ("quiz/:1", ("yes", "no"))
    assert record.metadata == {"source": "quiz", "group": "quiz/images/0.png"}


def test_a_csv_of_european_excel_with_capitals(root):
    (root / "questions.csv").write_text("ID;Image;Question;Answer\n7;images/0.png;<image> Is it?;yes\n")
    assert Vqa.claims(root)
    (record,), rejected = read_all(Vqa(root))
    assert rejected == [] and (record.id, record.question, record.answer) == ("quiz/7", "Is it?", "yes")


def test_names_in_both_forms_of_unicode_are_one_patient_and_one_file(root):
    composed, apart = (unicodedata.normalize(form, "Jérôme") for form in ("NFC", "NFD"))
    (root / "images/0.png").rename(root / f"images/{apart}.png")
    write(root, *(ask(image=f"{name}.png", group=name, id=form) for form, name in (("a", composed), ("b", apart))))
    (unit,) = Vqa(root).units()
    assert unit.files == (f"images/{apart}.png",) and (root / unit.files[0]).is_file()
    records, rejected = read_all(Vqa(root))
    assert rejected == [] and {record.metadata["group"] for record in records} == {f"quiz/{composed}"}


@pytest.mark.parametrize(
    ("image", "code", "file"),
    [
        ("lost.png", "missing-file", "lost.png"),
        ("images/2.png", "unreadable-image", "images/2.png"),
        ("../quiz2/x.png", "path-escape", "questions.jsonl:2"),
        ("/etc/hostname", "path-escape", "questions.jsonl:2"),
    ],
)
def test_a_bad_image_costs_only_its_questions(root, image, code, file):
    cut_short(root / "images/2.png")
    write(root, ask(), ask(image=image), ask(image=image), ask(image="images/1.png"))
    records, rejected = read_all(Vqa(root))
    assert len(records) == 2 and [reason[:2] for reason in rejected] == [(code, file)]


def test_a_file_that_is_no_list_of_questions(root):
    with pytest.raises(FileNotFoundError, match=r"questions.jsonl: not found"):
        Vqa(root).units()
    for text in ("{", '{"a": 1}'):
        (root / "questions.json").write_text(text)
        with pytest.raises(ValueError, match=r"questions.json: (not JSON|holds no list)"):
            Vqa(root).units()
    (root / "questions.json").write_text(json.dumps([ask(), 3]))
    records, rejected = read_all(Vqa(root))
    assert records[0].id == "quiz/[0]" and rejected[0][:2] == ("bad-line", "questions.json[1]")
