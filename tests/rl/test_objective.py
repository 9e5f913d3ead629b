"""The policy loss against published ones (values and gradients in data/, README there), and what no split of a step may change."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from vital_jax.rl.choices import choose
from vital_jax.rl.objective import Objective, normalizers, policy_loss
from vital_jax.training.sharding import make_mesh, place_batch, shard
from vital_jax.training.step import init_state, make_train_step

DATA = Path(__file__).parent / "data"
CASES = json.loads((DATA / "published.json").read_text())
GROUPS = 4
PLAIN = dict(
    ratio="token",
    surrogate="clip",
    clip_low=0.2,
    clip_high=0.28,
    dual_clip=0,
    log_ratio_clamp=0,
    aggregation="token_mean",
    length=0,
    kl="none",
    kl_coefficient=0,
    kl_clamp=0,
    entropy_coefficient=0,
    top_entropy=1,
    old="replay",
    sampler_weight="none",
    sampler_cap=2,
)
ROWS, CONSTANT = {"aggregation": "sequence_mean_token_mean"}, {"aggregation": "constant_length", "length": 9}
VERL = {"dual_clip": 3.0, "log_ratio_clamp": 20, "kl_clamp": 10}
EASYR1 = {**VERL, "clip_high": 0.3}
GSPO = {"ratio": "sequence", "clip_low": 0.06, "clip_high": 0.08, "dual_clip": 0, **ROWS}
ALONE = {"policy": False}  # the divergence or the bonus alone was published
# The choices that make each published loss, over PLAIN; `far_`, `dropped` name other arrays of the file.
OURS = {
    "verl_token_mean": VERL,
    "verl_sequence_mean": VERL | ROWS,
    "verl_constant": VERL | CONSTANT,
    "verl_dropped_token_mean": VERL | {"mask": "dropped"},
    "verl_dropped_sequence_mean": VERL | ROWS | {"mask": "dropped"},
    "verl_dropped_constant": VERL | CONSTANT | {"mask": "dropped"},
    "verl_low_dual": VERL | {"dual_clip": 1.1},
    "verl_far": VERL | {"dual_clip": 0, "old_logp": "far_old"},
    "verl_gspo": VERL | GSPO | {"ratio": "sequence_token"},
    "verl_cispo": VERL | {"surrogate": "cispo", "dual_clip": 0, "clip_low": 0.4, "clip_high": 0.5},
    "verl_sampler_token": VERL | {"sampler_weight": "token"},
    "verl_sampler_sequence": VERL | {"sampler_weight": "sequence"},
    "verl_gspo_sampler_sequence": VERL | GSPO | {"ratio": "sequence_token", "sampler_weight": "sequence"},
    **{f"verl_{kl}": VERL | ALONE | {"kl": kl, "kl_coefficient": 1} for kl in ("k1", "k2", "k3", "k3+")},
    **{
        f"verl_{kl}_far": VERL | ALONE | {"kl": kl, "kl_coefficient": 1, "ref": "far_ref"}
        for kl in ("k1", "k2", "k3", "k3+")
    },
    "verl_entropy": ROWS | ALONE | {"entropy_coefficient": 1, "sign": -1},
    "easyr1_token": EASYR1,
    "easyr1_seq": EASYR1 | ROWS,
    "easyr1_far": EASYR1 | {"old_logp": "far_old"},
    "easyr1_gspo": EASYR1 | GSPO | {"dual_clip": 1.2},
    "easyr1_gspo_token": EASYR1 | GSPO | {"ratio": "sequence_token", "dual_clip": 1.2, "aggregation": "token_mean"},
    "easyr1_cispo": EASYR1 | {"surrogate": "cispo", "dual_clip": 0, "clip_low": 0.4, "clip_high": 0.5},
    **{
        f"easyr1_{name}": EASYR1 | ROWS | ALONE | {"kl": kl, "kl_coefficient": 1, "ref": "far_ref"}
        for name, kl in (("kl", "k1"), ("mse", "k2"), ("low_var_kl", "k3"))
    },
    "trl_grpo": ROWS,
    "trl_grpo_kl": ROWS | {"kl": "k3", "kl_coefficient": 0.04},
    "trl_dr_grpo": CONSTANT,
    "trl_dapo": {},
    "trl_delta": {"dual_clip": 1.5},
    "trl_cispo": {"surrogate": "cispo", "clip_low": 1, "clip_high": 0.4},
    "trl_gspo": GSPO,
    "trl_top_entropy": {"top_entropy": 0.3, "kl": "k3", "kl_coefficient": 0.1},
    "trl_entropy": {"entropy_coefficient": 0.05},
    "trl_sampler_token": {"sampler_weight": "token", "kl": "k3", "kl_coefficient": 0.1},
    "trl_sampler_sequence": ROWS | {"sampler_weight": "sequence"},
}
NAMES = {field.name for field in dataclasses.fields(Objective)}


def objective(**changes):
    return Objective(**{**PLAIN, **changes})


@pytest.fixture(scope="module")
def published():
    with np.load(DATA / "published.npz") as file:
        return dict(file)


def arrays_of(file, rows=slice(None), **other):
    """A step's arrays [B, G, T] by the names that `policy_loss` gives them."""

    def grouped(name):
        return jnp.asarray(file[name].reshape(-1, GROUPS, *file[name].shape[1:])[rows])

    found = {name: grouped(other.get(name, name)) for name in ("logp", "advantage", "mask", "ref", "sampler")}
    return found | {"old": grouped(other.get("old_logp", "old")), "old_entropy": grouped("entropy")}


