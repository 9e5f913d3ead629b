"""The kernel compiled for TPUs that are not there: forward and backward at 8B's and 7B's shapes, and what memory they plan beside XLA's."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vital_jax.models.attention import Suffix, attend
from vital_jax.training import topology

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("uncached"),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason='libtpu is not installed: pip install "vital_jax[fit]"'
    ),
]
# B, G, U, N, M, S, U': heads are 128 wide.
SHAPES = {
    "8B, update": (1, 8, 512, 32, 8, 1152, 512),
    "8B, latent step": (8, 1, 1, 32, 8, 1024, 16),
    "8B, rollout": (4, 8, 1, 32, 8, 1024, 64),
    "7B, answer": (4, 1, 17, 28, 4, 1024, 17),
    "7B, rollout": (4, 8, 1, 28, 4, 1024, 64),
}


def planned(slice_, shape, implementation):
    """MiB of temporary memory that one chip's compiler plans for the output and all gradients."""
    B, G, U, N, M, S, columns = shape
    mesh = Mesh(np.array(topology.devices(slice_)[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def a(*size, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(size, dtype, sharding=everywhere)

    def run(q, prefix, suffix, mask, cotangent):
        found, pull = jax.vjp(lambda *x: attend(*x, mask, implementation), q, prefix, suffix)
        return found, pull(cotangent)

    q = a(B, G, U, N, 128)
    prefix, suffix = ((a(*size, M, 128),) * 2 for size in ((B, S), (B, G, columns)))
    mask = Suffix(a(B, dtype=jnp.int32), a(B, G, columns, dtype=bool), a(B, G, U, dtype=jnp.int32))
    with jax.set_mesh(mesh):
        compiled = jax.jit(run).lower(q, prefix, suffix, mask, q).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


@pytest.mark.parametrize("slice_", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_compiles_and_holds_no_scores(slice_, shape):
    B, G, U, N, M, S, columns = shape
    scores = 4 * B * G * U * N * (S + columns) / 2**20  # MiB, float32
    arrays = 2 * B * (G * U * N + M * (S + G * columns)) * 128 / 2**20  # of queries and keys, once
    assert planned(slice_, shape, "splash") < max(8 * arrays, 4) and (U < 100 or scores > 10 * arrays)


def test_xla_holds_them():
    shape = SHAPES["8B, update"]
    kernel, xla = (planned("v5e:2x2", shape, which) for which in ("splash", "xla"))
    assert kernel < xla / 10, (kernel, xla)
