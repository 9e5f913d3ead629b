"""The console script: one real question end to end, what it prints, and one line with a status for every mistake.

`test_api` compares the answers; here a process runs what a shell would, and the rest is asked of `main` without a model.
"""

import json
import os
import subprocess
import sys

import pytest
from test_api import QUESTIONS, png, write_run

from vital_jax import api, cli
from vital_jax.pipeline.prompts import Prompter


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a run and an image."""
    work = tmp_path_factory.mktemp("cli")
    write_run(work)
    (work / "image.png").write_bytes(png((96, 64)))
    return work


def test_vital_answer_in_a_process(work):
    """Two images, with the steps, as JSON: the answer alone on standard output, one line on standard error."""
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
    (line,) = done.stderr.splitlines()
    assert "not a medical device" in line and "K = 2" in line
    assert any(cache.iterdir()), "the run's compiled programs are kept for the next question"


ANSWER = api.Answer("A cyst.", (5, 6, 7), 2, -1.5, None, True)


class Fake:
    """Stands for a loaded model and notes what it is asked."""

    def __init__(self, answer):
        self.given, self.asked = answer, None

    def answer(self, *asked):
        self.asked = asked
        return self.given


def ask(monkeypatch, capsys, answer, *more):
    """(model, status, standard output, standard error) of a question about two images to a model that answers this."""
    model, opened = Fake(answer), []
    monkeypatch.setattr(api, "load", lambda *given: opened.append(given) or model)
    status = cli.main(
        ["answer", "--model", "run", "--image", "a.png", "--image", "b.png", "--question", "What?", *more]
    )
    model.opened = opened[0]
    return model, status, *capsys.readouterr()


def test_the_answer_is_all_of_standard_output(monkeypatch, capsys):
    model, status, out, err = ask(monkeypatch, capsys, ANSWER)
    assert (status, out) == (0, "A cyst.\n")
    assert err == "Research output, not a medical device. Answered with K = 2 latent steps.\n"
    assert model.opened == ("run", None, None, False, False, None)
    assert model.asked == (["a.png", "b.png"], "What?", None, None)


def test_options_reach_the_model_and_steps_are_printed(monkeypatch, capsys):
    answer = api.Answer("A", (5,), 0, -1.5, ["upper left", "round"], False)
    options = ["--latent-steps", "0", "--max-new-tokens", "1", "--base", "B", "--text-decoder", "T", "--steps"]
    model, _, out, err = ask(monkeypatch, capsys, answer, *options)
    assert model.opened == ("run", "B", "T", True, False, None) and model.asked[2:] == (0, 1)
    assert out == "step 1: upper left\nstep 2: round\nA\n"
    assert "without latents (K = 0); cut at 1 tokens (--max-new-tokens)" in err


@pytest.mark.parametrize(
    "change, status, words",
    [
        (dict(question=""), 2, "question 1 is empty"),
        (dict(latent_steps="-1"), 2, "latent_steps=-1"),
        (dict(image="absent.png"), 1, "image absent.png: no such file"),
        (dict(image=__file__), 1, "test_cli.py is no image"),
        (dict(model="absent"), 1, "absent: no such folder"),
        (dict(base="absent"), 1, "base (--base): no folder absent"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(work, capsys, change, status, words):
    given = {"model": work / "run", "image": work / "image.png", "question": "What?", **change}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    assert cli.main(["answer", *arguments]) == status
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1 and err.startswith("vital answer: ") and words in err


def test_more_steps_than_it_was_trained_with_are_taken_with_a_warning(work, capsys):
    asked = ["--model", work / "run", "--image", work / "image.png", "--question", "What?", "--max-new-tokens", "2"]
    assert cli.main(["answer", *map(str, asked), "--latent-steps", "3"]) == 0
    warning, notice = capsys.readouterr().err.splitlines()
    trained = "this model was trained with up to 2 latent steps; nothing taught the rest"
    assert warning == f"vital answer: latent_steps=3: {trained}"
    assert "with K = 3 latent steps" in notice


def test_a_missing_argument_is_bad_usage(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["answer", "--model", "run"])
    assert stopped.value.code == 2 and "--image" in capsys.readouterr().err
