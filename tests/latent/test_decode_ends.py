"""Decoding against replays on the training path and transformers' generate; how answers end, banned tokens, given vectors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toy
from decoding import (
    CLOSE,
    DIRECT,
    DRAWN,
    FREE,
    NEVER,
    VITAL,
    F,
    G,
    K,
    Longhand,
    M,
    T,
    ask,
    cut,
    plan,
    replayed,
    same,
    teacher,
)

from vital_jax.hub import parity
from vital_jax.hub.load import load_backbone
from vital_jax.latent.choose import Decoding
from vital_jax.latent.decode import Decoded, respond

# --- the training path -------------------------------------------------------------------------------------------------


def test_log_probs_and_latents_equal_the_training_path(setup, drawn):
    model, v, batch = setup
    tokens, log_probs = drawn.answers(T, 0)
    own = np.cumsum(np.isin(tokens, DRAWN.ends), axis=-1) - np.isin(tokens, DRAWN.ends) == 0
    given = batch | {"answer": tokens, "answer_mask": own}
    columns, scores = teacher(model, v, given, VITAL.suffix, drawn.tokens)
    u, z, _ = columns.steps("latent")
    for name, expected in (("u", u), ("z", z), ("z0", columns.z0)):
        np.testing.assert_allclose(getattr(drawn, name), expected, err_msg=name, **CLOSE)
    expected = np.take_along_axis(np.asarray(scores), tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(log_probs, np.where(own, expected, 0), **CLOSE)


def test_what_is_recorded_replays(setup, drawn):
    replayed(setup, drawn)


# --- ends -------------------------------------------------------------------------------------------------------------


def test_an_answer_ends_at_any_of_its_ends_or_stop_sequences(setup, greedy):
    free, _ = greedy.answers(T, NEVER)
    ends = int(free[0, 0, 2]), int(free[3, 0, 4])
    assert ends[0] != ends[1]
    pair = tuple(free[1, 0, 1:3].tolist())
    decoding = Decoding(T, ends, stops=(pair, (NEVER, NEVER, 1)))
    found = ask(setup, VITAL, decoding)
    reasons = set()
    for b in range(4):
        Longhand(setup, b, VITAL, decoding).equals(found, b)
        tokens = [token for token in found.answers(T, NEVER)[0][b, 0].tolist() if token != NEVER]
        reasons |= {tokens[-1] in ends, tuple(tokens[-2:]) == pair and tokens[-1] not in ends and "stop"}
    assert {True, "stop"} <= reasons


def test_banned_tokens_are_never_chosen_and_log_probs_stay_those_of_all(setup, greedy, keys):
    """Where the likeliest token is allowed, nothing changes; a forced token is not chosen."""
    free, _ = greedy.answers(T, NEVER)
    banned = np.isin(np.arange(toy.VOCAB), [free[0, 0, 1], free[2, 0, 0], 17])
    found = ask(setup, banned=banned)
    for b in range(4):
        Longhand(setup, b, VITAL, FREE, banned=banned).equals(found, b)
    assert not np.any(np.isin(found.answers(T, NEVER)[0], np.flatnonzero(banned)))
    untouched = [b for b in range(4) if not np.isin(free[b], np.flatnonzero(banned)).any()]
    for b in untouched:
        same(cut(found, b), cut(greedy, b))
    assert untouched
    warm = Decoding(T, (NEVER,), temperature=5.0)
    many = ask(setup, plan(M(17), F(T)), warm, G, keys, banned=banned)
    assert np.all(many.tokens[..., 0] == 17)
    assert not np.any(np.isin(many.answers(T, NEVER)[0], np.flatnonzero(banned)))


# --- given vectors ----------------------------------------------------------------------------------------------------


def test_given_vectors_stand_in_the_latent_slots_and_the_loops_own_are_the_loop(setup, greedy):
    answer = lambda given: ask(setup, given=given)  # noqa: E731
    same(answer(np.asarray(greedy.u)), greedy)  # the loop's own inputs
    noise = np.random.default_rng(4).normal(size=greedy.u.shape).astype(np.float32)
    found = answer(noise)
    difference = np.abs(found.answers(T, 0)[1] - greedy.answers(T, 0)[1])
    assert np.all(np.any(difference > 1e-2, axis=-1))
    for b in range(4):
        Longhand(setup, b, VITAL, FREE, given=noise[b, 0]).equals(found, b)
    own = (np.arange(K) < setup[2]["latent_steps"][:, None])[:, None, :, None]
    same(answer(np.where(own, noise, 37.0).astype(np.float32)), found)


def test_given_vectors_are_taken_in_the_compute_dtype(setup):
    """Recorded vectors come back as float32; a bfloat16 model must not run another precision for them."""
    _, v, batch = setup
    half = toy.backbone(dtype=jnp.bfloat16)
    given = np.zeros((4, 1, K, toy.WIDTH), np.float32)
    sampling = FREE.rows(4)
    looped = jax.eval_shape(lambda v, b: respond(half, v, b, VITAL, sampling), v, batch)
    again = jax.eval_shape(lambda v, b, g: respond(half, v, b, VITAL, sampling, g), v, batch, given)
    assert looped.z.dtype == jnp.bfloat16
    assert jax.tree.map(lambda x: x.dtype, again) == jax.tree.map(lambda x: x.dtype, looped)


def test_vectors_without_a_place_are_refused(setup):
    with pytest.raises(ValueError, match="the layout has no latents"):
        ask(setup, DIRECT, given=np.zeros((4, 1, 0, toy.WIDTH), np.float32))


# --- transformers -----------------------------------------------------------------------------------------------------


def test_without_latents_greedy_equals_transformers_generate(tmp_path):
    """Prompts of unequal length with two images and one, ended by either token of the folder's generation_config.json."""
    torch = pytest.importorskip("torch")
    from transformers import Qwen3VLForConditionalGeneration

    folder, length = tiny.save(tiny.qwen3_vl("gqa4_untied"), tmp_path), 8
    model, params = load_backbone(folder, param_dtype=jnp.float32, dtype=jnp.float32)
    case = parity.make_case(model.config)

    def generate(**options):
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
                    **options,
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

    batch = parity.make_batch(case, model.config)
    layout = plan(F(length))
    for penalty in (1.0, 1.4):  # the second one is no other program
        expected = expected if penalty == 1 else generate(repetition_penalty=penalty)
        decoding = Decoding(length, tuple(ends), repetition_penalty=penalty)
        with jax.default_matmul_precision("highest"):
            found = respond(model, {"params": params}, batch, layout, decoding.rows(2))
        assert isinstance(found, Decoded) and found.u.shape == found.z.shape == (2, 1, 0, model.config.decoder.width)
        ours, scores = found.answers(length, -1)
        for row, (tokens, log_probs) in enumerate(expected):
            n = len(tokens)
            np.testing.assert_array_equal(ours[row, 0], [*tokens, *[-1] * (length - n)])
            np.testing.assert_allclose(scores[row, 0, :n], log_probs, rtol=1e-4, atol=1e-4)
