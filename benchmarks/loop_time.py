"""What the cache saves: one training step through the cached latent loop against K + 1 full passes, as ratios inside one run.

    python benchmarks/loop_time.py

The long form embeds the prompt, runs everything, appends the last state as the next input, and starts over: K times, then once more with
the answer. All forms compute the same loss and the same gradient with respect to the adapters; the largest difference is printed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from loop_model import alternate, answer_loss, arguments, device, draw, loss, make

from vital_jax.latent.loop import embed
from vital_jax.models.attention import Causal
from vital_jax.models.backbone import Backbone

K = 4


def uncached(model: Backbone, base: Any, lora: Any, batch: dict[str, Any]) -> jax.Array:
    """The loss by K + 1 full passes over columns that grow by one. All prompts are of one length."""
    variables = {"params": base, "lora": lora}
    prefix = embed(model, variables, batch)
    x, S, answer = prefix.x, prefix.x.shape[1], batch["answer"]

    def states(x):
        B, U, _ = x.shape
        positions = jnp.broadcast_to(jnp.arange(U), (3, B, 1, U))
        return model.apply(variables, x[:, None], positions, Causal(jnp.full(B, U)), method="decode")[0][:, 0]

    for _ in range(K):
        x = jnp.concatenate([x, states(x)[:, -1:]], axis=1)
    words = model.apply(variables, answer[:, :-1], method="embed_tokens")
    h = states(jnp.concatenate([x, words], axis=1))[:, S + K - 1 :]
    return answer_loss(model, base, h[:, None], answer[:, None])


def main() -> None:
    """Prints the table."""
    options = arguments(__doc__, width=256, layers=4, prefix=256)
    model, shapes, batch = make(options, jnp.float32)
    base, lora = draw(shapes["base"]), draw(shapes["lora"], 1)
    S = options.prefix
    batch = {**batch, "lengths": np.full(options.rows, S), "next_position": np.full(options.rows, S)}
    batch["positions"] = np.broadcast_to(np.arange(S, dtype=np.int32), (options.rows, 3, S))
    forms = {
        "cached, last step fused with the answer": lambda lora, base: loss(model, base, lora, batch, K),
        "cached, literal steps": lambda lora, base: loss(model, base, lora, batch, K, fused=False),
        f"uncached, {K + 1} full passes": lambda lora, base: uncached(model, base, lora, batch),
    }
    steps = {name: jax.jit(jax.value_and_grad(form)) for name, form in forms.items()}
    results = {name: jax.tree.leaves(step(lora, base)) for name, step in steps.items()}
    first = next(iter(results.values()))
    size = max(float(jnp.max(jnp.abs(g))) for g in first[1:])
    gap = lambda other: max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(first[1:], other[1:], strict=True)) / size  # noqa: E731
    ratios = alternate({name: lambda step=step: step(lora, base) for name, step in steps.items()}, options.repeats)
    print(device())
    print(
        f"D={options.width} L={options.layers} S={S} B={options.rows} T={options.answer} K={K}, float32, gradient of the adapters"
    )
    print(f"median (quartiles) of {options.repeats} alternating rounds\n")
    print("| form | loss | gradient differs by | time against the first |")
    print("|---|---|---|---|")
    for name, ratio in ratios.items():
        print(f"| {name} | {float(results[name][0]):.6f} | {gap(results[name]):.1e} | {ratio} |")


if __name__ == "__main__":
    main()
