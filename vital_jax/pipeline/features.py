"""Region-of-interest features beside the records: one sidecar folder per encoder, hook and crop rule.

The features are targets that a frozen encoder made once. Keeping them out of the records lets several encoders stand
side by side, lets VQA-only data have none, and never rewrites an image. A sidecar belongs to one split of one record
folder: it carries the hash of the record ids and is refused beside any other. Its name tells what is in it:

    <records>/roi-medsiglip-block-T0.20-P0.05/<split>/   info.json roi.npy global.npy valid.npy patches.npy path.npy

Where records have a region per step of their chain (`Record.step_masks`), steps.npy and steps_valid.npy hold those too.
Rows are memory-mapped, so that 60,000 records x 1,152 floats cost a worker nothing but the pages it reads.

A sidecar in the making is a folder of parts beside its final place, `<split>.parts/`: one file for each fixed range of
records, so that a run that was killed makes only what is missing, and machines that made other ranges are joined by
copying their files together. The finished sidecar does not depend on who made which part.
"""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from vital_jax.pipeline.records import ids_hash, new_folder

FORMAT_VERSION = 1
TOP_PATCHES = 5
PART_RECORDS = 512
PATHS = ("full", "crop")
_NO_REGION = -1  # in a part, the path of a record whose steps alone have regions


@dataclass(frozen=True)
class FeatureSpec:
    """What a sidecar holds and how it was made (methods.md §1.5).

    Attributes:
      encoder: the encoder's short name, as it stands in the folder name.
      hook: where the features are read, e.g. "block" (last block, before the final norm).
      threshold: T, the mask's share of the image from which the whole image is encoded.
      margin: P, the growth of the crop on each side as a share of the box.
      fingerprint: identifies the encoder's weights.
      grid: side of the encoder's patch grid, by which a patch's number becomes row and column; 0 where not known.
    """

    encoder: str
    hook: str
    threshold: float
    margin: float
    fingerprint: str
    grid: int = 0

    @property
    def name(self) -> str:
        """The folder's name."""
        rule = [f"{v:.2f}" if round(v, 2) == v else str(v) for v in (self.threshold, self.margin)]
        parts = [re.sub(r"[^A-Za-z0-9.]+", "_", part) for part in (self.encoder, self.hook)]
        return f"roi-{parts[0]}-{parts[1]}-T{rule[0]}-P{rule[1]}"


def write_features(
    folder: str | Path,
    spec: FeatureSpec,
    record_ids: Sequence[str],
    rows: Iterable[Any],
    split: str = "train",
    steps: int = 0,
) -> Path:
    """Writes one row per record, in record order, into `folder/spec.name/split`, which appears only when it is whole.

    Args:
      folder: where sidecars of these records live, usually the record folder.
      spec: what the features are.
      record_ids: ids of the records, in order.
      rows: per record (roi [E], global [E], path "full" or "crop", patches [5]), or None where it has no region; a fifth
        value, where there is one, is the features [k, E] of its steps' regions, and only then may roi be None.
      split: the split these records are.
      steps: K, the most regions of steps that a row has; with 0 nothing is written of them.

    Returns:
      The sidecar's folder.

    Raises:
      FileExistsError: the sidecar is already there.
      ValueError: too few or too many rows, no row with features, another width, or a value that is not finite.
    """
    target = Path(folder).absolute() / spec.name / split
    if target.exists():
        raise FileExistsError(f"{target}: exists; remove it to write these features again")
    count = len(record_ids)
    valid, path = np.zeros(count, bool), np.zeros(count, np.int8)
    patches = np.zeros((count, TOP_PATCHES), np.int32)
    step_valid, arrays = np.zeros((count, steps), bool), None
    rows = iter(rows)
    with new_folder(target) as temporary:
        number = 0
        for number, row in enumerate(rows, 1):
            if number > count:
                raise ValueError(f"{target}: more feature rows than the {count} records")
            if row is None:
                continue
            record, (roi, whole, kind, top), own = number - 1, row[:4], _steps(row)
            if arrays is None:
                width = len(whole)
                shapes: dict[str, tuple[int, ...]] = {"roi": (count, width), "global": (count, width)}
                shapes |= {"steps": (count, steps, width)} if steps else {}
                arrays = {name: _new_array(temporary / f"{name}.npy", shape) for name, shape in shapes.items()}
            arrays["global"][record] = _checked(whole, width, record_ids[record])
            if roi is not None:
                arrays["roi"][record] = _checked(roi, width, record_ids[record])
                valid[record], path[record], patches[record] = True, PATHS.index(kind), top
            if len(own) > steps:
                raise ValueError(f"record {record_ids[record]!r}: {len(own)} regions of steps, room for {steps}")
            for k, values in enumerate(own):
                arrays["steps"][record, k] = _checked(values, width, record_ids[record])
            step_valid[record, : len(own)] = True
        if number < count:
            raise ValueError(f"{target}: {number} feature rows for {count} records")
        if arrays is None:
            raise ValueError(f"{target}: no record has a region; there is nothing to write")
        for array in arrays.values():
            array.flush()
        small = {"valid": valid, "path": path, "patches": patches} | ({"steps_valid": step_valid} if steps else {})
        for name, values in small.items():
            np.save(temporary / f"{name}.npy", values, allow_pickle=False)
        info = {
            "format_version": FORMAT_VERSION,
            **asdict(spec),
            "width": width,
            "count": count,
            "valid": int(valid.sum()),
            "ids_sha256": ids_hash(record_ids),
            **({"steps": steps} if steps else {}),
        }
        (temporary / "info.json").write_text(json.dumps(info, indent=2), encoding="utf-8")
    return target


