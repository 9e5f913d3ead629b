"""Decoding against answers written the long way (no cache, one row, one token at a time), and numbers frozen before there was a per-row
step: scripts, batches, groups and rows that are replaced while others run.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
    L,
    Longhand,
    M,
    T,
    ask,
    cut,
    plan,
    replayed,
    same,
)

from vital_jax.latent.choose import Decoding, row_keys
from vital_jax.latent.decode import Plan, begin, decoded, insert, respond, step
from vital_jax.models.backbone import Backbone
from vital_jax.pipeline.segments import FORCED, LATENT, Branch, Segment, Suffix


def test_answers_are_those_of_before_there_was_a_per_row_step(setup, greedy, drawn):
    """Frozen numbers of the sampler in which one slot served all rows: tokens, log-probabilities, latents; K = 4, K = 0 and drawn."""
    with np.load(Path(__file__).parent / "reference_decode.npz") as expected:
        for name, found, fill in (
            ("answer4", greedy, NEVER),
            ("answer0", ask(setup, DIRECT), NEVER),
            ("drawn", drawn, 3),
        ):
            tokens, log_probs = found.answers(T, fill)
            np.testing.assert_array_equal(tokens, expected[f"{name}/tokens"])
            np.testing.assert_allclose(log_probs, expected[f"{name}/log_probs"], rtol=0, atol=1e-5)
            for vectors in ("u", "z", "z0"):
                np.testing.assert_allclose(getattr(found, vectors), expected[f"{name}/{vectors}"], **CLOSE)


@pytest.mark.parametrize("steps", [[1, 2, 3, 4], [0, 4, 0, 2]], ids=str)
def test_greedy_answers_equal_a_recomputation_without_any_cache(setup, steps):
    """A row without latents beside others is read from its prompt's end."""
    steps = np.asarray(steps, np.int32)
    found = ask(setup, latent_steps=steps)
    for b in range(4):
        Longhand(setup, b, VITAL, FREE, latent_steps=steps).equals(found, b)


def test_drawn_answers_equal_a_recomputation_without_any_cache(setup, drawn, keys):
    for b in range(4):
        for g in range(G):
            Longhand(setup, b, VITAL, DRAWN, keys[b, g]).equals(drawn, b, g)


# --- scripts ----------------------------------------------------------------------------------------------------------


def pushed(variables, z, k, key):
    """A feed that reads all it is given."""
    noise = jax.vmap(jax.vmap(lambda one: jax.random.normal(one, z.shape[-1:])))(key)
    return z / k[..., None] + 0.1 * noise * variables["params"]["language_model"]["norm"]["scale"]


def test_forced_text_latents_a_chain_and_its_lead_in_follow_the_script(setup, keys):
    """A chain ends where the model writes the lead-in itself, at an end token, or with its budget; else the lead-in is forced."""
    lead = (NEVER - 1, NEVER - 2)
    before = [M(11, name="bot"), L(K), M(12, 13, name="eot"), F(5, "written", "chain[:]")]
    make = lambda *lead: plan(*before, M(*lead, name="lead_in"), F(T), feed=pushed)  # noqa: E731
    steps = np.asarray([1, 0, 3, 4], np.int32)
    start = 3 + steps
    free = [Longhand(setup, b, make(*lead), FREE, keys[b, 0], latent_steps=steps).tokens for b in range(4)]
    chain = lambda b: free[b][start[b] : start[b] + 5]  # noqa: E731
    own = tuple(chain(0)[1:3])  # what the first row writes as its second and third token is the lead-in
    end = next(token for token in chain(3)[:4] if token not in chain(0)[:3])
    decoding = Decoding(4, (end,))
    assert decoding.length < T
    found = ask(setup, make(*own), decoding, keys=keys[:, :1], latent_steps=steps)
    for b in range(4):
        Longhand(setup, b, make(*own), decoding, keys[b, 0], latent_steps=steps).equals(found, b)
    modes = np.asarray(found.modes)[:, 0]
    assert FORCED not in modes[0, 4:] and found.answer[0, 0] == 4 + 3, "the model's own lead-in is not forced again"
    assert modes[3, found.answer[3, 0] - 2 :][:2].tolist() == [FORCED] * 2 and found.answer[3, 0] < 7 + 5 + 2
    for b in range(4):
        alone = ask(setup, make(*own), decoding, keys=keys[:, :1], rows=slice(b, b + 1), latent_steps=steps)
        same(alone, cut(found, slice(b, b + 1)))
    replayed(setup, found)


def spans(modes):
    """How many latent spans a row has."""
    latent = np.asarray(modes) == LATENT
    return int((latent & ~np.concatenate([[False], latent[:-1]])).sum())


def test_a_token_opens_a_span_of_latents_any_number_of_times(setup, keys):
    """Of drawn rows some open several spans, some none, and in some the budget ends inside one."""
    opened = plan(F(16), span=(17, 2, 55))
    decoding = Decoding(16, (NEVER,), temperature=3.0)
    banned = ~np.isin(np.arange(toy.VOCAB), [17, *range(20, 32)])
    found = ask(setup, opened, decoding, G, keys, banned=banned)
    for b in range(4):
        for g in range(G):
            Longhand(setup, b, opened, decoding, keys[b, g], banned=banned).equals(found, b, g)
    counts = [spans(row) for row in np.asarray(found.modes).reshape(4 * G, -1)]
    assert max(counts) > 1 and min(counts) == 0, counts
    assert np.any(found.modes[..., -1] == LATENT), "a span is cut by the budget"
    replayed(setup, found)


