"""Folders of large files: tensors that are made while they are written, and a folder that is whole or not there.

Every file is known by name and size before the first is written, so that a full disk is found out at the start. The folder grows under
another name beside its place and is renamed at the end: what a killed process leaves cannot be taken for a finished one.
"""

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vital_jax.hub.safetensors import INDEX, write_file

SHARD = 5 << 30  # bytes, as transformers cuts
_SPARE = 16 << 20  # bytes that must stay free on the disk
_MARK = "UNFINISHED"


class Pending:
    """A tensor known by shape and dtype that is made when it is written (`safetensors.write_file` asks for nothing more)."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, make: Callable[[], np.ndarray]):
        self.shape, self.dtype, self._make = tuple(shape), np.dtype(dtype), make
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._make()).reshape(self.shape).astype(self.dtype, copy=False)


Content = Path | bytes | Mapping[str, Pending]  # a file to copy, its bytes, or tensors


def shards(pending: Mapping[str, Pending], largest: int) -> dict[str, Content]:
    """Files of at most `largest` bytes where tensors allow, named as transformers names them, with an index where there are several."""
    cut: list[dict[str, Pending]] = [{}]
    for name, tensor in pending.items():
        if cut[-1] and sum(other.nbytes for other in cut[-1].values()) + tensor.nbytes > largest:
            cut.append({})
        cut[-1][name] = tensor
    if len(cut) == 1:
        return {"model.safetensors": cut[0]}
    files = {f"model-{i:05}-of-{len(cut):05}.safetensors": shard for i, shard in enumerate(cut, start=1)}
    total = sum(tensor.nbytes for tensor in pending.values())
    weight_map = {name: file for file, shard in files.items() for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return {**files, INDEX: as_json(index)}


def as_json(table: Any) -> bytes:
    """A JSON file."""
    return (json.dumps(table, indent=2) + "\n").encode()


def size_of(content: Content) -> int:
    """Bytes it takes on the disk."""
    if isinstance(content, Path):
        return content.stat().st_size
    return len(content) if isinstance(content, bytes) else sum(tensor.nbytes for tensor in content.values())


def write_files(folder: Path | None, files: Mapping[str, Content], say: Callable[[str], None]) -> None:
    """Writes the files; without a folder, only reads what they need (reading a checkpoint is a step that all processes take together)."""
    for name, content in files.items():
        if folder is None:
            for tensor in content.values() if isinstance(content, Mapping) else ():
                np.asarray(tensor)
            continue
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Mapping):
            say(f"{name}: {len(content)} tensors, {amount(size_of(content))}")
        try:
            _write(path, content)
        except OSError as error:
            if error.filename is None:  # a full disk is reported without the file that filled it
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise


def _write(path: Path, content: Content) -> None:
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write_file(path, content)


def amount(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def check_place(out: Path, size: int, owned: str, overwrite: bool, sources: Collection[Path]) -> None:
    """Refuses a place that `new_folder` cannot or should not fill; every process comes to the same verdict.

    Args:
      size: bytes to be written. owned: a file that marks a folder which may be replaced.
      overwrite: whether to replace such a one. sources: folders that are read, resolved.
    Raises: FileExistsError, OSError; each names the folder and the way out.
    """
    if out.resolve() in sources:
        raise FileExistsError(f"{out} is what is being exported: name another folder")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not overwrite:
            raise FileExistsError(f"{out} exists: name another folder, or replace it with --overwrite")
        if not (out / owned).is_file():
            raise FileExistsError(
                f"{out} was not made by an export (it holds no {owned}): remove it yourself, or name another folder"
            )
    part = _partial(out)
    if part.exists() and not (part / _MARK).is_file():
        raise FileExistsError(f"{part} is in the way and no export made it: move it")
    there = next(path for path in out.absolute().parents if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file, so {out} cannot be made: name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{there} cannot be written, so {out} cannot be made: name another folder")
    if (free := shutil.disk_usage(there).free) < size + _SPARE:
        raise OSError(f"{there} has {amount(free)} free, {out} takes {amount(size)}: make room, or name another disk")


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path | None]:
    """A folder beside `out` that takes its place at the end, or is removed on an error; None for a process other than the first."""
    import jax  # here: a place is checked before so slow an import

    if jax.process_index():
        yield None
        return
    part = _partial(out)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        (part / _MARK).touch()
        yield part
        (part / _MARK).unlink()
        if not out.exists():
            part.rename(out)
            return
        aside = Path(tempfile.mkdtemp(prefix=f"{out.name}.replaced-", dir=out.parent)) / out.name
        out.rename(aside)
        try:
            part.rename(out)
        except OSError:
            aside.rename(out)
            raise
        shutil.rmtree(aside.parent, ignore_errors=True)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