def _checked(values: np.ndarray, width: int, record_id: str) -> np.ndarray:
    if np.shape(values) != (width,) or not np.all(np.isfinite(values)):
        raise ValueError(f"record {record_id!r}: features must be {width} finite numbers")
    return values


def _new_array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)


def _steps(row: Sequence[Any]) -> Sequence[np.ndarray]:
    return row[4] if len(row) > 4 else ()


class RoiFeatures:
    """One sidecar, memory-mapped; `features[i] -> (roi [E] float32, valid)`, zeros where record i has no region.

    Args:
      folder: the sidecar's folder.
      record_ids: ids of the records it is used with, in order.

    Attributes:
      info: the content of info.json.
      roi, whole: [n, E] float32, the region's and the whole image's unit-length features.
      steps: [n, K, E] float32, the features of the steps' own regions. steps_valid: [n, K] bool. K is 0 where no record has any.
      valid: [n] bool · patches: [n, 5] int32, row * grid + column · path: [n] int8, index into `PATHS`.

    Raises:
      FileNotFoundError: not a finished sidecar.
      ValueError: made for other records, a newer format, or an array whose shape or type is not what info.json says.
    """

    def __init__(self, folder: str | Path, record_ids: Sequence[str]):
        self.folder = Path(folder).absolute()
        file = self.folder / "info.json"
        if not file.exists():
            parts = len(list(parts_folder(self.folder).glob("part-*.npz")))
            made = f"; {parts} parts of it are made, go on with `vital data features`" if parts else ""
            raise FileNotFoundError(f"{self.folder}: not a finished feature folder (info.json is missing){made}")
        info = json.loads(file.read_text(encoding="utf-8"))
        if info["format_version"] > FORMAT_VERSION:
            raise ValueError(
                f"{self.folder}: feature format {info['format_version']}, this vital_jax reads up to {FORMAT_VERSION}: "
                "install a newer vital_jax"
            )
        if info["count"] != len(record_ids):
            counts = f"features of {info['count']} records, but there are {len(record_ids)}"
            raise ValueError(f"{self.folder}: {counts}; extract them again")
        if info["ids_sha256"] != ids_hash(record_ids):
            raise ValueError(f"{self.folder}: made for other records or another order of them; extract them again")
        self._open(info)

    def _open(self, info: dict[str, Any]) -> None:
        self.info, count, width = info, info["count"], info["width"]
        kinds = {
            "roi": (np.float32, (count, width)),
            "global": (np.float32, (count, width)),
            "valid": (np.bool_, (count,)),
            "patches": (np.int32, (count, TOP_PATCHES)),
            "path": (np.int8, (count,)),
        }
        if K := info.get("steps", 0):
            kinds |= {"steps": (np.float32, (count, K, width)), "steps_valid": (np.bool_, (count, K))}
        arrays = {}
        for name, (kind, shape) in kinds.items():
            path = self.folder / f"{name}.npy"
            if not path.exists():
                raise FileNotFoundError(f"{path}: missing; copy the feature folder again or extract it again")
            array = arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.shape != shape or array.dtype != kind:
                raise ValueError(f"{path}: {array.dtype}{list(array.shape)}, expected {np.dtype(kind)}{list(shape)}")
        self.roi, self.whole, self.patches = arrays["roi"], arrays["global"], arrays["patches"]
        self.valid, self.path = arrays["valid"], arrays["path"]
        self.steps = arrays.get("steps", np.zeros((count, 0, width), np.float32))
        self.steps_valid = arrays.get("steps_valid", np.zeros((count, 0), bool))

    def __len__(self) -> int:
        return self.info["count"]

    @property
    def positions(self) -> np.ndarray:
        """[n, 5, 2] int32: (row, column) of the patches in the grid of the view that `path` names.

        Raises: ValueError where the sidecar does not say how many columns there are.
        """
        if not (grid := self.info.get("grid", 0)):
            raise ValueError(
                f"{self.folder}: info.json has no grid; extract the features again to know rows and columns"
            )
        return np.stack(np.divmod(self.patches, grid), axis=-1)

    def __getitem__(self, number: int) -> tuple[np.ndarray, bool]:
        if not 0 <= number < len(self):
            raise IndexError(f"{self.folder}: row {number} asked for, there are 0..{len(self) - 1}")
        return np.array(self.roi[number]), bool(self.valid[number])

    def of_steps(self, number: int) -> np.ndarray:
        """[k, E] float32: the features of the regions of a record's steps, k = 0 where it has none of its own."""
        return np.array(self.steps[number][self.steps_valid[number]])

    # A pickled memory map would carry its whole content to every worker.
    def __getstate__(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "info": self.info}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder = Path(state["folder"])
        self._open(state["info"])


