"""`Model.explain` of a run of drawn weights against windows computed by hand, and the scaffold that is never in the answer's program."""

import dataclasses
import json

import jax
import looked
import numpy as np
import pytest
import toy
import trained

import vital_jax
from vital_jax import api
from vital_jax.construct.roi import siglip_pixels
from vital_jax.explain import pointing, windows
from vital_jax.hub import tiny
from vital_jax.hub.encoders import load_encoder
from vital_jax.latent.choose import Decoding
from vital_jax.latent.decode import respond
from vital_jax.latent.engine import Engine
from vital_jax.latent.loop import variables_of
from vital_jax.pipeline.images import decode
from vital_jax.pipeline.records import RecordSource

explain = windows.explain


@pytest.fixture(scope="module")
def made():
    return looked.made()


@pytest.fixture(scope="module")
def model(made):
    return vital_jax.load(made.folder / "run", explain=True, encoder=made.folder / "siglip")


@pytest.fixture(scope="module")
def spied(model):
    """A user's own two images, explained, and the replies behind the cases."""
    kept, asked = [], [looked.picture(i) for i in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "explain", lambda *args, **options: kept.append(args[1]) or explain(*args, **options))
        cases = model.explain(asked, list(looked.QUESTIONS), batch=looked.BATCH)
    return cases, kept[0], asked


@pytest.fixture(scope="module")
def explained(model, made):
    """The test split, each record with its own steps, beside regions of the training split."""
    records = list(RecordSource(made.folder / "records", "test"))
    targets = [np.eye(looked.WIDTH, dtype=np.float32)[0], *[None] * 4]
    bank = made.folder / "records"
    return records, model.explain_requests(
        records, eval_k="per_sample", batch=looked.BATCH, bank=bank, similar=2, seed=0, targets=targets
    )


def test_an_answer_is_what_answer_gives_with_its_steps_read(spied, made):
    cases, _, asked = spied
    plain = vital_jax.load(made.folder / "run", steps=True).answer(asked, list(looked.QUESTIONS), batch=looked.BATCH)
    for case, answer, question in zip(cases, plain, looked.QUESTIONS, strict=True):
        assert (case.question, case.answer, case.tokens, case.complete) == (
            question, answer.text, len(answer.tokens), answer.complete,
        )  # fmt: skip
        assert case.log_prob == pytest.approx(answer.log_prob, abs=1e-5)
        assert [step.text for step in case.steps] == answer.steps and len(case.steps) == 4
        assert (case.gold, case.correct, case.metadata, case.masks) == ("", None, {}, (None,))
        assert all(step.scores is None and step.similar == () for step in case.steps)


def test_heat_is_the_cosine_of_every_patch_with_the_projected_latent(spied, made):
    cases, replies, asked = spied
    encoder, run = load_encoder(made.folder / "siglip", "block"), made.run
    for case, reply, data in zip(cases, replies, asked, strict=True):
        image, _ = decode(data, "an image")
        patches = np.asarray(encoder.apply(siglip_pixels(image, looked.SIDE)[None]), np.float64)[0]
        vectors = run.method.visual.apply({"params": run.params["scaffold"]["visual_projector"]}, reply.z[None])[0]
        for step, vector, z in zip(case.steps, np.asarray(vectors, np.float64), reply.z, strict=True):
            cosine = patches @ vector / np.linalg.norm(patches, axis=1) / np.linalg.norm(vector)
            (heat,) = step.heat
            np.testing.assert_allclose(heat, cosine.reshape(looked.GRID, looked.GRID), atol=1e-4)
            assert step.norm == pytest.approx(np.linalg.norm(z), rel=1e-5)
        unit = reply.z / np.linalg.norm(reply.z, axis=1, keepdims=True)
        np.testing.assert_allclose(case.similarity, unit @ unit.T, atol=1e-5)
        assert np.ptp(case.steps[0].heat[0]) > 0.01  # nothing above would see maps that are all alike


