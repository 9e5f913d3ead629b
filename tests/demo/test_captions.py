"""Captions state what is so: read back word by word against the measurements they were made from."""

import re
from itertools import groupby

import numpy as np
import pytest

from vital_jax.construct.measure import measure
from vital_jax.construct.targets import load_targets
from vital_jax.construct.words import compare_size, direction, quarter, shape
from vital_jax.demo.captions import caption_records
from vital_jax.demo.phantoms import phantoms
from vital_jax.pipeline.records import METADATA_TYPES

COUNT = 60


@pytest.fixture(scope="module")
def images():
    """[(samples of an image, its captions)]."""
    samples = list(phantoms(COUNT, 5))
    records = list(caption_records(samples, 3, 5))
    by_group = {group: list(own) for group, own in groupby(samples, key=lambda s: s.group)}
    return [(by_group[group], list(own)) for group, own in groupby(records, key=lambda r: r.metadata["group"])]


def marked(samples):
    targets = load_targets()
    grey = np.asarray(samples[0].picture.convert("L"))
    return {targets.phrase(s.target): measure(grey, s.region) for s in samples}


def test_every_image_has_its_captions_and_no_question(images):
    assert len(images) == COUNT
    for samples, records in images:
        assert len({record.id for record in records}) == 3
        for record in records:
            assert record.images == (samples[0].image,) and not record.chain and not record.options
            assert record.answer.endswith(".") and "?" not in record.answer
            assert record.metadata.keys() <= METADATA_TYPES.keys()
    assert len({record.answer for _, records in images for record in records}) > 2.5 * COUNT


def test_names_stand_on_the_right_side_of_yes_and_no(images):
    seen = 0
    targets = load_targets()
    for samples, records in images:
        there, gone = ({targets.phrase(name) for name in names} for names in (samples[0].present, samples[0].absent))
        for record in records:
            if match := re.match(r"Yes: (.*?)\. No: (.*?)\.(?: |$)", record.answer):
                seen += 1
                assert set(match[1].split(", ")) == there and set(match[2].split(", ")) == gone
    assert seen > COUNT / 2


def test_shapes_quarters_and_comparisons_are_the_measured_ones(images):
    read = {"shape": 0, "quarter": 0, "direction": 0, "larger": 0}
    for samples, records in images:
        m = marked(samples)
        for record in records:
            for head, tail in re.findall(r"([A-Z][^:.]*): ([^.]*)\.", record.answer):
                names = tail.split(", ")
                if not set(names) <= m.keys():
                    continue
                word = head.lower()
                if word in ("round", "oval", "elongated", "irregular", "divided"):
                    assert all(shape(m[name]) == word for name in names)
                    read["shape"] += 1
                elif other := re.fullmatch(r"(above|below|to the left of|to the right of) (.*)", word):
                    assert direction(m[names[0]], m[other[2]]) == other[1]
                    read["direction"] += 1
                elif other := re.fullmatch(r"larger than (.*)", word):
                    assert compare_size(m[names[0]], m[other[1]]) == "larger"
                    read["larger"] += 1
                elif re.fullmatch(r"(upper|lower) (left|right)", word):
                    assert all(quarter(m[name]) == word for name in names)
                    read["quarter"] += 1
    assert min(read.values()) >= 3, read


def test_captions_depend_on_the_seed_and_the_image_alone(images):
    again = list(caption_records(phantoms(COUNT, 5), 3, 5))
    assert [r.answer for r in again] == [r.answer for _, records in images for r in records]
    other = list(caption_records(phantoms(COUNT, 5), 3, 6))
    assert [r.answer for r in other] != [r.answer for r in again]
