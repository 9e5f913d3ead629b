"""The kernel over a shared prefix, interpreted on the CPU, against torch's attention with an explicit mask and against our XLA path.

Values within 2e-6 (1 + the largest score), gradients of all five inputs within 1e-5 of their largest element; in bfloat16 within 2 % of it
(operands of the products inside the kernel are rounded, torch computes in float64). Shapes are compiled once each; lengths, masks and
magnitudes are data.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vital_jax.kernels.shared_prefix import Blocks, Tiling, shared_prefix
from vital_jax.models import attention
from vital_jax.models.attention import Suffix, attend

# B, G, U, N, M, H, S, U', dtype, sizes of blocks
SHAPES = [
    (2, 1, 1, 4, 1, 64, 40, 8, "float32", Blocks(256, 128, 128)),
    (2, 4, 1, 4, 1, 128, 200, 5, "float32", Blocks(256, 128, 128)),
    (2, 8, 1, 2, 2, 72, 130, 3, "float32", Blocks(32, 128, 128)),
    (2, 1, 8, 4, 4, 80, 129, 8, "float32", Blocks(256, 128, 128)),
    (2, 4, 8, 8, 2, 64, 70, 12, "float32", Blocks(64, 128, 128)),
    (1, 8, 8, 4, 1, 128, 140, 9, "float32", Blocks(128, 128, 128)),
    (2, 1, 33, 4, 1, 72, 100, 37, "float32", Blocks(64, 128, 128)),
    (1, 4, 33, 2, 2, 80, 256, 33, "float32", Blocks(256, 256, 128)),
    (1, 1, 512, 4, 1, 64, 128, 512, "float32", Blocks(256, 128, 256)),
    (2, 4, 1, 4, 1, 128, 200, 5, "bfloat16", Blocks(256, 128, 128)),
    (1, 8, 33, 4, 1, 64, 150, 40, "bfloat16", Blocks(128, 128, 128)),
    (1, 1, 512, 4, 1, 128, 128, 513, "bfloat16", Blocks(256, 128, 512)),
]
NAMES = ["q", "prefix keys", "prefix values", "suffix keys", "suffix values"]


def inputs(shape, seed, scale=1.0):
    """(q, prefix, suffix), (lengths, seen), (dO, dL): rows without a prefix or with one column, and queries that see nothing."""
    B, G, U, N, M, H, S, columns, dtype, _ = shape
    r = np.random.default_rng(seed)
    normal = lambda *size, scale=1.0: jnp.asarray(scale * r.normal(size=size), dtype)  # noqa: E731
    q = normal(B, G, U, N, H, scale=scale)
    prefix, suffix = (tuple(normal(B, *size, M, H) for _ in range(2)) for size in ((S,), (G, columns)))
    lengths = r.choice([0, 1, S, int(r.integers(1, S + 1))], B).astype(np.int32)
    branches = r.integers(0, 3, columns)
    seen = r.random((B, G, 1, columns)) < 0.8
    seen = seen & (np.arange(columns) <= r.integers(-1, columns, (B, G, U, 1)))
    seen = seen & (branches == r.integers(0, 3, (U, 1))) if seed % 2 else seen
    return (
        (q, prefix, suffix),
        (lengths, seen),
        (normal(B, G, U, N, H), jnp.asarray(r.normal(size=(B, G, U, N)), "float32")),
    )


@functools.cache
def compiled(blocks, function=shared_prefix):
    """(output, log-sum-exp), gradients of (q, prefix, suffix): all of one shape."""

    @jax.jit
    def both(arrays, masks, cotangents):
        run = lambda *arrays: function(*arrays, *masks, blocks, "", True)  # noqa: E731
        found, pull = jax.vjp(run, *arrays)
        return found, pull(cotangents)

    return both


def torch_side(arrays, masks, cotangents):
    """The same in float64: torch's scaled_dot_product_attention, and the log-sum-exp of its scores."""
    torch = pytest.importorskip("torch")
    q, *kvs = (torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in jax.tree.leaves(arrays))
    lengths, seen = masks
    B, G, U, N, H = q.shape
    S, M = kvs[0].shape[1:3]
    inside = np.broadcast_to((np.arange(S) < lengths[:, None])[:, None, None], (B, G, U, S))
    mask = torch.tensor(np.concatenate([inside, seen], -1))[:, :, None]
    k, v = (
        torch.cat([p[:, None].expand(B, G, S, M, H), s], 2).repeat_interleave(N // M, 3).transpose(2, 3)
        for p, s in (kvs[0::2], kvs[1::2])
    )
    rows = q.transpose(2, 3)  # [B, G, N, U, H]
    found = torch.nn.functional.scaled_dot_product_attention(rows, k, v, mask)
    blind = ~mask.any(-1, keepdim=True)
    found = torch.where(blind, 0.0, found).transpose(2, 3)
    scores = (rows @ k.transpose(-1, -2) * H**-0.5).masked_fill(~mask, -torch.inf)
    lse = torch.where(blind[..., 0], -1e30, torch.logsumexp(torch.where(blind, 0.0, scores), -1)).transpose(2, 3)
    do, dl = (torch.tensor(np.asarray(x, np.float64)) for x in cotangents)
    ((found * do).sum() + (lse * dl).sum()).backward()
    largest = torch.where(mask, scores, 0.0).abs().max().item()
    return (found.detach().numpy(), lse.detach().numpy()), [x.grad.numpy() for x in (q, *kvs)], largest


def worst(found, wanted):
    """The largest deviation, in units of the largest element (at least 1e-3)."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-3)


def compare(shape, seed, scale=1.0, function=shared_prefix):
    arrays, masks, cotangents = inputs(shape, seed, scale)
    (o, lse), gradients = compiled(shape[-1], function)(arrays, masks, cotangents)
    (wanted_o, wanted_lse), wanted, largest = torch_side(arrays, masks, cotangents)
    exact = shape[-2] == "float32"
    values = 2e-6 * (1 + largest) if exact else 2e-2
    np.testing.assert_allclose(
        np.asarray(o, np.float64), wanted_o, rtol=0, atol=values * max(1, np.abs(wanted_o).max())
    )
    np.testing.assert_allclose(lse, wanted_lse, rtol=1e-6, atol=values)
    for name, x, y in zip(NAMES, jax.tree.leaves(gradients), wanted, strict=True):
        assert worst(x, y) <= (1e-5 if exact else 2e-2), (name, seed)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_torch(shape):
    for seed in range(4 if shape[2] > 64 else 17):
        compare(shape, seed, scale=1.0 if seed % 3 else 4.0)


def test_through_attend_it_is_the_xla_path(monkeypatch):
    """The structured mask, as the decoder hands it in, and what XLA makes of it."""
    monkeypatch.setitem(attention._SHORT, "splash", functools.partial(attention._short, interpret=True))
    (q, prefix, suffix), (lengths, _), _ = inputs(SHAPES[4], 3)
    B, G, U = q.shape[:3]
    columns = suffix[0].shape[2]
    r = np.random.default_rng(0)
    real = jnp.asarray(r.random((B, G, columns)) < 0.9)
    last = jnp.asarray(r.integers(0, columns, (B, G, U)))
    for between in (None, jnp.asarray(r.random((U, columns)) < 0.7)):
        mask = Suffix(jnp.asarray(lengths), real, last, between)

        def loss(arrays, which, mask=mask):
            return jnp.sum(jnp.sin(attend(*arrays, mask, which)))

        arrays = (q, prefix, suffix)
        taken = str(jax.make_jaxpr(lambda *x: loss(x, "splash"))(*arrays))
        assert "shared_prefix_forward" in taken
        found, wanted = (jax.value_and_grad(loss)(arrays, which) for which in ("splash", "xla"))
        assert float(found[0]) == pytest.approx(float(wanted[0]), rel=1e-5)
        for x, y in zip(*map(jax.tree.leaves, (found[1], wanted[1])), strict=True):
            assert worst(x, y) <= 1e-5


@pytest.mark.parametrize(
    "B, G, U, N, M, H, S",
    [
        (1, 8, 512, 32, 8, 128, 1152),
        (8, 1, 1, 32, 8, 128, 1024),
        (4, 8, 1, 32, 8, 128, 350),
        (4, 1, 17, 28, 4, 128, 1024),
        (16, 1, 5, 4, 2, 32, 64),
    ],
    ids=["8B, update", "8B, latent step", "8B, rollout", "7B, answer", "bench"],
)
def test_shapes_that_matter_are_taken(B, G, U, N, M, H, S):
    dtype = jnp.float32 if H == 32 else jnp.bfloat16
    a = lambda *s, d=dtype: jax.ShapeDtypeStruct(s, d)  # noqa: E731
    mask = Suffix(a(B, d=jnp.int32), a(B, G, U, d=bool), a(B, G, U, d=jnp.int32))
    assert attention._short_refusal(a(B, G, U, N, H), a(B, S, M, H), mask) is None
    kv = lambda *s: (a(*s, M, H), a(*s, M, H))  # noqa: E731
    text = str(jax.make_jaxpr(lambda *x: attend(*x, "splash"))(a(B, G, U, N, H), kv(B, S), kv(B, G, U), mask))
    assert "shared_prefix_forward" in text and text.count("dot_general") < 20


def test_what_is_not_taken_goes_to_xla_and_is_said(caplog):
    attention._say_once.cache_clear()
    q, kv = jnp.zeros((1, 1, 2, 2, 12)), (jnp.zeros((1, 4, 2, 12)),) * 2
    mask = Suffix(jnp.array([3]), jnp.ones((1, 1, 2), bool), jnp.zeros((1, 1, 2), int))
    found = attend(q, kv, (jnp.zeros((1, 1, 2, 2, 12)),) * 2, mask, "splash")
    assert found.shape == q.shape
    assert "handed over to XLA: heads 12 wide are not a multiple of 8" in caplog.text


# --- mistakes that the comparison above has to catch ------------------------------------------------------------------


def spoiled(how):
    def function(q, prefix, suffix, lengths, seen, blocks, name, interpret):
        run = functools.partial(shared_prefix, blocks=blocks, name=name, interpret=interpret)
        if how == "mask off by one":
            return run(q, prefix, suffix, lengths, jnp.roll(seen, 1, -1))
        if how == "length ignored":
            return run(q, prefix, suffix, jnp.full_like(lengths, prefix[0].shape[1]), seen)
        if how == "scale twice":
            return run(q * q.shape[-1] ** -0.5, prefix, suffix, lengths, seen)
        if how == "log-sum-exp without gradient":
            o, lse = run(q, prefix, suffix, lengths, seen)
            return o, jax.lax.stop_gradient(lse)
        assert how == "prefix gradient of one group"
        o, lse = run(q, prefix, suffix, lengths, seen)
        rest = run(q, jax.lax.stop_gradient(prefix), suffix, lengths, seen)
        first = jnp.arange(q.shape[1])[:, None, None] == 0
        return jnp.where(first[..., None], o, rest[0]), jnp.where(first, lse, rest[1])

    return function


@pytest.mark.parametrize(
    "how",
    [
        "mask off by one",
        "length ignored",
        "scale twice",
        "log-sum-exp without gradient",
        "prefix gradient of one group",
    ],
)
def test_mistakes_are_caught(how):
    function = spoiled(how)
    with pytest.raises(AssertionError):
        for seed in range(6):
            compare(SHAPES[4], seed, function=function)


def test_packing_is_undone():
    for shape in SHAPES:
        (q, prefix, suffix), _, _ = inputs(shape, 0)
        t = Tiling.of(q, prefix[0], suffix[0], shape[-1])
        np.testing.assert_array_equal(t.unpacked(t.packed(q)), q)
        np.testing.assert_array_equal(t.from_prefix(t.prefix(prefix[0]), prefix[0].shape[1]), prefix[0])
        np.testing.assert_array_equal(t.from_suffix(t.suffix(suffix[0]), suffix[0].shape[2]), suffix[0])
        assert t.rows <= max(shape[-1].rows, 32 * t.R) and t.blocks * t.rows >= t.G * t.U * t.R
