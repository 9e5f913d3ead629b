"""Mistakes in what was typed, answered by every command without jax: one process in which it cannot be imported."""

import json
import os
import subprocess
import sys

import pytest
from sheets import record, write

from vital_jax.commands import data_features
from vital_jax.hub import encoders, folders

# Not a timed test: what has not been imported cannot have taken its time.
CODE = """
import contextlib, io, json, sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name in ("jax", "jaxlib", "flax", "orbax", "torch", "tensorflow"):
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, Refused())
from vital_jax import cli
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(words)
        except SystemExit as stopped:
            status = stopped.code
        except AssertionError as error:
            status = str(error)
    print(json.dumps([status, out.getvalue(), err.getvalue()]))
"""
GONE = "gone: no such folder"
NO_IMAGE = "image gone.png: no such file"
ANSWER = ("answer", "--model", "base", "--image", "a.png", "--question", "What?")
RUN = ("evaluate", "run", "--model", "base", "--benchmark", "file", "--data", "asked.jsonl", "--protocol", "paper")
RUN += ("--out", "never")
EXPLAIN = ("explain", "--model", "run", "--out", "never")
BENCH = ("bench", "latency", "--model", "base", "--image", "a.png", "--question", "What?", "--out", "never")
FIGURE = ("--data", "records", "--out", "never.svg")
EXPORT = ("export", "--checkpoint", "run", "--out", "never")


def instead(words, *pairs, drop=()):
    """The words with the value behind a flag replaced, or a flag and its value left out."""
    words = list(words)
    for flag in drop:
        at = words.index(flag)
        del words[at : at + 2]
    for flag, value in pairs:
        words[words.index(flag) + 1 : words.index(flag) + 2] = [value]
    return words


