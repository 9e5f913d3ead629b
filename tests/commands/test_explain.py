"""`vital explain` and `vital figure` on a run of drawn weights: their files, and their user's mistakes."""

import html
import json
import re
import tempfile
import xml.etree.ElementTree as ET

import looked
import pytest

from vital_jax import cli
from vital_jax.commands.explain import FILES
from vital_jax.hub.export import export
from vital_jax.pipeline.records import Record, write_splits
from vital_jax.run.open import open_run


@pytest.fixture(scope="module")
def work():
    return looked.made().folder


@pytest.fixture(scope="module")
def image(work):
    path = work / "mine.png"
    path.write_bytes(looked.picture(77))
    return path


def vital(work, *arguments, model="run", encoder="siglip"):
    """The exit status of a command about the run."""
    first = arguments[:2] if arguments[0] == "figure" else arguments[:1]
    given = ["--model", work / model, *(["--encoder", work / encoder] if encoder else [])]
    return cli.main([str(word) for word in (*first, *given, *arguments[len(first) :])])


@pytest.fixture(scope="module")
def done(work, tmp_path_factory):
    out = tmp_path_factory.mktemp("explained") / "out"
    found = ["--data", work / "records", "--bank", work / "records", "--eval-k", "per_sample", "--batch", looked.BATCH]
    assert vital(work, "explain", *found, "--show", 2, "--out", out) == 0
    return out


def test_it_leaves_a_page_cases_and_numbers(done, work):
    assert {path.name for path in done.iterdir()} == set(FILES)
    held = json.loads((done / "cases.json").read_text(encoding="utf-8"))
    assert [len(case["steps"]) for case in held["cases"]] == [1, 2, 4, 1, 2]
    assert all(len(step["similar"]) == 3 for case in held["cases"] for step in case["steps"])
    notes = " ".join(held["summary"]["notes"])
    assert "Asked with each record's own number of latent steps, which nobody knows in use." in notes
    assert "split test: 5 of 5 records" in notes and "of the 4 questions with a mask, about 4 images" in notes
    row = held["summary"]["table"][0]
    assert (row["modality"], row["measure"], row["n"]) == ("all", "pointing", 4) and row["target"] is not None
    assert not any(str(work) in path.read_text(encoding="utf-8") for path in done.iterdir()), "no path of this machine"
    assert "shows 2 of the 5 cases" in (done / "page.html").read_text(encoding="utf-8")
    text = (done / "numbers.md").read_text(encoding="utf-8")
    assert "## What this says" in text and "K = 4, z_4" in text and "Research software, not a medical device" in text
    assert len((done / "numbers.csv").read_text().splitlines()) == 1 + len(held["summary"]["table"]) + 4 * (2 + 4)


def test_records_are_asked_as_the_run_is_evaluated_and_a_gap_to_training_is_said(work, tmp_path, capsys):
    out = tmp_path / "out"
    assert vital(work, "explain", "--data", work / "records", "--limit", 2, "--batch", looked.BATCH, "--out", out) == 0
    held = json.loads((out / "cases.json").read_text(encoding="utf-8"))
    assert [len(case["steps"]) for case in held["cases"]] == [4, 4]
    notes = held["summary"]["notes"]
    assert notes[0] == "2 questions, K = 4 latent steps." and notes[1].endswith("asked with K = 4 for every question.")
    assert notes[1] in html.unescape((out / "page.html").read_text(encoding="utf-8"))
    assert "asked with K = 4 for every question" in capsys.readouterr().err


def test_nothing_is_overwritten(work, done, image, capsys):
    before = (done / "page.html").read_bytes()
    assert vital(work, "explain", "--image", image, "--question", "What?", "--out", done) == 2
    assert "page.html, cases.json, numbers.md, numbers.csv would be overwritten" in capsys.readouterr().err
    assert (done / "page.html").read_bytes() == before


