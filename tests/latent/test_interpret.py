"""The interpreter against a reference that knows none of its mechanisms: no cache, no batch, no fusing, one column after the other.

The reference is a decoder of twenty lines. For every real column it runs everything up to that column again, with positions and visibility
worked out by counting, and takes the last state. It is one compiled function of one shape, so that 24 layouts cost seconds.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from vital_jax.latent.interpret import Given, run
from vital_jax.latent.loop import prefill
from vital_jax.models.backbone import Backbone, Prefix, abstract_backbone
from vital_jax.models.config import BackboneConfig, DecoderConfig, VisionConfig
from vital_jax.pipeline.segments import Branch, Segment, Suffix

D, S, ROWS, LONGEST = 16, 6, 3, 36
DECODER = DecoderConfig(40, D, 2, 2, 1, 8, 24, 1e4, mrope_section=(2, 1, 1))
CONFIG = BackboneConfig("qwen3_vl", DECODER, VisionConfig(8, 1, 1, 8, D, (0,), 2, patch=2), 37, 38, 39)
VALUES, GRADIENTS = 2e-5, 1e-4


def T(name, n=3, **options):
    return Segment("tokens", name, n, **options)


def L(name, n, **options):
    return Segment("latent", name, n, **options)


def M(name, *ids, **options):
    return Segment("tokens", name, len(ids), ids=ids, **options)


def V(name, n=3, **options):
    return Segment("given", name, n, source="batch", **options)


def R(name, n=5, **options):
    return Segment("recorded", name, n, **options)


on = functools.partial(Branch)
LAYOUTS = {
    "answer": Suffix((T("answer"),)),
    "VITAL": Suffix((L("z", 4), T("answer"))),
    "one latent": Suffix((L("z", 1), T("answer"))),
    "Coconut": Suffix((M("bot", 7), L("z", 3), M("eot", 8), T("chain"), T("answer"))),
    "two spans": Suffix((L("z", 2), T("words"), L("y", 2), T("answer"))),
    "latents alone": Suffix((L("z", 3),)),
    "latents behind ragged text": Suffix((T("chain"), L("z", 2), T("answer"))),
    "neighbouring spans": Suffix((L("z", 2), L("y", 2), T("answer"))),
    "LVR": Suffix((M("start", 7), V("roi"), M("end", 8), T("answer"))),
    "latents behind given columns": Suffix((V("roi"), L("z", 2), T("answer"))),
    "CODI": Suffix(
        (
            M("bot", 7), L("z", 3), M("eot", 8), M("lead", 5, 6), T("answer"),
            T("chain", branch="teacher"), M("lead_t", 5, 6, branch="teacher"), T("answer_t", branch="teacher"),
        ),
        (on("teacher"),),
    ),
    "teacher first": Suffix((T("chain", branch="teacher"), M("bot", 7), L("z", 2), T("answer")), (on("teacher"),)),
    "MCOUT": Suffix(
        (L("z", 3), T("a1", 2, branch="one"), T("a2", 2, branch="two"), T("answer", 2)),
        (on("one", after="z", columns=1), on("two", after="z", columns=2)),
    ),
    "a fork behind ragged text": Suffix((T("chain"), T("aside", branch="b"), T("answer")), (on("b", after="chain"),)),
    "a branch of a branch": Suffix(
        (T("a", 2), T("b", 2, branch="b"), L("z", 2, branch="b"), T("c", 2, branch="c"), T("d", 2)),
        (on("b", after="a"), on("c", parent="b", after="z", columns=1)),
    ),
    "an image for the latents alone": Suffix((V("image", 4, own_positions=True, seen_by=("z",)), L("z", 2), T("answer"))),
    "an image for one later segment": Suffix(
        (T("words", 2), V("image", 4, own_positions=True, seen_by=("seen",)), L("z", 2), T("seen", 2), T("answer", 2))
    ),
    "recorded": Suffix((R("rollout", 6),)),
    "latents behind a rollout": Suffix((R("rollout"), L("z", 2), T("answer"))),
    "a fork behind a rollout": Suffix((R("rollout"), T("aside", 2, branch="b"), T("answer", 2)), (on("b", after="rollout"),)),
    "no latents at all": Suffix((M("bot", 7), L("none", 2), M("eot", 8), T("answer"))),
    "six segments": Suffix((M("bot", 7), L("z", 2), M("eot", 8), T("chain"), L("y", 1), T("answer"))),
    "two rollouts a prompt": Suffix((L("z", 2), T("answer"))),
    "latents on two branches": Suffix(
        (L("z", 2), T("answer"), L("y", 2, branch="b"), T("other", branch="b")), (on("b"),)
    ),
}  # fmt: skip
G_OF = {"two rollouts a prompt": 2}
QUICK = (
    "CODI",
    "an image for one later segment",
    "latents behind a rollout",
)  # the others are slow: each is two programs


@functools.cache
def model():
    return Backbone(CONFIG, dtype=jnp.float32, attention="xla")


@functools.cache
def weights():
    return toy.draw(abstract_backbone(model()))


def prompts():
    """Embedded prompts of 6, 3 and 4 columns, their images' features, and where what follows stands."""
    r = np.random.default_rng(1)
    lengths = np.array([6, 3, 4], np.int32)
    positions = np.sort(r.integers(0, 5, (3, ROWS, S)), axis=-1).astype(np.int32)
    x, deep = r.normal(size=(ROWS, S, D)).astype(np.float32), r.normal(size=(1, ROWS, S, D)).astype(np.float32)
    return Prefix(x, deep, positions, lengths), np.array([5, 4, 7], np.int32)


