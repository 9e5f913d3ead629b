"""Exports: what the three programs' own code reads from the files, done here as that code does it."""

import csv
import json

import pytest

from vital_jax.evaluate.exports import EXPORTS, export_lmms_eval, export_medevalkit, export_vlmevalkit
from vital_jax.evaluate.items import Item


def question(name, benchmark="slake", split="test", options=(), gold="", answer="left", **more):
    return Item(name, (), f"Where\tis\n{name}?", answer, options, gold, benchmark=benchmark, split=split, **more)


SLAKE = [
    question("7", closed=False, metadata={"language": "en"}),
    question("3", closed=True, metadata={"language": "zh"}),
]
ANSWERS = {"3": "右", "7": 'the "left"\nlung'}


def test_from_log_of_lmms_eval_finds_every_answer(tmp_path):
    path = export_lmms_eval(SLAKE, ANSWERS, tmp_path / "logs", "vital")
    data = json.loads(path.read_text(encoding="utf-8"))
    # As lmms_eval/models/simple/from_log.py does.
    assert (
        data["args"]["limit"] is None and data["args"]["model"] == "vital" and data["model_configs"]["task"] == "slake"
    )
    logs = {entry["doc_id"]: entry["resps"][0] for entry in data["logs"]}
    assert [logs[place][0] for place in (0, 1)] == [ANSWERS["7"], ANSWERS["3"]]
    moved = export_lmms_eval(SLAKE, ANSWERS, tmp_path, "vital", task="my_task", indices={"7": 40, "3": 41})
    assert moved.name == "my_task.json" and json.loads(moved.read_text(encoding="utf-8"))["logs"][1]["doc_id"] == 41


def test_vlmevalkits_table_survives_tabs_and_line_breaks(tmp_path):
    items = [
        question("a", "omnimedvqa", options=("left", "right", "up"), gold="A", metadata={"modality": "CT"}),
        question("b", "omnimedvqa", options=("left", "right"), gold="A"),
    ]
    path = export_vlmevalkit(items, {"a": 'A\t"x"\nB', "b": "B"}, tmp_path, "vital-8B_K4")
    assert path.name == "vital-8B_K4_OmniMedVQA.tsv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert list(rows[0]) == ["index", "question", "A", "B", "C", "answer", "modality", "prediction"]
    assert [row["index"] for row in rows] == ["0", "1"] and [row["C"] for row in rows] == ["up", ""]
    assert rows[0]["prediction"] == 'A\t"x"\nB' and rows[0]["question"] == "Where\tis\na?" and rows[1]["answer"] == "A"


def test_medevalkits_samples_have_the_fields_that_its_scorers_read(tmp_path):
    samples = json.loads(export_medevalkit(SLAKE, ANSWERS, tmp_path).read_text(encoding="utf-8"))
    assert [(s["lang"], s["answer_type"], s["answer"], s["response"]) for s in samples] == [
        ("en", "OPEN", "left", ANSWERS["7"]),
        ("zh", "CLOSED", "left", ANSWERS["3"]),
    ]
    expert = question(
        "m",
        "medxpertqa_mm",
        options=("left", "right"),
        gold="B",
        metadata={"task": "Treatment", "question_type": "Reasoning"},
    )
    (sample,) = json.loads(export_medevalkit([expert], {"m": "B"}, tmp_path).read_text(encoding="utf-8"))
    assert sample["choices"] == ["A. left", "B. right"] and sample["answer"] == "B"
    assert (sample["medical_task"], sample["question_type"]) == ("Treatment", "Reasoning")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda out: export_lmms_eval([question("1", "vqa_rad")], {"1": "x"}, out, "m"), "known here for vqa_rad test"),
        (lambda out: export_lmms_eval([*SLAKE, question("9", "vqa_rad")], {}, out, "m"), "one benchmark and split a file"),
        (lambda out: export_lmms_eval(SLAKE, {"7": "x"}, out, "m"), "1 items have no prediction: slake/3"),
        (lambda out: export_lmms_eval(SLAKE, ANSWERS, out, "m", indices={"7": 1}), "indices lack 1 items, the first '3'"),
        (
            lambda out: export_vlmevalkit([question("1", "mmmu_health", "validation")], {"1": "x"}, out, "m"),
            "mmmu_health is a part of their",
        ),
        (lambda out: export_vlmevalkit(SLAKE, ANSWERS, out, "../m", "X"), "becomes a part of a file's name"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_named(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path)
    assert not list(tmp_path.iterdir())
    assert set(EXPORTS) == {"lmms_eval", "vlmevalkit", "medevalkit"}