def test_a_users_own_image_has_no_numbers(work, image, tmp_path, capsys):
    assert vital(work, "explain", "--image", image, "--question", "What is it?", "--out", tmp_path / "own") == 0
    assert {path.name for path in (tmp_path / "own").iterdir()} == {"page.html", "cases.json"}
    said = capsys.readouterr()
    assert (
        "1 questions, K = 4 latent steps" in said.out and "No question has a mask, so there are no numbers" in said.out
    )
    (case,) = json.loads((tmp_path / "own" / "cases.json").read_text())["cases"]
    assert case["id"] == "mine.png" and case["gold"] == "" and case["correct"] is None and case["metadata"] == {}


def test_records_without_masks_are_explained_without_numbers(work, tmp_path, capsys):
    record = Record("plain", (looked.picture(5),), looked.QUESTIONS[0], "Yes.")
    write_splits([("test", record)], tmp_path / "records")
    out = tmp_path / "out"
    assert vital(work, "explain", "--data", tmp_path / "records", "--batch", 1, "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {"page.html", "cases.json"}
    assert "No question has a mask, so there are no numbers beside the heat maps." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["--image", "IMAGE"], {}, "--question is empty or missing"),
        (["--image", "nowhere.png", "--question", "What?"], {}, "image nowhere.png: no such file"),
        (["--image", "WORK/run", "--question", "What?"], {}, "run: is a folder"),
        (["--image", "WORK/base/config.json", "--question", "What?"], {}, "config.json is no image, is cut short"),
        (["--image", "IMAGE", "--question", "What?", "--eval-k", "per_sample"], {}, "--eval-k per_sample is for"),
        (["--data", "WORK/records", "--question", "What?"], {}, "--question is for --image"),
        (["--data", "WORK/nowhere"], {}, "nowhere: no finished record folder"),
        (["--data", "WORK/records", "--split", "val"], {}, "no split 'val'"),
        (
            ["--data", "WORK/records"],
            {"model": "bare"},
            "bare: its checkpoint holds no scaffold, neither text decoder nor",
        ),
        (["--data", "WORK/records"], {"model": "base"}, "base is a base model: name a training run's folder"),
        (["--data", "WORK/records"], {"encoder": "nowhere"}, r"encoder \(--encoder\): no folder"),
        (
            ["--data", "WORK/records"],
            {"encoder": None},
            "needs config.data.encoder='models/medsiglip', .*--encoder FOLDER",
        ),
        (
            ["--data", "WORK/records", "--bank", "WORK/records"],
            {"encoder": "base"},
            r"features are of siglip \(.*but the model projects to base \(",
        ),
        (["--image", "IMAGE", "--question", "a<|im_end|>"], {}, "control token"),
        (["--data", "WORK/records", "--out", "IMAGE"], {}, "mine.png: is a file; name a folder"),
        (["--data", "WORK/records", "--out", "IMAGE/out"], {}, "mine.png is a file; name another folder"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(work, image, tmp_path, capsys, arguments, options, message):
    given = [word.replace("WORK", str(work)).replace("IMAGE", str(image)) for word in arguments]
    out = [] if "--out" in given else ["--out", tmp_path / "never"]
    assert vital(work, "explain", *given, *out, **options) == 2
    said = capsys.readouterr()
    last = said.err.splitlines()[-1]
    assert said.out == "" and last.startswith("vital explain: ") and re.search(message, last), said.err
    assert not (tmp_path / "never").exists()


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_asked(work, tmp_path, capsys, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)  # the tests may run as root, whom no mode stops
    assert vital(work, "explain", "--data", work / "records", "--out", tmp_path / "a" / "b") == 2
    assert (
        f"nothing can be written in {tmp_path} (No space left on device); name another folder"
        in capsys.readouterr().err
    )


# --- figures ------------------------------------------------------------------------------------------------------------


def test_progress_takes_records_with_most_steps_or_those_named(work, tmp_path, capsys):
    assert vital(work, "figure", "progress", "--data", work / "records", "--out", tmp_path / "a.svg") == 0
    text = (tmp_path / "a.svg").read_text()
    assert ET.fromstring(text) is not None and text.count("heat map of step") == 4 and "the region" in text
    assert (
        vital(work, "figure", "progress", "--data", work / "records", "--id", "test/9", "--out", tmp_path / "b.svg")
        == 2
    )
    assert "--id test/9: no such record in split 'test'" in capsys.readouterr().err
    assert vital(work, "figure", "progress", "--data", work / "records", "--out", tmp_path / "a.png") == 2
    assert "name a file that ends in .svg" in capsys.readouterr().err


def test_collapse_and_compare_take_several_checkpoints(work, tmp_path, capsys):
    both = ["--model", f"bare={work / 'bare'}"]
    records = ["--data", work / "records"]
    out = tmp_path / "collapse.svg"
    assert vital(work, "figure", "collapse", *both, *records, "--batch", looked.BATCH, "--out", out, encoder=None) == 0
    said = capsys.readouterr().out
    assert said.count("| z_4 |") == 2 and "bare (N = 5)" in out.read_text() and f"{work.name}/run" in said
    out = tmp_path / "compare.svg"
    assert vital(work, "figure", "compare", *both, *records, "--id", "test/2", "--out", out) == 0
    text = out.read_text()
    assert "no latent steps, or no scaffold" in text and text.count("heat map of step") == 4 and "bare: " in text
    twice = [*both, "--model", f"bare={work / 'run'}"]
    assert vital(work, "figure", "compare", *twice, *records, "--id", "test/2", "--out", tmp_path / "c.svg") == 2
    assert "'bare' comes twice; name them apart" in capsys.readouterr().err
    assert vital(work, "figure", "compare", *both, *records, "--out", tmp_path / "c.svg") == 2
    assert "--data needs --id ID" in capsys.readouterr().err


# --- an export --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(work):
    return export(open_run(work / "run"), work / "export", form="both", say=lambda line: None)


def test_an_export_is_explained_as_its_run_is(work, done, exported, tmp_path):
    found = ["--data", work / "records", "--bank", work / "records", "--eval-k", "per_sample", "--batch", looked.BATCH]
    assert vital(work, "explain", *found, "--show", 2, "--out", tmp_path / "out", model="export") == 0
    ours, theirs = (json.loads((out / "cases.json").read_text(encoding="utf-8")) for out in (done, tmp_path / "out"))
    for case, other in zip(ours["cases"], theirs["cases"], strict=True):
        assert (case["id"], case["answer"]) == (other["id"], other["answer"])
        for step, seen in zip(case["steps"], other["steps"], strict=True):
            assert (step["text"], [one["id"] for one in step["similar"]]) == (
                seen["text"],
                [one["id"] for one in seen["similar"]],
            )
            assert seen["norm"] == pytest.approx(step["norm"], rel=1e-4)
            assert (seen["scores"] or {}) == pytest.approx(step["scores"] or {}, rel=1e-3)


def test_an_export_without_its_encoder_is_explained_in_words(work, exported, image, tmp_path, capsys):
    asked = ["explain", "--image", image, "--question", "What is it?", "--out", tmp_path / "out"]
    assert vital(work, *asked, model="export", encoder=None) == 0
    assert "in words alone, for no export holds an encoder; this one's is " in capsys.readouterr().err
    held = json.loads((tmp_path / "out" / "cases.json").read_text())
    assert [len(case["steps"]) for case in held["cases"]] == [4] and all(
        step["text"] for step in held["cases"][0]["steps"]
    )
    assert "no heat maps" in " ".join(held["summary"]["notes"])


def test_what_an_export_cannot_explain_is_refused_with_the_way_out(work, exported, image, tmp_path, capsys):
    asked = ["explain", "--image", image, "--question", "What is it?", "--out", tmp_path / "out"]
    base = ["--base", work / "base"]
    assert vital(work, *asked, *base, model="export/adapter") == 2
    assert "holds no explain/ with text decoder or projector: name the run's folder" in capsys.readouterr().err
    table = json.loads((exported / "explain" / "config.json").read_text())
    table["visual"]["fingerprint"] = "0123"  # as an export writes it that finds the run's region features
    (exported / "explain" / "config.json").write_text(json.dumps(table))
    assert vital(work, *asked, model="export") == 2
    assert "this model was trained on features of 0123 (medsiglip); name that one" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["explain", "--help"])
    assert "or an export with explain/ in it" in " ".join(capsys.readouterr().out.split())
