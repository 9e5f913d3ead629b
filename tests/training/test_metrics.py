"""The metrics file survives kills, the progress line reads well, and the clock counts training only."""

import io
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from vital_jax.training.metrics import Clock, MetricsWriter, ProgressLine, cut_after


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_written_one_step_late_and_flushed(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(1, {"loss": jnp.float32(2.5), "finite": 1})
        assert not path.exists() and writer.last is None
        writer.write(2, {"loss": np.float64(2.0), "finite": 1})
        assert lines(path) == [{"step": 1, "loss": 2.5, "finite": 1}] == [writer.last]
        writer.flush()
        assert [line["step"] for line in lines(path)] == [1, 2]
        writer.flush()
        writer.write(3, {"loss": 1.0})
    assert [line["step"] for line in lines(path)] == [1, 2, 3]


def test_a_restart_appends_and_other_processes_write_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        with MetricsWriter(path) as writer:
            writer.write(step, {"loss": 1.0})
    with MetricsWriter(None) as writer:
        writer.write(3, {"loss": 1.0})
    assert writer.last == {"step": 3, "loss": 1.0}
    assert [line["step"] for line in lines(path)] == [1, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_json_lacks_become_null(tmp_path, value):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(1, {"loss": jnp.float32(value), "finite": 0.0})
    refuse = pytest.fail
    assert json.loads(path.read_text(), parse_constant=refuse) == {"step": 1, "loss": None, "finite": 0.0}


def test_lines_after_the_restored_step_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    text = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (10, 20, 30, 40))
    path.write_text(text + '{"step": 50, "lo')
    assert cut_after(path, 20) == 3
    assert path.read_text() == text[: text.index('{"step": 30')]
    assert cut_after(path, 20) == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_last_line_that_only_lacks_its_newline_is_kept_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    assert cut_after(path, 2) == 0
    with MetricsWriter(path) as writer:
        writer.write(3, {})
    assert [line["step"] for line in lines(path)] == [1, 2, 3]


def test_no_file_is_nothing_to_cut_and_a_broken_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert cut_after(path, 5) == 0 and not path.exists()
    broken = '{"step": 1}\n{"loss": 2}\n{"step": 3}\n'
    path.write_text(broken)
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: not a metrics line"):
        cut_after(path, 5)
    assert path.read_text() == broken


KEPT = ("seconds", "samples", "steps")


class Time:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_the_clock_leaves_out_compilation_and_pauses():
    time = Time()
    clock = Clock(skip=2, now=time)
    for seconds in (60.0, 5.0, 2.0, 2.0):  # two steps that compile, two that count
        time.now += seconds
        assert (clock.samples_per_second is None) == (clock.state()["steps"] == 0)
        clock.tick(samples=8)
    with clock.pause(after=jnp.zeros(1)):
        time.now += 1000.0
    time.now += 4.0
    clock.tick(samples=16)
    assert {name: clock.state()[name] for name in KEPT} == {"seconds": 8.0, "samples": 32, "steps": 3}
    assert clock.state()["seen"] == 48, "every sample was seen, whether its step was counted or not"
    assert clock.samples_per_second == 4.0 and clock.mfu is None
    assert clock.seconds_left(30) == 80.0


def test_the_clock_goes_on_after_a_restart():
    time = Time()
    kept = json.loads(json.dumps({"seconds": 8.0, "samples": 32, "steps": 3}))
    clock = Clock(kept, skip=1, now=time)
    assert clock.samples_per_second == 4.0
    time.now += 30.0
    clock.tick(8)
    time.now += 2.0
    clock.tick(8)
    assert {name: clock.state()[name] for name in KEPT} == {"seconds": 10.0, "samples": 40, "steps": 4}


def test_mfu_is_what_was_done_of_what_could_have_been_and_survives_another_chip():
    time = Time()
    clock = Clock(skip=1, now=time, peak=100.0)
    for seconds, flops in ((50.0, 1e9), (2.0, 80.0), (2.0, 20.0)):  # the first compiles
        time.now += seconds
        clock.tick(8, flops)
    assert clock.mfu == 100 / 400
    later = Clock(json.loads(json.dumps(clock.state())), skip=0, now=time, peak=50.0)
    time.now += 4.0
    later.tick(8, 140.0)
    assert later.mfu == 240 / 600
    unknown = Clock(later.state(), skip=0, now=time)
    time.now += 100.0
    unknown.tick(8, 1.0)
    assert unknown.mfu == 240 / 600, "steps on a chip of unknown speed leave it alone"
    out = io.StringIO()
    ProgressLine(10, out).update(1, {"loss": 2.0}, later)
    assert out.getvalue().endswith("  40.0 % MFU\n")


def test_an_interrupted_pause_still_ends():
    time = Time()
    clock = Clock(skip=0, now=time)
    with pytest.raises(RuntimeError), clock.pause():
        time.now += 7.0
        raise RuntimeError
    time.now += 1.0
    clock.tick(2)
    assert clock.state()["seconds"] == 1.0


class Terminal(io.StringIO):
    def isatty(self):
        return True


def progress(out):
    clock = Clock({"seconds": 100.0, "samples": 310, "steps": 50})
    line = ProgressLine(1850, out)
    line.update(50, {"step": 50, "loss": 1.23456, "task": 0.5, "text": None}, clock)
    line.update(1849, {"loss": 1.0}, clock)
    line.close()
    return out.getvalue()


def test_progress_is_plain_lines_off_a_terminal():
    assert progress(io.StringIO()) == (
        "step 50/1850  loss 1.235  task 0.5  text nan  3.1 samples/s  1:00:00 left\n"
        "step 1849/1850  loss 1  3.1 samples/s  0:02 left\n"
    )


def test_progress_is_rewritten_in_place_on_a_terminal():
    first, second = progress(Terminal()).removesuffix("\n").split("\r")[1:]
    assert first.startswith("step 50/1850") and second.startswith("step 1849/1850")
    assert len(second) == len(first), "what a longer line left behind is overwritten"


def test_no_rate_before_it_is_known():
    out = io.StringIO()
    ProgressLine(10, out).update(1, {"loss": 2.0}, Clock())
    assert out.getvalue() == "step 1/10  loss 2\n"


def test_the_board_gets_the_lines_of_the_file_and_is_closed(tmp_path):
    shown = []
    board = SimpleNamespace(write=lambda step, line: shown.append((step, line)), close=lambda: shown.append("closed"))
    with MetricsWriter(tmp_path / "metrics.jsonl") as metrics:
        metrics.board = board
        metrics.write(1, {"loss": 2.0})
        metrics.write(2, {"loss": 1.0})
    assert shown == [(1, {"step": 1, "loss": 2.0}), (2, {"step": 2, "loss": 1.0}), "closed"]
