"""What the tests of decoding share: short layouts, asking the toy, and answers written the long way.

The long way is one function for every layout: forced text, latents, free text with its ends, and spans opened by a token.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import toy

from vital_jax.latent.choose import Decoding
from vital_jax.latent.decode import Plan, respond
from vital_jax.latent.interpret import run
from vital_jax.latent.loop import embed, prefill
from vital_jax.models.attention import Causal
from vital_jax.pipeline.segments import FORCED, LATENT, PADDING, TOKEN, Segment, Suffix

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


def ask(setup, plan=VITAL, decoding=FREE, groups=1, keys=None, given=None, banned=None, rows=None, **arrays):
    """`respond` for the batch, or for a slice of it; keys [B, G] are of the whole batch."""
    model, v, batch = setup
    at = slice(None) if rows is None else rows
    batch = {name: x[at] for name, x in (batch | arrays).items()}
    B = len(batch["lengths"])
    keys = None if keys is None else keys[at]
    return respond(model, v, batch, plan, decoding.rows(B, groups, keys), given, banned)


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
