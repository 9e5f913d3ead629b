"""VITAL's losses against the same written the long way.

Values: NumPy in float64 from the states of the literal loop (tested on its own in tests/latent), the text decoder run on one sentence at a
time, equation by equation. Gradients at the latents: JAX through a loop written out step by step.

What depends on the loop runs in a few programs that the tests share. What comes after it (projector, targets, reductions) is tested with
given latents: `held` puts them in the loop's place, so that nothing large is compiled.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from givenlatents import BASE, K, fresh_latents, normalizers, only_visual
from longhand import project, scores

from vital_jax.latent.loop import embed, empty_suffix, extend, prefill
from vital_jax.latent.scaffold import PROJECTORS
from vital_jax.methods import base
from vital_jax.methods.base import losses
from vital_jax.methods.vital import Vital
from vital_jax.models.config import LoraConfig
from vital_jax.training.partition import flatten, unflatten

# Float32 with sums of some hundred terms in another order, against float64.
CLOSE = dict(rtol=2e-5, atol=2e-6)
BOTH = tuple(toy.WEIGHTS.items())


@pytest.fixture(scope="module")
def setup():
    vital = toy.method()
    return vital, toy.params(vital), toy.batch()


def split(params):
    """(trainable, frozen), as the default recipe has it."""
    return {name: params[name] for name in ("lora", "scaffold")}, {"base": params["base"]}


@functools.partial(jax.jit, static_argnums=(0, 5))
def gradients(vital, trainable, frozen, batch, norms, weights=BOTH):
    """((loss, metrics), gradients) of a phase with K = 4, as the trainer takes them."""
    loss = base.make_loss(vital, toy.phase(K, **dict(weights)), toy.suffix(vital, K))
    return jax.value_and_grad(loss, has_aux=True)(trainable, frozen, batch, None, norms)


@functools.partial(jax.jit, static_argnums=(0, 4))
def values(vital, params, batch, key=None, max_steps=K, norms=None):
    """Losses by name, forward only."""
    suffix = toy.suffix(vital, max_steps)
    return losses(vital, params, batch, norms or normalizers(batch), toy.phase(max_steps), suffix, key)[0]


@functools.partial(jax.jit, static_argnums=0)
def literal(vital, params, batch):
    """(u, z, states that predict the answer) of the literal path, the states z_0 and the prompts they came from."""
    v = {"params": params["base"], "lora": params["lora"]}
    z0, prompt = prefill(vital.model, v, embed(vital.model, v, batch), batch["next_position"])
    columns = base.read(vital, params, batch, toy.suffix(vital, K), fused=False)
    u, z, _ = columns.steps("latent")
    return (u, z, columns.reads["answer"]), z0, prompt


@functools.partial(jax.jit, static_argnums=0)
def read_one(vital, scaffold, z, sentence):
    """The text decoder on one sentence [n] after one latent [D], uncached and unpadded: its states [n, D']."""
    text = {"params": scaffold["text_decoder"]}
    linear = scaffold["pj_in"]["linear"]
    first = jnp.einsum("d,ed->e", z, linear["kernel"]) + linear["bias"]
    x = jnp.concatenate([first[None], text["params"]["embed_tokens"]["embedding"][sentence[:-1]]])
    n = len(sentence)
    positions = jnp.broadcast_to(jnp.arange(n), (3, 1, 1, n))
    h, *_ = vital.decoder.apply(text, x[None, None], positions, jnp.tril(jnp.ones((1, 1, n, n), bool)))
    return vital.decoder.apply(text, h, method="final_norm")[0, 0]


def path(batch, i, visual_target):
    """What each of row i's own steps regresses, [K_i, E]; equation 8 from its four fractions."""
    steps, roi = int(batch["latent_steps"][i]), batch["roi"][i].astype(np.float64)
    if visual_target == "shared":
        return np.stack([roi] * steps)
    fractions = {1: [1.0], 2: [0.0, 1.0], 3: [0.0, 0.5, 1.0], 4: [0.0, 1 / 3, 2 / 3, 1.0]}[steps]
    mixed = np.stack([a * roi + (1 - a) * batch["roi_global"][i] for a in fractions])
    return mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)


