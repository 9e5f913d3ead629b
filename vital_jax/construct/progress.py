"""What a long run says while it works: one line that is rewritten, with what is left and how long that takes."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

_EVERY = {True: 0.2, False: 30.0}  # seconds between lines: on a terminal, and in a file
_REJECTS = 20  # lines of rejects that are shown


@dataclass
class Stage:
    """One stage: how far it is."""

    name: str
    total: int
    unit: str
    progress: "Progress"
    done: int = 0
    samples: int = 0
    start: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    def add(self, done: int, samples: int) -> None:
        """Counts what is done."""
        self.done += done
        self.samples += samples
        self.progress.show(self)

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / max(self.seconds, 1e-9)

    def __str__(self) -> str:
        spent = max(time.monotonic() - self.start, 1e-9)
        left = round(spent / self.done * (self.total - self.done)) if self.done else 0
        eta = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left" if self.done else ""
        return f"{self.name}: {self.done}/{self.total} {self.unit}, {self.samples} samples, {self.samples / spent:.1f}/s, {eta}"


class Progress:
    """The factory's stages, timed for its report, and what was set aside; writes on `file`; a context manager that ends the line."""

    def __init__(self, shown: bool = True, file: TextIO | None = None):
        self.shown, self.stages = shown, []
        self._file = file or sys.stderr
        self._terminal = self._file.isatty()
        self._last, self._width, self._rejects = time.monotonic(), 0, 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self._rejects > _REJECTS:
            self.say(f"and {self._rejects - _REJECTS} more set aside: see rejects.jsonl")
        self._clear()

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Stage]:
        """A stage; it is timed, and its line stays."""
        stage = Stage(name, total, unit, self)
        yield stage
        stage.seconds = time.monotonic() - stage.start
        self.stages.append(stage)
        if total:
            self.say(
                f"{name}: {stage.done} {unit}, {stage.samples} samples in {stage.seconds:.1f} s, {stage.rate:.1f}/s"
            )

    def show(self, stage: Stage) -> None:
        """Renews the line, not more often than anybody can read."""
        if self.shown and time.monotonic() - self._last >= _EVERY[self._terminal]:
            self._last = time.monotonic()
            text = str(stage)
            self._file.write(f"\r{text:<{self._width}}" if self._terminal else f"{text}\n")
            self._file.flush()
            self._width = len(text)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.shown:
            self._clear()
            self._file.write(f"{text}\n")
            self._file.flush()

    def reject(self, reject: dict) -> None:
        """A line for something that was set aside."""
        self._rejects += 1
        if self._rejects <= _REJECTS:
            # Some files are called by a record's name, which begins with its source.
            file = reject["file"].removeprefix(f"{reject['source']}/")
            line = f"{reject['source']}/{file}: {reject['reason']} [{reject['code']}]"
            self.say(" ".join(line.split()))  # a file's name may hold the end of a line

    def _clear(self) -> None:
        if self._terminal and self._width:
            self._file.write(f"\r{'':<{self._width}}\r")
            self._width = 0
