"""Choosing a token against transformers' logits processors, a longhand nucleus, frequencies, and what is out of range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding import nucleus

from vital_jax.latent.choose import Decoding, choose, row_keys

SPREAD = np.log([0.4, 0.25, 0.15, 0.1, 0.06, 0.04]).astype(np.float32)[[3, 0, 5, 1, 4, 2]]
TIED = np.log([0.1, 0.3, 0.2, 0.2, 0.1, 0.1]).astype(np.float32)
_choose = jax.jit(choose)


def draws(logits, number=256, seen=None, banned=None, **options):
    """Tokens drawn from logits [V], each by a key of its own, and the keys."""
    keys = row_keys(0, np.arange(number), 1)
    rows = np.broadcast_to(logits, (number, 1, len(logits)))
    seen = np.full((number, 1, 1), len(logits)) if seen is None else np.broadcast_to(seen, (number, 1, len(seen)))
    sampling = Decoding(1, (0,), **{"temperature": 1.0, **options}).rows(number, 1, keys)
    first = jnp.zeros((number, 1), jnp.int32)
    return np.asarray(_choose(rows, sampling, seen, first, banned))[:, 0], keys[:, 0]


def drawn_from(keys, logits):
    """The tokens that these keys draw from logits [V]: a row's first token has the number 0."""
    own = jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
    return jax.vmap(jax.random.categorical, (0, None))(own, jnp.asarray(logits, jnp.float32))


@pytest.mark.parametrize(
    "logits", [SPREAD, TIED, np.zeros(6, np.float32), SPREAD * 40], ids=["spread", "tied", "flat", "steep"]
)
@pytest.mark.parametrize("top_p", [1e-6, 0.35, 0.45, 0.649, 0.651, 0.88, 0.97, 1.0])
def test_draws_equal_a_longhand_nucleus(logits, top_p):
    tokens, keys = draws(logits, top_p=top_p)
    np.testing.assert_array_equal(tokens, drawn_from(keys, nucleus(logits, top_p)))


def test_the_nucleus_by_hand():
    drawn = lambda logits, top_p: set(draws(logits, top_p=top_p)[0].tolist())  # noqa: E731
    assert drawn(SPREAD, 0.3) == {1} and drawn(SPREAD, 0.5) == {1, 3} and drawn(SPREAD, 0.75) == {1, 3, 5}
    assert drawn(TIED, 0.4) == {1, 2, 3}, "equals stay together"
    assert drawn(TIED, 1e-6) == {1}, "a tiny part is the likeliest token"
    assert drawn(SPREAD, 1.0) == set(range(6))


def test_a_wide_vocabulary_keeps_the_same_nucleus_and_the_same_k():
    """At the width of a real vocabulary, where sums in float32 lose most."""
    logits = 3 * np.random.default_rng(0).normal(size=151_936).astype(np.float32)
    tokens, _ = draws(logits, number=32, top_p=0.5)
    inside = np.isfinite(nucleus(logits, 0.5 + 1e-4))
    assert 50 < inside.sum() < 5000
    assert inside[tokens].all() and len(set(tokens.tolist())) > 10
    tokens, _ = draws(logits, number=32, top_k=20)
    assert set(tokens.tolist()) <= set(np.argsort(logits)[-20:].tolist()) and len(set(tokens.tolist())) > 5


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.0, 1.0), (0.5, 1.0), (1.5, 0.8)])
def test_frequencies_follow_the_distribution(temperature, top_p):
    number = 20_000
    tokens, _ = draws(SPREAD, number, temperature=temperature, top_p=top_p)
    kept = nucleus(SPREAD / temperature, top_p)
    expected = number * np.exp(kept) / np.exp(kept).sum()
    counts, possible = np.bincount(tokens, minlength=6), expected > 0
    assert not counts[~possible].any()
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 20.5  # 99.9 % of a chi-square of five degrees of freedom


