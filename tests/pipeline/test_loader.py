"""The loader: the plan's promises, resume = continuation, hosts united = one host, workers = none, errors by record."""

import gc
import io
import itertools
import multiprocessing
import subprocess
import sys
from pathlib import Path

import loader_rows
import numpy as np
import pytest
from grain._src.python.ipc.shared_memory_array import SharedMemoryArray
from PIL import Image

from vital_jax.pipeline.loader import plan_batches, step_dataset
from vital_jax.pipeline.records import Record, RecordSource, write_records

BUCKETS = [(64, 256), (64, 1024), (128, 1024)]
SIZES = np.array([[10 + 5 * (i % 20), 100 + 90 * (i % 9)] for i in range(100)])


def run(plan, **options):
    iterator = step_dataset(plan, loader_rows.make_row, loader_rows.collate, **options)
    return list(iterator)


def assert_same(left, right):
    assert [step for step, _ in left] == [step for step, _ in right]
    for (_, one), (_, other) in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert type(one[name]) is np.ndarray and one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


def test_every_record_once_per_epoch_in_the_smallest_bucket_that_fits():
    indices = list(range(0, 100, 2))
    rows, bucket = plan_batches(SIZES, indices, BUCKETS, batch_size=4, steps=40, seed=7)
    assert rows.shape == (40, 4) and rows.dtype == np.int32 and bucket.dtype == np.int32
    for record, home in zip(rows.ravel(), np.repeat(bucket, 4), strict=True):
        fitting = [b for b, (s, p) in enumerate(BUCKETS) if SIZES[record][0] <= s and SIZES[record][1] <= p]
        assert home == fitting[0]
    # 40 steps of 4 = 160 records = 3.2 epochs of 50; at most 3 per bucket wait in a queue.
    counts = np.bincount(rows.ravel(), minlength=100)
    assert set(np.flatnonzero(counts)) <= set(indices)
    assert counts[indices].min() >= 2 and counts[indices].max() <= 4
    assert np.abs(counts[indices] - 3.2).max() < 2
    first = rows[: (50 - 3 * 3) // 4].ravel()
    assert len(set(first)) == len(first)


def test_a_queue_carries_its_leftovers_over():
    sizes = np.array([[1, 1]] * 5)
    rows, _ = plan_batches(sizes, range(5), [(1, 1)], batch_size=3, steps=10, seed=0)
    stream = rows.ravel()
    for epoch in range(6):
        assert sorted(stream[5 * epoch : 5 * epoch + 5]) == [0, 1, 2, 3, 4]
    # A bucket with fewer records than a batch still comes up: its records wait for the next epoch.
    rows, bucket = plan_batches(np.array([[1, 1]] * 6 + [[9, 9]]), range(7), [(1, 1), (9, 9)], 2, 20, seed=1)
    assert (rows[bucket == 1] == 6).all() and (bucket == 1).sum() >= 2


def test_the_plan_is_a_pure_function_and_a_prefix_of_a_longer_one():
    short = plan_batches(SIZES, range(100), BUCKETS, 8, 5, seed=3)
    long = plan_batches(SIZES, range(100), BUCKETS, 8, 60, seed=3)
    again = plan_batches(SIZES, range(100), BUCKETS, 8, 60, seed=3)
    for one, other, same in zip(short, long, again, strict=True):
        np.testing.assert_array_equal(one, other[:5])
        np.testing.assert_array_equal(other, same)
    assert not np.array_equal(long[0], plan_batches(SIZES, range(100), BUCKETS, 8, 60, seed=4)[0])
    # The order is part of resuming on another machine: written down, so that a change of generator is noticed.
    fixed = plan_batches(np.ones((6, 2), int), range(6), [(1, 1)], 6, 2, seed=0)[0]
    assert fixed.tolist() == [[3, 2, 1, 0, 4, 5], [4, 5, 1, 2, 0, 3]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sizes": np.array([[1, 1], [65, 1025]]), "indices": [0, 1]},
            "record 1 needs a prefix of 65 tokens and 1025 pat",
        ),
        ({"indices": []}, "no records"),
        ({"indices": [0, 100]}, "record numbers 0..100 for 100 records"),
        ({"indices": [-1]}, "record numbers -1"),
        ({"buckets": BUCKETS[::-1]}, "ascending"),
        ({"buckets": []}, "ascending"),
        ({"batch_size": 0}, "batch_size 0 must be >= 1"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_bad_plans_say_what_is_wrong(change, message):
    fields = {"sizes": SIZES, "indices": [1], "buckets": BUCKETS[:2], "batch_size": 2, "steps": 3, "seed": 0}
    with pytest.raises(ValueError, match=message):
        plan_batches(**(fields | change))


def test_resume_is_continuation_bit_for_bit():
    plan = plan_batches(SIZES, range(100), BUCKETS, 8, 12, seed=5)
    whole = run(plan)
    assert [step for step, _ in whole] == list(range(12))
    for start in (0, 1, 7, 12):
        assert_same(run(plan, start_step=start, num_threads=2), whole[start:])
    np.testing.assert_array_equal([batch["index"] for _, batch in whole], plan[0])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_united_are_one_host(hosts):
    plan = plan_batches(SIZES, range(100), BUCKETS, 8, 6, seed=5)
    parts = [run(plan, start_step=2, process_index=i, process_count=hosts) for i in range(hosts)]
    united = []
    for together in zip(*parts, strict=True):
        batches = [batch for _, batch in together]
        united.append((together[0][0], {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}))
    assert_same(united, run(plan, start_step=2))
    with pytest.raises(ValueError, match="process 0 of 3 cannot share a batch of 8"):
        step_dataset(plan, loader_rows.make_row, loader_rows.collate, process_count=3)
    with pytest.raises(ValueError, match="start_step 7 is outside the plan of 6"):
        step_dataset(plan, loader_rows.make_row, loader_rows.collate, start_step=7)


def test_worker_processes_give_the_same_batches():
    plan = plan_batches(SIZES, range(100), BUCKETS, 8, 9, seed=5)
    assert_same(run(plan, start_step=2, workers=2), run(plan, start_step=2))


@pytest.mark.parametrize("taken", [3, 1])
def test_workers_and_their_memory_end_with_the_batches(taken):
    """However many were taken: Grain leaves both to the interpreter's end, which then warns of leaked memory."""
    plan = np.arange(6, dtype=np.int32).reshape(3, 2), np.zeros(3, np.int32)
    before = set(multiprocessing.active_children())
    batches = step_dataset(plan, loader_rows.make_row, loader_rows.collate, workers=1)
    assert len(list(itertools.islice(batches, taken))) == taken and set(multiprocessing.active_children()) - before
    if taken < 3:
        batches.close()
    else:
        assert next(batches, None) is None
    assert not set(multiprocessing.active_children()) - before
    assert not [array for array in gc.get_objects() if isinstance(array, SharedMemoryArray)]


def test_a_failing_row_names_its_record_with_and_without_workers():
    plan = np.arange(8, dtype=np.int32).reshape(4, 2), np.zeros(4, np.int32)
    for workers in (0, 1):
        iterator = step_dataset(plan, loader_rows.make_row_with_a_bad_record, loader_rows.collate, workers=workers)
        assert next(iterator)[0] == 0
        with pytest.raises(RuntimeError, match=r"record 3 \(step 1\): Unpicklable: cannot decode picture three"):
            next(iterator)
        iterator.close()


def test_workers_read_records_and_never_start_a_device(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    records = [Record(f"r{i}", (file.getvalue(),), "?" * (i + 1), "A.") for i in range(4)]
    source = RecordSource(write_records(records, tmp_path / "set"))
    plan = np.arange(4, dtype=np.int32).reshape(2, 2), np.zeros(2, np.int32)
    batches = list(step_dataset(plan, loader_rows.FromRecords(source), loader_rows.collate, workers=1))
    assert [batch["length"].tolist() for _, batch in batches] == [[1, 2], [3, 4]]
    ((_, batch),) = step_dataset((plan[0][:1], plan[1][:1]), loader_rows.report_devices, loader_rows.collate, workers=1)
    assert not batch["flags"].any(), "a worker started a jax backend or loaded TensorFlow, torch or pytest"


@pytest.mark.parametrize("parsed", [True, False])
def test_workers_start_from_an_absl_app_and_from_a_plain_script(tmp_path, parsed):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(loader_rows.__file__).parent)!r})\n"
        "import loader_rows, numpy as np\n"
        "from absl import app, flags\n"
        "from vital_jax.pipeline.loader import step_dataset\n"
        "name = flags.DEFINE_string('name', 'unset', 'a flag of the app')\n"
        "def main(_):\n"
        "    plan = np.arange(4, dtype=np.int32).reshape(2, 2), np.zeros(2, np.int32)\n"
        "    for step, batch in step_dataset(plan, loader_rows.make_row, loader_rows.collate, workers=1):\n"
        "        print(step, batch['index'].tolist(), name.value)\n"
        "if __name__ == '__main__':\n"
        f"    {'app.run(main)' if parsed else 'main(None)'}\n"
    )
    flag = ["--name=given"] if parsed else []
    done = subprocess.run([sys.executable, str(script), *flag], capture_output=True, text=True)
    word = "given" if parsed else "unset"
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"0 [0, 1] {word}", f"1 [2, 3] {word}"]