def visual_by_hand(vital, scaffold, batch, z):
    """Equation 6: the mean over rows with a region of the mean over own steps; and the mean cosine beside it."""
    distances, cosines = [], []
    for i in np.flatnonzero(batch["roi_mask"]):
        steps = int(batch["latent_steps"][i])
        y = project(scaffold["visual_projector"], z[i, :steps], vital.projector, vital.output_norm)
        target = path(batch, i, vital.visual_target)
        width = target.shape[-1]
        factor = {"sum": 1, "mean": 1 / width, "scaled_sum": 1 / math.sqrt(width)}[vital.l1_reduction]
        distances.append(np.mean([factor * np.abs(a - b).sum() for a, b in zip(y, target, strict=True)]))
        cosines.append(np.mean([a @ b / np.linalg.norm(a) for a, b in zip(y, target, strict=True)]))
    return np.mean(distances), np.mean(cosines)


# --- the three losses -------------------------------------------------------------------------------


def test_losses_and_metrics_equal_the_long_way(setup):
    vital, params, batch = setup
    (loss, metrics), _ = gradients(vital, *split(params), batch, normalizers(batch))
    (_, z, h), _, _ = literal(vital, params, batch)

    head = params["base"]["language_model"]["lm_head"]
    lost, right = [], []
    for i in range(len(batch["index"])):
        log_p = scores(h[i, 0], head)
        for t in np.flatnonzero(batch["answer_mask"][i]):
            lost.append(-log_p[t, batch["answer"][i, t]])
            right.append(log_p[t].argmax() == batch["answer"][i, t])
    np.testing.assert_allclose(metrics["task"], np.mean(lost), **CLOSE)
    np.testing.assert_allclose(metrics["answer_accuracy"], np.mean(right), **CLOSE)

    head, lost, right = params["scaffold"]["text_decoder"]["embed_tokens"]["embedding"], [], []
    for i, steps in enumerate(batch["latent_steps"]):
        of_steps = []
        for k in range(steps):
            sentence = batch["chain"][i, k, : batch["chain_mask"][i, k].sum()]
            log_p = scores(read_one(vital, params["scaffold"], z[i, 0, k], sentence), head)
            of_steps.append((-log_p[np.arange(len(sentence)), sentence].mean(), (log_p.argmax(-1) == sentence).mean()))
        lost.append(np.mean(of_steps, axis=0))
    text, accuracy = np.mean(lost, axis=0)
    np.testing.assert_allclose(metrics["text"], text, **CLOSE)
    np.testing.assert_allclose(metrics["chain_accuracy"], accuracy, **CLOSE)

    visual, cosine = visual_by_hand(vital, params["scaffold"], batch, np.asarray(z[:, 0]))
    np.testing.assert_allclose(metrics["visual"], visual, **CLOSE)
    np.testing.assert_allclose(metrics["roi_cosine"], cosine, **CLOSE)
    np.testing.assert_allclose(loss, metrics["task"] + 1.0 * text + 0.1 * visual, **CLOSE)
    assert min(metrics["task"], text, visual) > 0.5


@pytest.mark.parametrize("l1_reduction", ["sum", "mean", "scaled_sum"])
@pytest.mark.parametrize("visual_target", ["shared", "per_step"])
def test_every_reduction_and_target_equals_equations_6_and_8(setup, held, l1_reduction, visual_target):
    _, params, batch = setup
    vital = toy.method(decoder=None, l1_reduction=l1_reduction, visual_target=visual_target)
    z = fresh_latents()
    held(z)
    got = only_visual(vital, params["scaffold"], batch)
    np.testing.assert_allclose(got, visual_by_hand(vital, params["scaffold"], batch, z), **CLOSE)


def test_equation_8_goes_from_the_global_to_the_regions_feature():
    batch = toy.batch()
    got = toy.method(visual_target="per_step").visual_targets(batch, batch["latent_steps"], K)
    for i, steps in enumerate(batch["latent_steps"]):
        np.testing.assert_allclose(got[i, :steps], path(batch, i, "per_step"), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got[i, steps - 1], batch["roi"][i], rtol=1e-5, atol=1e-6)
        if steps > 1:
            np.testing.assert_allclose(got[i, 0], batch["roi_global"][i], rtol=1e-5, atol=1e-6)
    shared = toy.method().visual_targets(batch, batch["latent_steps"], K)
    np.testing.assert_array_equal(shared, np.repeat(batch["roi"][:, None], K, axis=1))


