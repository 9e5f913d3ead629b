"""Does the latent loop's backward pass grow with the number of steps? Compile-time memory plan of one teacher-forced training step.

    python benchmarks/loop_memory.py

Nothing is run: the compiler's plan for temporaries is what it would allocate. The gradient is with respect to the adapters, as in training.
A loop whose backward pass kept the prefix's keys and values per step would add `prefix cache` to the plan with every step; one that kept a
copy of the weights would add `weights`.
"""

import os

# LLVM's passes come after the memory plan and take most of the time.
os.environ["XLA_FLAGS"] = " ".join(
    (os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true")
)

import jax
import jax.numpy as jnp
from loop_model import arguments, loss, make

STEPS = (1, 4, 16)


def main() -> None:
    """Prints the table."""
    options = arguments(__doc__)
    rows = []
    for dtype in (jnp.float32, jnp.bfloat16):
        for remat in ("none", "full"):
            model, params, batch = make(options, dtype, remat)
            plans = []
            for K in STEPS:
                step = jax.jit(jax.grad(lambda lora, base, batch, K=K, model=model: loss(model, base, lora, batch, K)))
                plan = step.lower(params["lora"], params["base"], batch).compile().memory_analysis()
                plans.append(plan.temp_size_in_bytes)
            rows.append((jnp.dtype(dtype).name, remat, *plans, (plans[-1] - plans[0]) / (STEPS[-1] - STEPS[0])))
    width = jnp.dtype(jnp.bfloat16).itemsize
    cache = 2 * options.layers * options.rows * options.prefix * model.config.decoder.kv_heads * options.head * width
    weights = width * sum(leaf.size for leaf in jax.tree.leaves(params["base"]["language_model"]["layers"]))
    mib = lambda size: f"{size / 2**20:,.1f}"  # noqa: E731
    print(
        f"D={options.width} L={options.layers} S={options.prefix} B={options.rows} T={options.answer}, MiB of temporaries"
    )
    print(f"bfloat16 prefix cache {mib(cache)} MiB, layer weights {mib(weights)} MiB\n")
    print("| dtype | remat | " + " | ".join(f"K={K}" for K in STEPS) + " | per step | K=16 / K=1 |")
    print("|---|---|" + "---|" * (len(STEPS) + 2))
    for dtype, remat, *plans, each in rows:
        print(f"| {dtype} | {remat} | {' | '.join(map(mib, plans))} | {mib(each)} | {plans[-1] / plans[0]:.2f} |")


if __name__ == "__main__":
    main()
