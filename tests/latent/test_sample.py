"""The sampler against answers written the long way (no cache, one row, one token at a time), the training path and transformers' generate.

Programs of one shape are compiled once and shared: `ask` always hands over all arguments that a program has.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toy

from vital_jax.hub import parity
from vital_jax.hub.load import load_backbone
from vital_jax.latent.loop import embed, prefill, teacher_force
from vital_jax.latent.sample import Decoding, choose, respond, row_keys
from vital_jax.models.attention import Causal

CLOSE = dict(rtol=1e-5, atol=2e-5)  # float32, sums taken in another order
K, T, G = 4, 6, 3
FREE = Decoding(T, (toy.VOCAB,))  # a token that no row can write: answers run to their full length
DRAWN = Decoding(T, (3, 17, 40, 55), temperature=1.3, top_p=0.9)


@pytest.fixture(scope="module")
def setup():
    """The toy backbone, its variables, and prompts of unequal length with two images and 1, 2, 3 and 4 steps."""
    vital = toy.method()
    params = toy.params(vital)
    batch = toy.batch(K=K)
    assert len(set(batch["lengths"].tolist())) > 1 and batch["patch_segment"].max() == 2
    assert batch["latent_steps"].tolist() == [1, 2, 3, 4]
    return vital.model, {"params": params["base"], "lora": params["lora"]}, batch


@pytest.fixture(scope="module")
def greedy(setup):
    model, v, batch = setup
    return respond(model, v, batch, K, FREE)


@pytest.fixture(scope="module")
def keys():
    return row_keys(2, np.arange(4), G)


@pytest.fixture(scope="module")
def drawn(setup, keys):
    model, v, batch = setup
    found = respond(model, v, batch, K, DRAWN, G, keys)
    ended = np.isin(found.tokens, DRAWN.ends)
    assert np.any(ended[..., : T - 2]) and not np.all(ended.any(-1)), "some rows end early and some do not"
    assert len({tuple(row) for row in np.asarray(found.tokens).reshape(-1, T).tolist()}) > 9
    return found


def same(found, expected, **close):
    """Two samples: tokens equal, numbers close."""
    for name in found._fields:
        left, right = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(left, right, err_msg=name, **(CLOSE | close if name != "tokens" else {}))


# --- the long way -----------------------------------------------------------------------------------------------------


def nucleus(logits, top_p):
    """Logits [V] with -inf off the smallest set of likeliest tokens that holds top_p, and the equals of its last one: float64."""
    logits = np.asarray(logits, np.float64)
    share = np.exp(logits - logits.max())
    share /= share.sum()
    total, least = 0.0, np.inf
    for value in np.sort(share)[::-1]:
        if total >= top_p:
            break
        total, least = total + value, value
    return np.where(share >= least, logits, -np.inf)


def pick(logits, decoding, key):
    """One token of logits [V]."""
    if not decoding.temperature:
        return int(np.argmax(logits))
    warm = nucleus(np.asarray(logits, np.float64) / decoding.temperature, decoding.top_p)
    return int(jax.random.categorical(key, jnp.asarray(warm, jnp.float32)))


@functools.partial(jax.jit, static_argnums=0)
def whole(model, v, x, positions, deepstack, n):
    """One uncached pass over the first n columns: the last one's state and logits."""
    h, _ = model.apply(
        v, x[None, None], positions[:, None, None], Causal(n[None]), method="decode", deepstack=deepstack
    )
    return h[0, 0, n - 1], model.apply(v, h[0, 0, n - 1], method="logits")


def longhand(model, v, row, decoding, key=None, given=None):
    """u, z, tokens and log-probabilities of one row: the whole sequence is run again for every latent and every token."""
    prefix = jax.jit(embed, static_argnums=0)(model, v, row)
    n, steps = int(row["lengths"][0]), int(row["latent_steps"][0])
    S = prefix.x.shape[1]
    x = np.zeros((S + K + T, toy.WIDTH), np.float32)
    x[:n] = prefix.x[0, :n]
    positions = np.tile(int(row["next_position"][0]) + np.arange(len(x)) - n, (3, 1))
    positions[:, :n] = prefix.positions[:, 0, :n]
    deepstack = np.zeros((len(prefix.deepstack), 1, *x.shape), np.float32)
    deepstack[:, 0, :n] = prefix.deepstack[:, 0, :n]
    table = np.asarray(v["params"]["language_model"]["embed_tokens"]["embedding"])
    last = lambda: [np.asarray(y) for y in whole(model, v, x, positions, deepstack, np.int32(n))]  # noqa: E731

    u, z, tokens, log_probs = [], [], [], []
    h, logits = last()
    for k in range(steps):
        x[n] = h if given is None else given[k]
        u.append(x[n].copy())
        n += 1
        h, logits = last()
        z.append(h)
    for t in range(T):
        if tokens and tokens[-1] in decoding.ends:
            tokens += [decoding.ends[0]] * (T - t)
            log_probs += [0.0] * (T - t)
            break
        tokens.append(pick(logits, decoding, None if key is None else jax.random.fold_in(key, t)))
        log_probs.append(float(jax.nn.log_softmax(logits)[tokens[-1]]))
        x[n] = table[tokens[-1]]
        n += 1
        _, logits = last()
    return np.array(u), np.array(z), tokens, log_probs


