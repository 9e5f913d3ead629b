"""Evidence about planted latents, where every number is known, and about the toy VITAL, where every part must be there."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toy
import toyfeed
from longhand import project as project_longhand

from vital_jax.evaluate.evidence import (
    BATCH,
    collapse,
    evidence,
    fit_projector,
    judged,
    latents,
    project,
    questions,
    regions,
    retrieval,
    show,
)
from vital_jax.evaluate.preview import ask
from vital_jax.evaluate.score import Score, table
from vital_jax.latent.engine import Engine, in_order
from vital_jax.latent.loop import variables_of
from vital_jax.latent.scaffold import VisualProjector
from vital_jax.methods.base import read

K, E = 4, 16


# --- retrieval --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted():
    """60 rows about 30 regions of 5 targets; 1 to 4 own steps, of which only the last one shows the region."""
    r = np.random.default_rng(0)
    entry = np.repeat(np.arange(30), 2)
    features = r.normal(size=(30, E))
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    steps = 1 + np.arange(60) % K
    own = np.arange(K) < steps[:, None]
    projected = r.normal(size=(60, K, E))
    projected[np.arange(60), steps - 1] = 3 * features[entry] + 0.1 * r.normal(size=(60, E))
    return projected, own, features[entry], [f"region {i}" for i in entry], [f"target {i % 5}" for i in entry]


def shares(found):
    return [found[f"hit@{k}"]["share"] for k in (1, 5, 10)]


def test_planted_vectors_are_found_and_exchanged_ones_are_at_chance(planted):
    found = retrieval(*planted)
    assert (found["n"], found["gallery"]) == (60, 30)
    assert list(found["chance"].values()) == pytest.approx([1 / 30, 1 / 6, 1 / 3])
    assert shares(found["last"]["own"]) == [1, 1, 1]
    assert found["last"]["own"]["hit@1"]["low"] == pytest.approx(0.9398, abs=1e-4)
    # A row whose latents find their own region first has k - 1 places left for 29 others.
    assert shares(found["last"]["shuffled"]) == pytest.approx([0, 4 / 29, 9 / 29], abs=0.02)
    assert shares(found["last"]["same_class"])[0] == 0 and found["last"]["same_class"]["n"] == 60
    # Rows of one step have nothing to average; the others are blurred by steps that show nothing.
    assert 0.25 < shares(found["mean"]["own"])[0] < 1


def test_unrelated_vectors_are_at_chance(planted):
    projected, own, targets, keys, classes = planted
    noise = np.random.default_rng(1).normal(size=projected.shape)
    found = retrieval(noise, own, targets, keys, classes)
    low, high = (found["last"]["own"]["hit@10"][end] for end in ("low", "high"))
    assert low < 1 / 3 < high
    assert shares(found["last"]["shuffled"]) == pytest.approx([1 / 30, 1 / 6, 1 / 3], abs=0.03)


def test_latents_that_know_the_target_alone_show_in_the_strict_exchange(planted):
    _, own, _, keys, classes = planted
    r = np.random.default_rng(2)
    centre = {name: 10 * r.normal(size=E) for name in sorted(set(classes))}
    where = {key: r.normal(size=E) for key in sorted(set(keys))}
    targets = np.stack([centre[c] + where[k] for c, k in zip(classes, keys, strict=True)])
    named = np.stack([centre[c] for c in classes])[:, None] + 0.1 * r.normal(size=(60, K, E))
    hits = {who: shares(found)[1] for who, found in retrieval(named, own, targets, keys, classes)["last"].items()}
    # Six regions of a target: five places hold most of them, whichever of the six the latents came from.
    assert hits["own"] > 0.6 and hits["same_class"] > 0.6 and hits["shuffled"] < 0.2


def test_hits_are_those_of_counting_one_by_one(planted):
    _, own, targets, keys, classes = planted
    r = np.random.default_rng(3)
    projected = r.normal(size=(60, K, E)) + targets[:, None]
    names = sorted(set(keys))
    gallery = {key: targets[keys.index(key)] for key in names}
    unit = lambda x: x / np.linalg.norm(x)  # noqa: E731

    def rank(query, key):
        return 1 + sum(query @ gallery[name] >= query @ gallery[key] for name in names if name != key)

    found = retrieval(projected, own, targets, keys, classes)
    queries = {
        "last": [unit(projected[i, own[i].sum() - 1]) for i in range(60)],
        "mean": [sum(unit(projected[i, k]) for k in range(own[i].sum())) for i in range(60)],
    }
    for name, query in queries.items():
        ranks = np.array([[rank(query[j], keys[i]) for i in range(60)] for j in range(60)])
        pairs = {
            "own": lambda i, j: i == j,
            "shuffled": lambda i, j: keys[i] != keys[j],
            "same_class": lambda i, j: keys[i] != keys[j] and classes[i] == classes[j],
        }
        for who, holds in pairs.items():
            expected = [
                np.mean([np.mean([ranks[j, i] <= k for j in range(60) if holds(i, j)]) for i in range(60)])
                for k in (1, 5, 10)
            ]
            assert shares(found[name][who]) == pytest.approx(expected)


def test_collapsed_latents_find_nothing_and_wrong_keys_are_refused(planted):
    projected, own, targets, keys, classes = planted
    same = np.tile(targets.mean(0), (60, K, 1))
    assert shares(retrieval(np.zeros_like(same), own, targets, keys, classes)["last"]["own"]) == [0, 0, 0]
    one = retrieval(same, own, targets, keys, classes)["last"]
    assert shares(one["own"])[0] == pytest.approx(1 / 30)
    with pytest.raises(ValueError, match="the keys do not tell regions apart"):
        retrieval(projected, own, targets, ["one"] * 60, classes)
    with pytest.raises(ValueError, match="no record has a region feature"):
        retrieval(projected[:0], own[:0], targets[:0], [], [])
    alone = retrieval(projected, own, targets, keys, keys)["last"]
    assert set(alone) == {"own", "shuffled"}


def test_collapse_is_the_mean_cosine_of_the_rows_that_have_both():
    z = np.random.default_rng(0).normal(size=(5, 3, 7))
    own = np.arange(3) < np.array([1, 2, 2, 1, 2])[:, None]
    got = collapse(z, own)
    cos = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    assert got[0, 1] == pytest.approx(np.mean([cos(z[i, 0], z[i, 1]) for i in (1, 2, 4)])) == got[1, 0]
    np.testing.assert_allclose(np.diag(got)[:2], 1)
    assert np.isnan(got[2]).all()
    np.testing.assert_allclose(collapse(np.ones((2, 3, 4)), np.ones((2, 3), bool)), 1)


# --- the projector ----------------------------------------------------------------------------------------------------


def test_a_fitted_projector_reads_what_is_there_and_nothing_else():
    """Latents that hold the region's feature in a rotated corner, and latents that hold nothing."""
    r = np.random.default_rng(0)
    features = r.normal(size=(160, E)).astype(np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    own = np.arange(K) < 1 + np.arange(160)[:, None] % K
    empty = r.normal(size=(160, K, 32)).astype(np.float32)
    full = 0.1 * empty + np.einsum("ne,ed->nd", features, r.normal(size=(E, 32)).astype(np.float32))[:, None]
    visual = VisualProjector(E, dropout=0.0)
    hits = []
    for z in (full, empty):
        projector = fit_projector(visual, z[:128], own[:128], features[:128], steps=200, batch=64)
        shown = project(visual, projector, z[128:], own[128:])
        np.testing.assert_allclose(shown[3], project_longhand(projector, z[131], "residual_mlp_ln", "ln"), atol=1e-4)
        names = [str(i) for i in range(32)]
        hits.append(shares(retrieval(shown, own[128:], features[128:], names, names)["last"]["own"]))
    assert hits[0][0] > 0.5  # chance is 1 in 32
    assert hits[1][0] < 0.2


# --- the toy run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    vital = toy.method()
    return vital, toy.params(vital), *toyfeed.feeds(tmp_path_factory.mktemp("toy") / "records")


def test_latents_are_those_of_the_training_path(setup):
    vital, params, _, test = setup
    numbers = [9, 2, 30]
    engine, records = Engine(vital.model, test.encoder, test.buckets), [test.source[i] for i in numbers]
    asked = engine.ask(variables_of(params), records, K, engine.decoding(1), "per_sample", batch=3)
    z, own = latents(in_order(asked), K)
    assert z.shape == (3, K, toy.WIDTH) and z.dtype == np.float32
    steps = [test.source[i].latent_steps for i in numbers]
    assert own.sum(1).tolist() == steps and len(set(steps)) > 1
    (_, batch), *others = engine.batches(records, K, "per_sample", batch=3)
    batch |= {"answer": np.ones((3, 5), np.int32), "answer_mask": np.ones((3, 5), bool)}
    assert not others
    expected = jax.jit(lambda p, b: read(vital, p, b, toy.suffix(vital)).steps("latent")[1][:, 0])(params, batch)
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-4)
    assert not z[~own].any()
    assert latents(ask(vital, params, test, numbers, K), K)[1].all()
    with pytest.raises(ValueError, match="no latents of 3 records at 0 steps"):
        latents(ask(vital, params, test, numbers, 0), 0)


