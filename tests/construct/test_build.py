"""Samples to records to shards, and the split: real folders whole, phantoms, turned images, one group on one side."""

import logging
from collections import Counter, defaultdict
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from rules import FLAT, STEPS, check_rules

from vital_jax.construct.build import assign_splits, build_records, record_fields, record_id, split_of
from vital_jax.construct.folders import MaskFolder
from vital_jax.construct.measure import look
from vital_jax.construct.questions import Question, questions
from vital_jax.construct.roi import record_rows
from vital_jax.construct.sample import Sample
from vital_jax.construct.targets import load_targets
from vital_jax.construct.teacher import teach
from vital_jax.demo.phantoms import phantoms
from vital_jax.pipeline.features import FeatureSpec, RoiFeatures, write_features
from vital_jax.pipeline.images import decode
from vital_jax.pipeline.masks import decode_mask
from vital_jax.pipeline.records import METADATA_TYPES, Record, RecordSource, write_splits


def sample_id(record):
    return record.id.removesuffix("/closed").rsplit("/", 1)[0]


@pytest.mark.parametrize("name", FLAT)
def test_real_folders_are_digested_whole(real, name):
    folder = MaskFolder(real(name))
    samples = {}
    kept = (samples.setdefault(sample.id, sample) for sample in folder)
    records = list(build_records(kept, 6, seed=0, form="both"))
    assert len({record.id for record in records}) == len(records)
    neutral, asked = load_targets().neutral, {sample_id(record) for record in records}
    for sample in samples.values():  # a kind of what is marked as a whole has no name of its own to be asked by
        kind = sample.target != neutral(sample.target) in map(neutral, {*sample.present} - {sample.target})
        assert kind != (sample.id in asked)
    for record in records:
        kind, target = record.metadata["question_type"], record.metadata["target_name"]
        sample = samples[sample_id(record)]
        visible = target in (sample.target, neutral(sample.target))
        assert STEPS[kind][0] <= len(record.chain) == record.latent_steps <= STEPS[kind][1]
        assert record.images == (sample.image,) and len(record.masks) == len(record.boxes) == int(visible)
        check_rules(Question(kind, record.question, len(record.chain), target), sample, record.chain, record.answer,
                    record.metadata["target_type"])  # fmt: skip
        if kind == "yesno":
            assert record.answer.startswith("Yes" if visible else "No")
            assert record.gold == "" or record.answer == ("Yes." if visible else "No.")
            assert visible or target not in sample.present
    record = next(record for record in records if record.masks)
    sample = samples[sample_id(record)]
    image, info = decode(record.images[0], "image")
    np.testing.assert_array_equal(decode_mask(record.masks[0], "mask", info), sample.region)
    assert Image.open(BytesIO(record.masks[0])).mode == "L"
    ys, xs = np.nonzero(sample.region)
    pixels = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    np.testing.assert_allclose(record.boxes[0], np.divide(pixels, (image.width, image.height) * 2), rtol=1e-6)


def test_two_runs_and_any_order_give_the_same_records():
    first = list(build_records(phantoms(3, seed=4, size=64), 3, seed=1))
    assert first == list(build_records(phantoms(3, seed=4, size=64), 3, seed=1))
    tail = list(build_records(phantoms(1, seed=4, size=64, start=2), 3, seed=1))
    assert 0 < len(tail) < len(first) and tail == first[-len(tail) :]


def test_closed_records_are_balanced_within_each_split():
    shares = {"val": 0.3, "test": 0.2}
    records = list(build_records(phantoms(40, seed=5, size=64), 6, seed=0, form="both", **shares))
    assert records == list(build_records(phantoms(40, seed=5, size=64), 6, seed=0, form="both", **shares))
    counts = defaultdict(Counter)
    for record in records:
        assert record.metadata.keys() <= METADATA_TYPES.keys()
        closed = record.metadata["form"] == "closed"
        assert closed == record.id.endswith("/closed") == bool(record.gold) == bool(record.options)
        assert len(record.metadata["slots"]) == len(record.chain) and record.metadata["teacher"] == "measured-3"
        if closed:
            letters = "ABCD"[: len(record.options)]
            option = record.options[letters.index(record.gold)]
            assert record.answer == f"{option[0].upper()}{option[1:]}."
            assert all(option in record.question.lower() for option in map(str.lower, record.options))
            split = split_of(record.metadata["group"], **shares)
            counts[split, record.metadata["ask"]].update(dict.fromkeys(letters, 0) | {record.gold: 1})
        if record.metadata["ask"] in ("direction", "larger", "brighter_of_two", "relation"):
            assert record.metadata["neighbour"] != record.metadata["target_name"]
    assert {split for split, _ in counts} == {"train", "val", "test"}
    assert all(max(counted.values()) - min(counted.values()) <= 2 for counted in counts.values())
    with pytest.raises(ValueError, match=r"unknown form 'half'.*open, closed or both"):
        next(build_records([], 1, seed=0, form="half"))


