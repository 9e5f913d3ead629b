"""Rows for the loader's tests, in a module that worker processes can import without pytest or the test settings."""

import sys

import numpy as np


def make_row(index: int, bucket: int) -> dict:
    """A row that depends on its record and bucket alone."""
    values = np.random.default_rng([index, bucket]).normal(size=5)
    return {"index": np.int32(index), "bucket": np.int32(bucket), "values": values.astype(np.float32)}


def collate(rows: list[dict]) -> dict:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"cannot decode {one} {two}")


def make_row_with_a_bad_record(index: int, bucket: int) -> dict:
    if index == 3:
        raise Unpicklable("picture", "three")
    return make_row(index, bucket)


def report_devices(index: int, bucket: int) -> dict:
    """Says whether this process has started a jax backend, and whether TensorFlow or torch are loaded."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    started = bridge is not None and bridge.backends_are_initialized()
    heavy = any(name in sys.modules for name in ("tensorflow", "torch"))
    parent = "pytest" in sys.modules
    return {"index": np.int32(index), "flags": np.array([started, heavy, parent])}


class FromRecords:
    """Reads records, as the trainer's rows do."""

    def __init__(self, source):
        self.source = source

    def __call__(self, index: int, bucket: int) -> dict:
        record = self.source[index]
        return {
            "index": np.int32(index),
            "size": np.int32(len(record.images[0])),
            "length": np.int32(len(record.question)),
        }