def test_records_bring_their_own_steps_gold_and_numbers(explained):
    records, (cases, pointed) = explained
    assert [len(case.steps) for case in cases] == [1, 2, 4, 1, 2]
    for case, record, place in zip(cases[:-1], records, range(4), strict=False):
        assert [step.gold for step in case.steps] == list(record.chain) and case.gold == "Yes."
        assert case.metadata == record.metadata and case.id == record.id
        np.testing.assert_array_equal(case.masks[0], looked.region(place))
        shares = pointing.patch_shares(case.masks[0], (looked.GRID, looked.GRID))
        for step in case.steps:
            expected = {name: value[0] for name, value in pointing.score(step.heat[0][None], shares).items()}
            assert step.scores == pytest.approx(expected) and isinstance(step.scores["pointing"], bool)
        assert pointed[place].scores["own"]["share"] == pytest.approx([step.scores["share"] for step in case.steps])
    last = cases[-1]
    assert last.masks == (None,) and all(step.scores is None and step.heat and step.gold == "" for step in last.steps)
    assert [(one.image, one.modality) for one in pointed] == [(f"test{i}", ("CT", "MRI")[i % 2]) for i in range(4)]
    assert set(pointed[0].scores) == {"own", "random", "target"} and set(pointed[1].scores) == {"own", "random"}


def test_each_step_is_judged_against_its_own_region_and_the_further_ones_against_the_last(explained, model):
    """Two steps with a region each, four latents, also where the record itself has no mask; a record beside has one for all."""
    records, _ = explained
    places = (0, 3)
    step_masks = tuple(looked.png(looked.region(place).astype(np.uint8) * 255) for place in places)
    one = dataclasses.replace(records[1], step_masks=step_masks)
    bare = dataclasses.replace(one, masks=())
    targets = [np.eye(looked.WIDTH, dtype=np.float32)[:2], None, None]
    cases, pointed = model.explain_requests([one, bare, records[2]], batch=looked.BATCH, seed=0, targets=targets)
    shares = [pointing.patch_shares(looked.region(places[k]), (looked.GRID, looked.GRID)) for k in (0, 1, 1, 1)]
    for case, own in zip(
        cases, (shares, shares, [pointing.patch_shares(looked.region(2), shares[0].shape)] * 4), strict=True
    ):
        for step, share in zip(case.steps, own, strict=True):
            expected = {name: value[0] for name, value in pointing.score(step.heat[0][None], share).items()}
            assert step.scores == pytest.approx(expected)
    assert cases[1].masks == (None,) and len(pointed) == 3
    for k, step in enumerate(cases[1].steps):
        assert (step.region == looked.region(places[min(k, 1)])).all() and cases[2].steps[k].region is None
    assert pointed[0].area == pytest.approx(np.mean(shares)) and pointed[0].scores["random"]["share"].shape == (4,)
    image, _ = decode(one.images[0], "an image")
    patches = np.asarray(model.viewer.encoder.apply(siglip_pixels(image, looked.SIDE)[None]))[0]
    heat = (patches[:, :2] / np.linalg.norm(patches, axis=1, keepdims=True)).T.reshape(2, looked.GRID, looked.GRID)
    for measure in pointing.MEASURES:
        expected = [pointing.score(heat[[min(k, 1)]], shares[k])[measure][0] for k in range(4)]
        assert pointed[0].scores["target"][measure] == pytest.approx(expected)


def test_the_line_of_targets_is_the_regions_own_feature(explained, model):
    _, (cases, pointed) = explained
    image, _ = decode(cases[0].images[0], "an image")
    patches = np.asarray(model.viewer.encoder.apply(siglip_pixels(image, looked.SIDE)[None]))[0]
    heat = (patches[:, 0] / np.linalg.norm(patches, axis=1)).reshape(1, looked.GRID, looked.GRID)  # the feature given
    expected = pointing.score(heat, pointing.patch_shares(cases[0].masks[0], (looked.GRID, looked.GRID)))
    for measure in pointing.MEASURES:
        assert pointed[0].scores["target"][measure] == pytest.approx(expected[measure])


def test_similar_regions_are_the_nearest_of_the_training_split(explained):
    _, (cases, _) = explained
    bank = {one.id: row for one, row in zip(looked.records("train"), looked.features("train"), strict=True)}
    sentences = {one.id: one.chain for one in looked.records("train")}
    for case in cases:
        for k, step in enumerate(case.steps):
            ids = [one.id for one in step.similar]
            assert len(ids) == 2 and set(ids) <= bank.keys() - {"train/5"}
            assert step.similar[0].cosine >= step.similar[1].cosine
            for one in step.similar:
                assert one.text == sentences[one.id][one.step - 1] and one.step <= k + 1
                assert one.label.startswith("spleen, ") and one.picture


