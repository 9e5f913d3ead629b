"""The console script: one real question end to end, what it prints, and one line with a status for every mistake.

`test_api` compares the answers; here a process runs what a shell would, and the rest is asked of `main` without a model.
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from absl import logging
from test_api import QUESTIONS, png, write_run

from vital_jax import __version__, api, cli
from vital_jax.commands import checks, evaluate
from vital_jax.commands.values import LIMIT, STATUSES, whole
from vital_jax.hub import parity
from vital_jax.pipeline.prompts import Prompter


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a run and an image."""
    work = tmp_path_factory.mktemp("cli")
    write_run(work)
    (work / "image.png").write_bytes(png((96, 64)))
    return work


def test_vital_answer_in_a_process(work):
    """Two images, with the steps, as JSON: the answer alone on standard output; on standard error how it was asked, and where training
    asked otherwise."""
    command = [sys.executable, "-m", "vital_jax.cli", "answer", "--model", str(work / "run"), "--steps", "--json"]
    command += ["--image", str(work / "image.png")] * 2 + ["--question", QUESTIONS[0], "--max-new-tokens", "6"]
    cache = work / "run" / "compile_cache"
    cache.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["answer"] == Prompter(work / "base").decode(found["tokens"]) and len(found["tokens"]) <= 6
    assert found["latent_steps"] == len(found["steps"]) == 2 and found["log_prob"] < 0
    taught, line = done.stderr.splitlines()
    assert taught == (
        "vital answer: this model was taught with each record's own number of latent steps, which nobody knows in use: from 1 to 2; "
        "asked with K = 2 for every question"
    )
    assert "not a medical device" in line and "K = 2" in line
    assert any(cache.iterdir()), "the run's compiled programs are kept for the next question"


ANSWER = api.Answer("A cyst.", (5, 6, 7), 2, -1.5, None, True)


class Fake:
    """Stands for a loaded model and notes what it is asked."""

    dtype = "float32"

    def __init__(self, answer):
        self.given, self.asked = answer, None

    def answer(self, *asked):
        self.asked = asked
        return self.given


def ask(monkeypatch, capsys, answer, *more):
    """(model, status, standard output, standard error) of a question about two images to a model that answers this."""
    model, opened = Fake(answer), []
    monkeypatch.setattr(api, "load", lambda *given: opened.append(given) or model)
    monkeypatch.setattr(checks, "model", lambda *_, **__: None)
    monkeypatch.setattr(checks, "images", lambda *_: [])
    status = cli.main(
        ["answer", "--model", "run", "--image", "a.png", "--image", "b.png", "--question", "What?", *more]
    )
    model.opened = opened[0]
    return model, status, *capsys.readouterr()


def test_the_answer_is_all_of_standard_output(monkeypatch, capsys):
    model, status, out, err = ask(monkeypatch, capsys, ANSWER)
    assert (status, out) == (0, "A cyst.\n")
    assert err == "Research output, not a medical device. Answered with K = 2 latent steps, in float32.\n"
    assert model.opened == ("run", None, None, False, False, None, None)
    assert model.asked == (["a.png", "b.png"], "What?", None, None)


