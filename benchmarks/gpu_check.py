"""One command on an NVIDIA GPU: are the fast paths right there, and what do they gain?

    python benchmarks/gpu_check.py

Checks, each against the XLA form in float32 or against another path of the same mathematics: cuDNN attention forward and backward with
uneven lengths and with rubbish on padding, the fused against the literal latent loop, the whole training gradient under either attention.
Then speed, as ratios inside this run. Exits 0 when all checks pass, 1 when one fails, 2 on a machine without such a GPU.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from loop_model import alternate, arguments, device, draw, loss, make

from vital_jax.latent.loop import embed, empty_suffix, extend, prefill
from vital_jax.models.attention import Causal, attend

K = 4


def distance(got: Any, expected: Any) -> float:
    """The largest difference over all leaves, in units of the largest number of each expected leaf; infinite where one is not finite."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    wide = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    if not all(np.all(np.isfinite(a)) for a, _ in wide):
        return float("inf")
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in wide)


def attention_checks(B: int = 4, S: int = 512, N: int = 8, M: int = 2, H: int = 128) -> dict[str, tuple[float, float]]:
    """name -> (difference, allowed) of cuDNN attention and its gradients in bfloat16."""
    r = np.random.default_rng(0)
    half = [jnp.asarray(r.normal(size=(B, 1, S, n, H)), jnp.bfloat16) for n in (N, M, M)]
    lengths = jnp.asarray([S, S - 129, S // 2, 1][:B], jnp.int32)
    exists = (jnp.arange(S) < lengths[:, None])[:, None, :, None, None]

    def step(implementation):
        def scalar(q, k, v):
            out = attend(q, None, (k, v), Causal(lengths), implementation)
            return jnp.sum(jnp.where(exists, jnp.sin(3 * out.astype(jnp.float32)), 0)), out

        return jax.jit(jax.grad(scalar, argnums=(0, 1, 2), has_aux=True))

    with jax.default_matmul_precision("highest"):
        exact = step("xla")(*[x.astype(jnp.float32) for x in half])
    xla, cudnn = (step(name)(*half) for name in ("xla", "cudnn"))
    rubbish = step("cudnn")(*[jnp.where(exists, x, jnp.inf) for x in half])
    # Both round to eight bits in places of their own; a wrong mask or scale is off by a large part of the largest number.
    allowed = max(2 * distance(xla, exact), 2.0**-6)
    return {
        "cuDNN attention, forward": (distance(cudnn[1], exact[1]), allowed),
        "cuDNN attention, gradients": (distance(cudnn[0], exact[0]), allowed),
        "the same, infinities on padding": (distance(rubbish, cudnn), 2.0**-8),  # its backward adds in no fixed order
    }


def loop_checks(options: Any) -> dict[str, tuple[float, float]]:
    """name -> (difference, allowed) of loss and adapter gradients through the whole loop."""

    def gradient(dtype, attention, fused):
        model, shapes, batch = make(options, dtype, "full", attention)
        # The same numbers for every dtype: what bfloat16 can hold.
        base = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(dtype), draw(shapes["base"]))
        lora = draw(shapes["lora"], 1)
        return jax.jit(jax.value_and_grad(lambda lora, base: loss(model, base, lora, batch, K, fused)))(lora, base)

    with jax.default_matmul_precision("highest"):
        literal, fused = (gradient(jnp.float32, "xla", fused) for fused in (False, True))
    xla, cudnn = (gradient(jnp.bfloat16, attention, True) for attention in ("xla", "cudnn"))
    return {
        "loop, fused against literal, float32": (distance(fused, literal), 1e-4),
        # The distance of bfloat16 from float32 is the model's own at this precision; cuDNN may take twice as much.
        "training gradient, cuDNN, bfloat16": (distance(cudnn, literal), max(2 * distance(xla, literal), 2.0**-6)),
    }


def speed(options: Any) -> dict[str, str]:
    """Times as multiples of the prefix pass through XLA."""
    calls = {}
    for attention in ("xla", "cudnn"):
        model, shapes, batch = make(options, jnp.bfloat16, "full", attention)
        variables = {"params": draw(shapes["base"]), "lora": draw(shapes["lora"], 1)}
        start = jax.jit(
            lambda variables, model=model, batch=batch: prefill(
                model, variables, embed(model, variables, batch), batch["next_position"]
            )
        )
        train = jax.jit(
            jax.value_and_grad(
                lambda lora, base, model=model, batch=batch: loss(model, base, lora, batch, K), argnums=0
            )
        )
        calls[f"prefix pass, {attention}"] = lambda start=start, variables=variables: start(variables)
        calls[f"training step, K={K}, {attention}"] = lambda train=train, v=variables: train(v["lora"], v["params"])
    z0, prompt = start(variables)
    step = jax.jit(
        lambda variables, prompt, z0: extend(
            model, variables, prompt, empty_suffix(prompt, 1, K), z0[:, None, None],
            prompt.next_position[:, None, None], (jnp.arange(K) == 0)[None, None, None], 0,
        )
    )  # fmt: skip
    calls["one latent step"] = lambda: step(variables, prompt, z0)
    return alternate(calls, options.repeats)


def main() -> int:
    """Prints the tables."""
    options = arguments(__doc__, width=2048, layers=8, prefix=1024, rows=4, head=128, vocab=32768)
    if jax.default_backend() != "gpu":
        print(
            f"no NVIDIA GPU: jax runs on {jax.default_backend()} here. pip install 'vital_jax[cuda]' on a machine that has one"
        )
        return 2
    print(device())
    print(
        f"D={options.width} L={options.layers} S={options.prefix} B={options.rows} T={options.answer} H={options.head} K={K}\n"
    )
    print("| check | difference | allowed | |")
    print("|---|---|---|---|")
    failed = False
    for name, (difference, allowed) in {**attention_checks(), **loop_checks(options)}.items():
        failed |= not difference <= allowed
        print(f"| {name} | {difference:.1e} | {allowed:.1e} | {'ok' if difference <= allowed else 'FAILED'} |")
    print(f"\nmedian (quartiles) of {options.repeats} alternating rounds, bfloat16\n")
    print("| what | time against the first |")
    print("|---|---|")
    for name, ratio in speed(options).items():
        print(f"| {name} | {ratio} |")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