def loss_of(chosen, step, norms, entropy=None):
    def loss(logp, entropy):
        return policy_loss(chosen, **{**step, "logp": logp, "entropy": entropy}, norms=norms)

    (value, metrics), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(step["logp"], entropy)
    return value, metrics, grads


def test_every_published_case_is_compared():
    assert set(OURS) == {name for name in CASES if not name.startswith("advantages/")}


@pytest.mark.parametrize("name", OURS)
def test_equals_the_published_loss_and_its_gradient(name, published):
    ours = dict(OURS[name])
    chosen = objective(**{key: value for key, value in ours.items() if key in NAMES - {"old"}})
    step = arrays_of(published, **{key: ours[key] for key in ("mask", "old_logp", "ref") if key in ours})
    if not ours.get("policy", True):
        step["advantage"] = jnp.zeros_like(step["advantage"])
    norms = normalizers(chosen, step["mask"], step["old_entropy"])
    value, _, (grad, grad_entropy) = loss_of(chosen, step, norms, step["old_entropy"])
    sign = ours.get("sign", 1)
    np.testing.assert_allclose(sign * value, published[f"{name}/loss"], rtol=1e-6, atol=1e-7)
    wanted = published[f"{name}/grad"]
    np.testing.assert_allclose(grad.reshape(wanted.shape), wanted, rtol=1e-6, atol=1e-6 * np.abs(wanted).max())
    if f"{name}/grad_entropy" in published:
        wanted = published[f"{name}/grad_entropy"]
        np.testing.assert_allclose(sign * grad_entropy.reshape(wanted.shape), wanted, rtol=1e-6, atol=1e-9)


def test_metrics_are_those_that_trl_prints(published):
    step = arrays_of(published)
    chosen = objective(kl="k3", kl_coefficient=0.04)
    _, metrics, _ = loss_of(chosen, step, normalizers(chosen, step["mask"]), step["old_entropy"])
    found = [metrics["clip_low"], metrics["clip_high"], metrics["entropy"]]
    np.testing.assert_allclose(found, published["trl_grpo/metrics"], rtol=1e-6)
    np.testing.assert_allclose(metrics["kl"], published["trl_grpo_kl/kl"], rtol=1e-6)


SPLIT = {
    "grpo": ROWS | {"kl": "k3", "kl_coefficient": 0.1, "dual_clip": 1.5},
    "dapo, top entropy": {"top_entropy": 0.2, "entropy_coefficient": 0.1},
    "dr_grpo": CONSTANT | {"kl": "k3+", "kl_coefficient": 0.1},
    "gspo": GSPO | {"sampler_weight": "sequence"},
    "gspo-token": GSPO | {"ratio": "sequence_token", "aggregation": "token_mean"},
    "cispo": {"surrogate": "cispo", "sampler_weight": "token", "clip_low": 1},
}