def test_fields_without_pictures_are_those_of_the_record():
    sample = next(phantoms(1, seed=4, size=64))
    record = next(build_records([sample], 1, seed=0))
    facts, targets = look(sample), load_targets()
    (question,) = questions(sample, 1, 0, facts=facts)
    fields = record_fields(question, sample, facts, teach(question, sample, facts), targets, gate="gate-1", empty="")
    assert record_id(sample, question) == record.id == fields["id"]
    assert fields["metadata"] == record.metadata | {"gate": "gate-1"}  # what is empty is left out
    assert Record(images=record.images, masks=record.masks, **fields | {"metadata": record.metadata}) == record


def test_a_turned_image_keeps_its_mask_on_the_stored_grid():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = np.full((40, 50, 3), 60, np.uint8)
    picture[2:22, 30:48] = 200
    mask = (picture[..., 0] == 200).astype(np.uint8) * 255
    files = []
    for pixels, options in ((picture, {"exif": exif}), (mask, {})):
        file = BytesIO()
        Image.fromarray(pixels).save(file, "PNG", **options)
        files.append(file.getvalue())
    sample = Sample("s", *files, "eyeball", "organ", "MRI", "phantom", "g", "s", present=("eyeball",))
    records = [record for record in build_records([sample], 6, seed=0) if record.masks]
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(records[0].masks[0]))), mask)
    image, info = decode(records[0].images[0], "image")
    shown = decode_mask(records[0].masks[0], "mask", info)
    np.testing.assert_array_equal(shown, np.asarray(image)[..., 0] == 200)
    # Turned clockwise, the bright corner at the upper right of the file stands at the lower right of the picture.
    place = next(record for record in records if record.metadata["question_type"] == "location")
    assert place.answer == "The eyeball lies in the lower right part of the image."
    np.testing.assert_allclose(place.boxes[0], (18 / 40, 30 / 50, 38 / 40, 48 / 50), rtol=1e-6)


def test_splits_keep_groups_and_images_whole(caplog):
    sides = Counter(split_of(f"patient {i}") for i in range(20000))
    assert abs(sides["val"] / 20000 - 0.075) < 0.01 and abs(sides["test"] / 20000 - 0.075) < 0.01
    assert split_of("a", val=1, test=0) == "val" and split_of("a", val=0, test=0) == "train"
    records = list(build_records(phantoms(25, seed=0, size=64), 2, seed=0))
    pairs = list(assign_splits(records, val=0.3, test=0.2))
    assert [record for _, record in pairs] == records and {split for split, _ in pairs} == {"train", "val", "test"}
    for _, record in pairs:
        assert len({split for split, other in pairs if other.metadata["group"] == record.metadata["group"]}) == 1

    groups = {split_of(f"g{i}", 0.5, 0): f"g{i}" for i in range(20)}
    copies = [
        Record(f"r{i}", (b"the same picture",), "Q?", "A.", metadata={"group": group})
        for i, group in enumerate((groups["train"], groups["val"], groups["train"]))
    ]
    with caplog.at_level(logging.WARNING):
        kept = list(assign_splits(copies, val=0.5, test=0))
    assert [(split, record.id) for split, record in kept] == [("train", "r0"), ("train", "r2")]
    assert "1 records left out" in caplog.text
    with pytest.raises(ValueError, match="record 'x': metadata has no group"):
        list(assign_splits([Record("x", (b"i",), "Q?", "A.")]))
    with pytest.raises(ValueError, match="shares must be"):
        list(assign_splits([], val=0.8, test=0.3))


def encode(images):
    cells = images.reshape(len(images), 4, 8, 4, 8, 3).mean((2, 4)).reshape(len(images), 16, 3)
    return np.concatenate([cells, np.ones((len(images), 16, 1))], -1)


def test_from_pictures_to_a_store_with_features(tmp_path):
    records = list(build_records(phantoms(6, seed=3, size=64), 4, seed=0))
    folder = write_splits(assign_splits(records, val=0.3, test=0), tmp_path / "phantoms")
    source = RecordSource(folder)
    assert len(source) + len(RecordSource(folder, "val")) == len(records)
    calls = []

    def counted(images):
        calls.append(len(images))
        return encode(images)

    spec = FeatureSpec("toy", "block", 0.2, 0.05, "none")
    rows = record_rows(source, counted, batch_size=3, grid=4, size=32)
    features = RoiFeatures(write_features(folder, spec, source.ids, rows), source.ids)
    by_sample = {}
    for number, record in enumerate(source):
        roi, valid = features[number]
        assert valid == bool(record.masks)
        if valid:
            np.testing.assert_allclose(np.linalg.norm(roi), 1, rtol=1e-6)
            by_sample.setdefault(sample_id(record), []).append(roi)
    assert any(record.masks == () for record in source)
    for together in by_sample.values():
        assert all(np.array_equal(together[0], roi) for roi in together)
    # One view of the image and at most one crop per sample, however many questions it has.
    assert sum(calls) <= 2 * len(by_sample) + 2
    with pytest.raises(ValueError, match="other records or another order"):
        RoiFeatures(folder / spec.name / "train", source.ids[::-1])