def equals_longhand(found, b, g, expected):
    u, z, tokens, log_probs = expected
    np.testing.assert_array_equal(found.tokens[b, g], tokens)
    np.testing.assert_allclose(found.log_probs[b, g], log_probs, **CLOSE)
    for name, long in (("u", u), ("z", z)):
        ours = getattr(found, name)[b, g]
        np.testing.assert_allclose(ours[: len(long)], long, err_msg=name, **CLOSE)
        assert not np.any(ours[len(long) :]), f"{name} beyond the row's own steps"


def test_greedy_answers_equal_a_recomputation_without_any_cache(setup, greedy):
    model, v, batch = setup
    for b in range(4):
        equals_longhand(greedy, b, 0, longhand(model, v, toy.row(batch, b), FREE))


def test_drawn_answers_equal_a_recomputation_without_any_cache(setup, drawn, keys):
    model, v, batch = setup
    for b in range(4):
        for g in range(G):
            equals_longhand(drawn, b, g, longhand(model, v, toy.row(batch, b), DRAWN, keys[b, g]))


# --- batches and groups -----------------------------------------------------------------------------------------------


def test_a_greedy_batch_equals_its_rows_alone(setup, greedy):
    model, v, batch = setup
    for b in range(4):
        same(respond(model, v, toy.row(batch, b), K, FREE), jax.tree.map(lambda x, b=b: x[b : b + 1], greedy))


def test_rollouts_over_one_prefix_equal_single_runs_with_the_same_keys(setup, drawn, keys):
    """So a row's draws depend on neither its neighbours in the batch nor the other rollouts of its prompt."""
    model, v, batch = setup
    for b in range(4):
        for g in range(G):
            at = (slice(b, b + 1), slice(g, g + 1))
            alone = respond(model, v, toy.row(batch, b), K, DRAWN, 1, keys[at])
            same(alone, jax.tree.map(lambda x, at=at: x[at], drawn))


def test_keys_belong_to_prompts_and_rollouts(keys):
    data = lambda k: np.asarray(jax.random.key_data(k))  # noqa: E731
    np.testing.assert_array_equal(data(row_keys(2, np.array([3, 1]), 2)), data(keys)[[3, 1], :2])
    both = np.concatenate([data(keys).reshape(4 * G, -1), data(row_keys(3, np.arange(4), G)).reshape(4 * G, -1)])
    assert len(np.unique(both, axis=0)) == len(both)


def test_another_seed_compiles_nothing(setup, drawn, keys):
    model, v, batch = setup
    before = respond._cache_size()
    other = respond(model, v, batch, K, DRAWN, G, row_keys(7, np.arange(4), G))
    assert respond._cache_size() == before
    assert np.any(other.tokens != drawn.tokens)
    np.testing.assert_array_equal(other.z, drawn.z)


# --- the training path ------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def forced(model, v, batch, tokens):
    """What teacher forcing makes of given answers [B, G, T]: its thoughts and the answers' log-probabilities."""
    groups = tokens.shape[1]
    z0, prompt = prefill(model, v, embed(model, v, batch), batch["next_position"])
    spread = lambda x: jnp.repeat(x[:, None], groups, axis=1)  # noqa: E731
    found = teacher_force(model, v, prompt, spread(z0), tokens, spread(batch["latent_steps"]), K)
    scores = jax.nn.log_softmax(model.apply(v, found.h, method="logits"))
    return found, jnp.take_along_axis(scores, tokens[..., None], axis=-1)[..., 0]


def test_log_probs_and_latents_equal_the_training_path(setup, drawn):
    model, v, batch = setup
    expected, log_probs = forced(model, v, batch, drawn.tokens)
    for name in ("u", "z", "z0"):
        np.testing.assert_allclose(getattr(drawn, name), getattr(expected, name), err_msg=name, **CLOSE)
    ending = np.isin(drawn.tokens, DRAWN.ends)
    ended = np.cumsum(ending, axis=-1) - ending > 0
    np.testing.assert_allclose(drawn.log_probs, np.where(ended, 0, log_probs), **CLOSE)


# --- ends -------------------------------------------------------------------------------------------------------------


