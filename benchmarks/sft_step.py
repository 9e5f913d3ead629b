"""One cell of the SFT comparison: the training step of VITAL at a true shape with random weights, timed in this process alone.

    python benchmarks/sft_step.py ours|eager|compiled --backbone FOLDER --text FOLDER --prefix 350 --patches 1024 --steps 4 --rows 2

FOLDERs need only a config.json (configs/models). `ours` is the very step of train.py on one device (replicated base, remat as asked);
`eager` and `compiled` are sft_torch.py. Both do: tower, prefix pass with adapters, K - 1 latent steps over the cache, the last one with
the answer, task, text and visual loss, backward, clip, AdamW in float32 on adapters and scaffold. Every budget is full: no row is padded.

Prints one line of JSON: seconds a step (median and quartiles), peak bytes of the device where it tells, FLOPs of the model by arithmetic,
the loss of every timed step; or {"oom": true}. gpu_check.py calls it.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

ROI = 1152
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "OutOfMemory")


def arguments() -> argparse.Namespace:
    """What cell it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=("ours", "eager", "compiled"))
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    for name, value in {
        "prefix": 350,
        "patches": 1024,
        "steps": 4,
        "rows": 1,
        "answer": 12,
        "chain": 48,
        "repeats": 5,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--remat", default="full")
    parser.add_argument("--quantize", default="")
    return parser.parse_args()


def recipe(options: argparse.Namespace) -> Any:
    """The paper's recipe for this cell: one phase, one device."""
    from configs import vital
    from vital_jax.run import plan

    config = vital.get_config()
    config.model.update(folder=str(options.backbone), text_decoder=str(options.text))
    config.model.update(remat=options.remat, quantize=options.quantize)
    config.lora.update(rank=options.rank, alpha=2.0 * options.rank)
    config.data.update(answer=options.answer, chain=options.chain)
    config.batch = options.rows
    config.phases = (vital.phase("all steps", options.steps, 0, steps=100),)
    plan.resolve(config)
    return config


def arithmetic(options: argparse.Namespace) -> float:
    """FLOPs of one step of the model: nothing computed twice counts."""
    from vital_jax.run import flops, setup

    config = recipe(options)
    method = setup.make_method(config, ROI)
    layout = _layout(options, config, method)
    return flops.of_phase(config, method, 0, layout)(_rows(options, method, layout))


def _layout(options: argparse.Namespace, config: Any, method: Any) -> Any:
    from vital_jax.run import setup

    (layout,) = setup.layouts_of(config, method, ROI, None)  # no literal text: shapes need no tokenizer
    return replace(layout, prefix=options.prefix, patches=options.patches)


def _rows(options: argparse.Namespace, method: Any, layout: Any) -> dict[str, np.ndarray]:
    from vital_jax.run import program

    rows = dict(program.full_rows(method, layout, options.rows))
    r, vocab = np.random.default_rng(0), method.model.config.decoder.vocab // 2
    for name in ("tokens", "answer", "chain"):
        rows[name] = r.integers(0, vocab, rows[name].shape).astype(np.int32)
    rows["patches"] = r.uniform(-1, 1, rows["patches"].shape).astype(np.float32)
    rows["positions"] = np.broadcast_to(np.arange(options.prefix, dtype=np.int32), rows["positions"].shape)
    rows["patch_target"] = np.broadcast_to(
        np.arange(rows["patch_target"].shape[1], dtype=np.int32), rows["patch_target"].shape
    )
    rows["roi"] = (r.standard_normal(rows["roi"].shape) / ROI**0.5).astype(np.float32)
    return rows


def ours(options: argparse.Namespace) -> tuple[Callable[[], float], Callable[[], int | None]]:
    """(one step, which returns its loss; the peak of the device's memory so far)."""
    import jax
    import jax.numpy as jnp

    from vital_jax.run import program, setup
    from vital_jax.training.partition import flatten, split, unflatten
    from vital_jax.training.sharding import make_mesh
    from vital_jax.training.step import init_state

    config = recipe(options)
    method = setup.make_method(config, ROI)
    mesh = make_mesh(devices=jax.devices()[:1])
    shapes = flatten(program.shapes_on(config, method, mesh))

    def draw(number: int, path: str, leaf: Any) -> jax.Array:
        def make(key):
            if leaf.dtype == jnp.int8:
                return jax.random.randint(key, leaf.shape, -127, 128, jnp.int8)
            if path.endswith("scale"):  # of a norm, or of an int8 kernel
                return jnp.full(leaf.shape, 2e-4 if path.endswith("kernel_scale") else 1.0, leaf.dtype)
            return jax.random.normal(key, leaf.shape, leaf.dtype) * jnp.asarray(leaf.shape[-1] ** -0.5, leaf.dtype)

        return jax.jit(make, out_shardings=leaf.sharding)(jax.random.key(number))

    with jax.set_mesh(mesh):
        params = unflatten({path: draw(i, path, leaf) for i, (path, leaf) in enumerate(shapes.items())})
        trainable, frozen = split(params, setup.tables(config)[0])
        state = init_state(trainable, program.optimizer_of(config, config.phases[0]))
        layout = _layout(options, config, method)
        loss, normalizers = program.objective(method, setup.phases_of(config)[0], layout.suffix)
        train_step = program.train_step(config, config.phases[0], loss, normalizers, state)
        batch = program.placed_batch(_rows(options, method, layout), 1, mesh)
    del params, trainable

    def step() -> float:
        nonlocal state
        with jax.set_mesh(mesh):
            state, report = train_step(state, frozen, batch)
        return float(report["loss"])

    return step, lambda: (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def main() -> None:
    """Times the cell."""
    options = arguments()
    try:
        if options.side == "ours":
            step, peak = ours(options)
        else:
            import sft_torch

            step, peak = sft_torch.make(options, ROI)
        start = time.perf_counter()
        losses = [
            step(),
            step(),
        ]  # the second may compile again, where the first's state was not yet what a step leaves
        warm = time.perf_counter() - start
        seconds = []
        for _ in range(options.repeats):
            start = time.perf_counter()
            losses.append(step())
            seconds.append(time.perf_counter() - start)
    except Exception as error:
        if not any(word in f"{type(error).__name__} {error}" for word in _OUT_OF_MEMORY):
            raise
        print(json.dumps({"oom": True}))
        return
    low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    found = {"seconds": middle, "quartiles": [low, high], "warm": warm, "peak": peak(), "losses": losses}
    print(json.dumps({**found, "flops": arithmetic(options)}))


if __name__ == "__main__":
    main()
