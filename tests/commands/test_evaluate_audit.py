"""`vital evaluate audit` on a run of drawn weights: its four files, going on, and its user's mistakes."""

import argparse
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from test_api import QUESTIONS, write_run

from vital_jax.commands import evaluate_audit
from vital_jax.pipeline.records import Record, write_splits

FILES = {"audit.json", "audit.md", "audit.csv", "audit.html"}


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def records(form: str = "closed"):
    for i in range(10):
        metadata = {"modality": "CT", "group": f"p{i}", "form": form, "question_type": "yesno", "ask": "presence"}
        yield "test", Record(
            f"r{i}", (picture(i),), QUESTIONS[i % 2], "Yes.", chain=("It is here.",) * (1 + i % 2),
            metadata={**metadata, "target_name": "spleen"},
        )  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    write_run(folder)
    write_splits(records(), folder / "records")
    return folder


def vital(work, *arguments, out="out"):
    parser = argparse.ArgumentParser()
    evaluate_audit.register(parser.add_subparsers(dest="part", required=True))
    known = {"--model": work / "run", "--data": work / "records", "--out": work / out}
    given = [text for name, value in known.items() if name not in arguments for text in (name, value)]
    found = parser.parse_args(list(map(str, ["audit", *given, *arguments])))
    return found.run(found)


@pytest.fixture(scope="module")
def audited(work):
    assert vital(work, "--limit", 8, "--batch", 8, "--eval-k", "per_sample") == 0
    return work / "out"


@pytest.mark.slow
def test_it_leaves_a_table_in_three_forms_and_a_page(audited):
    assert {path.name for path in audited.iterdir()} == FILES
    found = json.loads((audited / "audit.json").read_text())
    assert found["settings"]["N"] == 8 and found["settings"]["K"] == 2 and found["settings"]["eval_k"] == "per_sample"
    assert found["settings"]["model"]["step"] == 2
    audits = {line["audit"] for line in found["lines"]}
    assert audits >= {"token replacement", "K sweep", "image", "latents", "text decoder", "calibration"}
    left_out = dict(found["left_out"])
    assert "region features" in left_out["retrieval"] and "left or right" in left_out["mirror"]
    text = (audited / "audit.md").read_text()
    for words in (
        "own latents replayed",
        "## What this says",
        "oracle",
        "not a medical device",
        "asked with each record's own",
    ):
        assert words in text
    first = text.partition("## What this says")[0]
    assert first.count("\n| ") == len(found["lines"]) + 2 == len((audited / "audit.csv").read_text().splitlines()) + 1
    assert [(one["kind"], list(one["read"])) for one in found["steps"]] == [
        ("chain of 1", ["z_1"]), ("chain of 2", ["z_1", "z_2"]),
    ]  # fmt: skip
    assert "## What the text decoder writes from each latent" in text and "by" not in found
    page = (audited / "audit.html").read_text()
    assert page.count("<svg") == 9 and str(audited.parent) not in page + text


@pytest.mark.slow
def test_started_again_it_asks_nothing_and_says_the_same(work, audited, capsys):
    before = {path.name: path.read_text() for path in audited.iterdir()}
    assert vital(work, "--limit", 8, "--batch", 8, "--eval-k", "per_sample") == 0
    printed = capsys.readouterr()
    assert "answers:" not in printed.err and before["audit.md"].strip() == printed.out.strip()
    assert {path.name: path.read_text() for path in audited.iterdir()} == before
    with pytest.raises(ValueError, match=r"audit\.json was made with another K, eval_k, seed; name another folder"):
        vital(work, "--limit", 8, "--latent-steps", 1, "--seed", 3)


@pytest.mark.slow
def test_groups_are_added_to_a_finished_audit_without_asking(work, audited, tmp_path, capsys):
    shutil.copytree(audited, tmp_path / "out")
    before = json.loads((audited / "audit.json").read_text())
    assert (
        vital(work, "--limit", 8, "--batch", 8, "--eval-k", "per_sample", "--by", "question_type", out=tmp_path / "out")
        == 0
    )
    assert "answers:" not in capsys.readouterr().err
    found = json.loads((tmp_path / "out/audit.json").read_text())
    assert {line["group"] for line in found["by"]["lines"]} == {"yesno"} and found["settings"] == before["settings"]
    run, again = before["lines"][0], found["by"]["lines"][0]
    assert {"group": "yesno", **run} == again
    assert "## Accuracy by question_type, %" in (tmp_path / "out/audit.md").read_text()
    assert (tmp_path / "out/audit.csv").read_text().splitlines()[-1].endswith(",yesno")
    with pytest.raises(ValueError, match="no record has metadata 'colour' to group by; there are: ask, form,"):
        vital(work, "--by", "colour", out="other")
    assert not (work / "other").exists()


@pytest.mark.parametrize(
    "arguments, error, says",
    [
        (("--latent-steps", 3), ValueError, "--latent-steps 3: this model was trained with up to 2"),
        (("--split", "val"), ValueError, "no split 'val', only"),
        (("--data", "nowhere"), FileNotFoundError, "nowhere: no finished record folder"),
        (("--model", "nowhere"), FileNotFoundError, "nowhere: no such folder"),
    ],
)
def test_mistakes_are_named_before_anything_is_asked(work, arguments, error, says):
    with pytest.raises(error, match=says):
        vital(work, *arguments, out="other")
    assert not (work / "other").exists()


def test_the_runs_own_records_are_looked_for_where_it_was_started(work):
    parser = argparse.ArgumentParser()
    evaluate_audit.register(parser.add_subparsers(dest="part", required=True))
    found = parser.parse_args(["audit", "--model", str(work / "run"), "--out", str(work / "other")])
    with pytest.raises(
        FileNotFoundError, match=r"config\.data\.records=.data/vital_61k., which is neither there .* \(--data FOLDER\)"
    ):
        found.run(found)


@pytest.mark.slow
def test_a_file_is_no_folder_and_a_base_is_no_run(work, audited):
    with pytest.raises(FileExistsError, match=r"audit\.md: is a file"):
        vital(work, out="out/audit.md")
    with pytest.raises(ValueError, match="base is no training run's folder: the audit is of a run"):
        vital(work, "--model", work / "base", out="other")