def test_rows_without_a_region_and_steps_beyond_the_own_are_left_out(setup, held):
    vital, params, batch = setup
    z = fresh_latents()
    held(z)
    expected = only_visual(vital, params["scaffold"], batch)
    lost = np.where(batch["roi_mask"][:, None], batch["roi"], np.nan)
    np.testing.assert_array_equal(only_visual(vital, params["scaffold"], {**batch, "roi": lost})[0], expected[0])
    beyond = np.arange(K) >= batch["latent_steps"][:, None]
    held(np.where(beyond[..., None], 50.0, z))
    np.testing.assert_allclose(only_visual(vital, params["scaffold"], batch), expected, rtol=1e-6)
    held(z + 0.5 * (np.arange(K) == 1)[:, None])
    assert abs(float(only_visual(vital, params["scaffold"], batch)[0] - expected[0])) > 1e-3


def test_rows_without_chain_and_region_contribute_their_answer_alone(setup):
    vital, params, batch = setup
    none = np.arange(4) == 3
    bare = {
        **batch,
        "chain_mask": batch["chain_mask"] & ~none[:, None, None],
        "roi_mask": batch["roi_mask"] & ~none,
    }
    other = {**bare, "tokens": np.where(none[:, None], (batch["tokens"] + 7) % 50, batch["tokens"])}
    norms = normalizers(bare)
    counts = {"task": batch["answer_mask"].sum(), "text": 3, "visual": 2}
    assert {name: int(norms[name]) for name in counts} == counts
    (_, one), _ = gradients(vital, *split(params), bare, norms)
    (_, two), _ = gradients(vital, *split(params), other, norms)
    for name in ("text", "visual"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-6)
    assert abs(float(one["task"] - two["task"])) > 1e-3


@pytest.mark.slow
def test_chains_shorter_than_the_steps_are_averaged_over_their_own_sentences(setup):
    """Where rows run more steps than their chain has (train_k=phase_max), the extra steps carry no text."""
    vital, params, _ = setup
    batch = toy.batch(steps=(4, 4, 4, 4))
    short = {**batch, "chain_mask": batch["chain_mask"] & (np.arange(K) < 2)[:, None]}
    (_, metrics), _ = gradients(vital, *split(params), short, normalizers(short))
    ((_, z, _), _, _), lost = literal(vital, params, short), []
    head = params["scaffold"]["text_decoder"]["embed_tokens"]["embedding"]
    for i in range(4):
        for k in range(2):
            sentence = short["chain"][i, k, : short["chain_mask"][i, k].sum()]
            log_p = scores(read_one(vital, params["scaffold"], z[i, 0, k], sentence), head)
            lost.append(-log_p[np.arange(len(sentence)), sentence].mean())
    np.testing.assert_allclose(metrics["text"], np.mean(lost), **CLOSE)


@pytest.mark.slow
def test_half_batches_with_the_whole_batchs_counts_add_up(setup):
    vital, params, batch = setup
    norms, halves = normalizers(batch), [slice(2), slice(2, 4)]
    cut = [{name: x[half] for name, x in batch.items()} for half in halves]
    whole, parts = values(vital, params, batch, norms=norms), [values(vital, params, half, norms=norms) for half in cut]
    for name, value in whole.items():
        np.testing.assert_allclose(parts[0][name] + parts[1][name], value, **CLOSE, err_msg=name)
    # The mean of two means is another number: the halves have other counts.
    means = [values(vital, params, half, norms=normalizers(half)) for half in cut]
    for name in ("task", "visual"):
        assert abs(float((means[0][name] + means[1][name]) / 2 - whole[name])) > 1e-3

    # Gradients: the other half's rows stay in the batch and carry nothing, which spares a program of half the size.
    def rows(half):
        inside = np.isin(np.arange(4), np.arange(4)[half])
        masks = ("answer_mask", "chain_mask", "roi_mask")
        return {**batch, **{name: batch[name] & inside.reshape(-1, *[1] * (batch[name].ndim - 1)) for name in masks}}

    _, expected = gradients(vital, *split(params), batch, norms)
    grads = [flatten(gradients(vital, *split(params), rows(half), norms)[1]) for half in halves]
    for name, value in flatten(expected).items():
        scale = float(jnp.max(jnp.abs(value)))
        assert scale > 0, name
        np.testing.assert_allclose(grads[0][name] + grads[1][name], value, rtol=1e-4, atol=2e-5 * scale, err_msg=name)


