"""The audits of runs that are known: one reads its latents, one its image, one nothing; and of the toy."""

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import toy
import toyfeed
from PIL import Image, ImageStat

from vital_jax.evaluate import audit_table as table
from vital_jax.evaluate.audit_groups import LESS, MORE
from vital_jax.evaluate.audit_words import EACH_OWN
from vital_jax.evaluate.audits import Store, Subject, audit
from vital_jax.evaluate.mirror import VERDICTS
from vital_jax.evaluate.replacements import OTHER, REPLAYED, SAME
from vital_jax.evaluate.text_floor import Reader
from vital_jax.latent.engine import OWN_K, Engine, Reply, in_order
from vital_jax.latent.loop import variables_of
from vital_jax.pipeline.images import decode
from vital_jax.pipeline.records import Record

SIDES, D, K = ("left", "center", "right"), 8, 3


def picture(place: int, noise: int) -> bytes:
    """A bright third on the left, in the center or on the right."""
    pixels = np.full((6, 9), noise, np.uint8)
    pixels[:, 3 * place : 3 * place + 3] = 200
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Source(list):
    """Records as a record folder gives them."""

    folder, split = "records", "test"

    @property
    def index(self):
        return [{"id": r.id, "latent_steps": r.latent_steps, "metadata": r.metadata} for r in self]

    @property
    def ids(self):
        return [r.id for r in self]


