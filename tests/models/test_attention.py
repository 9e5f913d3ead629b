"""The attention door against a softmax written in loops, and the TPU kernel (interpreted) against the XLA form."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vital_jax.models import attention
from vital_jax.models.attention import Causal, Segments, attend, dense_mask

# Float32 sums of at most a few dozen terms of order one, taken in another order.
CLOSE = dict(rtol=1e-5, atol=2e-6)


def naive(q, prefix_kv, suffix_kv, mask):
    """[B, G, U, N, H] in float64, one query at a time."""
    B, G, U, N, H = q.shape
    M = suffix_kv[0].shape[-2]
    S = 0 if prefix_kv is None else prefix_kv[0].shape[1]
    mask = np.broadcast_to(mask, (B, G, U, S + suffix_kv[0].shape[2]))
    out = np.zeros(q.shape, np.float64)
    for b, g, u, n in np.ndindex(B, G, U, N):
        m = n // (N // M)
        k, v = (np.asarray(x[b, g, :, m], np.float64) for x in suffix_kv)
        if prefix_kv is not None:
            k, v = (np.concatenate([x[b, :, m], own]) for x, own in zip(prefix_kv, (k, v), strict=True))
        seen = mask[b, g, u]
        if seen.any():
            scores = k[seen] @ np.asarray(q[b, g, u, n], np.float64) / np.sqrt(H)
            weights = np.exp(scores - scores.max())
            out[b, g, u, n] = weights / weights.sum() @ v[seen]
    return out


def draw(B, G, U, S, own, N, M, H, seed=0, dtype=np.float32):
    """Queries, prefix (None where S is 0), suffix and a random mask in which some rows see nothing."""
    r = np.random.default_rng(seed)
    make = lambda *shape: r.normal(size=shape).astype(dtype)  # noqa: E731
    prefix = (make(B, S, M, H), make(B, S, M, H)) if S else None
    mask = r.random((B, G, U, S + own)) < 0.6
    mask[0, 0, 0] = False
    mask[-1, -1, -1] = False
    return make(B, G, U, N, H), prefix, (make(B, G, own, M, H), make(B, G, own, M, H)), mask


SHAPES = {  # B, G, U, S, own, N, M, H
    "four queries per key, groups over a prefix": (2, 3, 2, 7, 5, 8, 2, 4),
    "one query head per key head, no prefix": (3, 1, 4, 0, 4, 3, 3, 8),
    "one key head, one query": (1, 2, 1, 9, 3, 4, 1, 16),
    "a prefix and no slot of its own before": (2, 1, 3, 5, 3, 6, 3, 2),
}


@pytest.fixture(scope="module")
def door():
    return jax.jit(attend)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_a_softmax_in_loops(door, shape):
    q, prefix, suffix, mask = draw(*SHAPES[shape])
    got = door(q, prefix, suffix, mask)
    np.testing.assert_allclose(got, naive(q, prefix, suffix, mask), **CLOSE)
    assert not np.any(got[0, 0, 0]) and not np.any(got[-1, -1, -1])


@pytest.mark.parametrize("narrow", [(1, 1, 2, 12), (2, 1, 1, 12), (2, 3, 1, 1)])
def test_masks_broadcast(door, narrow):
    q, prefix, suffix, _ = draw(*SHAPES["four queries per key, groups over a prefix"])
    mask = np.random.default_rng(1).random(narrow) < 0.5
    np.testing.assert_allclose(door(q, prefix, suffix, mask), naive(q, prefix, suffix, mask), **CLOSE)


def test_a_call_with_groups_equals_the_groups_alone(door):
    q, prefix, suffix, mask = draw(*SHAPES["four queries per key, groups over a prefix"])
    together = door(q, prefix, suffix, mask)
    for g in range(q.shape[1]):
        cut = slice(g, g + 1)
        alone = door(q[:, cut], prefix, tuple(x[:, cut] for x in suffix), mask[:, cut])
        np.testing.assert_allclose(together[:, cut], alone, **CLOSE)


IDS = np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], [3, 0, 3, 1, 1, 0]], np.int32)
LENGTHS = np.array([6, 4, 1, 0], np.int32)


def causal(lengths, U):
    seen = np.zeros((len(lengths), 1, U, U), bool)
    for b, n in enumerate(lengths):
        for i in range(n):
            seen[b, 0, i, : i + 1] = True
    return seen


def segments(ids):
    seen = np.zeros((len(ids), 1, ids.shape[1], ids.shape[1]), bool)
    for b, i, j in np.ndindex(len(ids), *[ids.shape[1]] * 2):
        seen[b, 0, i, j] = ids[b, i] == ids[b, j] != 0
    return seen


@pytest.mark.parametrize("mask, seen", [(Causal(LENGTHS), causal(LENGTHS, 6)), (Segments(IDS), segments(IDS))])
def test_structured_masks_are_the_dense_ones(door, mask, seen):
    np.testing.assert_array_equal(dense_mask(mask, 6), seen)
    q, _, suffix, _ = draw(4, 1, 6, 0, 6, 4, 2, 8)
    np.testing.assert_allclose(door(q, None, suffix, mask), naive(q, None, suffix, seen), **CLOSE)


def test_gradients_are_those_of_the_plain_formula():
    """Against the same function with both blocks laid side by side, prefix copied per group, heads copied per query head."""

    def plain(q, prefix, suffix, mask):
        G, N, M = q.shape[1], q.shape[3], suffix[0].shape[3]
        k, v = (
            jnp.repeat(jnp.concatenate([jnp.repeat(p[:, None], G, 1), s], axis=2), N // M, axis=3)
            for p, s in zip(prefix, suffix, strict=True)
        )
        scores = jnp.where(mask[:, :, None], jnp.einsum("bgunh,bgsnh->bgnus", q, k) / jnp.sqrt(q.shape[-1]), -jnp.inf)
        return jnp.einsum("bgnus,bgsnh->bgunh", jax.nn.softmax(scores, axis=-1), v)

    q, prefix, suffix, mask = draw(*SHAPES["four queries per key, groups over a prefix"])
    mask[..., -1] = True  # the plain softmax has no answer for a row that sees nothing
    weight = np.random.default_rng(2).normal(size=q.shape).astype(np.float32)
    grads = [
        jax.jit(jax.grad(lambda *a, f=f: jnp.sum(weight * f(*a, mask)), argnums=(0, 1, 2)))(q, prefix, suffix)
        for f in (attend, plain)
    ]
    for ours, theirs in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)
        assert np.max(np.abs(ours)) > 0.1


def test_rows_that_see_nothing_have_no_gradient():
    q, prefix, suffix, mask = draw(*SHAPES["four queries per key, groups over a prefix"])
    for seen in (mask, np.zeros_like(mask)):
        loss = lambda q, prefix, suffix, seen=seen: jnp.sum(jnp.sin(attend(q, prefix, suffix, seen)))  # noqa: E731
        grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, prefix, suffix)
        assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
        assert not np.any(grads[0][0, 0, 0])
        assert np.any(grads[1][1]) == seen.any()


def test_a_query_that_is_not_a_number_stays_alone(door):
    q, prefix, suffix, mask = draw(*SHAPES["four queries per key, groups over a prefix"])
    clean = door(q, prefix, suffix, mask)
    q[0, 0, 0] = np.nan
    np.testing.assert_array_equal(door(q, prefix, suffix, mask), clean)  # it sees nothing: zeros
    q[1, 1, 1] = np.nan
    dirty = np.array(door(q, prefix, suffix, mask))
    assert np.all(np.isnan(dirty[1, 1, 1]))
    dirty[1, 1, 1] = clean[1, 1, 1]
    np.testing.assert_array_equal(dirty, clean)


def test_large_scores_do_not_overflow(door):
    q, prefix, suffix, mask = draw(*SHAPES["four queries per key, groups over a prefix"])
    got = door(q * 1e4, prefix, suffix, mask)
    np.testing.assert_allclose(
        got, naive(q * 1e4, prefix, suffix, mask), rtol=1e-3, atol=1e-3
    )  # near ties of 1e4-sized scores


@pytest.mark.parametrize("S", [0, 2048])
def test_half_precision_sums_in_float32(door, S):
    """A bfloat16 sum of ones stops at 256. Equal scores make the mean of v, and scores of 512 products must tell 512 from 513."""
    keys, H = 4096, 512
    own = keys - S
    ones = jnp.ones((1, 1, own, 1, H), jnp.bfloat16), jnp.ones((1, S, 1, H), jnp.bfloat16)
    prefix = (jnp.zeros_like(ones[1]), ones[1]) if S else None
    mask = np.ones((1, 1, 1, keys), bool)
    got = door(jnp.zeros((1, 1, 1, 1, H), jnp.bfloat16), prefix, (jnp.zeros_like(ones[0]), ones[0]), mask)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, jnp.ones_like(got))

    # Two keys: all ones, and ones with one entry 17. Queries of sqrt(512) * 1/16 make scores 32 and 33 exactly representable sums.
    q = jnp.full((1, 1, 1, 1, H), np.sqrt(H) / 16, jnp.bfloat16)
    scale = float(jnp.asarray(H**-0.5, jnp.bfloat16) * q[0, 0, 0, 0, 0])
    k = jnp.ones((1, 1, 2, 1, H), jnp.bfloat16).at[0, 0, 1, 0, 0].set(17)
    v = jnp.stack([jnp.zeros((1, H)), jnp.ones((1, H))])[None, None].astype(jnp.bfloat16)
    got = door(q, None, (k, v), np.ones((1, 1, 1, 2), bool))
    np.testing.assert_allclose(np.float64(got[0, 0, 0, 0, 0]), 1 / (1 + np.exp(-16 * scale)), rtol=2.0**-8)


def test_half_precision_is_near_single(door):
    q, prefix, suffix, mask = draw(*SHAPES["four queries per key, groups over a prefix"])
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (q, prefix, suffix))
    single = door(*jax.tree.map(lambda x: x.astype(jnp.float32), half), mask)
    # Three roundings to eight bits (scaled query, weight, result) of values below 4.
    np.testing.assert_allclose(door(*half, mask).astype(jnp.float32), single, atol=3 * 4 * 2.0**-9)


def test_a_structured_mask_beside_a_prefix_is_refused():
    q, prefix, suffix, _ = draw(2, 1, 4, 3, 4, 2, 2, 4)
    with pytest.raises(ValueError, match="Causal describes the suffix block alone; give a Suffix beside a prefix"):
        attend(q, prefix, suffix, Causal(np.array([4, 4])))


def test_an_unknown_implementation_is_refused():
    q, _, suffix, mask = draw(2, 1, 4, 0, 4, 2, 2, 4)
    with pytest.raises(ValueError, match="unknown attention implementation 'flash': use xla, splash, cudnn or auto"):
        attend(q, None, suffix, mask, "flash")


@pytest.fixture(params=[128, 512])
def interpreted(monkeypatch, request):
    """The TPU kernel behind the door, interpreted: over two blocks, and over one."""
    kernel = functools.partial(attention._splash, interpret=True, largest=request.param)
    monkeypatch.setitem(attention._LONG, "splash", kernel)


SPLASH = {  # 256 columns
    "causal, uneven lengths": Causal(np.array([256, 130, 1, 128], np.int32)),
    "segments and padding": Segments(
        np.stack(
            [
                np.repeat([1, 2, 0], [100, 60, 96]),
                np.repeat([1], [256]),
                np.repeat([0, 1, 2, 0], [5, 130, 120, 1]),
                np.repeat([1, 2], [128, 128]),
            ]
        ).astype(np.int32)
    ),
}


def step(mask, implementation):
    """Output and gradients of a scalar of the real queries."""
    exists = (attention._segments(mask, 256) > 0)[:, None, :, None, None]

    def loss(q, k, v):
        out = attend(q[:, None], None, (k[:, None], v[:, None]), mask, implementation)
        return jnp.sum(jnp.where(exists, jnp.sin(3 * out), 0)), out

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("kind", SPLASH)
def test_splash_equals_xla_forward_and_backward(interpreted, caplog, kind, devices):
    from vital_jax.training.sharding import make_mesh

    r = np.random.default_rng(3)
    q, k, v = (r.normal(size=(4, 256, n, 64)).astype(np.float32) for n in (4, 2, 2))
    mask = SPLASH[kind]
    with jax.set_mesh(make_mesh(2, devices // 4, 2) if devices > 1 else jax.make_mesh((), ())):
        ours = step(mask, "splash")(q, k, v)
    theirs = step(mask, "xla")(q, k, v)
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.max(np.abs(b)))
    assert not caplog.records


def test_padding_goes_through_splash_as_zeros(interpreted):
    """Whatever stands on padding, infinities included, comes out as zeros and reaches no gradient."""
    r = np.random.default_rng(4)
    q, k, v = (r.normal(size=(4, 256, n, 64)).astype(np.float32) for n in (2, 1, 1))
    mask = SPLASH["segments and padding"]
    clean = step(mask, "splash")(q, k, v)
    dirty = [np.where(mask.ids[:, :, None, None] > 0, x, np.inf) for x in (q, k, v)]
    for a, b in zip(*map(jax.tree.leaves, (clean, step(mask, "splash")(*dirty))), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.any(clean[1][0, 0, 160:])


REFUSED = {
    "splash, 100 queries": ("splash", 100, Causal, np.float32, "100 queries are not a multiple of 128"),
    "cudnn, segments": ("cudnn", 128, Segments, jnp.bfloat16, "segment masks are not taken"),
    "cudnn, float32": ("cudnn", 128, Causal, np.float32, "float32 is not taken"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_kernel_cannot_take_goes_to_xla_and_is_said_once(caplog, case):
    implementation, U, kind, dtype, reason = REFUSED[case]
    attention._say_once.cache_clear()
    q = jnp.asarray(np.random.default_rng(5).normal(size=(2, 1, U, 2, 8)), dtype)
    mask = kind(np.array([U, 3])) if kind is Causal else kind(np.ones((2, U), np.int32))
    with caplog.at_level(logging.WARNING):
        first, second = (attend(q, None, (q, q), mask, implementation) for _ in range(2))
    assert [record.getMessage() for record in caplog.records] == [
        f"{implementation} attention handed over to XLA: {reason}"
    ]
    np.testing.assert_array_equal(first, attend(q, None, (q, q), mask, "xla"))
    np.testing.assert_array_equal(first, second)


def test_rows_that_do_not_divide_by_the_mesh_go_to_xla(interpreted, caplog):
    from vital_jax.training.sharding import make_mesh

    attention._say_once.cache_clear()
    q = jnp.ones((3, 1, 128, 2, 8))
    with jax.set_mesh(make_mesh(2, 2, 2)), caplog.at_level(logging.WARNING):
        jax.jit(lambda q: attend(q, None, (q, q), Causal(np.array([128, 3, 1])), "splash"))(q)
    assert "3 rows and 2 key heads do not divide by the mesh's 4 and 2" in caplog.text


def test_short_and_grouped_queries_stay_with_xla_without_a_word(caplog):
    q, prefix, suffix, mask = draw(*SHAPES["four queries per key, groups over a prefix"])
    np.testing.assert_array_equal(attend(q, prefix, suffix, mask, "splash"), attend(q, prefix, suffix, mask, "xla"))
    assert not caplog.records
