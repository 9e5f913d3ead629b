"""The kernel compiled for TPUs that are not there: forward and backward at 8B's and 7B's shapes, and what memory they plan beside XLA's."""

import importlib.util
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from kernel_memory import SHAPES, planned

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("uncached"),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason='libtpu is not installed: pip install "vital_jax[fit]"'
    ),
]


@pytest.mark.parametrize("slice_", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_compiles_and_holds_no_scores(slice_, shape):
    B, G, U, N, M, S, columns = shape
    scores = 4 * B * G * U * N * (S + columns) / 2**20  # MiB, float32
    arrays = 2 * B * (G * U * N + M * (S + G * columns)) * 128 / 2**20  # of queries and keys, once
    assert planned(slice_, shape, "splash") < max(8 * arrays, 4) and (U < 100 or scores > 10 * arrays)


def test_xla_holds_them():
    shape = next(iter(SHAPES.values()))
    kernel, xla = (planned("v5e:2x2", shape, which) for which in ("splash", "xla"))
    assert kernel < xla / 8, (kernel, xla)
