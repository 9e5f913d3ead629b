"""Scalars for TensorBoard: what reaches the writer, and what is said where there is none."""

import math
import sys
import types
from typing import ClassVar

import pytest

from vital_jax.training import board


class Writer:
    """Stands for tensorboardX's writer and keeps what it is given."""

    made: ClassVar[list] = []

    def __init__(self, folder, purge_step=None):
        self.folder, self.purge_step, self.scalars, self.closed = folder, purge_step, [], False
        Writer.made.append(self)

    def add_scalar(self, *scalar):
        self.scalars.append(scalar)

    def close(self):
        self.closed = True


@pytest.fixture
def writers(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setattr(board, "available", lambda: True)
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


def test_numbers_are_written_and_nothing_else(writers, tmp_path):
    with board.Board(tmp_path / "b", after=40) as curves:
        curves.write(
            41, {"loss": 0.5, "step": 41, "name": "x", "nan": math.nan, "none": None, "flag": True, "inf": math.inf}
        )
    (writer,) = writers
    assert writer.folder == str(tmp_path / "b") and (tmp_path / "b").is_dir()
    # Steps after the checkpoint were written by the process that was killed.
    assert writer.purge_step == 41 and writer.closed
    assert writer.scalars == [("loss", 0.5, 41), ("step", 41, 41)]
    board.Board(tmp_path)
    assert writers[1].purge_step is None


def test_without_the_package_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(board, "available", lambda: False)
    with pytest.raises(RuntimeError, match=r"need tensorboardX: pip install 'vital_jax\[tensorboard\]'"):
        board.Board(tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_file_that_tensorboard_reads(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    import struct

    from tensorboardX.proto.event_pb2 import Event

    with board.Board(tmp_path) as curves:
        curves.write(3, {"scores/accuracy": 0.25})
    (file,) = tmp_path.iterdir()
    data, values = file.read_bytes(), {}
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        values |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
        data = data[16 + length :]
    assert values == {(3, "scores/accuracy"): 0.25}
