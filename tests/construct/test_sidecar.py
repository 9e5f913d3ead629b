"""Features of a whole split: a kill half-way costs nothing but its part, damaged records cost theirs, the line of progress adds up."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vital_jax.construct import sidecar
from vital_jax.construct.roi import record_rows
from vital_jax.construct.sidecar import RateLine, batch_for, duration, write_sidecar
from vital_jax.pipeline.features import FeatureSpec, RoiFeatures, write_features
from vital_jax.pipeline.records import Record, RecordSource, write_records

SPEC = FeatureSpec("toy", "block", 0.2, 0.05, "abc", 4)


def png(values) -> bytes:
    file = BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def record(i: int) -> Record:
    """Every third has no mask; the others take either path."""
    rng = np.random.default_rng(i)
    mask = np.zeros((24, 30), np.uint8)
    mask[3 : 3 + (20 if i % 2 else 4), 5:25] = 255
    image = png(rng.integers(0, 256, (24, 30, 3), np.uint8))
    return Record(f"r{i}", (image,), "Q?", "A.", masks=(png(mask),) if i % 3 else ())


def encode(images):
    cells = images.reshape(len(images), 4, 8, 4, 8, 3).mean((2, 4)).reshape(len(images), 16, 3)
    return np.concatenate([cells, np.ones((len(images), 16, 1))], -1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_records([record(i) for i in range(11)], tmp_path_factory.mktemp("store") / "records")


@pytest.fixture
def source(store, tmp_path):
    return RecordSource(shutil.copytree(store, tmp_path / "records"))


def run(source, encode=encode, share=(0, 1), said=None):
    say = (lambda line: None) if said is None else said.append
    return write_sidecar(source, SPEC, encode, 32, 3, share, say, part_records=4)


def test_all_parts_make_the_sidecar_that_one_pass_makes(source, tmp_path):
    made = run(source)
    assert (made.missing, made.faults) == (0, [])
    rows = record_rows(source, encode, 3, 4, 32)
    expected = write_features(tmp_path / "one", SPEC, source.ids, rows)
    assert contents(made.folder) == contents(expected)
    held = RoiFeatures(made.folder, source.ids)
    assert held.valid.tolist() == [bool(i % 3) for i in range(11)] and set(held.path[held.valid]) == {0, 1}
    assert held.positions.max() < 4


def test_the_regions_of_steps_come_with_their_records(store, tmp_path):
    """K is the most of any record; the records beside keep the bytes that they have without them."""
    kept = RecordSource(store)
    extra = {2: 3, 7: 1}
    records = [
        dataclasses.replace(one, chain=("Step.",) * extra.get(i, 0), step_masks=record(1).masks * extra.get(i, 0))
        for i, one in enumerate(kept)
    ]
    plain = contents(run(RecordSource(shutil.copytree(store, tmp_path / "plain"))).folder)
    made = run(RecordSource(write_records(records, tmp_path / "steps"))).folder
    held = RoiFeatures(made, kept.ids)
    assert held.steps_valid.sum(1).tolist() == [extra.get(i, 0) for i in range(11)] and held.steps.shape[1] == 3
    assert {name: data for name, data in contents(made).items() if name in plain and name != "info.json"} == {
        name: data for name, data in plain.items() if name != "info.json"
    }


# Three parts of one, two and two calls: what is left to do after so many.
@pytest.mark.parametrize("calls, rest", list(enumerate([5, 4, 4, 2, 2])))
def test_a_run_that_stops_anywhere_goes_on_to_the_same_bytes(source, tmp_path, calls, rest):
    """Stopped at each encoder call in turn."""
    expected = contents(run(RecordSource(shutil.copytree(source.folder, tmp_path / "other"))).folder)
    left, made = calls, []

    def stopping(images):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return encode(images)

    def counted(images):
        made.append(len(images))
        return encode(images)

    with pytest.raises(KeyboardInterrupt):
        run(source, stopping)
    assert contents(run(source, counted).folder) == expected
    assert len(made) == rest


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import test_sidecar as t
from vital_jax.pipeline.records import RecordSource
calls = []
def dying(images):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return t.encode(images)
t.run(RecordSource(sys.argv[2]), dying)
"""


def test_a_killed_process_leaves_whole_parts_only(source, tmp_path):
    expected = contents(run(RecordSource(shutil.copytree(source.folder, tmp_path / "other"))).folder)
    done = subprocess.run([sys.executable, "-c", KILLED, str(Path(__file__).parent), str(source.folder)])
    assert done.returncode == -signal.SIGKILL
    parts = source.folder / SPEC.name / "train.parts"
    assert {path.name for path in parts.glob("part-*")} in ({"part-00000.npz"}, {"part-00000.npz", "part-00001.npz"})
    (parts / f".part-00001.npz.{os.getpid()}.tmp").write_bytes(b"torn")
    assert contents(run(source).folder) == expected


def test_shares_of_machines(source):
    first, second = run(source, share=(0, 2)), run(source, share=(1, 2))
    assert (first.folder, first.missing, second.folder, second.missing) == (None, 2, None, 0)

    def never(images):
        raise AssertionError("nothing is left to encode")

    assert run(source, never).folder.name == "train"


def test_a_damaged_record_costs_its_part_until_it_is_repaired(tmp_path, monkeypatch):
    broken = Record("r5", (b"no picture",), "Q?", "A.", masks=record(5).masks)
    folder = write_records([broken if i == 5 else record(i) for i in range(11)], tmp_path / "records")
    made = run(RecordSource(folder))
    assert made.folder is None and made.missing == 1
    assert len(made.faults) == 1 and made.faults[0].startswith("r5 is no image")
    calls = []
    monkeypatch.setattr(RecordSource, "__getitem__", lambda self, number: record(number))
    again = run(RecordSource(folder), lambda images: calls.append(1) or encode(images))
    assert again.folder is not None and again.faults == [] and len(calls) <= 3


def test_batches_fit_devices_and_records():
    assert batch_for(1000, 1) == 8 and batch_for(1000, 4) == 32 and batch_for(1000, 4, 6) == 8
    assert batch_for(2, 1) == 4 and batch_for(2, 8) == 8 and batch_for(1, 3, 100) == 3


def test_progress_counts_this_run_and_estimates_from_it(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(sidecar.time, "monotonic", lambda: now[0])
    said = []
    progress = RateLine("train", total=1200, done=1000, say=said.append, every=10)
    encode = progress.watch(lambda images: images)
    for _ in range(4):
        encode(np.zeros(10))
        now[0] += 6
        progress.step(5)
    # Spoken at 12 s and at 24 s: 10 of 200 records in 12 s.
    assert said == [
        "train: 1,010 of 1,200, 1.67 images/s, about 3 min 48 s left",
        "train: 1,020 of 1,200, 1.67 images/s, about 3 min 36 s left",
    ]
    progress.step(180)
    assert progress.line() == "train: 1,200 of 1,200, 1.67 images/s"
    assert [duration(s) for s in (0.4, 59, 60, 7322)] == ["0 s", "59 s", "1 min 0 s", "2 h 2 min"]