def test_nothing_to_explain_is_said():
    with pytest.raises(ValueError, match="nothing to explain"):
        windows.explain([], [])


def test_mistakes_are_named(model, made, spied, tmp_path):
    image, question = spied[2][0], looked.QUESTIONS[0]
    with pytest.raises(api.RequestError, match=r"latent_steps=0: .*give at least 1"):
        model.explain(image, question, latent_steps=0)
    with pytest.raises(ValueError, match="is no image"):
        model.explain(b"words", question)
    with pytest.raises(api.RequestError, match="explain=True"):
        vital_jax.load(made.folder / "run").explain(image, question)
    with pytest.raises(FileNotFoundError, match=r"encoder \(--encoder\): no folder .*nowhere"):
        vital_jax.load(made.folder / "run", explain=True, encoder=made.folder / "nowhere")
    tiny.write_siglip(tmp_path / "wide", width=20, layers=1, image=looked.SIDE)
    wide = vital_jax.load(made.folder / "run", explain=True, encoder=tmp_path / "wide")
    with pytest.raises(ValueError, match=r"siglip .*but the model projects to wide"):
        wide.explain(image, question, bank=made.folder / "records")
    with pytest.raises(ValueError, match="wide: its features have 20 numbers, the projector gives 12"):
        assert wide.viewer.encoder


def test_a_checkpoint_without_scaffold_is_refused(made):
    with pytest.raises(api.NoScaffoldError, match="holds no scaffold, neither text decoder nor visual projector"):
        vital_jax.load(made.folder / "bare", explain=True)
    with pytest.raises(
        api.NoScaffoldError, match="base is a base model: name a training run's folder, or an export with explain/"
    ):
        vital_jax.load(made.folder / "base", explain=True)


def test_an_encoder_that_did_not_make_the_runs_features_is_refused(made, tmp_path):
    features = tmp_path / "auto" / "test"  # as the configuration names them
    features.mkdir(parents=True)
    (features / "info.json").write_text(json.dumps({"fingerprint": "0123"}))
    trained.write_run(tmp_path / "run", made.folder / "base", made.folder / "text", records=tmp_path)
    with pytest.raises(ValueError, match=r"region features of encoder 0123, .*siglip is \w+; .*--encoder"):
        vital_jax.load(tmp_path / "run", explain=True, encoder=made.folder / "siglip")


# --- the scaffold is not in the program that answers --------------------------------------------------------------------


def leaves(lowered):
    return sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(lowered.args_info))


def test_the_compiled_answer_is_the_same_without_the_scaffold():
    """In parameters, FLOPs and text."""
    method = toy.method()
    whole = toy.params(method)
    assert set(whole) == {"base", "lora", "scaffold"}
    bare = {name: part for name, part in whole.items() if name != "scaffold"}
    unread = ("roi", "roi_global", "roi_mask", "index")
    rows = {name: value for name, value in toy.batch(2).items() if name not in unread}
    plan, sampling = Engine(method.model, None).plan(2, 3), Decoding(3, (1,)).rows(2)
    lowered = [respond.lower(method.model, variables_of(tree), rows, plan, sampling) for tree in (whole, bare)]
    given, alone = (one.compile().cost_analysis() for one in lowered)
    assert given["flops"] == alone["flops"] > 0
    assert leaves(lowered[0]) == leaves(lowered[1]) and lowered[0].as_text() == lowered[1].as_text()
    sizes = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert sum(np.prod(shape) for shape in leaves(lowered[0])) == sizes(bare) + sizes((rows, sampling)) < sizes(whole)


def test_however_a_run_is_loaded_its_answers_come_from_one_program(made, model):
    """With the scaffold read and without, the engine is the same and is given the same tree."""
    plain = vital_jax.load(made.folder / "run")
    assert plain.engine.model == model.engine.model
    assert set(model.params) == {"base", "lora", "scaffold"} and "scaffold" not in plain.params
    one, other = variables_of(model.params), variables_of(plain.params)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)