def test_an_answer_ends_at_any_of_its_ends(setup, greedy):
    model, v, batch = setup
    free = np.asarray(greedy.tokens)
    ends = int(free[0, 0, 2]), int(free[3, 0, 4])
    assert ends[0] != ends[1]
    found = respond(model, v, batch, K, Decoding(T, ends))
    stops = []
    for b in range(4):
        hits = np.flatnonzero(np.isin(free[b, 0], ends))
        n = int(hits[0]) + 1 if len(hits) else T
        stops += [int(free[b, 0, n - 1])] if len(hits) else []
        np.testing.assert_array_equal(found.tokens[b, 0], np.where(np.arange(T) < n, free[b, 0], ends[0]))
        np.testing.assert_allclose(found.log_probs[b, 0, :n], greedy.log_probs[b, 0, :n], **CLOSE)
        assert not np.any(found.log_probs[b, 0, n:])
    assert set(stops) == set(ends)


# --- given vectors ----------------------------------------------------------------------------------------------------


def test_given_vectors_stand_in_the_latent_slots_and_the_loops_own_are_the_loop(setup, greedy):
    model, v, batch = setup
    answer = lambda given: respond(model, v, batch, K, FREE, 1, None, given)  # noqa: E731
    same(answer(np.asarray(greedy.u)), greedy)  # the loop's own inputs, in one causal pass
    noise = np.random.default_rng(4).normal(size=greedy.u.shape).astype(np.float32)
    found = answer(noise)
    assert np.all(np.any(np.abs(found.log_probs - greedy.log_probs) > 1e-2, axis=-1))
    for b in range(4):
        equals_longhand(found, b, 0, longhand(model, v, toy.row(batch, b), FREE, given=noise[b, 0]))
    own = (np.arange(K) < batch["latent_steps"][:, None])[:, None, :, None]
    same(answer(np.where(own, noise, 37.0).astype(np.float32)), found)


def test_given_vectors_are_taken_in_the_compute_dtype(setup):
    """Recorded vectors come back as float32; a bfloat16 model must not run another precision for them."""
    _, v, batch = setup
    half = toy.backbone(dtype=jnp.bfloat16)
    given = np.zeros((4, 1, K, toy.WIDTH), np.float32)
    looped = jax.eval_shape(lambda v, b: respond(half, v, b, K, FREE), v, batch)
    replayed = jax.eval_shape(lambda v, b, g: respond(half, v, b, K, FREE, given=g), v, batch, given)
    assert looped.z.dtype == jnp.bfloat16
    assert jax.tree.map(lambda x: x.dtype, replayed) == jax.tree.map(lambda x: x.dtype, looped)


# --- choosing ---------------------------------------------------------------------------------------------------------

SPREAD = np.log([0.4, 0.25, 0.15, 0.1, 0.06, 0.04]).astype(np.float32)[[3, 0, 5, 1, 4, 2]]
TIED = np.log([0.1, 0.3, 0.2, 0.2, 0.1, 0.1]).astype(np.float32)


def draws(logits, decoding, number=256):
    """Tokens drawn from logits [V], each by a key of its own, their log-probabilities, and the keys."""
    keys = row_keys(0, np.arange(number), 1)
    rows = np.broadcast_to(logits, (number, 1, len(logits)))
    tokens, log_probs = jax.jit(choose, static_argnums=1)(rows, decoding, keys)
    return np.asarray(tokens)[:, 0], np.asarray(log_probs)[:, 0], keys[:, 0]


@pytest.mark.parametrize(
    "logits", [SPREAD, TIED, np.zeros(6, np.float32), SPREAD * 40], ids=["spread", "tied", "flat", "steep"]
)
@pytest.mark.parametrize("top_p", [1e-6, 0.35, 0.45, 0.649, 0.651, 0.88, 0.97, 1.0])
def test_draws_equal_a_longhand_nucleus(logits, top_p):
    tokens, log_probs, keys = draws(logits, Decoding(1, (0,), 1.0, top_p))
    inside = nucleus(logits, top_p)
    expected = jax.vmap(jax.random.categorical, (0, None))(keys, jnp.asarray(inside, jnp.float32))
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(log_probs, jax.nn.log_softmax(logits)[tokens], rtol=1e-6, atol=1e-6)


def test_the_nucleus_by_hand():
    drawn = lambda logits, top_p: set(draws(logits, Decoding(1, (0,), 1.0, top_p))[0].tolist())  # noqa: E731
    assert drawn(SPREAD, 0.3) == {1} and drawn(SPREAD, 0.5) == {1, 3} and drawn(SPREAD, 0.75) == {1, 3, 5}
    assert drawn(TIED, 0.4) == {1, 2, 3}, "equals stay together"
    assert drawn(TIED, 1e-6) == {1}, "a tiny part is the likeliest token"
    assert drawn(SPREAD, 1.0) == set(range(6))