def test_questions_about_one_region_share_a_key(setup):
    test = setup[-1]
    numbers = [0, 1, 0, 2, 4]
    places, features, keys, names = regions(test, numbers)
    assert places == [0, 2, 3, 4]  # 1 asks about what is absent
    assert keys[0] == keys[1] and len(set(keys)) == 3
    assert names == ["spleen", "spleen", "kidney", "spleen"]
    np.testing.assert_array_equal(features[2], test.features.roi[2])
    with pytest.raises(ValueError, match="none of the chosen records"):
        regions(test, [1, 3])


def test_a_run_with_latents_gives_everything(setup):
    vital, params, train, test = setup
    found = evidence(vital, params, train, test, K)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    numbers = questions(test)
    assert len(numbers) == len(found["answers"]) == len(found["blind"]) == 30  # two of 32 are open
    own = judged(test, numbers, ask(vital, params, test, numbers, K, batch=BATCH))
    assert found["answers"] == own
    assert all(row["image"] == row["id"] for row in own)
    assert all(row["image"].split("/")[0] != row["id"].split("/")[0] for row in found["blind"])
    assert [row["answer"] for row in found["blind"]] != [row["answer"] for row in own]
    assert {row["ask"] for row in own} == {"side", "presence"}
    assert np.shape(found["collapse"]) == (K, K) and found["collapse"][0][0] == pytest.approx(1)
    assert found["collapse"][0][3] is not None  # every question takes all steps, though no record has four
    assert found["retrieval"]["projector"] == "trained with the run"
    assert (found["retrieval"]["n"], found["retrieval"]["gallery"]) == (14, 14)
    assert len(found["samples"]) == 4
    for sample in found["samples"]:
        assert len(sample["steps"]) == K > len(sample["chain"]) and all(sample["steps"])
    scores = [Score.of(name, found[name]) for name in ("answers", "blind")]
    assert "location_choice (14)" in table(scores)
    text = show(found)
    for words in ("hit@5", "of the same target, last step", "chance, 14 regions", "z_4", "step 1 says", "taught: One."):
        assert words in text