def batch_of(suffix, G):
    """Arrays for the segments, [B, ...] or [B, G, ...]: ragged lengths from none to all, K_i from 0 to K."""
    r = np.random.default_rng(2)
    lead = (ROWS,) if G == 1 else (ROWS, G)
    found = {}
    for number, s in enumerate(suffix.segments):
        n, name = s.budget, s.name
        counts = (np.arange(np.prod(lead)).reshape(lead) * 2 + number + 1) % (n + 1)
        mask = np.arange(n) < counts[..., None]
        if s.kind == "latent":
            found[f"{name}_steps"] = np.zeros(lead, np.int32) if name == "none" else counts.astype(np.int32)
        elif s.kind == "tokens" and not s.fixed:
            found |= {name: r.integers(0, 35, (*lead, n)).astype(np.int32), f"{name}_mask": mask}
        elif s.kind == "given":
            found |= {name: r.normal(size=(*lead, n, D)).astype(np.float32), f"{name}_mask": mask}
        elif s.kind == "recorded":
            found[f"{name}_mode"] = r.integers(0, 4, (*lead, n)).astype(np.int32)
            found[f"{name}_tokens"] = r.integers(0, 35, (*lead, n)).astype(np.int32)
            found[f"{name}_inputs"] = r.normal(size=(*lead, n, D)).astype(np.float32)
        if s.own_positions:
            found[f"{name}_positions"] = r.integers(0, 3, (*lead, 3, n)).astype(np.int32)
            found[f"{name}_advance"] = np.full(lead, 3, np.int32)
    return found


# --- the reference ----------------------------------------------------------------------------------------------------


def norm(x, scale):
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + DECODER.eps) * scale


