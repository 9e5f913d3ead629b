"""The loader: which records stand in which step, and Grain processes that make those batches ahead of time.

The whole run is planned before it starts: `plan_batches` is a pure function from sizes and a seed to the record numbers
of every step. A batch is then addressed by its step alone, so a resumed run starts its iterator at the step it reached
and needs no iterator state, and it may continue on another number of hosts. Records are gathered by bucket (a prefix
length and a patch budget), because every bucket is one compiled program and padding to the largest would waste most of
a batch.

Nothing here touches a device. Grain itself imports the jax package where it is installed (for its tree functions);
no worker starts a backend, which is what would take a TPU or GPU away from the trainer.
"""

import gc
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from absl import flags

Row = dict[str, Any]  # arrays by name, of a record or of a batch


def plan_batches(
    sizes: np.ndarray,
    indices: Sequence[int] | np.ndarray,
    buckets: Sequence[tuple[int, int]],
    batch_size: int,
    steps: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Plans every step of a phase.

    Each epoch is a permutation of `indices` drawn from (seed, epoch). A record joins the queue of the first bucket it
    fits; a full queue becomes the next step; what is left in the queues opens the next epoch. So every record is seen
    once per epoch, up to what is carried over. A plan of fewer steps is the beginning of a plan of more.

    Args:
      sizes: [n, 2] int, (S needed, P needed) of every record of the data set.
      indices: record numbers of the phase.
      buckets: (S, P) budgets, ascending.
      batch_size: rows per step over all processes.
      steps: number of steps.
      seed: any non-negative whole number.

    Returns:
      rows [steps, batch_size] int32, record numbers; bucket [steps] int32, index into `buckets`.

    Raises:
      ValueError: a record fits no bucket, the phase is empty, or an argument is out of range.
    """
    sizes, numbers = np.asarray(sizes), np.asarray(indices, np.int64)
    budgets = np.asarray(buckets, np.int64).reshape(-1, 2)
    if len(numbers) == 0:
        raise ValueError("the phase has no records; check its filter")
    if numbers.min() < 0 or numbers.max() >= len(sizes):
        raise ValueError(f"record numbers {numbers.min()}..{numbers.max()} for {len(sizes)} records")
    if batch_size < 1 or steps < 0 or seed < 0:
        raise ValueError(f"batch_size {batch_size} must be >= 1, steps {steps} and seed {seed} >= 0")
    if len(budgets) == 0 or sorted(map(tuple, budgets)) != list(map(tuple, budgets)):
        raise ValueError(f"buckets must be ascending (S, P) pairs, got {budgets.tolist()}")
    fits = (sizes[numbers][:, None, :] <= budgets[None]).all(-1)
    if not fits.any(-1).all():
        bad = int(numbers[np.argmin(fits.any(-1))])
        raise ValueError(
            f"record {bad} needs a prefix of {sizes[bad][0]} tokens and {sizes[bad][1]} patches and fits no bucket of "
            f"{budgets.tolist()}; add a bucket that large or lower the pixel limit"
        )
    home = np.argmax(fits, -1)

    rows, chosen = np.zeros((steps, batch_size), np.int32), np.zeros(steps, np.int32)
    queues: list[list[int]] = [[] for _ in budgets]
    step = epoch = 0
    while step < steps:
        # Raw generator output, because NumPy promises to keep it; `permutation` may change between releases.
        order = np.argsort(np.random.PCG64([seed, epoch]).random_raw(len(numbers)), kind="stable")
        for place in order:
            queue = queues[home[place]]
            queue.append(int(numbers[place]))
            if len(queue) == batch_size:
                rows[step], chosen[step] = queue, home[place]
                queue.clear()
                step += 1
                if step == steps:
                    break
        epoch += 1
    return rows, chosen


@dataclass(frozen=True)
class _MakeStep:
    """Builds this process's rows of one step. A class, so that workers receive it by name."""

    rows: np.ndarray
    bucket: np.ndarray
    make_row: Callable[[int, int], Row]
    collate: Callable[[list[Row]], Row]

    def __call__(self, step: int) -> tuple[int, Row]:
        made = []
        for index in self.rows[step].tolist():
            try:
                made.append(self.make_row(index, int(self.bucket[step])))
            except Exception as error:
                # Exceptions cross the process border as text: their causes are lost there, and some cannot be pickled.
                raise RuntimeError(f"record {index} (step {step}): {type(error).__name__}: {error}") from error
        return step, self.collate(made)


def _own(element: tuple[int, Row]) -> tuple[int, Row]:
    """Copies a worker's batch out of shared memory, which is small in containers and has to be given back at once."""
    step, batch = element
    return step, {name: np.array(value, subok=False) for name, value in batch.items()}


def _closed(batches: Any) -> Generator[tuple[int, Row], None, None]:
    """The batches; workers and the memory that they share end with them, which Grain leaves to the interpreter."""
    try:
        yield from batches
    finally:
        batches.close()
        del batches
        gc.collect()  # the last of Grain's batches lie in reference cycles, and hold their memory as long as these are there


def step_dataset(
    plan: tuple[np.ndarray, np.ndarray],
    make_row: Callable[[int, int], Row],
    collate: Callable[[list[Row]], Row],
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 4,
    workers: int = 0,
) -> Generator[tuple[int, Row], None, None]:
    """Iterates over (step, batch) from `start_step` to the end of the plan.

    Args:
      plan: what `plan_batches` returned.
      make_row: (record number, bucket index) -> dict of arrays; with workers it must be picklable.
      collate: list of those dicts -> batch dict of arrays.
      start_step: the first step; resuming at step s means start_step=s.
      process_index, process_count: this host among all; it builds rows
        [process_index * b, (process_index + 1) * b) of each global batch, b = batch_size / process_count.
      num_threads: batches made at once per worker, and the number kept ready.
      workers: extra processes; 0 makes batches in threads of this one. Started scripts need the
        `if __name__ == "__main__"` guard, as with every spawned process.

    Returns:
      A generator; its end, or `close()`, stops its threads and processes.

    Raises:
      ValueError: process_count does not divide the batch, or an index is out of range.
      RuntimeError: while iterating, a row failed; the message names the record and the step.
    """
    rows, bucket = plan
    steps, batch_size = rows.shape
    if batch_size % process_count or not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count} cannot share a batch of {batch_size} evenly")
    if not 0 <= start_step <= steps:
        raise ValueError(f"start_step {start_step} is outside the plan of {steps} steps")
    share = batch_size // process_count
    local = rows[:, process_index * share : (process_index + 1) * share]
    dataset = grain.MapDataset.range(start_step, steps).map(_MakeStep(local, bucket, make_row, collate))
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads))
    if workers:
        # Grain reads absl flags when it starts workers. In an absl app they are parsed; elsewhere nobody does it.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        dataset = dataset.mp_prefetch(options).map(_own)
    return _closed(iter(dataset))
