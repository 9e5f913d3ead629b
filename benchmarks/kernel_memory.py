"""Temporary memory that a TPU's compiler plans for attention over a shared prefix: the kernel beside XLA, output and all gradients.

    pip install "vital_jax[fit]"
    python benchmarks/kernel_memory.py --slices v5e:2x2 v5p:2x2x1 v6e:2x2

No TPU is needed. Heads are 128 wide, operands bfloat16; one chip.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vital_jax.models.attention import Suffix, attend
from vital_jax.training import topology

# B, G, U, N, M, S, U'
SHAPES = {
    "8B, update, chains of 512": (1, 8, 583, 32, 8, 1152, 583),
    "8B, latent step": (8, 1, 1, 32, 8, 1024, 16),
    "8B, rollout": (4, 8, 1, 32, 8, 1024, 64),
    "7B, answer": (4, 1, 17, 28, 4, 1024, 17),
    "7B, rollout": (4, 8, 1, 28, 4, 1024, 64),
}


def planned(slice_: str, shape: tuple[int, ...], implementation: str) -> float:
    """MiB that the compiler of one chip of a slice plans beside arguments and results."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", nargs="+", default=["v5e:2x2"])
    options = parser.parse_args()
    print(f"jax {jax.__version__}; MiB, kernel and XLA")
    for slice_ in options.slices:
        for name, shape in SHAPES.items():
            kernel, xla = (planned(slice_, shape, which) for which in ("splash", "xla"))
            print(f"| {slice_} | {name} | {kernel:.1f} | {xla:.1f} |", flush=True)


if __name__ == "__main__":
    main()
