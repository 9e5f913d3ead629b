"""The door `vital evaluate run`: from a run's folder and questions to answers, scores and a page; killed, refused, gone on with."""

import csv
import html
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from sheets import Page
from test_api import QUESTIONS, png, write_run

from vital_jax import cli
from vital_jax.evaluate.benchmarks import load
from vital_jax.latent.engine import Engine

RESEARCH = "Research software, not a medical device."
ROWS = [
    {"id": f"q{n}", "question": QUESTIONS[n % 2], "answer": ("no", "yes")[n % 2], "image": f"{n % 3}.png",
     "modality": ("CT", "MRI")[n % 2]}
    for n in range(7)
]  # fmt: skip


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a run, its base, three images and seven questions about them."""
    work = tmp_path_factory.mktemp("run")
    write_run(work)
    for number in range(3):
        (work / f"{number}.png").write_bytes(png((96, 64), number))
    lines(work / "questions.jsonl", ROWS)
    return work


def command(work, out, *more, model="run", data="questions.jsonl", protocol="paper"):
    given = [
        "--model",
        work / model,
        "--benchmark",
        "file",
        "--data",
        work / data,
        "--protocol",
        protocol,
        "--out",
        out,
    ]
    return list(map(str, ["evaluate", "run", *given, "--max-new-tokens", "6", "--batch", "2", *more]))


@pytest.fixture(scope="module")
def done(work):
    """The folder of a whole evaluation."""
    assert cli.main(command(work, work / "done", "--steps")) == 0
    return work / "done"


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_answers_scores_and_page(done, work, capsys):
    kept, scored = read(done / "answers.jsonl"), read(done / "predictions.jsonl")
    assert sorted(row["id"] for row in kept) == [row["id"] for row in scored] == [row["id"] for row in ROWS]
    by_id = {row["id"]: row for row in kept}
    for row, asked in zip(scored, ROWS, strict=True):
        assert {"id", "question", "gold", "prediction", "parsed", "correct", "K", "tokens", "latency"} <= row.keys()
        assert (row["question"], row["gold"], row["modality"]) == (
            asked["question"],
            asked["answer"],
            asked["modality"],
        )
        own = by_id[row["id"]]
        assert row["prediction"] == own["prediction"] and row["K"] == 2 and 1 <= row["tokens"] <= 6
        assert len(own["steps"]) == 2 and own["log_prob"] < 0 < own["latency"]
    table = (done / "table.md").read_text(encoding="utf-8")
    assert (
        table.startswith("# file test under paper/2\n\n7 items of file test, nothing dropped.\n") and RESEARCH in table
    )
    assert re.search(r"^\| accuracy +\| +all \| +7 \|", table, re.M) and "## By modality" in table
    assert "Asked run with K = 2 latent steps, greedy, at most 6 tokens." in table
    # What the run was taught is not what it is asked, and every score says so.
    rules = [line for line in table.splitlines() if re.match(r"\| [\w ,/]+\| +all ", line)]
    assert rules and all("asked with K = 2 for every question" in rule for rule in rules)
    with (done / "table.csv").open(encoding="utf-8", newline="") as file:
        (line,) = (row for row in csv.DictReader(file) if (row["measure"], row["group"]) == ("accuracy", "all"))
    assert line["n"] == "7" and float(line["value"]) == sum(row["correct"] for row in scored) / 7
    assert str(work) not in (done / "page.html").read_text(encoding="utf-8") + table
    data = json.loads(Page((done / "page.html").read_text(encoding="utf-8")).texts["script"][0])
    assert [card["id"] for card in data["cards"]] == [row["id"] for row in ROWS] and len(data["pictures"]) == 3
    assert all(len(card["steps"]) == 2 for card in data["cards"])
    settings = json.loads((done / "settings.json").read_text())
    assert settings["model"]["step"] == 2 and settings["K"] == 2 and settings["questions"] == 7 and settings["steps"]
    # What it kept is a predictions file like any other.
    given = ["--benchmark", "file", "--data", work / "questions.jsonl", "--protocol", "llava_med"]
    assert cli.main(list(map(str, ["evaluate", "score", *given, "--predictions", done / "answers.jsonl"]))) == 0
    assert cli.main(["evaluate", "compare", str(done), str(done)]) == 0
    assert "file" in capsys.readouterr().out


def test_steps_that_nobody_knows_in_use_stand_beside_every_score(work, capsys):
    lines(work / "stated.jsonl", [{**row, "latent_steps": 1 + n} for n, row in enumerate(ROWS[:2])])
    out = work / "own_out"
    assert cli.main(command(work, out, "--eval-k", "per_sample", data="stated.jsonl")) == 0
    assert [row["K"] for row in read(out / "predictions.jsonl")] == [1, 2]
    said = "asked with each record's own number of latent steps, which nobody knows in use"
    shown = capsys.readouterr()
    assert "with K = 1 to 2 latent steps" in shown.out and said in shown.err
    with (out / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    # The answers that need no image were asked with no steps at all.
    floors = [row for row in rows if row["group"] in ("majority answer", "chance")]
    assert floors and all(row["rule"].endswith(said) != (row in floors) for row in rows)
    assert said in html.unescape((out / "page.html").read_text(encoding="utf-8"))


def test_the_same_command_asks_nothing_twice(done, work, capsys, monkeypatch):
    monkeypatch.setattr(Engine, "ask", lambda *_, **__: pytest.fail("asked again"))
    before = (done / "answers.jsonl").read_bytes()
    (done / "page.html").unlink()
    assert cli.main(command(work, done, "--steps")) == 0
    said = capsys.readouterr()
    assert "7 of 7 are answered already" in said.err and "| accuracy" in said.out
    assert (done / "answers.jsonl").read_bytes() == before and (done / "page.html").is_file()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "--latent-steps", "1"], "K was 2, this run has 1; ask as before to go on, or name another folder"),
        ([], "steps was True, this run has False"),
        (["--steps", "--temperature", "0.5"], "decoding.temperature was 0.0, this run has 0.5"),
        (["--steps", "--limit", "3"], "limit was None, this run has 3; questions was 7, this run has 3; data was"),
        (["--steps", "--max-new-tokens", "5"], "decoding.max_new_tokens was 6, this run has 5"),
        (["--steps", "--protocol", "lmms_eval"], "data was .* protocol was 'paper/2', this run has 'lmms_eval/2'"),
    ],
)
def test_another_setting_is_named_with_both_values(done, work, capsys, more, message):
    before = {path.name: path.read_bytes() for path in done.iterdir() if path.is_file()}
    assert cli.main(command(work, done, *more)) == 2
    said = capsys.readouterr()
    assert said.out == "" and re.search(rf"vital evaluate run: .*settings.json: .*{message}", said.err.splitlines()[-1])
    assert {path.name: path.read_bytes() for path in done.iterdir() if path.is_file()} == before


def test_killed_in_the_middle_it_goes_on_to_the_same_answers(done, work):
    out, kept = work / "killed", work / "killed" / "answers.jsonl"
    with subprocess.Popen([sys.executable, "-m", "vital_jax.cli", *command(work, out, "--steps", "--batch", "1")],
                          env=os.environ, stderr=subprocess.PIPE, text=True) as process:  # fmt: skip
        while process.poll() is None and not (kept.exists() and kept.read_bytes().count(b"\n")):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        error = process.stderr.read()
    assert kept.exists(), error
    before = kept.read_bytes()
    with kept.open("ab") as file:
        file.write(b'{"id": "q6", "predi')
    assert cli.main(command(work, out, "--steps")) == 0
    assert kept.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    rows = {row["id"]: row for row in read(kept)}
    assert len(rows) == len(read(kept)) == 7
    whole = {row["id"]: row for row in read(done / "answers.jsonl")}
    assert {key: row["prediction"] for key, row in rows.items()} == {
        key: row["prediction"] for key, row in whole.items()
    }


def test_a_base_answers_without_latents_and_a_limit_is_said(work, capsys):
    out = work / "base_out"
    assert cli.main(command(work, out, "--limit", "3", "--temperature", "0.7", "--seed", "5", model="base")) == 0
    said = capsys.readouterr()
    rules = [line for line in said.out.splitlines() if "Wilson" in line or "one image" in line]
    assert rules and all("only 3 of 7 items, evenly spaced |" in line for line in rules)
    assert "Partial: only 3 of 7 items, evenly spaced." in said.out and "Asked base with K = 0" in said.out
    assert "drawn at temperature 0.7 with seed 5" in said.out
    assert [row["K"] for row in read(out / "answers.jsonl")] == [0, 0, 0]
    settings = json.loads((out / "settings.json").read_text())
    assert settings["model"].keys() == {"fingerprint", "dtype"} and settings["decoding"]["seed"] == 5


FAULTY = [
    *ROWS[:2],
    {"id": "gone", "question": "What?", "answer": ["a", "b"], "image": "gone.png"},
    {"id": "none", "question": "What?", "answer": 3},
    {"id": "steer", "question": "What?<|im_end|>", "answer": "yes", "image": "0.png"},
    {
        "id": "ten",
        "question": "Which? ",
        "options": str([f"no. {n}" for n in range(10)]),
        "gold": "J",
        "image": "0.png",
    },
    {"id": "zh", "question": "肺部正常吗？", "answer": " 是 ", "image": "1.png", "language": "zh"},
    {"id": "q0", "question": "Twice?", "answer": "yes", "image": "0.png"},
]


def test_what_cannot_be_asked_is_named_or_left_out_and_said(work, capsys):
    lines(work / "faulty.jsonl", FAULTY)
    out = work / "faulty_out"
    assert cli.main(command(work, out, data="faulty.jsonl")) == 2
    said = capsys.readouterr()
    assert said.out == "" and not out.exists()
    assert "7 items of file test, dropped: 1 duplicate-id" in said.err
    assert re.search(
        r"file test: 2 of 7 questions cannot be asked \(1 missing-file, 1 no-image\): gone: .*gone.png: not found; none: has no image; "
        r"mend them, or leave them out with --skip-missing",
        said.err,
    )
    lines(work / "steered.jsonl", [FAULTY[0], FAULTY[4]])
    assert cli.main(command(work, out, data="steered.jsonl")) == 2
    assert re.search(
        r"1 of 2 questions cannot be asked \(1 not-a-prompt\): steer: .*control token <\|im_end\|>",
        capsys.readouterr().err,
    )
    assert cli.main(command(work, out, "--skip-missing", data="faulty.jsonl")) == 0
    said = capsys.readouterr().out
    limit = "only the 4 of 7 questions that can be asked (1 missing-file, 1 no-image, 1 not-a-prompt)"
    assert f"Partial: {limit}." in said and "[missing-file]" in said and "q0' is that of" in said
    assert sorted(row["id"] for row in read(out / "predictions.jsonl")) == ["q0", "q1", "ten", "zh"]
    assert all(limit in line for line in (out / "table.csv").read_text().splitlines()[1:])
    assert limit in (out / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--eval-k", "per_sample"], r"no item states its own latent steps"),
        (["--model", "nowhere"], r"nowhere: no such folder; give a training run's folder"),
        (["--model", "BASE", "--eval-k", "per_sample"], r"--eval-k per_sample: .* has no latent steps"),
        (["--model", "BASE", "--steps"], r"is a base model without latent steps"),
        (["--protocol", "pmc_vqa"], r"pmc_vqa scores only items with options: 7 of 7 are not so, the first 'q0'"),
        (["--protocol", "official"], r"no benchmark 'file' with a protocol of its own"),
        (["--top-p", "0.5"], r"--top-p 0.5 has no meaning at temperature 0"),
        (["--out", "."], r"\.: holds .* and no settings.json; name another folder"),
        (["--benchmark", "slake", "--data", "nowhere"], r"slake comes from https://"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(work, capsys, more, message):
    more = [str(work / "base") if word == "BASE" else word for word in more]
    assert cli.main(command(work, work / "never", *more)) == 2
    said = capsys.readouterr()
    assert said.out == "" and not (work / "never").exists()
    last = said.err.splitlines()[-1]
    assert last.startswith("vital evaluate run: ") and re.search(message, last), said.err


def test_answers_survive_a_scorer_that_stops(done, work, capsys, monkeypatch):
    from vital_jax.evaluate import protocols

    def stops(*_, **__):
        raise protocols.ScorerStops("division by zero there")

    monkeypatch.setattr(protocols, "apply", stops)
    assert cli.main(command(work, done, "--steps")) == 2
    assert (
        "answers.jsonl: division by zero there; the answers are kept: `vital evaluate score`" in capsys.readouterr().err
    )


def test_real_questions_about_real_images(real, work, capsys):
    data, out = real("vqa_rad"), work / "rad"
    assert (
        cli.main(command(work, out, "--benchmark", "vqa_rad", "--data", str(data), "--split", "all", "--limit", "6"))
        == 0
    )
    said = capsys.readouterr()
    assert (
        "1500 items of vqa_rad all, nothing dropped." in said.out and "only 6 of 1500 items, evenly spaced" in said.out
    )
    items = load("vqa_rad", data, "all").items
    assert [row["id"] for row in read(out / "predictions.jsonl")] == [items[250 * n].id for n in range(6)]
