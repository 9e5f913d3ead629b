"""The quickstart as a newcomer runs it, at a size of minutes: two systems, a table, and a question to the one that was trained."""

import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from test_train import environment

from vital_jax.evaluate.score import CHANCE
from vital_jax.pipeline.records import RecordSource

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, the command, its result)."""
    folder = tmp_path_factory.mktemp("quickstart")
    small = {
        "workdir": folder,
        "data.records": folder / "records",
        "data.build.count": 60,
        "data.build.test": 0.4,
        "data.build.val": 0.1,
        "curriculum": "full_mix",
        "phases[1].steps": 2,
        "phases[0].steps": 1,
        "batch": 4,
        "compiler": "()",  # what the environment asks for is faster still
    }
    arguments = [f"--config.{key}={value}" for key, value in small.items()]
    command = [sys.executable, "train.py", "--config=configs/quickstart.py", *arguments]
    return folder, command, _run(command, folder)


def _run(command, folder):
    return subprocess.run(command, cwd=REPOSITORY, env=environment(folder), capture_output=True, text=True, check=False)


def test_it_ends_with_the_table_of_seven_systems(finished):
    folder, _, done = finished
    assert done.returncode == 0, done.stderr[-3000:]
    report = (folder / "report.md").read_text()
    assert report.strip() in done.stdout
    untrained = ("frozen backbone", "majority answer", "majority answer to the same question", CHANCE)
    systems = (*untrained, "VITAL, images exchanged", "LoRA, direct", "VITAL")
    rows = [line.split(" | ")[0].strip("| ") for line in report.splitlines() if line.startswith("| ")]
    assert all(name in rows for name in systems)
    for words in (
        "95 % interval",
        "hit@1",
        "latents of another region of the same target",
        "z_2",
        "step 1 says",
        "no description",
        "LoRA, direct with K = 0, VITAL with K = 2.",
        "latents of another sample",
        "image of another question",
    ):
        assert words in report
    found = json.loads((folder / "vital/seed0/evidence.json").read_text())
    held_out = [row["metadata"] for row in RecordSource(folder / "records", "test").index]
    assert len(found["answers"]) == len(held_out) and {"1 hop", "2 hops"} < {row["question_type"] for row in held_out}
    assert [row["id"] for row in found["answers"]] == [row["id"] for row in found["blind"]]
    replayed = next(line for line in found["audit"]["lines"] if line["what"] == "own latents replayed")
    assert replayed["changed"] == 0 and replayed["n"] == min(64, len(held_out))
    assert (folder / "vital/seed0/audit.html").exists() and not (folder / "lora_direct/seed0/audit.html").exists()


def test_both_systems_train_on_the_same_rows_in_the_same_order(finished):
    folder, _, _ = finished
    steps = [
        [json.loads(line) for line in (folder / run / "seed0/metrics.jsonl").open()] for run in ("lora_direct", "vital")
    ]
    assert [len(rows) for rows in steps] == [3, 3]
    assert "text" in steps[1][0] and "text" not in steps[0][0]
    configs = [
        json.loads((folder / run / "seed0/evidence.json").read_text())["config"] for run in ("lora_direct", "vital")
    ]
    assert [config["data"].pop("features") for config in configs] == ["", "roi-siglip-block-T0.00-P0.05"]
    for key in ("seed", "batch", "data", "optim", "lora"):
        assert configs[0][key] == configs[1][key]
    assert all([(p["max_steps"], p["steps"]) for p in config["phases"]] == [(2, 3)] for config in configs)


def test_started_again_it_trains_nothing_and_says_the_same(finished):
    folder, command, done = finished
    again = _run(command, folder)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout == done.stdout


def test_the_trained_run_answers_a_question(finished):
    folder, _, _ = finished
    record = RecordSource(folder / "records", "test")[0]
    Image.open(BytesIO(record.images[0])).save(folder / "image.png")
    ask = [
        sys.executable,
        "-m",
        "vital_jax.cli",
        "answer",
        "--model",
        folder / "vital/seed0",
        "--image",
        folder / "image.png",
    ]
    done = _run([*ask, "--question", record.question, "--json"], folder)
    assert done.returncode == 0, done.stderr[-3000:]
    answered = json.loads((folder / "vital/seed0/evidence.json").read_text())["answers"][0]
    found = json.loads(done.stdout)
    assert record.id == answered["id"] and (found["answer"], found["latent_steps"]) == (answered["answer"], 2)
    assert len(done.stderr.splitlines()) == 1  # nothing to say: taught, evaluated and asked with one K
    refused = _run([*ask, "--question", record.question, "--latent-steps", "-9"], folder)
    assert refused.returncode == 2 and "-9" in refused.stderr and "Traceback" not in refused.stderr
