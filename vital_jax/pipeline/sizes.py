"""Sizes of records (S, P, T, C, W), by which they take their buckets: measured once, and kept beside the records.

Measuring tokenises every record, which takes minutes where there are hundreds of thousands, and every start needs all of them. A file's
name carries what its numbers depend on, so that a file for anything else is never opened. A size that was too small all the same could not
go unnoticed: a row that exceeds its budget is an error (pipeline/batch.py).
"""

import hashlib
import os
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vital_jax.pipeline.batch import Encoder
from vital_jax.pipeline.records import RecordSource

_SIZES = "SPTCW"
_VERSION = 1  # raised where `Encoder.measure` or `Encoder.measure_text` come to count otherwise


def sizes_of(source: RecordSource, encoder: Encoder) -> np.ndarray:
    """[n, 5] int32: the prefix tokens, patches, answer tokens, tokens of the longest chain step and of the whole chain of each record.

    A folder that cannot be written is said on stderr, and measured again next time. Raises: as `Encoder.measure`.
    """
    path = _path(source, encoder)
    found = _read(path, len(source))
    if found is None:
        found = _measured(source, encoder)
        _write(path, found)
    return found


def _path(source: RecordSource, encoder: Encoder) -> Path:
    """The file for these records under these settings. Any number may lie side by side: they are small."""
    chain = encoder.chain_prompter or encoder.prompter
    settings = (encoder.image_config, encoder.system, encoder.prompter.fingerprint, chain.fingerprint)
    digest = hashlib.sha256(repr((_VERSION, source.fingerprint, settings)).encode())
    return source.folder / f"sizes-{source.split}-{digest.hexdigest()[:16]}.npy"


def _measured(source: RecordSource, encoder: Encoder) -> np.ndarray:
    def measure(i: int) -> tuple[int, ...]:
        record = source[i]
        return *encoder.measure(record), *encoder.measure_text(record)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.array(list(pool.map(measure, range(len(source)))), np.int32)


def _read(path: Path, count: int) -> np.ndarray | None:
    """None where there is no such file, or one that is damaged."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if (found.shape, found.dtype) == ((count, len(_SIZES)), np.int32) else None


def _write(path: Path, sizes: np.ndarray) -> None:
    # Several processes, of several hosts, may do this at once: each under a name of its own, and the last rename stands.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with partial.open("xb") as file:
            np.save(file, sizes, allow_pickle=False)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        print(f"{path.parent}: sizes of its records are not kept ({error.strerror or error})", file=sys.stderr)
