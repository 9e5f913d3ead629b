"""What the benchmarks of the loop share: a mid-size random model (Qwen3-VL's language model, text prompts, adapters on) and a clock."""

import argparse
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vital_jax.latent.interpret import run
from vital_jax.latent.loop import embed, prefill
from vital_jax.latent.loss import cross_entropy
from vital_jax.models.backbone import Backbone, abstract_backbone
from vital_jax.models.config import BackboneConfig, DecoderConfig, LoraConfig, VisionConfig
from vital_jax.models.lora import init_lora
from vital_jax.pipeline.segments import Segment, Suffix


def arguments(
    description: str,
    words: Mapping[str, Sequence[str] | None] | None = None,
    flags: Sequence[str] = (),
    **defaults: int,
) -> argparse.Namespace:
    """The sizes and the number of repeats, from the command line.

    Args:
      words: further options by name, with what they may be (the first is the default), or None for any word.
      flags: options without a value.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    for name, choices in (words or {}).items():
        parser.add_argument(f"--{name}", choices=choices, default=choices[0] if choices else None)
    for name in flags:
        parser.add_argument(f"--{name}", action="store_true")
    sizes = {"width": 512, "layers": 8, "prefix": 512, "rows": 2, "answer": 16, "head": 64, "vocab": 4096, **defaults}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--repeats", type=int, default=7)
    return parser.parse_args()


def alternate(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, str]:
    """Each call's time as a multiple of the first's: median and quartiles over `repeats` rounds after one warm-up round.

    Every round runs all calls in turn and its ratios are its own, so a slow minute of the machine hits all alike.
    """
    rounds = []
    for _ in range(repeats + 1):
        seconds = []
        for call in calls.values():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds.append(time.perf_counter() - start)
        rounds.append(np.asarray(seconds) / seconds[0])
    low, middle, high = np.quantile(rounds[1:], (0.25, 0.5, 0.75), axis=0)
    return {name: f"{m:.2f} ({a:.2f} to {b:.2f})" for name, m, a, b in zip(calls, middle, low, high, strict=True)}


def device() -> str:
    """What ran the numbers: device kind, cores, versions."""
    kind = jax.devices()[0].device_kind
    return f"{len(jax.devices())} x {kind}, {os.cpu_count()} host cores, jax {jax.__version__}, Python {platform.python_version()}"


def make(options: argparse.Namespace, dtype: Any, remat: str = "none", attention: str = "xla"):
    """Model, shapes of base (in `dtype`) and adapters (float32), and a text batch whose rows are unequal in length.

    The tower is there because the model has one; a batch without patches never runs it.
    """
    N = options.width // options.head
    decoder = DecoderConfig(
        options.vocab, options.width, options.layers, N, N // 2, options.head, 3 * options.width, 5e6,
        mrope_section=(options.head // 2 - 2 * (options.head // 6), options.head // 6, options.head // 6),
    )  # fmt: skip
    vision = VisionConfig(8, 1, 1, 8, options.width, (), 2, patch=2)
    lora = LoraConfig(rank=16, alpha=32.0, dropout=0.0)
    model = Backbone(BackboneConfig("qwen3_vl", decoder, vision, 1, 2, 3), lora, remat, attention, dtype)
    base = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), abstract_backbone(model))
    adapters = jax.eval_shape(lambda key: init_lora(decoder, lora, key), jax.random.key(0))
    r = np.random.default_rng(0)
    B, S = options.rows, options.prefix
    lengths = np.linspace(S, max(1, S - S // 4), B).astype(np.int32)
    tokens = np.where(np.arange(S) < lengths[:, None], r.integers(0, options.vocab, (B, S)), 0).astype(np.int32)
    positions = np.where(np.arange(S) < lengths[:, None], np.arange(S), 0)
    batch = {
        "tokens": tokens,
        "lengths": lengths,
        "positions": np.repeat(positions[:, None], 3, axis=1).astype(np.int32),
        "next_position": lengths,
        "patches": np.zeros((B, 0, vision.patch_width), np.float32),
        "answer": r.integers(0, options.vocab, (B, options.answer)).astype(np.int32),
    }
    return model, {"base": base, "lora": adapters}, batch


def draw(shapes: Any, seed: int = 0) -> Any:
    """Random values of these shapes, every matrix N(0, 1 / fan-in)."""
    r = np.random.default_rng(seed)
    one = lambda x: jnp.asarray(r.normal(size=x.shape) * x.shape[-1] ** -0.5, x.dtype)  # noqa: E731
    return jax.tree.map(one, shapes)


def loss(model: Backbone, base: Any, lora: Any, batch: dict[str, Any], K: int, fused: bool = True) -> jax.Array:
    """Mean answer loss through the cached loop, every row with K steps."""
    variables = {"params": base, "lora": lora}
    z0, prompt = prefill(model, variables, embed(model, variables, batch), batch["next_position"])
    rows, T = batch["answer"].shape
    columns = {"answer": batch["answer"], "answer_mask": jnp.ones((rows, T), bool), "latent_steps": jnp.full(rows, K)}
    found = run(model, variables, prompt, z0[:, None], suffix(K, T), columns, fused=fused)
    return answer_loss(model, base, found.reads["answer"], batch["answer"][:, None])


def suffix(K: int, T: int) -> Suffix:
    """K latents, then an answer of T tokens."""
    return Suffix((Segment("latent", "latent", K), Segment("tokens", "answer", T, source="answer")))


def answer_loss(model: Backbone, base: Any, h: jax.Array, answer: jax.Array) -> jax.Array:
    """Mean cross entropy of answers [B, G, T] under states [B, G, T, D]."""
    head = model.apply({"params": base}, method="head")
    h = model.apply({"params": base}, h, method="head_input")
    total, _ = cross_entropy(h, head, answer, jnp.full(answer.shape, 1 / answer.size))
    return total
