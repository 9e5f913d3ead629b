"""The table of defects: it is complete, its protocols exist, and its examples with plain answers are true in both modes."""

import re

import pytest
from asked import choice, item, right, scores

from vital_jax.evaluate.protocols import PROTOCOLS
from vital_jax.evaluate.protocols.defects import DEFECTS, defects_table


def test_the_table_names_protocols_that_exist():
    for defect in DEFECTS:
        modes = re.sub(r" \(.*?\)", "", defect.compat.split(":")[0])
        for mode in modes.split(", "):
            name, *options = mode.split()
            assert name == "none" or (name in PROTOCOLS and set(options) <= set(PROTOCOLS[name][1])), defect
    table = defects_table()
    assert len(table.splitlines()) == len(DEFECTS) + 2 and len(set(DEFECTS)) == len(DEFECTS)
    # What the record of published numbers names must be there.
    for words in ("printed F1 is recall", "nodule", "empty open answer", "set to 0", "are added", "451 (all), 251"):
        assert words in table, words


@pytest.mark.parametrize(
    ("name", "asked", "text", "ours", "theirs"),
    [
        ("medevalkit", item("yes"), "Yes, there is a nodule.", True, False),
        ("medevalkit", choice("A"), "", False, True),
        ("medevalkit", item("left", benchmark="slake", closed=True), "The answer is left", True, False),
        ("llava_med", item("left", closed=True), "left", True, False),
        ("mmmu", choice("A", benchmark="mmmu_health"), "I cannot tell.", False, True),  # the first draw of seed 42 is A
        ("lmms_eval", item("是", benchmark="slake_zh"), "正常", False, True),
    ],
)
def test_examples_of_right_and_wrong(name, asked, text, ours, theirs):
    assert (right(name, asked, text), right(f"{name} compat", asked, text)) == (ours, theirs)


@pytest.mark.parametrize(
    ("name", "gold", "text", "measure", "value"),
    [
        ("paper", "left lower lobe", "left lower lobe of the lung", "open token F1", 0.667),
        ("medevalkit", "left lower lobe", "left lower lobe of the lung", "open token F1", 0.75),
        (
            "medevalkit compat",
            "left lower lobe",
            "left lower lobe of the lung",
            "open f1 as printed (is recall of token sets)",
            1,
        ),
        ("llava_med", "left lung", "lung lung lung", "open token recall", 0.5),
        ("llava_med compat", "left lung", "lung lung lung", "recall as printed", 0.75),
        ("pathvqa", "pneumonia of it", "pneumonia", "open BLEU-1", 0.135),
        ("pathvqa compat", "pneumonia of it", "pneumonia", "BLEU-1 as printed", 0.513),
    ],
)
def test_examples_with_numbers(name, gold, text, measure, value):
    assert scores(name, item(gold, closed=False), text)[measure] == pytest.approx(value, abs=1e-3)
