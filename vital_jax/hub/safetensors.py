"""Reads byte ranges of safetensors files, and writes them.

The format is eight bytes of header length, a JSON header, and raw little-endian arrays. Reading it here, rather than through a library,
lets a process read just the rows its devices hold, straight into the stacked array that goes to the device: no whole-tensor buffer, no
second copy to stack layers. The header is checked before anything is read; nothing in the file is executed.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LARGEST_HEADER = 100 << 20
INDEX = "model.safetensors.index.json"
_SINGLE = ("model.safetensors", "open_clip_model.safetensors")
_CONVERT = (
    "import torch, safetensors.torch as s; t = torch.load({name!r}, weights_only=True); "
    "s.save_file({{k: v.clone() for k, v in t.items()}}, 'model.safetensors')"
)


class Tensor:
    """One tensor of a file: where it lies, and its rows on demand."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype):
        self.path, self.offset, self.shape, self.dtype = path, offset, shape, dtype

    def rows(self, start: int = 0, stop: int | None = None, out: np.ndarray | None = None) -> np.ndarray:
        """Rows [start, stop) along the first axis, in the file's dtype; the whole of a scalar. `out` takes them, where it is given."""
        if not self.shape:
            start, stop, inner = 0, 1, ()
        else:
            stop, inner = self.shape[0] if stop is None else stop, self.shape[1:]
        row = math.prod(inner) * self.dtype.itemsize
        out = np.empty((stop - start, *inner), self.dtype) if out is None else out
        with self.path.open("rb") as file:
            file.seek(self.offset + start * row)
            if file.readinto(out.reshape(-1).view(np.uint8)) != out.nbytes:
                raise ValueError(f"{self.path}: the file ends inside a tensor; copy or download it again")
        return out if self.shape else out.reshape(())

    def block(self, start: int, stop: int, left: int, right: int, out: np.ndarray) -> None:
        """Fills `out` with columns [left, right) of a matrix's rows [start, stop), and reads nothing else of the file.

        Raises: ValueError where the file ends before.
        """
        row = self.shape[1] * self.dtype.itemsize
        first = self.offset + start * row + left * self.dtype.itemsize
        with self.path.open("rb", buffering=0) as file:
            for i, line in enumerate(out.view(np.uint8)):
                file.seek(first + i * row)
                if file.readinto(line) != line.nbytes:
                    raise ValueError(f"{self.path}: the file ends inside a tensor; copy or download it again")


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name. Raises ValueError naming the file where the header does not describe it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
            raise ValueError(f"{path} is not a complete safetensors file ({size} bytes)")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            table = {
                name: (e["dtype"], tuple(map(int, e["shape"])), *map(int, e["data_offsets"]))
                for name, e in header.items()
            }
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path}: its header does not describe tensors ({type(error).__name__}: {error})"
            ) from error
    tensors = {}
    for name, (kind, shape, start, stop) in table.items():
        if kind not in _DTYPES:
            raise ValueError(f"{path}: tensor {name} has dtype {kind}; one of {', '.join(_DTYPES)} is expected")
        dtype = _DTYPES[kind]
        expected = math.prod(shape) * dtype.itemsize
        if min((start, *shape)) < 0 or stop - start != expected or 8 + length + stop > size:
            raise ValueError(f"{path}: tensor {name} does not lie inside the file; copy or download it again")
        tensors[name] = Tensor(path, 8 + length + start, shape, dtype)
    return tensors


def read_folder(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of a model folder, from one model.safetensors (or open_clip's name of it) or from shards with an index.

    Raises: FileNotFoundError or ValueError naming the file: absent, a pickle, an index that points outside the folder, a tensor that the
    index promises and no shard holds.
    """
    folder = Path(folder)
    index = folder / INDEX
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text())["weight_map"]
            files = sorted({str(file) for file in weight_map.values()})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{index} is not an index of shards ({type(error).__name__}: {error})") from error
        if bad := [name for name in files if Path(name).name != name]:
            raise ValueError(f"{index} points outside its folder: {bad[0]}")
        if absent := [name for name in files if not (folder / name).is_file()]:
            raise FileNotFoundError(f"{folder}: shards named by {INDEX} are absent: {', '.join(absent)}")
        headers = {name: read_header(folder / name) for name in files}
        if lost := [name for name, file in weight_map.items() if name not in headers[file]]:
            raise ValueError(f"{index} promises tensors its shards do not hold: {', '.join(lost[:5])}")
        return {name: headers[file][name] for name, file in weight_map.items()}
    if single := next((folder / name for name in _SINGLE if (folder / name).is_file()), None):
        return read_header(single)
    if pickles := sorted(path for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind)):
        code = _CONVERT.format(name=pickles[0].name)
        raise ValueError(
            f"{pickles[0]} is a pickle, which can run code when it is opened, and is not read; where you trust it, convert it "
            f'inside that folder: python -c "{code}"'
        )
    raise FileNotFoundError(f"{folder} holds neither model.safetensors nor {INDEX}")


def write_file(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one safetensors file (dtypes as `_DTYPES`), a tensor at a time."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of eight
    with Path(path).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())
