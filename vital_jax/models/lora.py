"""Low-rank adapters on the language model's seven projections: their parameters, and merging them into the base.

Applying them is `layers.Linear`'s business; here is only the tree. Shapes and start are PEFT's: A [rank, in] uniform in +-1/sqrt(in),
B [out, rank] zero, update (alpha / rank) B A. The vision tower and its mergers carry none (VITAL B.2; a suffix list would reach other
towers' `gate_proj`).
"""

from typing import Any

import jax
import jax.numpy as jnp

from vital_jax.models.config import DecoderConfig, LoraConfig
from vital_jax.models.quantize import SCALE


def _shapes(config: DecoderConfig) -> dict[tuple[str, str], tuple[int, int]]:
    """(module, projection) -> (out, in)."""
    queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
    return {
        ("self_attn", "q_proj"): (queries, config.width),
        ("self_attn", "k_proj"): (keys, config.width),
        ("self_attn", "v_proj"): (keys, config.width),
        ("self_attn", "o_proj"): (config.width, queries),
        ("mlp", "gate_proj"): (config.ffn, config.width),
        ("mlp", "up_proj"): (config.ffn, config.width),
        ("mlp", "down_proj"): (config.width, config.ffn),
    }


def init_lora(config: DecoderConfig, lora: LoraConfig, key: jax.Array) -> dict[str, Any]:
    """The `lora` tree of a Qwen3-VL: {language_model: {layers: {...: {a: [L, rank, in], b: [L, out, rank]}}}}, float32."""
    layers: dict[str, Any] = {}
    shapes = _shapes(config)
    for (module, projection), (out, width), at in zip(
        shapes, shapes.values(), jax.random.split(key, len(shapes)), strict=True
    ):
        bound = width**-0.5
        layers.setdefault(module, {})[projection] = {
            "a": jax.random.uniform(at, (config.layers, lora.rank, width), jnp.float32, -bound, bound),
            "b": jnp.zeros((config.layers, out, lora.rank), jnp.float32),
        }
    return {"language_model": {"layers": layers}}


def merge_lora(base: dict[str, Any], lora: dict[str, Any], config: LoraConfig) -> dict[str, Any]:
    """The base with every adapter added into its kernel (in float32, kept in the kernel's dtype). For inference and export.

    Raises: KeyError naming an adapter that has no kernel in the base; ValueError for a base that is quantised.
    """
    if set(lora) == {"a", "b"}:
        if SCALE in base:
            raise ValueError(
                "adapters cannot be merged into a quantised base: load it without quantize, or use vital export"
            )
        update = jnp.einsum("lor,lri->loi", lora["b"].astype(jnp.float32), lora["a"].astype(jnp.float32))
        kernel = base["kernel"].astype(jnp.float32) + update * (config.alpha / config.rank)
        return {**base, "kernel": kernel.astype(base["kernel"].dtype)}
    return {**base, **{name: merge_lora(base[name], part, config) for name, part in lora.items()}}
