"""Official splits in a build, what shares a test image with one, and sources that fail beside others that do not."""

import json

import pytest
from drawn import draw_folder
from PIL import Image

from vital_jax.cli import main
from vital_jax.construct import factory
from vital_jax.demo.phantoms import phantoms
from vital_jax.pipeline.records import RecordSource

FAST = dict(shown=False, questions=3, val=0.2, test=0.2)


def records(out):
    """Split -> records."""
    splits = sorted(path.stem.removeprefix("index-") for path in (out / "records").glob("index-*.jsonl"))
    return {split: list(RecordSource(out / "records", split)) for split in splits}


@pytest.fixture
def quiz(tmp_path):
    """Twelve images in VQA-RAD's own form: 10 test questions, of which four share their image with a training question."""
    root, rows = tmp_path / "in/vqa_rad", []
    (root / "images").mkdir(parents=True)
    for number, image in enumerate(list(dict.fromkeys(sample.image for sample in phantoms(12, 5, 96)))):
        (root / f"images/{number}.png").write_bytes(image)
        for turn in range(2):
            test = (number < 6 and not (turn and number < 4)) or number == 11
            rows.append(
                {
                    "qid": str(2 * number + turn),
                    "image_name": f"{number}.png",
                    "question": f"Is it {turn}?",
                    "answer": "no",
                }
                | {"phrase_type": "test_freeform" if test else "freeform", "image_organ": "CHEST"}
            )
    (root / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows))
    return root, rows


def test_an_official_split_is_kept_and_shared_images_are_named(quiz, tmp_path, capsys):
    root, rows = quiz
    # A folder without a split of its own, with a poor copy of a test image and of an image for training alone.
    lab = draw_folder(tmp_path / "in/lab", 6, seed=9)
    table = [json.loads(line) for line in (lab / "manifest.jsonl").read_text().splitlines()]
    for row, number in zip(table, (11, 8), strict=False):
        image = Image.open(root / f"images/{number}.png").convert("RGB").resize((64, 64))
        image.save(lab / row["image"])
    assert main(["data", "build", str(tmp_path / "out"), "--source", str(tmp_path / "in"), "--jobs", "1"]) in (0, 1)
    said = capsys.readouterr().err
    sides = {r.id: split for split, held in records(tmp_path / "out").items() for r in held}
    test = {row["qid"] for row in rows if row["phrase_type"].startswith("test")}
    assert {name for name in sides if name.startswith("vqa_rad/") and sides[name] == "test"} == {
        f"vqa_rad/{q}" for q in test
    }
    assert len(test) == 10
    near = {split for name, split in sides.items() if name.startswith(f"lab/{table[0]['id']}/")}
    assert near == {"test"}  # it has no split to keep
    trained = [r for r in records(tmp_path / "out")["train"] if r.metadata.get("overlaps")]
    assert {(r.metadata["group"], *r.metadata["overlaps"]) for r in trained} == {
        (f"vqa_rad/{n}.png", "VQA-RAD") for n in range(4)
    }
    line = "VQA-RAD: 10 official test questions about 7 images (10 in test); 4 questions of training are about 4 images"
    assert line in said and line in (tmp_path / "out/report.md").read_text()
    assert main(["data", "stats", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert line in told.out and line in told.err


def test_a_split_that_keeps_images_apart_is_said_to(quiz, tmp_path):
    root, rows = quiz
    (root / "VQA_RAD Dataset Public.json").write_text(json.dumps([r for r in rows if int(r["image_name"][:-4]) > 3]))
    result = factory.build(tmp_path / "out", [root], **FAST)
    assert result.benchmarks == [
        "VQA-RAD: 6 official test questions about 3 images (6 in test); no test image of it, and no near-duplicate, is in training"
    ]


def test_a_manifest_says_the_side_of_a_sample(tmp_path):
    root = draw_folder(tmp_path / "set", 10, seed=3)
    table = [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]
    words = ["train", "training", "valid", "test"]
    for number, row in enumerate(table):
        row["split"] = words[number % 4]
    (root / "manifest.jsonl").write_text("\n".join(map(json.dumps, table)))
    factory.build(tmp_path / "out", [root], **FAST)
    for split, held in records(tmp_path / "out").items():
        assert held and {words[int(r.id.split("/")[1]) % 4] for r in held} == {
            "train": {"train", "training"}, "val": {"valid"}, "test": {"test"},
        }[split]  # fmt: skip
        assert {r.metadata["source_split"] for r in held} == {split}


def test_a_source_that_fails_does_not_stop_the_others(tmp_path, capsys):
    draw_folder(tmp_path / "in/first", 6, seed=1)
    (tmp_path / "in/broken").mkdir()
    (tmp_path / "in/broken/questions.json").write_text('[{"image": ')
    command = ["data", "build", str(tmp_path / "out"), "--source", str(tmp_path / "in"), "--jobs", "1"]
    assert main(command) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("vital data build: broken was not read:") and "questions.json: not JSON" in last
    report = (tmp_path / "out/report.md").read_text()
    assert "**broken was not read:" in report and "| first |" in report and records(tmp_path / "out")["train"]
    # It is tried again, and its questions join the others.
    Image.new("L", (20, 20)).save(tmp_path / "in/broken/a.png")
    (tmp_path / "in/broken/questions.json").write_text('[{"image": "a.png", "question": "Is it?", "answer": "no"}]')
    assert main(command) == 0
    assert sum(r.id.startswith("broken/") for held in records(tmp_path / "out").values() for r in held) == 1
    # Alone it is the mistake itself.
    (tmp_path / "in/broken/questions.json").write_text("[")
    assert main([*command[:2], str(tmp_path / "other"), "--source", str(tmp_path / "in/broken")]) == 2