def test_options_reach_the_model_and_steps_are_printed(monkeypatch, capsys):
    answer = api.Answer("A", (5,), 0, -1.5, ["upper left", "round"], False)
    options = [
        "--latent-steps",
        "0",
        "--max-new-tokens",
        "1",
        "--base",
        "B",
        "--text-decoder",
        "T",
        "--steps",
        "--dtype",
        "bfloat16",
    ]
    model, _, out, err = ask(monkeypatch, capsys, answer, *options)
    assert model.opened == ("run", "B", "T", True, False, None, "bfloat16") and model.asked[2:] == (0, 1)
    assert out == "step 1: upper left\nstep 2: round\nA\n"
    assert "without latents (K = 0), in float32; cut at 1 tokens (--max-new-tokens)" in err


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(question=""), "--question is empty"),
        (dict(image="absent.png"), "image absent.png: no such file"),
        (dict(image=__file__), "test_cli.py is no image"),
        (dict(model="absent"), "absent: no such folder"),
        (dict(base="absent"), "base (--base): no folder absent"),
        (dict(question="a<|im_end|>"), "control token"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(work, capsys, change, words):
    given = {"model": work / "run", "image": work / "image.png", "question": "What?", **change}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    assert cli.main(["answer", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1 and err.startswith("vital answer: ") and words in err


def test_more_steps_than_it_was_trained_with_are_taken_with_a_warning(work, capsys):
    asked = ["--model", work / "run", "--image", work / "image.png", "--question", "What?", "--max-new-tokens", "2"]
    assert cli.main(["answer", *map(str, asked), "--latent-steps", "3"]) == 0
    warning, notice = capsys.readouterr().err.splitlines()
    trained = "this model was trained with up to 2 latent steps; nothing taught the rest"
    assert warning == f"vital answer: latent_steps=3: {trained}"
    assert "with K = 3 latent steps" in notice


def test_libraries_say_nothing_to_who_typed_the_command(work, capsys, monkeypatch):
    """Neither what they tell programmers, nor that what was opened for reading is read-only."""
    answer = api.Model.answer

    def warned(*given):
        warnings.warn("`x` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("`y` is deprecated", DeprecationWarning, stacklevel=1)
        logging.warning("saved in 0.1 s")
        return answer(*given)

    monkeypatch.setattr(api.Model, "answer", warned)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        asked = ["--model", work / "run", "--image", work / "image.png", "--question", "What?"]
        assert cli.main(["answer", *map(str, asked)]) == 0
    said = capsys.readouterr().err
    assert "Research output" in said and not any(word in said for word in ("deprecated", "saved in", "read-only"))


def test_a_missing_argument_is_bad_usage(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["answer", "--model", "run"])
    assert stopped.value.code == 2 and "--question --questions --interactive" in capsys.readouterr().err


# --- many questions, one model ----------------------------------------------------------------------


def told(row):
    """What must not depend on how many were asked at once."""
    row = {"answer": row.get("prediction"), **row}
    return {key: row[key] for key in ("answer", "tokens", "latent_steps", "steps", "complete")}


def questions(work, *rows):
    path = work / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


ASKED = (
    {"question": QUESTIONS[0], "image": "image.png"},
    {"id": "two", "question": QUESTIONS[1], "image": ["image.png", "other.png"]},
    {"id": 3, "question": QUESTIONS[1], "image": "other.png"},
)


@pytest.fixture(scope="module")
def opened(work):
    """The run's model, opened once for these tests."""
    (work / "other.png").write_bytes(png((64, 64), 1))
    return api.load(work / "run", steps=True)


@pytest.fixture
def vital(work, opened, monkeypatch):
    """`vital answer` with the model that is open already; the second value counts openings."""
    loads = []
    monkeypatch.setattr(api, "load", lambda *given: loads.append(given) or opened)
    words = ["answer", "--model", work / "run", "--steps", "--max-new-tokens", "4"]
    return lambda *more: cli.main([str(word) for word in (*words, *more)]), loads


def test_a_file_of_questions_is_answered_in_order_as_one_by_one(work, vital, capsys):
    ask_, loads = vital
    assert ask_("--questions", questions(work, *ASKED)) == 0
    out, _ = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["id"] for row in rows] == ["1", "two", "3"] and len(loads) == 1
    assert [row["question"] for row in rows] == [row["question"] for row in ASKED]
    for row, one in zip(rows, ASKED, strict=True):
        names = one["image"] if isinstance(one["image"], list) else [one["image"]]
        images = [word for name in names for word in ("--image", work / name)]
        assert ask_("--question", one["question"], *images, "--json") == 0
        alone = json.loads(capsys.readouterr().out)
        assert told(row) == told(alone) and row["log_prob"] == pytest.approx(alone["log_prob"], rel=1e-5)


def test_kept_answers_are_not_asked_again(work, vital, capsys, tmp_path):
    ask_, _ = vital
    out = tmp_path / "kept"
    given = "--questions", questions(work, *ASKED), "--out", out, "--batch", "1"
    assert ask_(*given) == 0
    whole = (out / "answers.jsonl").read_bytes()
    (out / "answers.jsonl").write_bytes(whole[: whole.index(b"\n") + 9])  # killed within the second line
    assert ask_(*given) == 0
    assert "1 of 3 are answered already" in capsys.readouterr().err and (out / "answers.jsonl").read_bytes() == whole
    assert ask_(*given[:1], questions(work, *ASKED[:2]), *given[2:]) == 2
    assert "settings.json" in capsys.readouterr().err and (out / "answers.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "What?"}, 'line 2: needs {"question": TEXT, "image"'),
        ({"question": " ", "image": "image.png"}, 'line 2: "question" is empty'),
        ({"question": "What?", "image": "gone.png"}, "line 2: image .*gone.png: no such file"),
        ({"question": "What?", "image": "image.png", "id": "1"}, "line 2: id '1' is that of an earlier line"),
        (["What?"], 'line 2: needs {"question": TEXT, "image"'),
    ],
)
def test_a_line_that_cannot_be_asked_is_named_before_the_model_is_opened(work, vital, capsys, row, message):
    ask_, loads = vital
    assert ask_("--questions", questions(work, ASKED[0], row)) == 2
    out, err = capsys.readouterr()
    assert not out and not loads and re.search(f"1 lines cannot be asked: {message}", err)


def test_typed_questions_share_one_model_and_a_bad_one_ends_nothing(work, vital, capsys, monkeypatch):
    ask_, loads = vital
    typed = [QUESTIONS[1], "", "a<|im_end|>", "/image gone.png", f"/image {work / 'other.png'}", QUESTIONS[1]]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(typed)))
    assert ask_("--interactive", "--image", work / "image.png", "--json") == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 2 and len(loads) == 1
    assert "control token" in err and "image gone.png: no such file" in err and "question>" not in err
    assert ask_("--question", QUESTIONS[1], "--image", work / "other.png", "--json") == 0
    assert told(rows[1]) == told(json.loads(capsys.readouterr().out))


