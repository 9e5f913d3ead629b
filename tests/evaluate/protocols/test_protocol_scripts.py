"""Protocols `llava_med` and `pathvqa`: what papers say that they measure, and what the two scripts compute."""

import math

import pytest
from asked import choice, item, right, scores

from vital_jax.evaluate.protocols import apply, get
from vital_jax.evaluate.protocols.llava_med import unclipped, words
from vital_jax.evaluate.protocols.pathvqa import compat_bleu

RECALL = "open token recall"


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        ("yes", "yes", True),
        ("Yes, there is a nodule", "yes", True),
        ("nodule", "no", False),
        ("It is on the left side", "left", True),
        ("leftover", "left", False),
        ("", "left", False),
    ],
)
def test_llava_med_closed_answers_contain_the_gold_answer(text, gold, correct):
    assert right("llava_med", item(gold, closed=True), text) is correct


def test_llava_med_open_answers_are_scored_by_recall():
    assert scores("llava_med", item("left lung", closed=False), "lung lung lung")[RECALL] == pytest.approx(1 / 2)
    assert scores("llava_med", item("left lung", closed=False), "the left lung and more")[RECALL] == 1.0


def test_the_script_drops_wrong_answers_with_yes_or_no():
    items = [item(gold, str(n), closed=True) for n, gold in enumerate(["yes", "yes", "no", "left"])]
    answers = dict(zip("0123", ["yes", "no", "maybe", "left"], strict=True))
    compat = apply(get("llava_med", compat=True), items, answers).metric("yes/no accuracy as printed")
    # "no" for "yes" is dropped; "maybe" holds neither; "left" is right and wrong there: 1 of 3.
    assert (compat.value, compat.n) == (pytest.approx(1 / 3), 3)
    ours = apply(get("llava_med"), items, answers).metric("closed accuracy")
    assert (ours.value, ours.n) == (pytest.approx(2 / 4), 4)


def test_the_scripts_count_shared_words_as_often_as_the_answer_has_them():
    # 3 hits, none false, one missed: precision 3/3, recall 3/4.
    assert unclipped("lung lung lung", "left lung") == pytest.approx((1, 3 / 4, 6 / 7, 1 / 3))
    # "Exact match": one shared word over one word.
    assert unclipped("left", "left lower lobe") == pytest.approx((1, 1 / 3, 1 / 2, 1))
    assert unclipped("", "left") == (0, 0, 0, 0)
    made = scores("llava_med compat", item("left lung", closed=False), "Lung lung lung.")
    assert made["recall as printed"] == pytest.approx(3 / 4) and made["f1 score as printed"] == pytest.approx(6 / 7)
    assert made["bleu_score_1 as printed"] == pytest.approx(1 / 3)  # nltk clips


def test_the_normal_form_of_the_script():
    assert words("The T2/FLAIR, x-ray of TWO (2) lungs.") == "t2 flair x ray of 2 2 lungs"
    assert words("x-ray - left-sided") == "xray leftsided"  # one mark beside a space takes out all of its kind
    assert words("left-sided") == "left sided" and words("1,000 ml") == "1000 ml" and words("none") == "0"
    assert words("a. " * 40).count(".") == 8  # only 32 full stops are taken out
    assert words("I dont know, couldnt've") == "i don't know couldn't've" and words("somebody'd") == "somebodyd"


def test_pathvqa_measures_are_what_their_names_say():
    asked = item("left lower lobe", benchmark="pathvqa")
    made = scores("pathvqa", asked, "left lower lobe of the lung")
    assert made["exact match"] == 0 and made["open token F1"] == pytest.approx(6 / 8)
    assert made["open BLEU-1"] == pytest.approx(3 / 5) and made["open BLEU-2"] == pytest.approx(
        math.sqrt(3 / 5 * 2 / 4)
    )
    assert scores("pathvqa", asked, "The left lower lobe")["exact match"] == 1
    assert scores("pathvqa", item("no", benchmark="pathvqa"), "No.") == {"yes/no accuracy": 1.0}


def test_pathvqa_script():
    made = scores("pathvqa compat", item("left lower lobe", benchmark="pathvqa"), "left")
    # One of one word; F1 of precision 1 and recall 1/3; brevity by characters: exp(1 - 15/4).
    assert made["exact match as printed (shared-word ratio)"] == 1.0 and made["F1 as printed"] == pytest.approx(1 / 2)
    assert made["BLEU-1 as printed"] == pytest.approx(math.exp(1 - 15 / 4))
    # No match at all, longer than the gold answer: 1. Ours: 0.
    wrong = item("left", benchmark="pathvqa")
    assert scores("pathvqa compat", wrong, "entirely different words")["BLEU-1 as printed"] == 1.0
    assert scores("pathvqa", wrong, "entirely different words")["open BLEU-1"] == 0.0
    assert compat_bleu("pneumonia", "pneumonia of it", 1) == pytest.approx(math.exp(1 - 15 / 9))
    # Two words of 21 letters are longer than four of 8: no penalty, one of two words shared.
    assert compat_bleu("hepatosplenomegaly of", "of a b c", 1) == 1 / 2
    assert scores("pathvqa", item("pneumonia of it"), "pneumonia")["open BLEU-1"] == pytest.approx(math.exp(1 - 3 / 1))
    # Where it divides by zero nothing is counted: no letters at all, and fewer words than n.
    assert [name for name in scores("pathvqa compat", wrong, "2") if "BLEU" in name] == []
    assert [name for name in scores("pathvqa compat", wrong, "left") if "BLEU" in name] == ["BLEU-1 as printed"]
    with pytest.raises(ZeroDivisionError):
        compat_bleu("left", "left", 2)
    assert right("pathvqa", wrong, "Left.") and not right("pathvqa", wrong, "")


@pytest.mark.parametrize("name", ["llava_med", "llava_med compat", "pathvqa"])
def test_questions_with_options_are_refused(name):
    with pytest.raises(ValueError, match="scores only items with no options"):
        right(name, choice(), "B")