def test_normalizers_count_over_any_leading_axes_and_are_never_zero():
    batch = toy.batch()
    expected = {"task": batch["answer_mask"].sum(), "text": 4, "visual": 3}
    folded = {name: x.reshape(2, 2, *x.shape[1:]) for name, x in batch.items()}
    for b in (batch, folded):
        assert {name: int(normalizers(b)[name]) for name in expected} == expected
    empty = batch | {name: np.zeros_like(batch[name]) for name in ("answer_mask", "chain_mask", "roi_mask")}
    assert all(float(n) == 1.0 and n.dtype == jnp.float32 for n in normalizers(empty).values())


# --- parts that are absent --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "visual", "touched"),
    [
        (0.0, 0.0, set()),
        (0.0, 0.1, {"visual_projector"}),
        (1.0, 0.0, {"pj_in", "text_decoder"}),
        (1.0, 0.1, {"pj_in", "text_decoder", "visual_projector"}),
    ],
)
def test_a_zero_weight_leaves_its_part_out_of_the_program(setup, held, text, visual, touched):
    _, params, batch = setup
    phase, norms = toy.phase(K, text=text, visual=visual), normalizers(batch)
    held(fresh_latents())

    def run(vital, scaffold):
        got = losses(vital, {"base": BASE, "scaffold": scaffold}, batch, norms, phase, toy.suffix(vital, K))[0]
        return sum(phase.weight(name) * value for name, value in got.items()), got

    program = jax.make_jaxpr(functools.partial(run, toy.method()))(params["scaffold"]).jaxpr
    used = {id(variable) for equation in program.eqns for variable in equation.invars}
    names = [path.split("/")[0] for path in flatten(params["scaffold"])]
    assert {name for name, v in zip(names, program.invars, strict=True) if id(v) in used} == touched
    # A method without that part needs no parameters of it.
    vital = toy.method(**({} if text else {"decoder": None}), **({} if visual else {"roi_width": None}))
    assert set(vital.abstract().get("scaffold", {})) == touched
    got = run(vital, {name: params["scaffold"][name] for name in touched})[1]
    assert set(got) == {"task"} | ({"text"} if text else set()) | ({"visual"} if visual else set())


