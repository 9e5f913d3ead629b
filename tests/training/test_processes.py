"""Processes on loopback: they agree or refuse, wait with a name for who is late, and end together, whoever dies.

No model is needed for that; tests/test_distributed.py trains with several processes.
"""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from neighbour import settings

from vital_jax.hub.safetensors import read_folder
from vital_jax.hub.tiny import write_backbone
from vital_jax.training import distributed
from vital_jax.training.checkpoint import Checkpoints

REPOSITORY = Path(__file__).resolve().parent.parent.parent
LONG = 300  # seconds; a busy machine may be slow


def together(act: str, folder: Path, count: int = 2) -> list[tuple[int, str]]:
    """(exit status, stderr) of each process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
    processes = [
        subprocess.Popen(
            [sys.executable, "tests/training/neighbour.py", f"127.0.0.1:{port}", str(count), str(i), act, str(folder)],
            cwd=REPOSITORY,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    try:
        return [(process.communicate(timeout=LONG)[1], process.returncode)[::-1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_they_find_each_other_gather_and_agree(tmp_path):
    for status, text in together("gather", tmp_path, 3):
        assert status == 0, text


def test_another_value_is_named_on_every_process(tmp_path):
    for status, text in together("agree", tmp_path):
        assert status == 1, text
        assert "do not have the same configuration: config.optim.learning_rate is 0.001 on process 1" in text
        assert "config.seed" not in text


@pytest.mark.slow
def test_each_reads_its_own_bytes_of_a_split_base(tmp_path):
    """Every tensor of the layers is read once, half by each; none of the rest (an odd vocabulary, the mergers) more than once by each."""
    write_backbone(tmp_path / "model", ["a b c d e"] * 4, 0, 64, 2)
    for status, text in together("load", tmp_path):
        assert status == 0, text
    read = [json.loads((tmp_path / f"read{index}").read_text()) for index in (0, 1)]
    for name, tensor in read_folder(tmp_path / "model").items():
        size, each = tensor.dtype.itemsize * math.prod(tensor.shape), [part[str(tensor.offset)] for part in read]
        assert each == [size // 2] * 2 if ".layers." in name else max(each) <= size, name


@pytest.mark.slow
def test_process_0_works_alone_on_what_lies_on_all(tmp_path):
    for status, text in together("first", tmp_path):
        assert status == 0, text


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_refused(tmp_path):
    for status, text in together("alone", tmp_path):
        assert status == 1 and "is not shared: process 1" in text, text


@pytest.mark.slow
def test_who_does_not_come_in_time_is_named(tmp_path):
    (status, text), _ = together("absent", tmp_path)
    assert status == 1 and "waited 6 s at 'late' (config.distributed.wait) for process 1 (" in text, text


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_by_name(tmp_path, victim):
    """Process 0 holds the store that the others live by: its death is another path than that of any other."""
    found = together(f"killed{victim}", tmp_path, 3)
    assert found[victim][0] == -9
    for status, text in [each for index, each in enumerate(found) if index != victim]:
        assert status == 1, text
        assert "ends: process " + str(victim) in last_line(text) and "same command" in last_line(text), text
        assert ("no longer answers" if victim == 0 else "no sign of life for 15 s") in last_line(text)


@pytest.mark.slow
def test_a_death_while_saving_is_no_fault_of_the_folder(tmp_path):
    (status, text), _ = together("save", tmp_path)
    assert status == 1, text
    assert "ends: process 1 (" in last_line(text) and "no sign of life for 15 s" in last_line(text), text
    assert "Make room" not in text
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 1


@pytest.mark.slow
def test_an_error_in_one_reaches_all(tmp_path):
    (status, text), (own, own_text) = together("error", tmp_path)
    assert (status, own) == (1, 1)
    assert "record 'x7' has no image" in own_text
    assert "ends: process 1" in last_line(text) and "stopped: record 'x7' has no image" in last_line(text), text


@pytest.mark.slow
def test_an_interrupt_of_one_stops_all_after_the_same_step(tmp_path):
    found = together("stop", tmp_path)
    assert [status for status, _ in found] == [distributed.STOPPED] * 2, found
    steps = [(tmp_path / f"stopped{index}").read_text() for index in (0, 1)]
    assert steps[0] == steps[1] and int(steps[0]) >= 3
    assert f"stopped after step {steps[0]}" in found[0][1] and "stopped after step" not in found[1][1]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"processes": None}, r"config\.distributed\.processes \(or JAX_NUM_PROCESSES\) is missing"),
        ({"index": 2}, "process 2 of 2 at '127.0.0.1:1'"),
        ({"coordinator": "127.0.0.1"}, "HOST:PORT"),
        ({"coordinator": "", "processes": None, "index": None, "cluster": "slrum"}, "slrum.*use auto, none or one of.*slurm"),
        ({"coordinator": "", "processes": None, "index": None, "cluster": "slurm"}, "was not started by one"),
    ],
)  # fmt: skip
def test_half_an_address_and_unknown_clusters_are_refused(changes, words, monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=words):
        distributed.start(settings("127.0.0.1:1", 2, 0) | changes)


def test_a_single_process_connects_to_nothing(tmp_path):
    for changes in ({"coordinator": "", "processes": None, "index": None}, {"processes": 1}):
        distributed.start(settings("127.0.0.1:1", 1, 0) | changes)
    assert distributed.gather("x", 3) == [3] and distributed.first("x", lambda: 4) == 4
    distributed.agree("configuration", {"a": 1})
    distributed.check_shared(tmp_path)
    distributed.abandon(ValueError("not here"))
    distributed.finish()