def test_a_wide_vocabulary_keeps_the_same_nucleus():
    """At the width of a real vocabulary, where sums in float32 lose most."""
    logits = 3 * np.random.default_rng(0).normal(size=151_936).astype(np.float32)
    tokens, _, _ = draws(logits, Decoding(1, (0,), 1.0, 0.5), number=32)
    inside = np.isfinite(nucleus(logits, 0.5 + 1e-4))
    assert 50 < inside.sum() < 5000
    assert inside[tokens].all() and len(set(tokens.tolist())) > 10


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.0, 1.0), (0.5, 1.0), (1.5, 0.8)])
def test_frequencies_follow_the_distribution(temperature, top_p):
    number = 20_000
    tokens, _, _ = draws(SPREAD, Decoding(1, (0,), temperature, top_p), number)
    kept = nucleus(SPREAD / temperature, top_p)
    expected = number * np.exp(kept) / np.exp(kept).sum()
    counts, possible = np.bincount(tokens, minlength=6), expected > 0
    assert not counts[~possible].any()
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 20.5  # 99.9 % of a chi-square of five degrees of freedom


def test_temperature_zero_takes_the_likeliest():
    logits = np.random.default_rng(0).normal(size=(3, 2, 9)).astype(np.float32)
    token, log_prob = choose(logits, Decoding(1, (0,)), None)
    np.testing.assert_array_equal(token, logits.argmax(-1))
    np.testing.assert_allclose(log_prob, jax.nn.log_softmax(logits).max(-1), rtol=1e-6)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(length=0), "length=0"),
        (dict(ends=()), r"ends=\(\)"),
        (dict(temperature=-0.1), "temperature=-0.1"),
        (dict(temperature=float("nan")), "temperature=nan"),
        (dict(temperature=1.0, top_p=0.0), "top_p=0.0"),
        (dict(temperature=1.0, top_p=1.01), "top_p=1.01"),
        (dict(temperature=1.0, top_p=float("nan")), "top_p=nan"),
        (dict(top_p=0.9), "no meaning at temperature 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**dict(length=4, ends=(1,)) | options)


def test_what_is_missing_is_named(setup):
    model, v, batch = setup
    with pytest.raises(ValueError, match=r"temperature 1\.3 needs keys"):
        respond(model, v, batch, K, DRAWN)
    with pytest.raises(ValueError, match="max_steps is 0"):
        respond(model, v, batch, 0, FREE, given=np.zeros((4, 1, 0, toy.WIDTH), np.float32))


# --- transformers -----------------------------------------------------------------------------------------------------


def test_without_latents_greedy_equals_transformers_generate(tmp_path):
    """Prompts of unequal length with two images and one, ended by either token of the folder's generation_config.json."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    folder, length = tiny.save(tiny.qwen3_vl("gqa4_untied"), tmp_path), 8
    model, params = load_backbone(folder, param_dtype=jnp.float32, dtype=jnp.float32)
    case = parity.make_case(model.config)

    def generate():
        theirs = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        rows = []
        for row in range(2):
            ids = torch.from_numpy(case[f"ids_{row}"]).long()[None]
            with torch.no_grad():
                found = theirs.eval().generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    mm_token_type_ids=(ids == model.config.image_token_id).int(),
                    pixel_values=torch.from_numpy(case[f"patches_{row}"]),
                    image_grid_thw=torch.from_numpy(case[f"grids_{row}"]).long(),
                    do_sample=False,
                    max_new_tokens=length,
                    output_logits=True,
                    return_dict_in_generate=True,
                )
            tokens = found.sequences[0, ids.shape[1] :]
            scores = torch.log_softmax(torch.cat(found.logits), -1)
            rows.append((tokens.numpy(), scores.gather(-1, tokens[:, None])[:, 0].numpy()))
        return rows

    free = [tokens for tokens, _ in generate()]
    ends = [int(free[0][3]), int(free[1][5])]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "pad_token_id": 0}))
    expected = generate()
    assert {int(tokens[-1]) for tokens, _ in expected} == set(ends) and len(expected[1][0]) > 3

    batch = {**parity.make_batch(case, model.config), "latent_steps": np.zeros(2, np.int32)}
    with jax.default_matmul_precision("highest"):
        found = respond(model, {"params": params}, batch, 0, Decoding(length, tuple(ends)))
    assert found.u.shape == found.z.shape == (2, 1, 0, model.config.decoder.width)
    for row, (tokens, log_probs) in enumerate(expected):
        n = len(tokens)
        np.testing.assert_array_equal(found.tokens[row, 0], [*tokens, *[ends[0]] * (length - n)])
        np.testing.assert_allclose(found.log_probs[row, 0, :n], log_probs, rtol=1e-4, atol=1e-4)
        assert not np.any(found.log_probs[row, 0, n:])