@pytest.mark.parametrize(
    "options",
    [
        dict(top_k=1),
        dict(top_k=7),
        dict(top_k=100),
        dict(min_p=0.2),
        dict(min_p=1.0),
        dict(repetition_penalty=1.7),
        dict(repetition_penalty=0.6),
        dict(temperature=0.7, top_k=12, top_p=0.8, min_p=0.05, repetition_penalty=1.3),
        dict(temperature=1.9, top_k=9, top_p=0.95, min_p=0.15),
        dict(temperature=1.2, top_p=0.6, min_p=0.4),
    ],
    ids=str,
)
def test_draws_equal_those_from_what_transformers_processors_leave(options):
    """In its order: repetition penalty, temperature, top-k, top-p, min-p. The logits hold both signs and no equals."""
    torch = pytest.importorskip("torch")
    from transformers import GenerationConfig
    from transformers.generation import LogitsProcessorList
    from transformers.generation import logits_process as theirs

    logits = 2 * np.random.default_rng(3).normal(size=40).astype(np.float32)
    seen = np.array([int(logits.argmax()), 3, 3, 5, int(logits.argmin())])
    settings = GenerationConfig(do_sample=True, **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, **options})
    chain = LogitsProcessorList()
    for kind, value, neutral in (
        (theirs.RepetitionPenaltyLogitsProcessor, settings.repetition_penalty, (None, 1.0)),
        (theirs.TemperatureLogitsWarper, settings.temperature, (1.0,)),
        (theirs.TopKLogitsWarper, settings.top_k, (0,)),
        (theirs.TopPLogitsWarper, settings.top_p, (1.0,)),
        (theirs.MinPLogitsWarper, settings.min_p, (None,)),
    ):
        if value not in neutral:
            chain.append(kind(value))
    left = chain(torch.from_numpy(seen)[None], torch.from_numpy(logits)[None])[0].numpy()
    tokens, keys = draws(logits, 512, seen, **options)
    np.testing.assert_array_equal(tokens, drawn_from(keys, left))
    assert len(set(tokens.tolist())) > 1 or np.isfinite(left).sum() == 1


def test_greedy_takes_the_likeliest_of_what_is_allowed_after_the_penalty():
    logits = np.random.default_rng(0).normal(size=(3, 2, 9)).astype(np.float32)
    none, first = np.full((3, 2, 1), 9), np.zeros((3, 2), np.int32)
    ask = lambda seen=none, banned=None, **options: np.asarray(  # noqa: E731
        _choose(logits, Decoding(1, (0,), **options).rows(3, 2), seen, first, banned)
    )
    best = logits.argmax(-1)
    np.testing.assert_array_equal(ask(), best)
    banned = np.isin(np.arange(9), best)
    np.testing.assert_array_equal(ask(banned=banned), np.where(banned, -np.inf, logits).argmax(-1))
    seen = best[..., None]
    expected = logits.copy()
    np.put_along_axis(expected, seen, np.take_along_axis(logits, seen, -1) / 5, -1)
    np.testing.assert_array_equal(ask(seen, repetition_penalty=5.0), expected.argmax(-1))
    assert np.any(expected.argmax(-1) != best)


def test_rows_of_one_call_choose_by_their_own_numbers():
    """A row's token is the one it has alone: greedy, warm, cut and penalised rows beside one another."""
    logits = 2 * np.random.default_rng(1).normal(size=(64, 1, 30)).astype(np.float32)
    keys, seen = row_keys(5, np.arange(64), 1), np.random.default_rng(2).integers(0, 31, (64, 1, 4))
    kinds = [
        dict(),
        dict(temperature=1.5),
        dict(temperature=1.5, top_p=0.5),
        dict(temperature=1.5, top_k=3),
        dict(temperature=1.5, min_p=0.3, repetition_penalty=1.5),
        dict(repetition_penalty=2.0),
    ]
    rows = [Decoding(1, (0,), **kinds[i % len(kinds)]).rows(1, 1, keys[i : i + 1]) for i in range(64)]
    together = jax.tree.map(lambda *x: jnp.concatenate(x), *rows)
    number = np.arange(64, dtype=np.int32)[:, None]
    found = _choose(logits, together, seen, number, None)
    for i in range(64):
        at = slice(i, i + 1)
        assert found[i] == _choose(logits[at], rows[i], seen[at], number[at], None)[0]


def test_keys_belong_to_prompts_and_rollouts():
    data = lambda k: np.asarray(jax.random.key_data(k))  # noqa: E731
    keys = row_keys(2, np.arange(4), 3)
    np.testing.assert_array_equal(data(row_keys(2, np.array([3, 1]), 2)), data(keys)[[3, 1], :2])
    both = np.concatenate([data(keys).reshape(12, -1), data(row_keys(3, np.arange(4), 3)).reshape(12, -1)])
    assert len(np.unique(both, axis=0)) == len(both)


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
        (dict(temperature=1.0, top_k=-1), "top_k=-1"),
        (dict(temperature=1.0, min_p=1.5), "min_p=1.5"),
        (dict(temperature=1.0, min_p=float("nan")), "min_p=nan"),
        (dict(repetition_penalty=0.0), "repetition_penalty=0.0"),
        (dict(repetition_penalty=float("nan")), "repetition_penalty=nan"),
        (dict(stops=((3,), ())), "a stop sequence holds no token"),
        (dict(top_p=0.9), "top_p=0.9 has no meaning at temperature 0"),
        (dict(top_k=5), "top_k=5 has no meaning at temperature 0"),
        (dict(min_p=0.1), "min_p=0.1 has no meaning at temperature 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**dict(length=4, ends=(1,)) | options)


def test_a_temperature_without_keys_is_refused():
    with pytest.raises(ValueError, match=r"temperature 1\.3 needs keys"):
        Decoding(4, (1,), 1.3).rows(2)
