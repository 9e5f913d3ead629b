"""Decoding against answers written the long way (no cache, one row, one token at a time), replays on the training path, numbers frozen
before there was a per-row step, and transformers' generate.

The long way is one function for every layout: forced text, latents, free text with its ends, and spans opened by a token.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toy

from vital_jax.hub import parity
from vital_jax.hub.load import load_backbone
from vital_jax.latent.choose import Decoding, row_keys
from vital_jax.latent.decode import Decoded, Plan, begin, decoded, insert, respond, step
from vital_jax.latent.interpret import run
from vital_jax.latent.loop import embed, prefill
from vital_jax.models.attention import Causal
from vital_jax.models.backbone import Backbone
from vital_jax.pipeline.segments import FORCED, LATENT, PADDING, TOKEN, Branch, Segment, Suffix

CLOSE = dict(rtol=1e-5, atol=2e-5)  # float32, sums taken in another order
K, T, G = 4, 6, 3
LONGEST = 30  # columns behind a prompt in any test
NEVER = toy.VOCAB  # a token that no row can write: answers run to their full length
FREE = Decoding(T, (NEVER,))
DRAWN = Decoding(T, (3, 17, 40, 55), temperature=1.3, top_p=0.9)


def L(n, name="latent"):
    return Segment("latent", name, n)


def M(*ids, name="fixed"):
    return Segment("tokens", name, len(ids), ids=ids)


def F(n, name="answer", source="answer"):
    return Segment("tokens", name, n, source=source)


def plan(*segments, **options):
    return Plan(Suffix(segments), **options)


VITAL, DIRECT = plan(L(K), F(T)), plan(F(T))


@pytest.fixture(scope="module")
def setup():
    """The toy backbone, its variables, and prompts of unequal length with two images and 1, 2, 3 and 4 steps."""
    vital = toy.method()
    params = toy.params(vital)
    batch = toy.batch(K=K)
    assert len(set(batch["lengths"].tolist())) > 1 and batch["patch_segment"].max() == 2
    assert batch["latent_steps"].tolist() == [1, 2, 3, 4]
    return vital.model, {"params": params["base"], "lora": params["lora"]}, batch


def ask(setup, plan=VITAL, decoding=FREE, groups=1, keys=None, given=None, banned=None, rows=None, **arrays):
    """`respond` for the batch, or for a slice of it; keys [B, G] are of the whole batch."""
    model, v, batch = setup
    at = slice(None) if rows is None else rows
    batch = {name: x[at] for name, x in (batch | arrays).items()}
    B = len(batch["lengths"])
    keys = None if keys is None else keys[at]
    return respond(model, v, batch, plan, decoding.rows(B, groups, keys), given, banned)


@pytest.fixture(scope="module")
def greedy(setup):
    return ask(setup)


@pytest.fixture(scope="module")
def keys():
    return row_keys(2, np.arange(4), G)


@pytest.fixture(scope="module")
def drawn(setup, keys):
    found = ask(setup, VITAL, DRAWN, G, keys)
    tokens, _ = found.answers(T, NEVER)
    assert np.any(tokens[..., T - 2] == NEVER) and not np.all(found.complete), "some rows end early and some do not"
    assert len({tuple(row) for row in tokens.reshape(-1, T).tolist()}) > 9
    return found


def same(found, expected, **close):
    """Two results: tokens, modes and ends equal, numbers close."""
    for name in found._fields:
        left, right = np.asarray(getattr(found, name)), np.asarray(getattr(expected, name))
        kind = CLOSE | close if np.issubdtype(left.dtype, np.floating) else dict(rtol=0, atol=0)
        np.testing.assert_allclose(left, right, err_msg=name, **kind)


def cut(found, *at):
    return jax.tree.map(lambda x: x[at], found)


# --- the long way -----------------------------------------------------------------------------------------------------


def nucleus(logits, top_p):
    """As in test_choose.py."""
    share = np.exp(logits - logits.max())
    share /= share.sum()
    total, least = 0.0, np.inf
    for value in np.sort(share)[::-1]:
        if total >= top_p:
            break
        total, least = total + value, value
    return np.where(share >= least, logits, -np.inf)


@functools.partial(jax.jit, static_argnums=0)
def whole(model, v, x, positions, deepstack, n):
    """One uncached pass over the first n columns: the last one's state and logits."""
    h, *_ = model.apply(
        v, x[None, None], positions[:, None, None], Causal(n[None]), method="decode", deepstack=deepstack
    )
    return h[0, 0, n - 1], model.apply(v, h[0, 0, n - 1], method="logits")


