"""What a run says while it steps: `metrics.jsonl` and TensorBoard, the line on the terminal, its pace; and why it stopped.

Numbers arrive one step late (`MetricsWriter`), so that nobody waits for the device. Process 0 writes; all of them stop where a step is not
finite.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vital_jax.pipeline.feed import Feed
from vital_jax.run import plan
from vital_jax.training import chips
from vital_jax.training.board import Board
from vital_jax.training.metrics import Clock, MetricsWriter, ProgressLine, cut_after


class Progress:
    """The record of a run's steps; a context manager that writes what is pending when left.

    Args:
      config: of the run. feed: its records, to name those of a step that is not finite.
      losses: of its method, for the terminal's line. total: steps of the run.

    Attributes:
      clock: time of training alone, from `begin` on.
    """

    def __init__(self, config: Any, feed: Feed, losses: Sequence[str], total: int):
        self._config, self._feed, self._total = config, feed, total
        self._shown = ("loss", *losses, "answer_accuracy", "grad_norm")
        self._writes = jax.process_index() == 0
        self._metrics = MetricsWriter(Path(config.workdir) / "metrics.jsonl" if self._writes else None)
        self._line, self.clock = ProgressLine(total), Clock()
        self._records: dict[int, list[int]] = {}
        self._shapes: set[tuple[int, ...]] = set()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.__exit__()

    def begin(self, step: int, counted: Mapping[str, float] | None) -> None:
        """Goes on after `step`: lines behind it go, and the clock goes on from what it had counted, or from zero."""
        self.clock = Clock(counted, peak=chips.peak_of(jax.local_devices()))
        if not self._writes:
            return
        folder = Path(self._config.workdir)
        for name in ("metrics", "answers"):
            cut_after(folder / f"{name}.jsonl", step or -1)  # answers may have been asked before the first step
        if self._config.log.tensorboard:
            self._metrics.board = Board(folder / "tensorboard", after=step)

    @property
    def last(self) -> dict[str, Any]:
        """The newest step's metrics that are known, plain numbers; none before the second step."""
        return self._metrics.last or {}

    def new_phase(self) -> None:
        """Its programs are yet to be compiled."""
        self._shapes = set()

    def meet(self, step: int, batch: Mapping[str, np.ndarray]) -> None:
        """Notes the records of a step to come. The time of a shape that is new in this phase is compilation and does not count."""
        if batch["tokens"].shape not in self._shapes:
            self._shapes.add(batch["tokens"].shape)
            self.clock.skip()
        self._records[step] = batch["index"].tolist()

    def write(self, step: int, report: Mapping[str, Any]) -> None:
        """Takes a step's metrics and says those of the step before. Raises: FloatingPointError as `plan.stop_if_not_finite`."""
        self._metrics.write(step, report)
        plan.stop_if_not_finite(self._metrics.last, self._records, self._feed)
        if self._writes and self.last and self.last["step"] % self._config.log.every == 0:
            known = {name: self.last[name] for name in self._shown if name in self.last}
            self._line.update(self.last["step"], known, self.clock)

    def flush(self) -> None:
        """Waits for the newest step. Raises: as `write`."""
        self._metrics.flush()
        plan.stop_if_not_finite(self._metrics.last, self._records, self._feed)

    def close(self) -> None:
        """The last lines of a run that came to its end, with the last metrics and the pace."""
        self._line.close()
        self._metrics.flush()
        if self._writes:
            said = json.dumps({**self.last, **plan.pace(self.clock)})
            print(f"done: {self._total} steps; {said}", file=sys.stderr)
