"""What a run reports: a JSONL file that survives restarts, a progress line, and a clock that counts training only.

Reading a metric waits for the step that makes it. The writer therefore holds each step's arrays until the next step is
under way, so the device never waits for the host; `flush` before a checkpoint makes file and checkpoint agree.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from vital_jax.training.board import Board


def _plain(value: Any) -> Any:
    """A scalar as JSON holds it. NaN and infinity become null, which every reader takes for missing."""
    if isinstance(value, str):
        return value
    number = np.asarray(value).item()
    return None if isinstance(number, float) and not math.isfinite(number) else number


class MetricsWriter:
    """Appends lines {"step": ..., name: number, ...} to a file, one step late, each line flushed.

    Args:
      path: the file; None on processes that do not write.

    Attributes:
      board: shows the same lines to TensorBoard, where the run asks for it.
    """

    def __init__(self, path: str | Path | None):
        self.board: Board | None = None
        self._path = None if path is None else Path(path)
        self._pending: tuple[int, dict[str, Any]] | None = None
        self.last: dict[str, Any] | None = None
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the scalars of a step and writes those of the step before."""
        for value in metrics.values():
            if isinstance(value, jax.Array):
                value.copy_to_host_async()
        previous, self._pending = self._pending, (step, dict(metrics))
        self._emit(previous)

    def flush(self) -> None:
        """Writes what is held back; waits for its step. Call before a checkpoint is saved."""
        previous, self._pending = self._pending, None
        self._emit(previous)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        if self.board is not None:
            self.board.close()

    def _emit(self, held: tuple[int, dict[str, Any]] | None) -> None:
        """`last` is the newest line written, as plain numbers: what a progress line shows without waiting."""
        if held is None:
            return
        step, metrics = held
        self.last = {"step": step, **{name: _plain(value) for name, value in metrics.items()}}
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.last) + "\n")
        if self.board is not None:
            self.board.write(step, self.last)


def cut_after(path: str | Path, step: int) -> int:
    """Drops the lines after `step`, and a last line torn by a kill, in one rename.

    Returns: how many were dropped; 0 where there is no file.
    Raises: ValueError naming file and line for a line before the last that is no metrics line.
    """
    path = Path(path)
    if not path.exists():
        return 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            at = int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                continue
            raise ValueError(
                f"{path}, line {number}: not a metrics line ({line[:60]!r}); repair or move the file"
            ) from None
        if at <= step:
            kept.append(line)
    temporary = path.with_name(path.name + ".cut")
    with temporary.open("w", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in kept))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return len(lines) - len(kept)


class Clock:
    """Seconds of training, the samples and the arithmetic done in them: no compilation, no evaluation, no checkpoint.

    The first `skip` steps after construction are left out (they compile), also after a restart, which takes up the
    counts of `state()`.

    Args:
      state: of an earlier clock, plain JSON. skip: steps left out. now: the time source, in seconds.
      peak: FLOP/s that the devices at hand could do (see chips.py); None where that is unknown.
    """

    def __init__(
        self,
        state: Mapping[str, float] | None = None,
        skip: int = 2,
        now: Callable[[], float] = time.monotonic,
        peak: float | None = None,
    ):
        fresh = {"seconds": 0.0, "samples": 0, "steps": 0, "seen": 0, "flops": 0.0, "possible_flops": 0.0}
        self._counts = fresh | dict(state or {})
        self._skip = skip
        self._now = now
        self._peak = peak
        self._since = now()

    def tick(self, samples: int, flops: float = 0.0) -> None:
        """Call after each step with the samples (rows) it consumed and the FLOPs it needed, on the devices that `peak` is of."""
        now = self._now()
        self._counts["seen"] += samples
        if self._skip:
            self._skip -= 1
        else:
            self._counts["seconds"] += now - self._since
            self._counts["samples"] += samples
            self._counts["steps"] += 1
            if self._peak:
                self._counts["flops"] += flops
                self._counts["possible_flops"] += (now - self._since) * self._peak
        self._since = now

    def skip(self, steps: int = 2) -> None:
        """Leaves the next steps out: they compile a program not run before."""
        self._skip = steps

    @contextlib.contextmanager
    def pause(self, after: Any = None) -> Iterator[None]:
        """Time inside does not count. Steps run behind their dispatch: `after` (their arrays) is waited for first."""
        jax.block_until_ready(after)
        start = self._now()
        try:
            yield
        finally:
            self._since += self._now() - start

    def state(self) -> dict[str, float]:
        """Plain JSON: `seconds`, `samples` and `steps` counted; `seen`, samples of all steps; `flops` done of `possible_flops`."""
        return dict(self._counts)

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation: what the steps needed over what the devices could have done; None for unknown devices."""
        possible = self._counts["possible_flops"]
        return self._counts["flops"] / possible if possible else None

    @property
    def samples_per_second(self) -> float | None:
        """None until a step has been counted."""
        return self._counts["samples"] / self._counts["seconds"] if self._counts["seconds"] else None

    def seconds_left(self, steps: int) -> float | None:
        """Estimate for `steps` more steps at the mean pace so far; None until a step has been counted."""
        return steps * self._counts["seconds"] / self._counts["steps"] if self._counts["seconds"] else None


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class ProgressLine:
    """Step, loss terms, samples per second and time left: rewritten in place on a terminal, plain lines elsewhere.

    Args:
      total: steps of the run. out: a text stream.
    """

    def __init__(self, total: int, out: IO[str] = sys.stderr):
        self._total = total
        self._out = out
        self._in_place = out.isatty()
        self._width = 0

    def update(self, step: int, metrics: Mapping[str, Any], clock: Clock) -> None:
        """Shows a step. `metrics`: plain numbers, as in `MetricsWriter.last` (its `step` is left out)."""
        parts = [f"step {step}/{self._total}"]
        parts += [
            f"{name} {value:.4g}" if isinstance(value, (int, float)) else f"{name} nan"
            for name, value in metrics.items()
            if name != "step" and not isinstance(value, str)
        ]
        if (rate := clock.samples_per_second) is not None:
            parts += [f"{rate:.3g} samples/s", f"{_duration(clock.seconds_left(self._total - step))} left"]
        if clock.mfu is not None:
            parts.append(f"{100 * clock.mfu:.1f} % MFU")
        line = "  ".join(parts)
        self._out.write(f"\r{line.ljust(self._width)}" if self._in_place else line + "\n")
        self._out.flush()
        self._width = len(line)

    def close(self) -> None:
        """Leaves a rewritten line standing, so that what follows starts on its own."""
        if self._in_place and self._width:
            self._out.write("\n")
            self._out.flush()
