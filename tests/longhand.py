"""Equations of the paper in NumPy and float64, for tests to compare with."""

import math

import jax
import numpy as np


def scores(h, head):
    """log_softmax of h [n, D] over head [V, D]."""
    logits = np.asarray(h, np.float64) @ np.asarray(head, np.float64).T
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def project(params, z, kind, norm):
    """Equation 5 and the rows of Table 13, z [K, D] -> [K, E], in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    z = np.asarray(z, np.float64)

    def layer_norm(x, scale, bias):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + bias

    def linear(x, name):
        return x @ p[name]["kernel"].T + p[name]["bias"]

    def gelu(x):
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    if kind == "linear":
        return linear(z, "w2")
    if kind == "mlp":
        return linear(gelu(linear(z, "w1")), "w2")
    x = layer_norm(z, **p["input_norm"])
    if kind == "transformer":
        a = p["attention"]
        q, k, v = (
            np.einsum("kd,dhe->hke", x, a[n]["kernel"]) + a[n]["bias"][:, None] for n in ("query", "key", "value")
        )
        weight = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1]))
        mixed = weight / weight.sum(-1, keepdims=True) @ v
        z = z + np.einsum("hke,hed->kd", mixed, a["out"]["kernel"]) + a["out"]["bias"]
        z = z + gelu(linear(layer_norm(z, **p["mlp_norm"]), "w1"))
    else:
        z = gelu(linear(x, "w1")) + (z if kind == "residual_mlp_ln" else 0)
    y = linear(z, "w2")
    if norm == "l2":
        return y / np.linalg.norm(y, axis=-1, keepdims=True)
    return layer_norm(y, **p["output_norm"])