def parts_folder(target: Path) -> Path:
    """Where the parts of the sidecar `target` lie until it is whole."""
    return target.with_name(target.name + ".parts")


class FeatureParts:
    """A sidecar in the making: `<folder>/<spec.name>/<split>.parts/` with plan.json and part-00000.npz, part-00001.npz, ...

    Args:
      folder, spec, record_ids, split: as for `write_features`.
      size: records of one part; `PART_RECORDS` outside tests.

    Raises:
      FileExistsError: the sidecar is already there.
      ValueError: parts are there that were made otherwise.
    """

    def __init__(self, folder: str | Path, spec: FeatureSpec, record_ids: Sequence[str], split: str, size: int):
        self.root, self.spec, self.ids, self.split, self.size = Path(folder), spec, record_ids, split, size
        self.target = Path(folder).absolute() / spec.name / split
        self.folder = parts_folder(self.target)
        if self.target.exists():
            raise FileExistsError(f"{self.target}: exists; remove it to write these features again")
        plan = {**asdict(spec), "count": len(record_ids), "ids_sha256": ids_hash(record_ids), "part_records": size}
        path = self.folder / "plan.json"
        if path.exists():
            held = json.loads(path.read_text(encoding="utf-8"))
            if changed := sorted(key for key in {*held, *plan} if held.get(key) != plan.get(key)):
                raise ValueError(f"{self.folder} was begun with another {', '.join(changed)}; remove it to begin again")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._replace(path, lambda file: file.write(json.dumps(plan, indent=2).encode()))

    def __len__(self) -> int:
        return -(-len(self.ids) // self.size)

    def records(self, number: int) -> range:
        """The records of a part."""
        return range(number * self.size, min(len(self.ids), (number + 1) * self.size))

    def share(self, share: tuple[int, int] = (0, 1)) -> range:
        """The parts of share i of n, from 0."""
        i, n = share
        return range(len(self) * i // n, len(self) * (i + 1) // n)

    def missing(self, share: tuple[int, int] = (0, 1)) -> list[int]:
        """The parts of a share that are not made yet."""
        return [number for number in self.share(share) if not self._path(number).exists()]

    def write(self, number: int, rows: Sequence[Any]) -> None:
        """Writes a part, as whole as it will ever be: rows as for `write_features`.

        Raises: ValueError for a row that `write_features` would refuse; RuntimeError naming the file where it cannot be written.
        """
        ids = [self.ids[i] for i in self.records(number)]
        if len(rows) != len(ids):
            raise ValueError(f"{self._path(number)}: {len(rows)} feature rows for {len(ids)} records")
        found = [(i, row) for i, row in enumerate(rows) if row is not None]
        width, own = len(found[0][1][1]) if found else 0, [_steps(row) for _, row in found]
        arrays: dict[str, Any] = {
            "row": np.array([i for i, _ in found], np.int32),
            "roi": np.zeros((len(found), width), np.float32),
            "global": np.empty((len(found), width), np.float32),
            "path": np.array([_NO_REGION if row[0] is None else PATHS.index(row[2]) for _, row in found], np.int8),
            "patches": np.array([row[3] for _, row in found], np.int32).reshape(-1, TOP_PATCHES),
        }
        for slot, (i, row) in enumerate(found):
            arrays["global"][slot] = _checked(row[1], width, ids[i])
            if row[0] is not None:
                arrays["roi"][slot] = _checked(row[0], width, ids[i])
        if any(map(len, own)):
            arrays["step_counts"] = np.array([len(one) for one in own], np.int32)
            checked = [_checked(x, width, ids[i]) for (i, _), one in zip(found, own, strict=True) for x in one]
            arrays["steps"] = np.array(checked, np.float32)
        self._replace(self._path(number), lambda file: np.savez(file, **arrays))

    def finish(self) -> Path:
        """Joins all parts into the sidecar, removes them, and returns the sidecar's folder.

        Raises: ValueError naming a part that is damaged, or parts that are missing.
        """
        if lost := self.missing():
            raise ValueError(f"{self.folder}: {len(lost)} of {len(self)} parts are missing")
        steps = max((len(_steps(row)) for row in self._rows() if row is not None), default=0)
        made = write_features(self.root, self.spec, self.ids, self._rows(), self.split, steps)
        shutil.rmtree(self.folder)
        return made

    def _rows(self) -> Iterator[Any]:
        for number in range(len(self)):
            path, count = self._path(number), len(self.records(number))
            try:
                with np.load(path, allow_pickle=False) as held:
                    values = [held[name] for name in ("row", "roi", "global", "path", "patches")]
                    own: list[Any] = [()] * len(values[0])
                    if "steps" in held:
                        own = np.split(held["steps"], np.cumsum(held["step_counts"])[:-1])
                    found = {
                        int(i): (None if kind == _NO_REGION else roi, whole, PATHS[kind], top, steps)
                        for i, roi, whole, kind, top, steps in zip(*values, own, strict=True)
                    }
            except (ValueError, KeyError, IndexError, OSError, EOFError, zipfile.BadZipFile) as error:
                raise ValueError(f"{path} is damaged ({error}); remove it and run again") from error
            yield from (found.get(i) for i in range(count))

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.npz"

    def _replace(self, path: Path, write: Callable[[IO[bytes]], object]) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                write(file)
            temporary.replace(path)
        except OSError as error:
            raise RuntimeError(
                f"{path}: {error.strerror or error}; what is finished stays, run again to go on"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)


def distinctness(features: np.ndarray, top: int = 8) -> tuple[float, float]:
    """(mean cosine of two rows, share of the energy in the `top` strongest channels) of unit features [n, E].

    Targets that are nearly the same for every record make the visual loss small and empty (methods.md §1.7, 11); so do a few channels
    that drown the rest. Raises: ValueError for fewer than two rows.
    """
    n = len(features)
    if n < 2:
        raise ValueError(f"{n} features have no pairs to compare")
    features = np.asarray(features, np.float64)
    total, own = np.sum(features.sum(0) ** 2), np.sum(features**2)
    energy = np.sort((features**2).sum(0))[::-1]
    return float((total - own) / (n * (n - 1))), float(energy[:top].sum() / energy.sum())
