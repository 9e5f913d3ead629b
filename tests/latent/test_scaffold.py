"""The visual projector against equation 5 and the rows of Table 13 in NumPy: values, parameters, lengths."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from longhand import project

from vital_jax.latent.scaffold import OUTPUT_NORMS, PROJECTORS, VisualProjector

K = 4


def count(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("kind", PROJECTORS)
def test_every_projector_equals_its_formula_and_has_its_parameters(kind):
    D, E = toy.WIDTH, toy.ROI
    w1, w2, norm = D * D + D, D * E + E, 2 * D
    inner = {
        "residual_mlp_ln": norm + w1 + w2,
        "mlp_ln": norm + w1 + w2,
        "mlp": w1 + w2,
        "linear": w2,
        "transformer": 4 * w1 + 2 * norm + w1 + w2,
    }[kind]
    z = np.random.default_rng(0).normal(size=(2, K, D)).astype(np.float32)
    for output_norm in OUTPUT_NORMS:
        projector = VisualProjector(E, kind, output_norm)
        shapes = jax.eval_shape(lambda p=projector: p.init(jax.random.key(0), z)["params"])
        last = 0 if kind in ("mlp", "linear") or output_norm == "l2" else 2 * E
        assert count(shapes) == inner + last
        drawn = toy.draw(shapes)
        got = projector.apply({"params": drawn}, z)
        assert got.shape == (2, K, E) and got.dtype == jnp.float32
        for row in range(2):
            np.testing.assert_allclose(got[row], project(drawn, z[row], kind, output_norm), rtol=1e-4, atol=1e-5)
        if output_norm == "l2" and kind not in ("mlp", "linear"):
            np.testing.assert_allclose(np.linalg.norm(got, axis=-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(("output_norm", "length"), [("ln", 1.0), ("ln_literal", math.sqrt(toy.ROI)), ("l2", 1.0)])
def test_a_fresh_projectors_output_has_the_length_its_norm_says(output_norm, length):
    z = np.random.default_rng(1).normal(size=(50, 1, toy.WIDTH)).astype(np.float32)
    projector = VisualProjector(toy.ROI, output_norm=output_norm)
    got = projector.apply(projector.init(jax.random.key(0), z), z)
    # LayerNorm's eps of 1e-5 shortens a vector of variance one by five parts in a million.
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), length, rtol=1e-4)


def test_an_unknown_kind_names_the_choices():
    for options in ({"kind": "nonsense"}, {"output_norm": "nonsense"}):
        with pytest.raises(ValueError, match=r"'nonsense'.*residual_mlp_ln.*ln_literal"):
            VisualProjector(3, **options).init(jax.random.key(0), jnp.zeros((1, 1, 8)))