# --- names, statuses --------------------------------------------------------------------------------


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0 and capsys.readouterr().out == f"vital_jax {__version__}\n"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["evalute"], "evaluate"),
        (["data", "bild"], "build"),
        (["evaluate", "rum"], "run"),
        (["data", "distill", "statsu"], "status"),
        (["data", "distill", "batch", "wirte"], "write"),
        (["figure", "colapse"], "collapse"),
        (["export", "--format", "merge"], "merged"),
    ],
)
def test_the_nearest_name_and_all_others_are_said(capsys, words, meant):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and f"no {words[-1]!r}: did you mean {meant!r}? there are " in err
    usage = " ".join(err.split("error:")[0].split())
    choices = err.strip().rsplit("there are ", 1)[1].split(", ")
    assert f"{{{','.join(choices)}}}" in usage, "the usage lists what there is"


def test_every_level_lists_its_commands():
    def look(parser, name):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                assert action.metavar is None, f"{name} hides {sorted(action.choices)}"
                for part, own in action.choices.items():
                    look(own, f"{name} {part}")

    look(cli._parser(), "vital")


def test_the_statuses_are_those_of_the_docs(capsys):
    text = (Path(__file__).parents[1] / "docs" / "commands.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", text, re.M)
    assert {int(status): meaning for status, meaning in rows} == STATUSES
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(f"{status} {meaning}" in said for status, meaning in STATUSES.items())


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (None, 0),
        (ValueError("a\nmistake"), 2),
        (OSError("full"), 2),
        (RuntimeError("torn"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_a_command_raises_is_a_line_and_a_status(monkeypatch, capsys, raised, status):
    def run(arguments):
        if raised:
            raise raised
        return 0

    monkeypatch.setattr(evaluate, "_list", run)
    assert cli.main(["evaluate", "list"]) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(status) and all(line.startswith("vital evaluate list: ") for line in lines)


@pytest.mark.parametrize("passed", [True, False])
def test_parity_says_by_its_status_whether_both_agree(work, monkeypatch, capsys, passed):
    monkeypatch.setattr(parity, "check", lambda *_: {"passed": passed})
    assert cli.main(["parity", "--model", str(work / "base"), "--json"]) == (0 if passed else 1)
    assert json.loads(capsys.readouterr().out) == {"passed": passed}


def test_every_limit_is_of_one_rule():
    """The help of each says it, and none takes a number that is none."""
    found = {}

    def look(parser, name):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for part, own in action.choices.items():
                    look(own, f"{name} {part}")
            elif "--limit" in action.option_strings:
                found[name] = action

    look(cli._parser(), "vital")
    assert len(found) == 11 and all(LIMIT in action.help and action.type is whole for action in found.values()), found