def turned(x, positions):
    """Rotary embedding of x [n, heads, 8] at positions [3, n]; frequencies 1 and 2 follow row and column, the others time."""
    angle = positions[np.array([0, 1, 2, 0])].T * (1e4 ** -(np.arange(4) / 4))
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = x[..., :4], x[..., 4:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


@jax.jit
def last_state(decoder, x, deep, positions, sees, column):
    """The final state of `column` of x [n, D], where column i sees columns `sees[i]`; everything else is computed and not looked at."""
    for layer in range(DECODER.layers):
        p = jax.tree.map(lambda leaf, layer=layer: leaf[layer], decoder["layers"])
        y = norm(x, p["input_layernorm"]["scale"])
        q, k, v = (y @ p["self_attn"][f"{n}_proj"]["kernel"].T for n in "qkv")
        q = turned(norm(q.reshape(-1, 2, 8), p["self_attn"]["q_norm"]["scale"]), positions)
        k = turned(norm(k.reshape(-1, 1, 8), p["self_attn"]["k_norm"]["scale"]), positions)
        score = jnp.where(sees[None], jnp.einsum("ihd,jd->hij", q, k[:, 0]) / 8**0.5, -1e9)
        mixed = jnp.einsum("hij,jd->ihd", jax.nn.softmax(score), v).reshape(len(x), -1)
        x = x + mixed @ p["self_attn"]["o_proj"]["kernel"].T
        y = norm(x, p["post_attention_layernorm"]["scale"])
        gate, up, down = (p["mlp"][f"{n}_proj"]["kernel"] for n in ("gate", "up", "down"))
        x = x + (jax.nn.silu(y @ gate.T) * (y @ up.T)) @ down.T
        x = x + deep if layer == 0 else x
    return norm(x, decoder["norm"]["scale"])[column]


def ancestors(suffix, branch, column):
    """The suffix columns on a branch before a column, by walking from the branch to its parents."""
    owners = [s for s in suffix.segments for _ in range(s.budget)]
    found, limit = set(), column
    while True:
        found |= {j for j in range(limit) if owners[j].branch == branch}
        if not branch:
            return found
        fork = next(b for b in suffix.branches if b.name == branch)
        if fork.after:
            names = [s.name for s in owners]
            end = names.index(fork.after) + (names.count(fork.after) if fork.columns is None else fork.columns)
        else:
            end = 0
        branch, limit = fork.parent, min(limit, end)


def reference(decoder, suffix, row, prefix, start):
    """One row without padding of its prompt: {segment: (states, reads, inputs)}, None where a column is not real."""
    owners = [(s, t) for s in suffix.segments for t in range(s.budget)]
    n = len(prefix.x)
    x = jnp.zeros((LONGEST, D)).at[:n].set(prefix.x)
    deep = jnp.zeros((LONGEST, D)).at[:n].set(prefix.deepstack)
    positions = np.zeros((3, LONGEST), np.int32)
    positions[:, :n] = prefix.positions
    sees = np.eye(LONGEST, dtype=bool)
    sees[:n, :n] = np.tri(n, dtype=bool)
    place, state = {}, {}
    z0 = last_state(decoder, x, deep, positions, sees, n - 1)
    found = {s.name: ([None] * s.budget, [None] * s.budget, [None] * s.budget) for s in suffix.segments}

    def real(j):
        s, t = owners[j]
        if s.kind == "latent":
            return t >= s.budget - row[f"{s.name}_steps"]
        if s.kind == "recorded":
            return row[f"{s.name}_mode"][t] != 0
        return s.fixed or bool(row[f"{s.name}_mask"][t])

    for i, (s, t) in enumerate(owners):
        if not real(i):
            continue
        mine = [j for j in sorted(ancestors(suffix, s.branch, i)) if real(j)]
        looks = [j for j in mine if owners[j][0] is s or not owners[j][0].seen_by or s.name in owners[j][0].seen_by]
        before = state[looks[-1]] if looks else z0
        moved = {}  # how far each segment before this column moves it
        for j in ancestors(suffix, s.branch, i):
            o, _ = owners[j]
            if o is not s or not s.own_positions:
                moved[o.name] = (
                    int(row[f"{o.name}_advance"]) if o.own_positions else moved.get(o.name, 0) + bool(real(j))
                )
        position = np.full(3, start + sum(moved.values()))
        if s.own_positions:
            position = position + row[f"{s.name}_positions"][:, t]
        latent = s.kind == "latent"
        if latent:
            u = before
        elif s.kind == "given":
            u = row[s.name][t]
        elif s.kind == "recorded" and row[f"{s.name}_mode"][t] == 3:
            u = row[f"{s.name}_inputs"][t]
        else:
            token = s.ids[t] if s.fixed else row[s.name if s.kind == "tokens" else f"{s.name}_tokens"][t]
            u = decoder["embed_tokens"]["embedding"][int(token)]
        place[i] = c = n + len(place)
        x = x.at[c].set(u)
        positions[:, c] = position
        sees = sees.copy()
        sees[c, :n] = True
        sees[c, [place[j] for j in looks]] = True
        positions = positions.copy()
        state[i] = last_state(decoder, x, deep, positions, sees, c)
        found[s.name][0][t], found[s.name][1][t] = state[i], before
        found[s.name][2][t] = u if latent else None
    return found


def weight_of(name, b, g, kind, t):
    """A fixed direction for what stands there, so that a gradient touches every value."""
    seed = [sum(map(ord, name)), b, g, kind, t]
    return np.random.default_rng(seed).normal(size=D).astype(np.float32)


def by_reference(decoder, suffix, batch, G):
    """(scalar, {(segment, row, rollout): (states, reads, inputs)})."""
    (prefix, start), total, found = prompts(), 0.0, {}
    for b in range(ROWS):
        n = int(prefix.lengths[b])
        own = Prefix(prefix.x[b, :n], prefix.deepstack[0, b, :n], prefix.positions[:, b, :n], n)
        for g in range(G):
            row = {name: value[b] if G == 1 else value[b, g] for name, value in batch.items()}
            for name, parts in reference(decoder, suffix, row, own, int(start[b])).items():
                found[name, b, g] = parts
                for kind, values in enumerate(parts):
                    for t, value in enumerate(values):
                        if value is not None:
                            total += jnp.sum(jnp.sin(value) * weight_of(name, b, g, kind, t))
    return total, found


@functools.partial(jax.jit, static_argnums=(1, 3, 4))
def by_interpreter(decoder, suffix, batch, G, fused, coefficients):
    """(scalar, Columns) of the whole batch."""
    variables = {"params": {**weights(), "language_model": decoder}}
    prefix, start = prompts()
    z0, prompt = prefill(model(), variables, prefix, jnp.asarray(start))
    z0 = jnp.broadcast_to(z0[:, None], (ROWS, G, D))
    columns = run(model(), variables, prompt, z0, suffix, batch, Given(), fused=fused)
    total = 0.0
    for name, (states, reads, inputs) in coefficients.items():
        for part, coefficient in ((columns.states, states), (columns.reads, reads), (columns.inputs, inputs)):
            if coefficient is not None:
                total += jnp.sum(jnp.where(coefficient != 0, jnp.sin(part[name]) * coefficient, 0))
    return total, columns


def coefficients_of(suffix, found, G):
    """The reference's directions as arrays, zero where a column is not real."""
    out = {}
    for s in suffix.segments:
        parts = np.zeros((3, ROWS, G, s.budget, D), np.float32)
        for b in range(ROWS):
            for g in range(G):
                for kind, values in enumerate(found[s.name, b, g]):
                    for t, value in enumerate(values):
                        if value is not None:
                            parts[kind, b, g, t] = weight_of(s.name, b, g, kind, t)
        out[s.name] = (parts[0], parts[1], parts[2] if s.kind == "latent" else None)
    return out


def close(got, expected, tolerance, name):
    scale = max(1.0, float(np.max(np.abs(expected), initial=0)))
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale, err_msg=name)


CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in LAYOUTS]


def test_there_are_24_layouts():
    assert len(LAYOUTS) == 24 and set(QUICK) <= set(LAYOUTS)


@pytest.mark.parametrize("name", CASES)
def test_a_layout_equals_the_reference(name):
    suffix, G = LAYOUTS[name], G_OF.get(name, 1)
    batch, decoder = batch_of(suffix, G), weights()["language_model"]
    (_, found), slow = jax.value_and_grad(by_reference, has_aux=True)(decoder, suffix, batch, G)
    coefficients = coefficients_of(suffix, found, G)
    step = jax.jit(jax.value_and_grad(by_interpreter, has_aux=True), static_argnums=(1, 3, 4))
    (_, columns), quick = step(decoder, suffix, batch, G, True, coefficients)
    for (segment, b, g), parts in found.items():
        for part, values in zip((columns.states, columns.reads, columns.inputs), parts, strict=True):
            for t, value in enumerate(values):
                if value is not None:
                    close(part[segment][b, g, t], value, VALUES, f"{name}: {segment} row {b} column {t}")
        if suffix[segment].kind == "latent":
            padding = ~np.asarray(columns.real[segment][b, g])
            assert not np.any(np.asarray(columns.states[segment][b, g])[padding]), "latents are zero off a row's own"
    compared = 0
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(quick), jax.tree.leaves(slow), strict=True):
        close(a, b, GRADIENTS, f"{name}: gradient of {jax.tree_util.keystr(path)}")
        compared += bool(np.any(np.asarray(b)))
    assert compared > 8