def test_no_steps_is_the_plain_model_and_its_task_loss(setup):
    """K = 0 against the model's plain forward pass over prompt and answer in one row of tokens."""
    _, params, batch = setup
    vital = toy.method(decoder=None, roi_width=None)
    params = {name: params[name] for name in ("base", "lora")}
    got = values(vital, params, {**batch, "latent_steps": np.zeros(4, np.int32)}, None, 0)
    assert set(got) == {"task"}
    T = batch["answer"].shape[1]
    joined = {**batch, "lengths": batch["lengths"] + T}
    joined["tokens"] = np.pad(batch["tokens"], [(0, 0), (0, T)])
    joined["positions"] = np.pad(batch["positions"], [(0, 0), (0, 0), (0, T)])
    # Merged patches that land nowhere point one past the longer row as well.
    S = batch["tokens"].shape[1]
    joined["patch_target"] = np.where(batch["patch_target"] >= S, S + T, batch["patch_target"])
    for i, n in enumerate(batch["lengths"]):
        joined["tokens"][i, n : n + T] = batch["answer"][i]
        joined["positions"][i, :, n : n + T] = batch["next_position"][i] + np.arange(T)
    logits = jax.jit(lambda p, b: vital.model.apply({"params": p["base"], "lora": p["lora"]}, b))(params, joined)
    log_p = np.stack([scores(logits[i, n - 1 : n - 1 + T], np.eye(toy.VOCAB)) for i, n in enumerate(batch["lengths"])])
    chosen = np.take_along_axis(log_p, batch["answer"][..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(got["task"], -chosen[batch["answer_mask"]].mean(), **CLOSE)


def test_unknown_switches_name_the_choices():
    for switch in ("projector", "output_norm", "l1_reduction", "visual_target", "train_k", "beyond"):
        with pytest.raises(
            ValueError, match=f"unknown {switch}='nonsense': use one of .*{Vital.switches[switch].values[0]}"
        ):
            toy.method(**{switch: "nonsense"})


@pytest.mark.parametrize("kind", PROJECTORS)
def test_a_rows_visual_loss_does_not_depend_on_the_longest_row(held, kind):
    """Two rows of one and two steps in a batch of K = 4 slots and in one of K = 2."""
    vital = toy.method(decoder=None, projector=kind)
    scaffold = toy.draw(vital.abstract()["scaffold"])
    batch, z = toy.batch(rows=2), fresh_latents(rows=2)
    batch["roi_mask"][:] = True
    held(z)
    padded = only_visual(vital, scaffold, batch)
    held(z[:, :2], 2)
    np.testing.assert_allclose(padded, only_visual(vital, scaffold, batch, 2), **CLOSE)


@pytest.mark.parametrize(
    ("kind", "output_norm"),
    [("residual_mlp_ln", "ln"), ("residual_mlp_ln", "l2"), ("mlp_ln", "l2"), ("transformer", "l2")],
)
def test_gradients_of_a_fresh_projector_are_finite(held, kind, output_norm):
    """At the start every bias is zero, and so is the output of a slot that a row does not use."""
    vital = toy.method(decoder=None, projector=kind, output_norm=output_norm)
    drawn = flatten(toy.draw(vital.abstract()["scaffold"]))
    scaffold = unflatten({path: x * (not path.endswith("bias")) for path, x in drawn.items()})
    batch = toy.batch()
    held(fresh_latents())
    grads = flatten(jax.jit(jax.grad(lambda s: only_visual(vital, s, batch)[0]))(scaffold))
    assert not [path for path, g in grads.items() if not np.all(np.isfinite(g))]
    assert np.any(grads["visual_projector/w1/kernel"])


# --- dropout, precision, diagnostics ----------------------------------------------------------------


def test_the_same_key_repeats_the_loss_and_another_changes_it(setup, held):
    _, params, batch = setup
    vital = toy.method(decoder=None, projector_dropout=0.3)
    held(fresh_latents())
    run = lambda key: float(only_visual(vital, params["scaffold"], batch, key=key)[0])  # noqa: E731
    one, other = jax.random.split(jax.random.key(0))
    assert run(one) == run(one) != run(other) != run(None)
    np.testing.assert_allclose(run(None), only_visual(toy.method(), params["scaffold"], batch)[0], rtol=1e-6)


@pytest.mark.slow
def test_adapter_dropout_reaches_every_loss_by_its_key(setup):
    _, params, batch = setup
    vital = toy.method(model=toy.backbone(lora=LoraConfig(toy.LORA.rank, toy.LORA.alpha, 0.2)))
    one, other = jax.random.split(jax.random.key(0))
    first, again, second = (values(vital, params, batch, key) for key in (one, one, other))
    for name in ("task", "text", "visual"):
        assert float(first[name]) == float(again[name])
        assert abs(float(first[name] - second[name])) > 1e-4, name


@pytest.mark.slow
def test_bfloat16_stays_near_float32(setup):
    """Eight bits of mantissa through some twenty roundings per layer, averaged over tens of tokens: a few parts in a hundred."""
    vital, params, batch = setup
    half = {**params, "base": jax.tree.map(lambda x: x.astype(jnp.bfloat16), params["base"])}
    got = values(toy.method(model=toy.backbone(dtype=jnp.bfloat16)), half, batch)
    (expected, metrics), _ = gradients(vital, *split(params), batch, normalizers(batch))
    assert all(value.dtype == jnp.float32 for value in got.values())
    total = sum({"task": 1.0, **toy.WEIGHTS}[name] * value for name, value in got.items())
    np.testing.assert_allclose(total, expected, rtol=0.03)
    for name, value in got.items():
        np.testing.assert_allclose(value, metrics[name], rtol=0.05, err_msg=name)


def by_hand(vital, params, batch, start, prompt, steps, probe):
    """The losses as functions of a vector added to each z_k: a loop written out from z_0, every sum over everything at once."""
    v = {"params": params["base"], "lora": params["lora"]}
    B, T = batch["answer"].shape
    first, own = prompt.next_position[:, None, None], jnp.asarray(batch["latent_steps"])
    slots, suffix, states = jnp.arange(steps + T - 1), empty_suffix(prompt, 1, steps + T - 1), [start]
    everything = jnp.ones((B, 1, steps + T - 1), bool)
    for k in range(steps):
        h, suffix, _ = extend(vital.model, v, prompt, suffix, states[-1][:, None, None], first + k, everything, k)
        states.append(h[:, 0, 0] + probe[:, 0, k])
    z = jnp.stack(states, axis=1)
    words = vital.model.apply(v, batch["answer"][:, None, :-1], method="embed_tokens")
    mine = (slots < own[:, None, None]) | (slots >= steps)
    positions = first + own[:, None, None] + jnp.arange(T - 1)
    h, *_ = extend(vital.model, v, prompt, suffix, words, positions, mine, steps)
    h = jnp.concatenate([z[jnp.arange(B), own][:, None], h[:, 0]], axis=1)
    z, live = z[:, 1:], jnp.arange(steps) < own[:, None]

    def entropy(states, head, tokens):
        return -jnp.take_along_axis(jax.nn.log_softmax(states @ head.T), tokens[..., None], axis=-1)[..., 0]

    task = entropy(h, params["base"]["language_model"]["lm_head"], batch["answer"])
    task = jnp.sum(task * batch["answer_mask"]) / jnp.sum(batch["answer_mask"])
    scaffold, sentences = params["scaffold"], batch["chain"][:, :steps].reshape(B * steps, -1)
    said = jax.vmap(functools.partial(read_one, vital, scaffold))(z.reshape(B * steps, -1), sentences)
    mask = batch["chain_mask"][:, :steps].reshape(B * steps, -1)
    text = entropy(said, scaffold["text_decoder"]["embed_tokens"]["embedding"], sentences)
    text = (jnp.sum(text * mask, axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1)).reshape(B, steps)
    y = vital.visual.apply({"params": scaffold["visual_projector"]}, z)
    visual = jnp.sum(jnp.sum(jnp.abs(y - batch["roi"][:, None]), axis=-1) * live, axis=1) / own
    return {
        "task": task,
        "text": jnp.mean(jnp.sum(text * live, axis=1) / own),
        "visual": jnp.sum(visual * batch["roi_mask"]) / jnp.sum(batch["roi_mask"]),
    }


@pytest.mark.slow
def test_diagnosed_gradients_equal_those_through_a_loop_written_out(setup):
    vital, params, _ = setup
    batch, steps = toy.batch(steps=(1, 2, 2, 1)), 2
    _, start, prompt = literal(vital, params, batch)
    grads = jax.jit(jax.jacrev(lambda probe: by_hand(vital, params, batch, start, prompt, steps, probe)))(
        jnp.zeros((4, 1, steps, toy.WIDTH))
    )
    phase, suffix = toy.phase(steps), toy.suffix(vital, steps)
    cut = batch | {name: batch[name][:, :steps] for name in ("chain", "chain_mask")}
    got = jax.jit(lambda p, b: base.diagnose(vital, p, b, phase, suffix))(params, cut)
    for name, weight in {"task": 1.0, **toy.WEIGHTS}.items():
        expected = weight * np.linalg.norm(grads[name])
        assert expected > 1e-3
        np.testing.assert_allclose(got[f"grad_z/{name}"], expected, rtol=1e-4, err_msg=name)


def test_diagnosed_lengths_and_cosines_are_means_over_the_rows_that_have_them(setup, held):
    _, params, batch = setup
    z = fresh_latents()
    held(z)
    tree = {
        "language_model": {**BASE["language_model"], "embed_tokens": params["base"]["language_model"]["embed_tokens"]}
    }
    phase, suffix = toy.phase(K, text=0.0, visual=0.0), toy.suffix(toy.method(), K)
    got = base.diagnose(toy.method(), {"base": tree}, batch, phase, suffix)
    z, own = np.asarray(z, np.float64), batch["latent_steps"]
    table = np.linalg.norm(np.asarray(tree["language_model"]["embed_tokens"]["embedding"]), axis=-1).mean()
    lengths = [[np.linalg.norm(z[row, k]) for row in range(4) if own[row] > k] for k in range(K)]
    np.testing.assert_allclose(got["u_over_embedding"], np.mean(np.concatenate(lengths)) / 2 / table, **CLOSE)
    for i in range(K):
        np.testing.assert_allclose(got[f"z_norm/{i + 1}"], np.mean(lengths[i]), **CLOSE)
        for j in range(i + 1, K):
            pairs = [(z[row, i], z[row, j]) for row in range(4) if own[row] > j]
            cosine = np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs])
            np.testing.assert_allclose(got[f"z_cosine/{i + 1}_{j + 1}"], cosine, **CLOSE)
    assert len(got) == 1 + 1 + 4 + 6
