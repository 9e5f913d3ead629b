"""Grouped learning as its user runs it: killed by SIGKILL at three moments and started again, and as several processes.

A run that was killed is the run that nothing happened to, line for line: its metrics but for times, its rollouts, its held-out answers.
Over several processes sums are added in another order, so losses agree as in test_distributed.py, and every prompt is asked where it was.
"""

import json
import shutil
import signal

import pytest
from test_distributed import TOLERANCE, finish, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The folder that all runs of this file share: records, models, compiled programs."""
    return tmp_path_factory.mktemp("grouped")


def run(shared, workdir, count=1, **options):
    """(exit status, what was said) of each process of a run."""
    return finish(start(shared, workdir, count, recipe="grouped", **{"small": {}, **options}), workdir)


def said(workdir):
    """Everything that a run wrote down, but for times."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in row.items() if not k.startswith(("seconds", "tokens/s"))} for row in rows]
    rollouts = {path.name: path.read_text() for path in sorted((workdir / "rollouts").glob("*.jsonl"))}
    answers = {path.name: path.read_text() for path in workdir.glob("answers.jsonl")}  # none where none are asked
    return timeless, rollouts, answers


@pytest.fixture(scope="module")
def whole(shared):
    """What an uninterrupted run wrote down."""
    ((status, text),) = run(shared, shared / "whole")
    assert status == 0, text[-3000:]
    found = said(shared / "whole")
    assert [row["step"] for row in found[0]] == list(range(1, 9)) and len(found[1]) == 2
    return found


@pytest.mark.parametrize("moment", ["rollout", "reward", "update"])
def test_killed_at_any_moment_it_goes_on_as_if_nothing_had_happened(shared, whole, tmp_path, moment):
    ((status, text),) = run(shared, tmp_path, script=("tests/dying.py", moment))
    assert status == -signal.SIGKILL, text[-3000:]
    rows = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 3 <= max(rows) < 8, "it died outside the second rollout and its updates"
    ((status, text),) = run(shared, tmp_path)
    assert status == 0 and f"resuming {tmp_path} after step 3" in text, text[-3000:]
    assert said(tmp_path) == whole


# One device a process, which divide the rows of every program; `checkpoint.best` needs held-out answers, of which `whole` has enough.
SPREAD = {"eval.answers": 0, "eval.before": False, "checkpoint.best": ""}


@pytest.fixture(scope="module")
def two(shared, whole):
    """The folder of a run by two processes."""
    workdir = shared / "two"
    found = run(shared, workdir, 2, small=SPREAD)
    assert [status for status, _ in found] == [0, 0], found[0][1][-3000:] + found[1][1][-3000:]
    return workdir


def is_the_run_of_one(workdir, whole):
    """Losses agree, every prompt was asked at its place, and the answers are those that one process drew."""
    rows, rollouts = said(workdir)[:2]
    for row, other in zip(rows, whole[0], strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=TOLERANCE, abs=TOLERANCE), row["step"]
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=100 * TOLERANCE), row["step"]
    drawn = [
        {name: [(row["id"], [one["tokens"] for one in row["completions"]]) for row in map(json.loads, text.splitlines())]
         for name, text in found.items()}
        for found in (rollouts, whole[1])
    ]  # fmt: skip
    assert drawn[0] == drawn[1]


def test_two_processes_are_the_run_of_one(two, whole):
    is_the_run_of_one(two, whole)


def test_one_process_goes_on_where_two_stopped(shared, two, whole):
    """In the middle of the first rollout, which one process takes up from the checkpoint."""
    workdir = shared / "again"
    shutil.copytree(two, workdir)
    for step in ("6", "8"):
        shutil.rmtree(workdir / "checkpoints" / step)
    ((status, text),) = run(shared, workdir, small=SPREAD)
    assert status == 0 and f"resuming {workdir} after step 3" in text, text[-3000:]
    is_the_run_of_one(workdir, whole)
