"""Scalars as TensorBoard reads them, where tensorboardX is installed (the extra `tensorboard`).

Training writes its metrics by step; an evaluation writes its scores at the step of the checkpoint that it asked, so that evaluations of one
run make a curve. The JSON lines and tables remain the record; this is a view of them.
"""

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def available() -> bool:
    """Whether tensorboardX is installed."""
    return importlib.util.find_spec("tensorboardX") is not None


class Board:
    """Writes scalars into a folder; a context manager that closes its file.

    Args:
      folder: what `tensorboard --logdir` is given.
      after: a run that goes on from this step: what an earlier process wrote for later ones is not shown.
    Raises: RuntimeError where tensorboardX is not installed.
    """

    def __init__(self, folder: str | Path, after: int | None = None):
        if not available():
            raise RuntimeError("TensorBoard files need tensorboardX: pip install 'vital_jax[tensorboard]'")
        from tensorboardX import SummaryWriter

        Path(folder).mkdir(parents=True, exist_ok=True)
        self._writer = SummaryWriter(str(folder), purge_step=None if after is None else after + 1)

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """The finite numbers among `scalars`, by name; a slash in a name groups curves."""
        for name, value in scalars.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is held back and closes the file."""
        self._writer.close()