def test_a_run_without_a_projector_gets_one_afterwards(setup):
    vital, params, train, test = setup
    plain = dataclasses.replace(vital, roi_width=None, decoder=None)
    found = evidence(plain, {"base": params["base"], "lora": params["lora"]}, train, test, K)
    assert found["retrieval"]["projector"] == "trained afterwards on frozen latents"
    assert "samples" not in found
    same = evidence(vital, params, train, test, K)
    assert found["answers"] == same["answers"] and found["retrieval"]["last"] != same["retrieval"]["last"]


def test_a_run_without_latents_gives_its_answers(setup):
    vital, params, train, test = setup
    found = evidence(vital, {"base": params["base"]}, train, test, 0, numbers=[0, 4, 8, 12])
    assert set(found) == {"max_steps", "answers", "blind"}
    assert len(found["answers"]) == 4 and show(found) == ""
    train_only = dataclasses.replace(test, source=SimpleNamespace(index=[], folder="here", split="test"))
    with pytest.raises(ValueError, match="here: no record of split 'test' is of form 'closed'"):
        questions(train_only)


@pytest.mark.parametrize(
    "forms, chosen",
    [
        (["closed", "open", "", "closed"], [0, 3]),
        (["", "", ""], [0, 1, 2]),  # free answers, and records of other makers
        (["open", ""], None),
    ],
)
def test_exact_match_is_asked_of_closed_questions_or_of_all_where_none_says_its_form(forms, chosen):
    index = [{"metadata": {"form": form} if form else {}} for form in forms]
    feed = SimpleNamespace(source=SimpleNamespace(index=index, folder="here", split="test"))
    if chosen is None:
        with pytest.raises(ValueError, match="no record of split 'test' is of form 'closed'"):
            questions(feed)
    else:
        assert questions(feed) == chosen