def questions(n: int = 60, **metadata):
    return Source(
        Record(
            f"r{i}", (picture(i % 3, i),), "Left, center or right?", f"{SIDES[i % 3].capitalize()}.",
            chain=("One.",) * (1 + i // 3 % K), step_masks=(b"-",) * (1 + i // 3 % K), options=SIDES,
            metadata={"form": "closed", "ask": "side", "teacher": "measured-2", "question_type": "location_choice",
                      "target_name": "spleen", "modality": "CT", **metadata},
        )
        for i in range(n)
    )  # fmt: skip


class Fake:
    """An engine whose slots hold where the bright third of the image lies; `reads` is what its answers come from."""

    def __init__(self, reads: str):
        self.reads, self.calls = reads, []

    def decoding(self, length):
        return length

    def ask(self, variables, asked, K, decoding, eval_k, batch, given=None):
        assert eval_k == "per_sample" and len(asked) >= batch
        self.calls.append((K, given is not None))
        for i, record in enumerate(asked):
            yield [i], [[self.reply(record, record.latent_steps if K else 0, None if given is None else given[i])]]

    def reply(self, record, K, given):
        image = decode(record.images[0], "it")[0].convert("L")
        bright = [ImageStat.Stat(image.crop((3 * i, 0, 3 * i + 3, 6))).mean[0] for i in range(3)]
        seen = np.array(bright + [0.0] * (D - 3), np.float32)
        u = np.stack([seen] * K) if K else np.zeros((0, D), np.float32)
        u = u if given is None else given[:K]
        told = {"latents": u.sum(0) if K else np.zeros(D), "image": seen, "nothing": np.zeros(D)}[self.reads]
        text = f"{SIDES[int(np.argmax(told[:3]))]}."
        return Reply(text, (1, 2), (-0.2, -0.1), True, K, u, 2 * u, seen)


PARAMS = {"base": {"language_model": {"embed_tokens": {"embedding": np.eye(4, dtype=np.float32)}}}}


def subject(reads: str, records=None, **options) -> Subject:
    records = records or questions()
    feed = SimpleNamespace(source=records, features=None)
    known = dict(max_steps=K, latent_steps=K, eval_k="per_sample", length=4)
    return Subject(Fake(reads), PARAMS, feed, range(len(records)), **{**known, **options})


def run(reads: str, folder, **options):
    one = subject(reads, **options)
    found = audit(one, Store(folder / "audit.json", one.settings()))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    lines = [table.Line(**line) for line in found["lines"]]
    return found, {(line.audit, line.what): line for line in lines}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(results, lines) of each kind of answerer."""
    return {reads: run(reads, tmp_path_factory.mktemp(reads)) for reads in ("latents", "image", "nothing")}


# --- planted answerers --------------------------------------------------------------------------------------------------


def test_answers_that_read_the_latents_are_changed_by_others(found):
    _, lines = found["latents"]
    assert lines[table.RUN, f"K = 1 to 3, {OWN_K}"].value == 1
    assert lines[table.TOKENS, REPLAYED].value == 1 and lines[table.TOKENS, REPLAYED].changed == 0
    floors = [line for (part, _), line in lines.items() if part == table.FLOOR]
    assert [(line.value, line.n) for line in floors] == [(pytest.approx(1 / 3), 60)] * 2
    zeros, other = lines[table.TOKENS, "zeros"], lines[table.TOKENS, OTHER]
    assert zeros.value == pytest.approx(1 / 3) and zeros.difference == pytest.approx(-2 / 3)
    assert zeros.difference_high < 0 and zeros.p < 1e-6 and zeros.changed == pytest.approx(2 / 3)
    assert (zeros.n, zeros.run) == (60, 1) and zeros.low < zeros.value < zeros.high
    assert other.value < 0.6 and other.difference_high < 0
    # All steps of a row hold the same: their order does not matter, and nothing is counted.
    assert (table.TOKENS, "shuffled order") not in lines
    assert lines[table.SWEEP, "K = 0"].value == pytest.approx(1 / 3)
    assert [lines[table.SWEEP, f"K = {k}"].value for k in (1, 2, 3)] == [1, 1, 1]


def test_answers_that_do_not_read_the_latents_are_not_changed(found):
    for reads in ("image", "nothing"):
        results, lines = found[reads]
        for (part, what), line in lines.items():
            if part in (table.TOKENS, table.SWEEP):
                assert line.difference == 0 and line.changed == 0, what
        assert results["sentences"][0].startswith("Accuracy does not depend on what stands in the latent slots.")
        assert "the steps, though trained, are not needed" in results["sentences"][1]


def test_images_matter_to_who_looks(found):
    for reads, value in (("latents", 1), ("image", 1), ("nothing", 1 / 3)):
        _, lines = found[reads]
        swapped, grey = lines[table.IMAGES, table.SWAPPED], lines[table.IMAGES, table.GREY]
        assert swapped.run == grey.run == pytest.approx(value)
        assert grey.value == pytest.approx(1 / 3)
        if reads == "nothing":
            assert swapped.difference == grey.difference == 0
        else:
            assert swapped.difference_high < 0 and swapped.value < 0.7


def test_a_mirror_exchanges_the_answers_of_who_looks(found):
    for reads, swapped in (("image", 1), ("nothing", 0)):
        results, lines = found[reads]
        n = 40 if reads == "image" else 60  # a third of the answers says center and names no side
        shares = [lines[table.MIRROR, verdict] for verdict in VERDICTS]
        assert [line.value for line in shares] == [swapped, 1 - swapped, 0]
        assert all(line.n == n and line.measure == table.SIDES for line in shares)
        accuracy = lines[table.MIRROR, table.MIRRORED]
        assert (accuracy.n, accuracy.value) == (60, pytest.approx(1 if reads == "image" else 1 / 3))
        assert f"{100 * swapped} % of the answers that name a side" in results["sentences"][-1]


def test_latents_and_confidence_are_measured(found):
    results, lines = found["latents"]
    assert lines[table.LATENTS, "z_1 z_2 (equation 9)"].value == pytest.approx(1)
    assert lines[table.LATENTS, "z_1..z_3 of the rows with 3 steps"].value == pytest.approx(1)
    assert results["latents"]["length"]["token embeddings"]["value"] == 1
    sure, each = (results["calibration"][name] for name in ("probability of the answer", "probability per token"))
    assert sure["ece"]["value"] == pytest.approx(1 - np.exp(-0.3)) and each["ece"]["value"] == pytest.approx(
        1 - np.exp(-0.15)
    )
    assert sure["bins"] == 10 and sure["error"] == 0
    left_out = dict(map(tuple, results["left_out"]))
    assert "no vector to stand in a slot" in left_out["token replacement: oracle"]
    assert left_out[table.TEXT] == "the run has no text decoder" and table.REGIONS in left_out


def test_programs_are_one_for_all_steps_one_for_vectors_and_one_without_latents(tmp_path):
    one = subject("image")
    audit(one, Store(tmp_path / "audit.json", one.settings()))
    assert set(one.engine.calls) == {(K, False), (K, True), (0, False)}


# --- runs without latents, steps for all, few questions -----------------------------------------------------------------


def test_a_run_without_latents_has_images_and_confidence(tmp_path):
    results, lines = run("image", tmp_path, max_steps=0, latent_steps=0, eval_k="fixed")
    assert {part for part, _ in lines} == {table.RUN, table.FLOOR, table.IMAGES, table.MIRROR, table.CALIBRATION}
    left_out = dict(map(tuple, results["left_out"]))
    assert "no latent steps" in left_out[table.TOKENS] and "without latent steps" in left_out[table.SWEEP]


def test_one_number_of_steps_for_all(tmp_path):
    _, lines = run("latents", tmp_path, latent_steps=2, eval_k="fixed")
    assert (table.RUN, "K = 2") in lines and lines[table.SWEEP, "K = 2"].changed == 0
    assert (table.SWEEP, EACH_OWN) in lines and (table.TOKENS, "first latent repeated") not in lines


def test_questions_that_cannot_be_mirrored_or_swapped_are_left_out_with_a_reason(tmp_path):
    results, lines = run("image", tmp_path, records=questions(6, group="one patient", ask="shape"))
    left_out = dict(map(tuple, results["left_out"]))
    assert "left or right" in left_out[table.MIRROR]
    assert "no other image to show" in left_out[f"{table.IMAGES}: {table.SWAPPED}"]
    assert f"{table.TOKENS}: {OTHER}" in left_out and lines[table.IMAGES, table.GREY].difference_low is None
    empty = subject("image")
    empty.feed.source.clear()
    with pytest.raises(ValueError, match="records: no question to ask"):
        audit(Subject(**{**vars(empty), "numbers": []}), Store(tmp_path / "other.json", {}))


def test_groups_are_counted_from_the_answers_there_are(tmp_path, found):
    records = Source(replace(r, metadata={**r.metadata, "question_type": f"{len(r.chain)} hops"}) for r in questions())
    one = subject("latents", records, by="question_type")
    results = audit(one, Store(tmp_path / "audit.json", one.settings()))
    plain = subject("latents", records)
    without = audit(plain, Store(tmp_path / "plain.json", plain.settings()))
    assert "by" not in without and [one["kind"] for one in results["steps"]] == ["1 hops", "2 hops", "3 hops"]
    rest = lambda each: {name: value for name, value in each.items() if name not in ("by", "steps")}  # noqa: E731
    assert rest(results) == rest(without)
    assert one.engine.calls == plain.engine.calls and one.settings() == plain.settings()
    by = {(line["group"], line["audit"], line["what"]): line for line in results["by"]["lines"]}
    assert {(group, by[key]["n"]) for key in by for group in key[:1] if key[1] == table.RUN} == {
        ("1 hops", 21), ("2 hops", 21), ("3 hops", 18),
    }  # fmt: skip
    less, more = (
        {
            name: (line["n"], line["value"])
            for (name, part, what), line in by.items()
            if (part, what) == (table.SWEEP, step)
        }
        for step in (LESS, MORE)
    )
    # One step less than one is none, where the answer is always "Left."; one more than three is not asked.
    assert less == {"1 hops": (21, pytest.approx(1 / 3)), "2 hops": (21, 1), "3 hops": (18, 1)}
    assert more == {"1 hops": (21, 1), "2 hops": (21, 1)}
    zeros = by["1 hops", table.TOKENS, "zeros"]
    assert (zeros["n"], zeros["run"], zeros["value"], zeros["changed"]) == (21, 1, *map(pytest.approx, (1 / 3, 2 / 3)))
    # Every line of the whole is the mean of its groups', each by its number.
    for line in (table.Line(**each) for each in results["lines"]):
        if line.measure == table.ACCURACY and line.audit != table.MIRROR:
            parts = [each for key, each in by.items() if key[1:] == (line.audit, line.what)]
            assert sum(each["n"] for each in parts) == line.n
            assert sum(each["n"] * each["value"] for each in parts) / line.n == pytest.approx(line.value)


def test_a_key_that_no_record_has_is_named_before_anything_is_asked(tmp_path):
    one = subject("image", by="colour")
    with pytest.raises(ValueError, match="no record has metadata 'colour' to group by; there are: ask, form,"):
        audit(one, Store(tmp_path / "audit.json", one.settings()))
    assert not one.engine.calls


# --- going on -----------------------------------------------------------------------------------------------------------


def test_a_killed_audit_goes_on_where_it_was(tmp_path, found):
    one = subject("latents")
    lines = []

    def kill(line):
        lines.append(line)
        if "K = 1" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(one, Store(tmp_path / "audit.json", one.settings()), kill)
    done = json.loads((tmp_path / "audit.json").read_text())["parts"]
    assert f"answers: {OTHER}" in done and "answers: K = 2" not in done
    again = subject("latents")
    resumed = audit(again, Store(tmp_path / "audit.json", again.settings()), lines.append)
    assert resumed == found["latents"][0]
    names = [line.partition(": ")[2].partition(":")[0] for line in lines if line.startswith("answers")]
    assert names.count("zeros") == 1 and names.count("K = 2") == 1
    # The run itself once more, for latents are not stored; then K = 1, 2, 3 and three kinds of images.
    assert len(again.engine.calls) == 7
    finished = subject("latents")
    assert audit(finished, Store(tmp_path / "audit.json", finished.settings())) == resumed


def test_other_settings_are_refused_or_begun_anew(tmp_path):
    path, one = tmp_path / "audit.json", subject("latents")
    Store(path, one.settings()).part("x", lambda: 1)
    other = subject("latents", seed=1, latent_steps=2).settings()
    with pytest.raises(ValueError, match=r"audit\.json was made with another K, seed; name another folder"):
        Store(path, other)
    assert Store(path, other, fresh=True).parts == {} and Store(path, one.settings()).parts == {"x": 1}
    path.write_text("{")
    with pytest.raises(ValueError, match=r"audit\.json: not the file of an audit"):
        Store(path, other)


# --- the toy run --------------------------------------------------------------------------------------------------------


class Words(toyfeed.Prompter):
    def encode_text(self, text, name=""):
        return np.array([len(text), ord(text[0]) % 50, toyfeed.END], np.int32)


def test_a_real_engine_gives_every_audit_and_its_replay_is_exact(tmp_path):
    vital = toy.method()
    params = toy.params(vital)
    _, feed = toyfeed.feeds(tmp_path / "records")
    engine = Engine(vital.model, feed.encoder, feed.buckets)
    one = Subject(
        engine, params, feed, range(16), max_steps=K, latent_steps=K, eval_k="per_sample", length=3, batch=16,
        reader=Reader(vital.decoder, params["scaffold"], Words()), visual=(vital.visual, params["scaffold"]["visual_projector"]),
    )  # fmt: skip
    results = audit(one, Store(tmp_path / "audit.json", one.settings()))
    lines = {(line.audit, line.what): line for line in (table.Line(**line) for line in results["lines"])}
    assert lines[table.TOKENS, REPLAYED].changed == 0 and lines[table.SWEEP, EACH_OWN].changed == 0
    assert lines[table.TOKENS, "zeros"].changed > 0 and lines[table.SWEEP, "K = 0"].changed > 0
    # Four images of four questions, with 1, 2, 3 and 1 steps.
    assert lines[table.TOKENS, OTHER].n == lines[table.TOKENS, SAME].n == 8
    assert lines[table.TOKENS, "shuffled order"].n == 8 and lines[table.TOKENS, "first latent repeated"].n == 4
    assert results["retrieval"]["gallery"] == 8 and results["text"]["own latents"]["all"]["n"] == 16
    assert table.MIRROR in dict(map(tuple, results["left_out"]))
    # Chains of one, two and three sentences, of two images, one and one.
    assert [(each["length"], each["n"], list(each["read"])) for each in results["steps"]] == [
        (1, 8, ["z_1"]), (2, 4, ["z_1", "z_2"]), (3, 4, ["z_1", "z_2", "z_3"]),
    ]  # fmt: skip
    assert lines[table.STEPS, "chain of 3: z_3, step 3"].measure == table.LAST_WORD
    assert "metadata 'steps'" in dict(map(tuple, results["left_out"]))[f"{table.STEPS}: {table.PROBE}"]
    # The steps are data: K = 2 for all in the program of K = 3 is the loop of two steps.
    asked = [feed.source[i] for i in range(4)]
    two = in_order(engine.ask(variables_of(params), asked, 2, engine.decoding(3), "fixed", 4))
    same = one.ask(asked, [2] * 4)
    assert [reply.tokens for reply in same] == [reply.tokens for reply in two]
    np.testing.assert_allclose([r.log_prob for r in same], [r.log_prob for r in two], rtol=1e-4)
