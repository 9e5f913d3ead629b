"""A base in int8: how far a kernel moves, that the products are those of the kernel kept, and what it must not be used for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from vital_jax.models.backbone import abstract_backbone
from vital_jax.models.layers import Linear
from vital_jax.models.lora import merge_lora
from vital_jax.models.quantize import SCALE, is_scale, quantize, quantized_shapes, scale_of
from vital_jax.training.partition import flatten, unflatten

# Prompts without images: the tower is not what is quantised.
TEXT = {name: x[:, :0] if name == "patches" else x for name, x in toy.batch(rows=2).items()}


def in_int8(base: dict, dtype=jnp.float32) -> dict:
    """A toy base as a quantised model keeps it."""
    leaves = flatten(base)
    for path, leaf in flatten(quantized_shapes(base, "int8")).items():
        if leaf.dtype == jnp.int8:
            stack = [quantize(np.asarray(kernel), dtype) for kernel in leaves[path]]
            leaves[path], leaves[scale_of(path)] = (jnp.asarray(np.stack(parts)) for parts in zip(*stack, strict=True))
    return unflatten(leaves)


def widened(base: dict) -> dict:
    """The same kernels as plain numbers."""
    leaves = flatten(base)
    scales = {path: leaves.pop(path) for path in list(leaves) if is_scale(path)}
    kernels = {path.removesuffix(SCALE) + "kernel": scale for path, scale in scales.items()}
    return unflatten(
        {path: leaf * kernels[path][..., None] if path in kernels else leaf for path, leaf in leaves.items()}
    )


@pytest.fixture(scope="module")
def params():
    tree = toy.params(toy.method())
    return {"base": in_int8(tree["base"]), "lora": tree["lora"], "exact": tree["base"]}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_number_moves_by_half_a_step_at_most(dtype):
    kernel = np.random.default_rng(0).standard_normal((16, 300)).astype(np.float32)
    kernel *= 10.0 ** np.arange(-8, 8)[:, None]  # every output has a scale of its own
    kernel[3] = 0
    q, scale = quantize(kernel, dtype)
    assert q.dtype == np.int8 and scale.dtype == dtype and scale.shape == (16,)
    assert np.all(np.abs(q).max(1)[np.arange(16) != 3] >= 126) and not q[3].any()
    step = scale.astype(np.float32)[:, None]
    moved = np.abs(q * step - kernel)
    inside = np.abs(kernel) < 127 * step  # a scale rounded down leaves the largest number outside by a rounding
    assert np.all(moved[inside] <= 0.5001 * np.broadcast_to(step, kernel.shape)[inside])
    assert np.all(moved <= 0.8 * step)


def test_the_decoders_kernels_alone_are_kept_so():
    model = toy.backbone(quantize="int8")
    shapes, plain = flatten(abstract_backbone(model)), flatten(abstract_backbone(toy.backbone()))
    changed = {path for path in plain if shapes[path].dtype == jnp.int8}
    assert changed == {path for path in plain if path.startswith("language_model/layers/") and path.endswith("/kernel")}
    assert set(shapes) - set(plain) == {scale_of(path) for path in changed}
    assert all(shapes[scale_of(path)].shape == shapes[path].shape[:2] for path in changed)
    with pytest.raises(ValueError, match="unknown quantize 'int3': use one of '', 'int8'"):
        abstract_backbone(toy.backbone(quantize="int3"))


def test_logits_and_adapter_gradients_are_those_of_the_kernel_kept(params):
    def step(base, remat="none"):
        model = toy.backbone(remat=remat)

        def loss(lora):
            logits = model.apply({"params": base, "lora": lora}, TEXT)
            return jnp.sum(jnp.sin(logits)), logits

        with jax.default_matmul_precision("highest"):
            return jax.jit(jax.grad(loss, has_aux=True))(params["lora"])

    expected = step(widened(params["base"]))
    assert float(jnp.abs(expected[1]).max()) > 1
    for remat in ("none", "full"):
        got = step(params["base"], remat)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


def test_the_backward_pass_keeps_no_wide_kernels(params):
    """Without remat, in bfloat16: what is kept for it holds the int8 kernels and no copy of them."""
    model = toy.backbone(remat="none", dtype=jnp.bfloat16)
    loss = lambda lora: jnp.sum(model.apply({"params": params["base"], "lora": lora}, TEXT))  # noqa: E731
    kept = jax.tree.leaves(jax.eval_shape(lambda lora: jax.vjp(loss, lora)[1], params["lora"]))
    kernels = {leaf.shape for leaf in jax.tree.leaves(params["base"]) if leaf.dtype == jnp.int8}
    assert {leaf.dtype for leaf in kept if leaf.shape in kernels} <= {jnp.dtype(jnp.int8)}


def test_a_quantised_kernel_takes_no_merge(params):
    with pytest.raises(ValueError, match="cannot be merged into a quantised base"):
        merge_lora(params["base"], params["lora"], toy.LORA)


def test_scales_are_used_where_they_are_given():
    x = jnp.asarray([[1.0, 2.0]])
    kernel, scale = jnp.asarray([[3, -1], [2, 5]], jnp.int8), jnp.asarray([0.5, 4.0])
    given = {"params": {"kernel": kernel, SCALE: scale}}
    np.testing.assert_array_equal(Linear(2).apply(given, x), [[0.5, 48.0]])
