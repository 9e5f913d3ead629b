"""`train.py` with the kernel over a shared prefix where a TPU would take it, interpreted: `python tests/interpreted.py ARGUMENTS...`."""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from vital_jax.kernels import shared_prefix
from vital_jax.models import attention
from vital_jax.training import config as configuration

if __name__ == "__main__":
    attention._SHORT["splash"] = functools.partial(attention._short, interpret=True)
    tiled, calls = shared_prefix.tpu.forward, []
    shared_prefix.tpu.forward = lambda *arrays, **options: calls.append(None) or tiled(*arrays, **options)
    try:
        configuration.run(train.main)
    finally:
        print(f"kernel traced {len(calls)} times", file=sys.stderr)