@pytest.mark.parametrize("name", SPLIT)
def test_any_split_of_a_step_gives_its_gradient(name):
    """Ragged rows, rows without a token, and parts of any size: what is added up is what one pass gives."""
    B, G, T = 12, 4, 9
    rng = np.random.default_rng(7)
    mask = np.arange(T) < rng.integers(0, T + 1, (B, G, 1))
    mask[3], mask[0, 0] = False, True  # a dropped group; a row that fills its budget
    draw = lambda scale: rng.normal(0, scale, (B, G, T))  # noqa: E731
    logp = -rng.exponential(1.0, (B, G, T))
    step = {"logp": logp, "old": logp + draw(0.4), "ref": logp + draw(0.5), "sampler": logp + draw(0.5)}
    step |= {"mask": mask, "advantage": rng.normal(size=(B, G)), "old_entropy": rng.exponential(1.0, (B, G, T))}
    step["advantage"][3] = np.nan
    for key in ("logp", "old", "ref", "sampler"):
        step[key] = np.where(mask, step[key], np.nan)
    step = {key: jnp.asarray(x, x.dtype if x.dtype == bool else jnp.float32) for key, x in step.items()}
    entropy = jnp.asarray(rng.exponential(1.0, (B, G, T)), jnp.float32)
    chosen = objective(**{"log_ratio_clamp": 20} | SPLIT[name])
    norms = normalizers(chosen, step["mask"], step["old_entropy"])
    # The same counts from a step that is already cut into micro-batches.
    cut = {key: step[key].reshape(3, 4, G, T) for key in ("mask", "old_entropy")}
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, norms, normalizers(chosen, **cut)))
    whole, metrics, grads = loss_of(chosen, step, norms, entropy)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((whole, metrics, grads)))
    for parts in (2, 3, 5):
        order = rng.permutation(B)
        bounds = np.sort(rng.choice(np.arange(1, B), parts - 1, replace=False))
        found = [np.zeros((B, G, T)), np.zeros((B, G, T))]
        total, sums = 0.0, {}
        for rows in np.split(order, bounds):
            part = {key: x[rows] for key, x in step.items()}
            value, seen, pulled = loss_of(chosen, part, norms, entropy[rows])
            total += value
            for into, grad in zip(found, pulled, strict=True):
                into[rows] = grad
            for key, x in seen.items():
                sums[key] = max(sums.get(key, 0), x) if key.endswith("_max") else sums.get(key, 0) + x
        np.testing.assert_allclose(total, whole, rtol=1e-5, atol=1e-6)
        for into, grad in zip(found, grads, strict=True):
            np.testing.assert_allclose(into, grad, rtol=0, atol=1e-5 * np.abs(grad).max())
        for key, x in metrics.items():
            np.testing.assert_allclose(sums[key], x, rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", SPLIT)
def test_micro_batches_and_devices_give_one_update(name):
    """The trainer's own step, on a policy with parameters: 1, 2 and 4 micro-batches, and rows over four devices."""
    B, G, T, V = 8, 4, 6, 5
    rng = np.random.default_rng(11)
    length = rng.integers(0, T + 1, (B, G))
    length[2] = 0
    step = {
        "x": rng.normal(size=(B, G, T, 3)),
        "token": rng.integers(0, V, (B, G, T)),
        "mask": np.arange(T) < length[..., None],
        "advantage": rng.normal(size=(B, G)),
        **{name: -rng.exponential(1.5, (B, G, T)) for name in ("old", "ref", "sampler")},
        "old_entropy": rng.exponential(1.0, (B, G, T)),
    }
    step = {key: x.astype(np.float32) if x.dtype == float else x for key, x in step.items()}
    chosen = objective(**{"log_ratio_clamp": 20} | SPLIT[name])

    def loss(trainable, frozen, batch, key, norms):
        scores = jax.nn.log_softmax(batch["x"] @ trainable["w"])
        logp = jnp.take_along_axis(scores, batch["token"][..., None], -1)[..., 0]
        entropy = -jnp.sum(jnp.exp(scores) * scores, -1)
        arrays = {key: batch[key] for key in ("old", "advantage", "mask", "ref", "sampler", "old_entropy")}
        return policy_loss(chosen, logp, **arrays, norms=norms, entropy=entropy)

    optimizer = optax.sgd(1.0)
    train = make_train_step(loss, lambda batch: normalizers(chosen, batch["mask"], batch["old_entropy"]), optimizer)
    start = rng.normal(size=(3, V)).astype(np.float32)

    def updated(micro_batches, devices=1):
        batch = {key: x.reshape(micro_batches, -1, *x.shape[1:]) for key, x in step.items()}
        with jax.set_mesh(mesh := make_mesh(devices=jax.devices()[:devices])):
            trainable = shard({"w": start}, mesh, (("w", P()),))
            state, metrics = train(init_state(trainable, optimizer), {}, place_batch(batch, mesh, micro_batches=True))
        return start - np.asarray(state["trainable"]["w"]), metrics

    whole, metrics = updated(1)
    assert metrics["finite"] == 1 and np.abs(whole).max() > 1e-3
    for grad, others in (updated(2), updated(4), updated(2, devices=4)):
        np.testing.assert_allclose(grad, whole, rtol=0, atol=1e-5 * np.abs(whole).max())
        for key, x in metrics.items():
            np.testing.assert_allclose(others[key], x, rtol=1e-5, atol=1e-6, err_msg=key)


def test_a_step_without_rows_has_no_loss_and_no_gradient():
    step = {"logp": jnp.full((2, 4, 3), jnp.nan), "old": jnp.full((2, 4, 3), jnp.nan)}
    step |= {"advantage": jnp.full((2, 4), jnp.nan), "mask": jnp.zeros((2, 4, 3), bool)}
    for changes in ({}, ROWS, CONSTANT, GSPO, {"surrogate": "cispo"}):
        chosen = objective(**changes)
        value, metrics, (grad, _) = loss_of(chosen, step, normalizers(chosen, step["mask"]), None)
        assert value == 0 and not grad.any() and all(x == 0 for x in metrics.values())


def test_equal_policies_have_ratio_one_and_the_plain_policy_gradient(published):
    step = arrays_of(published)
    step |= {"old": step["logp"]}
    for changes in ({}, {"clip_low": 0, "clip_high": 0}, {"ratio": "sequence_token"}, {"dual_clip": 3}):
        chosen = objective(**changes)
        norms = normalizers(chosen, step["mask"])
        _, metrics, (grad, _) = loss_of(chosen, step, norms, None)
        assert metrics["ratio_max"] == 1 and metrics["approximate_kl"] == 0
        assert not any(
            metrics[name] for name in ("clip_low", "clip_high", *(["clip_dual"] if changes.get("dual_clip") else []))
        )
        np.testing.assert_allclose(metrics["ratio"], 1, rtol=1e-6)
        wanted = -step["advantage"][..., None] * step["mask"] / norms["tokens"]
        np.testing.assert_allclose(grad, wanted, rtol=1e-6)


def test_what_is_only_measured_does_not_reach_the_loss(published):
    """A reference so far off that its k3 overflows: with a coefficient of 0 the number is shown and the step goes on."""
    step = arrays_of(published)
    measured = objective(kl="k3")
    norms = normalizers(measured, step["mask"])
    alone = loss_of(objective(), step, norms)
    value, metrics, (grad, _) = loss_of(measured, step | {"ref": step["ref"] + 200}, norms)
    assert metrics["kl"] == np.inf and value == alone[0]
    np.testing.assert_array_equal(grad, alone[2][0])


def test_a_sequence_ratio_keeps_its_digits():
    """Log-probabilities far below zero do not round the small mean of their differences."""
    logp = jnp.asarray([[[-60.0, -45.0, -70.0]]])
    step = {
        "logp": logp,
        "old": logp.at[0, 0, 0].add(-3e-4),
        "advantage": jnp.ones((1, 1)),
        "mask": jnp.ones((1, 1, 3)),
    }
    seen = {}
    for ratio in ("sequence", "sequence_token"):
        chosen = objective(ratio=ratio)
        seen[ratio] = loss_of(chosen, step, normalizers(chosen, step["mask"]))[1]["ratio"]
    assert seen["sequence"] == seen["sequence_token"]


def test_the_sampler_as_the_old_policy(published):
    step = arrays_of(published)
    given, taken = objective(), objective(old="sampler")
    norms = normalizers(given, step["mask"])
    replayed = loss_of(given, step | {"old": step["sampler"], "sampler": None}, norms)
    sampled = loss_of(taken, step | {"old": None}, norms)
    np.testing.assert_array_equal(replayed[0], sampled[0])
    np.testing.assert_array_equal(replayed[2][0], sampled[2][0])


def test_shares_by_hand():
    """Six tokens: r = 2 and .5 under A = 1, r = 4, 2 and .5 under A = -1, r = 1."""
    r = jnp.log(jnp.asarray([[[2.0, 0.5, 1.0], [4.0, 2.0, 0.5]]]))
    chosen = objective(dual_clip=3, kl="k1")
    step = {"logp": r, "old": 0 * r, "ref": r - 1, "advantage": jnp.asarray([[1.0, -1.0]]), "mask": jnp.ones_like(r)}
    norms = normalizers(chosen, step["mask"])
    value, seen, _ = loss_of(chosen, step, norms)
    # Gains: 1.28 (clipped high), .5, 1; -3 (dual), -2, -.8 (clipped low).
    np.testing.assert_allclose(value, -(1.28 + 0.5 + 1 - 3 - 2 - 0.8) / 6, rtol=1e-6)
    for name in ("clip_low", "clip_high", "clip_dual"):
        np.testing.assert_allclose(seen[name], 1 / 6, rtol=1e-6)
    np.testing.assert_allclose([seen["ratio"], seen["ratio_max"], seen["kl"]], [10 / 6, 4, 1], rtol=1e-6)


def test_tokens_without_entropy_are_no_top_tokens():
    """Where most tokens are certain the quantile is zero, and still only the others are kept."""
    entropy = jnp.asarray([[[0.0] * 9 + [1.0]]])
    chosen = objective(top_entropy=0.5)
    step = {"logp": 0 * entropy, "old": 0 * entropy, "advantage": jnp.ones((1, 1)), "mask": jnp.ones((1, 1, 10))}
    norms = normalizers(chosen, step["mask"], entropy)
    assert norms["entropy"] > 0  # the train step takes a zero for an empty count
    _, _, (grad, _) = loss_of(chosen, step | {"old_entropy": entropy}, norms)
    assert np.flatnonzero(grad).tolist() == [9]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": "seqence"}, r"ratio='seqence': did you mean 'sequence'\? use one of 'token', 'sequence'"),
        ({"kl": "K3"}, "use one of 'none', 'k1', 'k2', 'k3', 'k3+'"),
        ({"clip_low": 1.5}, "clip_low=1.5: use a number from 0 to 1"),
        ({"clip_high": float("nan")}, "clip_high=nan: use a number of at least 0"),
        ({"clip_high": "0.2"}, "clip_high='0.2': use"),
        ({"dual_clip": 0.5}, "dual_clip=0.5: use a number of at least 1, or 0 for none"),
        ({"dual_clip": True}, "dual_clip=True"),
        ({"length": 2.5, **ROWS}, "length=2.5: use a whole number"),
        ({"top_entropy": 0}, "top_entropy=0: use a share above 0"),
        ({"surrogate": "cispo", "dual_clip": 3}, "dual_clip: cispo has no second clip"),
        ({"aggregation": "constant_length"}, "length: constant_length divides by it"),
        ({"length": 9}, "length: only constant_length"),
        ({"kl_coefficient": 0.1}, "kl_coefficient: kl='none' estimates nothing"),
        ({"old": "sampler", "sampler_weight": "token"}, "sampler_weight: old='sampler' already"),
    ],
)
def test_choices_are_checked(changes, message):
    with pytest.raises(ValueError, match=message.replace("+'", r"\+'")):
        objective(**changes)