CASES = [
    (instead(ANSWER, ("--image", "gone.png")), NO_IMAGE),
    (instead(ANSWER, ("--image", "text.png")), "text.png is no image"),
    (instead(ANSWER, ("--question", " ")), "--question is empty"),
    (instead(ANSWER, ("--model", "gone")), GONE),
    (instead(ANSWER, ("--model", "records")), "holds neither checkpoints"),
    ([*ANSWER, "--steps"], "is a base model without latent steps"),
    ([*instead(ANSWER, ("--model", "run")), "--base", "gone"], "base (--base): no folder gone"),
    ([*ANSWER, "--latent-steps", "-1"], "'-1' is not a whole number, 0 or more"),
    ([*ANSWER, "--max-new-tokens", "0"], "'0' is not a whole number, 1 or more"),
    ([*ANSWER[:3], "--questions", "gone.jsonl"], "gone.jsonl: no such file"),
    ([*ANSWER[:3], "--questions", "faulty.jsonl"], "line 2: image gone.png: no such file"),
    ([*ANSWER[:3], "--interactive"], "--image FILE goes with --question and --interactive"),
    (instead(RUN, ("--model", "gone")), GONE),
    (instead(RUN, ("--data", "faulty.jsonl")), "1 of 2 questions cannot be asked (1 missing-file): 2: "),
    (instead(RUN, ("--benchmark", "vqa-rad")), "no benchmark 'vqa-rad'; there are vqa_rad"),
    (instead(RUN, ("--protocol", "papers")), "no protocol 'papers'; there are paper"),
    (instead(RUN, ("--protocol", "pmc_vqa")), "pmc_vqa scores only items with options"),
    (instead(RUN, ("--out", "a.png/never")), "a.png is a file; name another folder"),
    ([*RUN, "--eval-k", "per_sample"], "--eval-k per_sample: base has no latent steps"),
    ([*instead(RUN, ("--model", "run")), "--eval-k", "per_sample"], "no item states its own latent steps"),
    ([*RUN, "--top-p", "0.5"], "--top-p 0.5 has no meaning at temperature 0"),
    (["evaluate", "audit", "--model", "base", "--out", "never"], "base is no training run's folder"),
    (["evaluate", "audit", "--model", "run", "--out", "never", "--data", "gone"], "gone: no finished record folder"),
    ([*EXPLAIN, "--image", "gone.png", "--question", "What?"], NO_IMAGE),
    ([*EXPLAIN, "--data", "gone"], "gone: no finished record folder"),
    ([*EXPLAIN, "--data", "records", "--split", "tset"], "no split 'tset'"),
    ([*EXPLAIN, "--data", "records", "--bank", "gone"], "gone: no finished record folder"),
    ([*EXPLAIN, "--data", "records", "--encoder", "gone"], "encoder (--encoder): no folder gone"),
    (
        [*instead(EXPLAIN, ("--model", "base")), "--data", "records"],
        "base is a base model: name a training run's folder",
    ),
    (["figure", "progress", "--model", "gone", *FIGURE], GONE),
    (["figure", "collapse", "--model", "one=run", "--model", "two=gone", *FIGURE], GONE),
    (["figure", "compare", "--model", "run", *FIGURE], "--data needs --id ID"),
    (["figure", "compare", "--model", "run", *FIGURE, "--split", "train", "--id", "x"], "--id x: no such record"),
    (instead(BENCH, ("--image", "gone.png")), NO_IMAGE),
    (instead(BENCH, ("--model", "gone")), GONE),
    ([*BENCH, "--limit", "3"], "--split and --limit are of --records"),
    (instead(EXPORT, ("--checkpoint", "gone")), GONE),
    (instead(EXPORT, ("--checkpoint", "base")), "base is no training run's folder"),
    (instead(EXPORT, ("--out", "base")), "base exists: name another folder"),
    ([*EXPORT, "--push", "me"], "give it as OWNER/NAME"),
    ([*EXPORT, "--scores", "gone"], "--scores gone: no table.csv"),
    (["parity", "--model", "gone"], GONE),
    (["parity", "--model", "run"], "config.json not found"),
    (["data", "features", "records", "--encoder", "gone"], "config.json not found"),
    (["data", "features", "gone", "--encoder", "base"], "gone: no finished record folder"),
    (["data", "features", "records", "--encoder", "base", "--splits", "dev"], "no split dev, only train"),
    (["data", "inspect", "records", "-o", "a.png/page.html"], "a.png is a file; name another folder"),
    (["data", "audit", "records", "-o", "a.png/page.html"], "a.png is a file; name another folder"),
    (["data", "stats", "records", "-o", "a.png"], "a.png is a file; name another folder"),
    (["evaluate", "score", *RUN[4:10], "--predictions", "gone.jsonl"], "gone.jsonl: there is no such predictions file"),
    (["data", "grid", "records", "--encoder", "gone"], "config.json not found"),
    (["data", "grid", "records", "--encoder", "base", "--split", "dev"], "no split 'dev'"),
    (["fit", "--config", "gone.py", "--topology", "v5e:4x4"], "--config gone.py: no such file"),
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What the process said, case by case. The models are folders without weights."""
    work = tmp_path_factory.mktemp("typed")
    (work / "run" / "checkpoints").mkdir(parents=True)
    (work / "base").mkdir()
    (work / "base" / "config.json").write_text("{}")
    (work / "text.png").write_text("no image")
    (work / "a.png").write_bytes(record(0)[1].images[0])
    rows = [
        {"id": str(n), "question": "Is it?", "answer": "yes", "image": name}
        for n, name in ((1, "a.png"), (2, "gone.png"))
    ]
    for name, lines in (("asked.jsonl", rows[:1]), ("faulty.jsonl", rows)):
        (work / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    write([record(0)], work)
    words = [instead(case) for case, _ in CASES]
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(words)], cwd=work, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (work / "never").exists() and not (work / "never.svg").exists()
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[" ".join(words) for words, _ in CASES])
def test_a_mistake_is_named_without_jax(answers, number):
    words, message = CASES[number]
    status, out, err = answers[number]
    assert status == 2 and not out and message in err, (words, status, err)
    assert err.splitlines()[-1].startswith("vital ")


def test_the_names_that_are_known_without_jax_are_those_of_their_rooms():
    assert set(data_features.HOOKS) == set(encoders.HOOKS)
    assert folders.FACTS == "vital.json"
