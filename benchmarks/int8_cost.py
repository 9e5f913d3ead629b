"""What a base in int8 costs: a trained run asked its held-out questions with the base in float32, in bfloat16 and in int8.

    python benchmarks/int8_cost.py RUN          # from the folder where the run was started

Everything else is the same: adapters, float32 arithmetic, questions, latent steps. Beside the verdicts: in how many answers a word differs
from float32's, and the teacher-forced task loss. First, without a run, what one product of the 8B's own shape moves by, Gaussian numbers.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from loop_model import device

from vital_jax import api
from vital_jax.evaluate.evidence import BATCH, closed, judged
from vital_jax.evaluate.preview import ask
from vital_jax.hub.load import load_backbone
from vital_jax.methods.base import Phase, losses
from vital_jax.models.quantize import quantize
from vital_jax.pipeline.segments import Suffix
from vital_jax.run import plan, setup
from vital_jax.statistics import wilson

BASES = {
    "float32": {"param_dtype": jnp.float32},
    "bfloat16": {"param_dtype": jnp.bfloat16},
    "int8, scales in float32": {"param_dtype": jnp.float32, "quantize": "int8"},
    "int8, the rest in bfloat16": {"param_dtype": jnp.bfloat16, "quantize": "int8"},
}


def one_product(out: int, width: int, rows: int = 64) -> dict[str, float]:
    """The relative error (root mean square) of x W^T with W [out, width] in int8 and in bfloat16."""
    r = np.random.default_rng(0)
    kernel, x = (r.standard_normal(shape, np.float32) for shape in ((out, width), (rows, width)))
    q, scale = quantize(kernel, jnp.bfloat16)
    kept = {"int8": q * scale.astype(np.float32)[:, None], "bfloat16": kernel.astype(jnp.bfloat16).astype(np.float32)}
    exact = x @ kernel.T
    return {name: float(np.std(x @ other.T - exact) / np.std(exact)) for name, other in kept.items()}


def task_loss(method: Any, params: Any, batches: list[dict[str, np.ndarray]], phase: Phase, suffix: Suffix) -> float:
    """The task loss of these batches, mean over answer tokens."""

    @jax.jit
    def one(params, batch):
        norms = {**method.normalizers(batch, phase, suffix), "task": 1.0}
        return losses(method, params, batch, norms, phase, suffix)[0]["task"]

    tokens = sum(int(batch["answer_mask"].sum()) for batch in batches)
    return sum(float(one(params, batch)) for batch in batches) / tokens


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a training run's folder")
    parser.add_argument("--limit", type=int, default=0, help="ask so many questions only")
    options = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    print(device())
    print("\n| one product, relative error | int8 | bfloat16 |\n|---|---|---|")
    for out, width in ((4096, 4096), (12288, 4096), (4096, 12288)):
        errors = one_product(out, width)
        print(f"| {out} x {width} | {errors['int8']:.2%} | {errors['bfloat16']:.2%} |")

    model = api.load(options.run)
    config = model.run.config
    feed = plan.open_feed(config, config.eval.evidence)
    numbers = closed(feed)[: options.limit or None]
    K, method = model.max_steps, model.method
    steps = max(1, len(numbers) // BATCH)
    phase = Phase(K, K, weights=tuple((loss, 0.0) for loss in method.losses[1:]))
    layout = method.layout(phase, setup.budgets_of(config, None))
    layout = dataclasses.replace(layout, suffix=layout.suffix.bound(feed.encoder.prompter))
    batches = [batch for _, batch in feed.phase(layout, K, batch=BATCH, steps=steps, seed=0)]
    adapters = {name: part for name, part in model.params.items() if name != "base"}
    first: list[str] = []
    print(
        f"\n| base | exact of {len(numbers)} | 95 % interval | answers that differ | task loss |\n|---|---|---|---|---|"
    )
    for name, options_ in BASES.items():
        params = {"base": load_backbone(model.run.base, **options_)[1], **adapters}
        replies = ask(method, params, feed, numbers, K, BATCH)
        exact = sum(row["exact"] for row in judged(feed, numbers, replies))
        texts = [reply.text for reply in replies]
        first = first or texts
        low, high = wilson(exact, len(numbers))
        differ = sum(a != b for a, b in zip(texts, first, strict=True))
        loss = task_loss(method, params, batches, phase, layout.suffix)
        interval = f"{low:.1%} to {high:.1%}"
        print(f"| {name} | {exact / len(numbers):.1%} | {interval} | {differ} | {loss:.4f} |", flush=True)


if __name__ == "__main__":
    main()