def test_settings_of_a_recipe():
    assert choose(Objective, PLAIN, "config.rl.objective") == objective()
    with pytest.raises(ValueError, match=r"config\.rl\.objective: setting 'clip_hi' .* did you mean 'clip_high'\?"):
        choose(Objective, PLAIN | {"clip_hi": 1}, "config.rl.objective")
    with pytest.raises(ValueError, match=r"config\.rl\.objective: nothing is implied; state kl, top_entropy as well"):
        few = {name: value for name, value in PLAIN.items() if name not in ("kl", "top_entropy")}
        choose(Objective, few, "config.rl.objective")
    with pytest.raises(ValueError, match=r"config\.rl\.objective\.ratio='x': use one of"):
        choose(Objective, PLAIN | {"ratio": "x"}, "config.rl.objective")


@pytest.mark.parametrize(
    ("changes", "without", "message"),
    [
        ({}, "old", "old='replay' needs old"),
        ({"old": "sampler"}, "sampler", "old='sampler' needs sampler"),
        ({"kl": "k3"}, "ref", "kl='k3' needs ref"),
        ({"sampler_weight": "token"}, "sampler", "sampler_weight='token' needs sampler"),
        ({"top_entropy": 0.5}, "old_entropy", r"top_entropy=0.5 needs old_entropy"),
        ({"entropy_coefficient": 0.1}, "entropy", "entropy_coefficient=0.1 needs entropy"),
    ],
)
def test_what_a_choice_needs_is_asked_for(changes, without, message, published):
    step = arrays_of(published)
    norms = normalizers(objective(), step["mask"])
    with pytest.raises(ValueError, match=message):
        policy_loss(objective(**changes), **{**step, without: None}, norms=norms)


def test_shapes_must_agree(published):
    step = arrays_of(published)
    norms = normalizers(objective(), step["mask"])
    with pytest.raises(ValueError, match=r"advantage has shape \(3, 4, 1\)"):
        policy_loss(objective(), **{**step, "advantage": step["advantage"][..., None]}, norms=norms)
    with pytest.raises(ValueError, match=r"ref has shape \(3, 4, 6\)"):
        policy_loss(objective(), **{**step, "ref": step["ref"][..., :6]}, norms=norms)