class Longhand:
    """One row, the whole sequence run again for every column."""

    def __init__(self, setup, row, plan, decoding, key=None, given=None, banned=None, **arrays):
        self.model, self.v, batch = setup
        self.batch = {name: x[row : row + 1] for name, x in (batch | arrays).items()}
        self.plan, self.decoding, self.key, self.given, self.banned = plan, decoding, key, given, banned
        prefix = jax.jit(embed, static_argnums=0)(self.model, self.v, self.batch)
        self.n, S = int(self.batch["lengths"][0]), prefix.x.shape[1]
        n = self.n
        self.x = np.zeros((S + LONGEST, toy.WIDTH), np.float32)
        self.x[:n] = prefix.x[0, :n]
        self.positions = np.tile(int(self.batch["next_position"][0]) + np.arange(len(self.x)) - n, (3, 1))
        self.positions[:, :n] = prefix.positions[:, 0, :n]
        self.deepstack = np.zeros((len(prefix.deepstack), 1, *self.x.shape), np.float32)
        self.deepstack[:, 0, :n] = prefix.deepstack[:, 0, :n]
        self.table = np.asarray(self.v["params"]["language_model"]["embed_tokens"]["embedding"])
        self.modes, self.tokens, self.log_probs, self.u, self.z = [], [], [], [], []
        self.chosen, self.answer, self.complete = 0, None, False
        self.read()
        self.write()

    def read(self):
        arrays = self.x, self.positions, self.deepstack, np.int32(self.n)
        self.h, self.logits = (np.asarray(y) for y in whole(self.model, self.v, *arrays))

    def put(self, mode, vector, token=0, log_prob=0.0):
        self.x[self.n] = vector
        self.n += 1
        self.modes.append(mode)
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        self.read()

    def text(self, mode, token):
        self.put(mode, self.table[token], token, float(jax.nn.log_softmax(self.logits)[token]))

    def latent(self, k):
        u = self.h
        if self.given is not None:
            u = self.given[len(self.u)]
        elif self.plan.feed is not None:
            key = jax.random.fold_in(jax.random.fold_in(self.key, 2**32 - 1), len(self.u))
            u = np.asarray(self.plan.feed(self.v, self.h[None, None], np.full((1, 1), k), key[None, None])[0, 0])
        self.u.append(u)
        self.put(LATENT, u)
        self.z.append(self.h)

    def choose(self):
        logits = np.asarray(self.logits, np.float64)
        if self.banned is not None:
            logits = np.where(self.banned, -np.inf, logits)
        self.chosen += 1
        if not self.decoding.temperature:
            return int(np.argmax(logits))
        warm = nucleus(logits / self.decoding.temperature, self.decoding.top_p)
        key = jax.random.fold_in(self.key, self.chosen - 1)
        return int(jax.random.categorical(key, jnp.asarray(warm, jnp.float32)))

    def write(self):
        segments, written = [s for s in self.plan.suffix.segments if not s.branch], False
        last = max(place for place, s in enumerate(segments) if s.source)
        for place, s in enumerate(segments[: last + 1]):
            if s.kind == "latent":
                for k in range(int(self.batch[f"{s.name}_steps"][0])):
                    self.latent(k + 1)
            elif s.fixed:
                for token in () if written else s.ids:
                    self.text(FORCED, token)
            else:
                written = self.free(s, place == last, segments[place + 1].ids if place < last else ())

    def free(self, segment, last, following):
        """Free text; returns whether it ended with the text that follows it."""
        budget = min(segment.budget, self.decoding.length) if last else segment.budget
        end, said = len(self.modes) + budget, []
        if last:
            self.answer = len(self.modes)
        while len(self.modes) < end:
            token = self.choose()
            said.append(token)
            self.text(TOKEN, token)
            if self.plan.span and token == self.plan.span[0]:
                _, n, closing = self.plan.span
                for k in range(min(n, end - len(self.modes))):
                    self.latent(k + 1)
                    said.append(None)
                if len(self.modes) < end:
                    self.text(FORCED, closing)
                    said.append(closing)
            stopped = last and any(tuple(said[-len(s) :]) == s for s in self.decoding.stops)
            if token in self.decoding.ends or stopped:
                self.complete = last
                return False
            if not last and tuple(said[-len(following) :]) == following:
                return True
        if self.modes[-1] == LATENT:  # nothing follows on it, so it is not run
            self.z[-1] = np.zeros_like(self.h)
        return False

    def equals(self, found, row, g=0):
        own = cut(found, row, g)
        n = len(self.modes)
        np.testing.assert_array_equal(own.modes, self.modes + [PADDING] * (len(own.modes) - n))
        np.testing.assert_array_equal(own.tokens[:n], self.tokens)
        np.testing.assert_allclose(own.log_probs[:n], self.log_probs, **CLOSE)
        assert not np.any(own.tokens[n:]) and not np.any(own.log_probs[n:])
        assert (own.answer, own.complete) == (self.answer, self.complete)
        for name, long in (("u", self.u), ("z", self.z)):
            ours = np.asarray(getattr(own, name))
            np.testing.assert_allclose(ours[: len(long)], np.reshape(long, (-1, toy.WIDTH)), err_msg=name, **CLOSE)
            assert not np.any(ours[len(long) :]), f"{name} beyond the row's own steps"


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


# --- the training path ------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(0, 3))
def teacher(model, v, batch, suffix, groups_like):
    """What the interpreter makes of a batch whose suffix arrays are [B, G, ...]: its columns, and log-softmax of its reads."""
    z0, prompt = prefill(model, v, embed(model, v, batch), batch["next_position"])
    z0 = jnp.repeat(z0[:, None], groups_like.shape[1], axis=1)
    columns = run(model, v, prompt, z0, suffix, batch)
    name = suffix.segments[-1].name
    return columns, jax.nn.log_softmax(model.apply(v, columns.reads[name], method="logits"))


def replayed(setup, found):
    """A recorded segment gives every token, forced ones too, the log-probability with which it was written, and every latent its state."""
    model, v, batch = setup
    U = found.tokens.shape[-1]
    suffix = Suffix((Segment("recorded", "rollout", U),))
    columns, scores = teacher(model, v, batch | found.recorded("rollout"), suffix, found.tokens)
    own = jnp.take_along_axis(scores, found.tokens[..., None], axis=-1)[..., 0]
    text = (found.modes == TOKEN) | (found.modes == FORCED)
    np.testing.assert_allclose(found.log_probs, np.where(text, own, 0), **CLOSE)
    states, latent = np.asarray(columns.states["rollout"]), np.asarray(found.modes) == LATENT
    for b, g in np.ndindex(*found.answer.shape):
        n = latent[b, g, :-1].sum()  # a latent in the last column is not run
        np.testing.assert_allclose(found.z[b, g, :n], states[b, g, :-1][latent[b, g, :-1]], **CLOSE)


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
    import torch
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
