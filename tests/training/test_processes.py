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
from types import SimpleNamespace

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
    """Process 0 holds the store that the others live by: its death is another path than that of any other.

    On a busy machine one of them may come to read the store only when process 0 has ended too, and then says what it knows.
    """
    found = together(f"killed{victim}", tmp_path, 3)
    assert found[victim][0] == -9
    ends = {index: last_line(text) for index, (_, text) in enumerate(found) if index != victim}
    for index, line in ends.items():
        assert found[index][0] == 1 and "same command" in line, found[index][1]
        named = f"ends: process {victim}" in line
        assert named or (victim and index and "process 0 at" in line and "for what its own last line says" in line), (
            line
        )
        assert ("no longer answers" if victim == 0 else "no sign of life for 15 s" if not index else "") in line


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


class Store:
    """Stands for jax's client: a store that a dictionary is."""

    def __init__(self):
        self.held = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        self.held[key] = value

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.held.items() if key.startswith(folder)]


@pytest.fixture
def group(monkeypatch):
    """Process 2 of three, its watch wound by hand, and the clock that it reads."""
    with socket.socket() as probe:  # where nobody listens
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    state = SimpleNamespace(client=Store(), process_id=2, num_processes=3, coordinator_address=address)
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(distributed.runtime, "global_state", state)
    monkeypatch.setattr(distributed.threading, "Thread", lambda **_: SimpleNamespace(start=lambda: None))
    monkeypatch.setattr(distributed._Group, "_say_who_is_gone_when_jax_aborts", lambda self: None)
    monkeypatch.setattr(distributed.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(distributed, "_end", lambda line: (_ for _ in ()).throw(SystemExit(line)))
    group = distributed._Group({"heartbeat": 15, "wait": 200})
    for index in range(3):
        state.client.key_value_set(f"vital/who/{index}", f"host, pid {index}")
    heard = dict.fromkeys(range(3), ("", 0.0))

    def look(now, *beating):
        clock.now = now
        for index in beating:
            state.client.key_value_set(f"vital/beat/{index}", str(now))
        group._look(heard)

    return group, look


def test_who_fell_silent_first_is_named_first(group):
    """Process 0 too is slow, as processes are on a busy machine, and process 1 is dead."""
    group, look = group
    look(1, 0, 1, 2)
    look(5, 0, 2)
    with pytest.raises(
        SystemExit, match=r"process 1 \(host, pid 1\), process 0 \(host, pid 0\): no sign of life for 15 s"
    ):
        look(21, 2)


def test_when_process_0_is_gone_too_who_was_silent_before_is_named(group):
    """It ended because of process 1, and this one had no time to read that in the store."""
    group, look = group
    look(3, 0, 1, 2)
    assert (
        group.last_words().startswith("process 0 at 127.0.0.1:")
        and "ended for what its own last line says" in group.last_words()
    )
    look(14, 0, 2)
    assert group.last_words().startswith("process 1, silent for 11 s before that; process 0 at 127.0.0.1:")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        group.coordinator = f"127.0.0.1:{other.getsockname()[1]}"
        assert group.last_words() == "process 1, silent for 11 s before that; ended by jax, for the reason above"


def test_process_0_waits_for_those_that_still_have_to_read(group, monkeypatch):
    (group, _), slept = group, []
    group.index, begin = 0, distributed.time.monotonic()
    monkeypatch.setattr(distributed.time, "sleep", slept.append)
    monkeypatch.setattr(distributed.time, "monotonic", lambda: begin + sum(slept))
    group.client.key_value_set("vital/dead/1", "")
    for told, seconds in ((True, 0), (False, 3 * 15)):
        group.client.held.pop("vital/left/2", None)
        if told:
            group.client.key_value_set("vital/left/2", "")
        with pytest.raises(SystemExit, match="why"):
            group.leave("why")
        assert sum(slept) == pytest.approx(seconds, abs=1)


def test_a_reason_that_is_known_is_told_though_the_store_went_away(group, monkeypatch):
    group, look = group
    look(1, 0, 1, 2)
    group.client.key_value_set("vital/dead/1", "process 1 (host): no sign of life")

    def gone(*_, **__):
        raise distributed.jax.errors.JaxRuntimeError("UNAVAILABLE")

    monkeypatch.setattr(group.client, "key_value_set", gone)
    with pytest.raises(SystemExit, match=r"process 1 \(host\): no sign of life"):
        look(2)
    monkeypatch.setattr(distributed, "_group", group)
    with pytest.raises(SystemExit, match=r"^$"):  # it has said so itself
        distributed.abandon(ValueError("record 'x7' has no image"))


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