def test_a_script_that_nobody_can_write_is_refused(setup):
    for segments, message in (
        ((L(2),), "nothing to write: of the segments latent none is text of a record"),
        ((Segment("given", "roi", 2, source="batch"), F(3)), "segment 'roi': given columns"),
        ((Segment("tokens", "lead", text="So: "), F(3)), "segment 'lead': its text is not bound"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(setup, plan(*segments))


def test_branches_and_what_stands_behind_the_answer_are_not_written(setup, greedy):
    teacher = Segment("tokens", "teacher", 3, source="chain[:]", branch="teacher")
    more = Plan(Suffix((L(K), teacher, F(2, "first"), F(T - 2), M(9, name="after")), (Branch("teacher"),)))
    assert more.suffix.width > VITAL.suffix.width
    same(ask(setup, more), greedy)


# --- batches and groups -----------------------------------------------------------------------------------------------


def test_a_greedy_batch_equals_its_rows_alone(setup, greedy):
    for b in range(4):
        same(ask(setup, rows=slice(b, b + 1)), cut(greedy, slice(b, b + 1)))


def test_rollouts_over_one_prefix_equal_single_runs_with_the_same_keys(setup, drawn, keys):
    """So a row's draws depend on neither its neighbours in the batch nor the other rollouts of its prompt."""
    for b in range(4):
        for g in range(G):
            at = (slice(b, b + 1), slice(g, g + 1))
            same(ask(setup, VITAL, DRAWN, 1, keys[:, at[1]], rows=at[0]), cut(drawn, *at))


def test_another_seed_temperature_or_penalty_compiles_nothing(setup, drawn):
    before = respond._cache_size()
    for options in (dict(), dict(temperature=0.4, top_k=9), dict(min_p=0.2, repetition_penalty=1.4)):
        decoding = Decoding(**{"length": 5, "ends": DRAWN.ends, "temperature": 1.0, **options})
        other = ask(setup, VITAL, decoding, G, row_keys(7, np.arange(4), G))
        assert np.any(other.tokens != drawn.tokens)
        np.testing.assert_array_equal(other.z, drawn.z)
    ask(setup, VITAL, Decoding(T, DRAWN.ends), G)
    assert respond._cache_size() == before


def test_the_head_runs_only_where_a_row_writes():
    """Four latents, three tokens: the head runs three times."""
    counted = []

    class Counting(Backbone):
        def logits(self, h):
            jax.debug.callback(lambda: counted.append(1))
            return super().logits(h)

    model = Counting(toy.CONFIG, toy.LORA, dtype=jnp.float32)
    params = toy.params(toy.method())
    batch = toy.batch(2, steps=[4, 4])
    variables = {"params": params["base"], "lora": params["lora"]}
    found = respond(model, variables, batch, plan(L(K), F(3)), Decoding(3, (NEVER,)).rows(2))
    jax.block_until_ready(found)
    jax.effects_barrier()
    assert len(counted) == 3


def test_rows_that_are_replaced_while_others_run_answer_as_alone(setup, keys):
    """Two places; at moments drawn at random a row, done or not, gives way to the next prompt, with settings of its own."""
    model, v, batch = setup
    batch = batch | {"latent_steps": np.asarray([0, 2, 3, 4], np.int32)}
    layout = plan(L(K), F(4, "written", "chain[:]"), M(21, 22), F(T))
    kinds = [
        Decoding(T, (NEVER,)),
        Decoding(3, (3, 17), temperature=1.3, top_p=0.8),
        Decoding(T, (40,), temperature=2.0, top_k=7, repetition_penalty=1.3),
        Decoding(5, (NEVER,), repetition_penalty=1.8),
    ]
    opened, put, advance = jax.jit(begin, static_argnums=(0, 3)), jax.jit(insert), jax.jit(step, static_argnums=(0, 3))

    def one(number):
        """A single prompt's state, and its finished answer by itself."""
        row = {name: x[number % 4 : number % 4 + 1] for name, x in batch.items()}
        decoding = kinds[number % len(kinds)]
        own = keys[number % 4 : number % 4 + 1, number % G : number % G + 1]
        sampling = decoding.rows(1, 1, own)
        # As many end tokens as the longest list: an end that stands twice is one.
        sampling = sampling._replace(ends=np.resize(sampling.ends, (1, 1, 2)))
        return opened(model, v, row, layout, sampling), respond(model, v, row, layout, sampling)

    r = np.random.default_rng(0)
    numbers, checked, fresh = [0, 1], 0, 2
    states, alone = zip(*(one(number) for number in numbers), strict=True)
    alone = list(alone)
    state = two(*states)
    while checked < 8:
        state = advance(model, v, state, layout)
        for place in (0, 1):
            if r.random() < 0.07:
                done = bool(state.rows.done[place, 0])
                here = jax.tree.map(lambda x, p=place: x[p : p + 1], state.rows._replace(cache=()))
                if done:
                    found = decoded(here, alone[place].z0[:, 0])
                    same(found, alone[place])
                    checked += 1
                new, alone[place] = one(fresh)
                state, fresh = put(state, place, new), fresh + 1
    assert fresh > checked + 2, "some rows were replaced before they were done"


def two(first, second):
    """Two states of one prompt side by side."""
    join = lambda axis: lambda a, b: jnp.concatenate([a, b], axis)  # noqa: E731
    tree = jax.tree.map(join(0), first._replace(prompt=None, rows=first.rows._replace(cache=())),
                        second._replace(prompt=None, rows=second.rows._replace(cache=())))  # fmt: skip
    cache = jax.tree.map(join(1), first.rows.cache, second.rows.cache)
    kv = jax.tree.map(join(1), first.prompt.kv, second.prompt.kv)
    prompt = jax.tree.map(join(0), first.prompt._replace(kv=()), second.prompt._replace(kv=()))
    return tree._replace(prompt=prompt._replace(kv=kv), rows=tree.rows._replace(cache=cache))
