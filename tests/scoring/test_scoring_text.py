"""Words: token overlap and BLEU against values worked out by hand, and normal forms."""

import math

import pytest

from vital_jax.scoring.text import bare, bleu, numbered, overlap, plain, squad


@pytest.mark.parametrize(
    ("prediction", "gold", "precision", "recall", "f1"),
    [
        # Worked out on paper, as fractions of the words left after SQuAD's normal form.
        ("left lower lobe of the lung", "left lower lobe", 3 / 5, 3 / 3, 6 / 8),  # "the" is an article
        ("no no yes", "no yes", 2 / 3, 2 / 2, 4 / 5),  # a word counts as often as both have it
        ("lung lung lung", "left lung", 1 / 3, 1 / 2, 2 / 5),
        ("The left lung.", "left lung", 1, 1, 1),
        ("An X-ray, of the chest", "xray of chest", 1, 1, 1),  # marks are deleted, not replaced
        ("liver", "spleen", 0, 0, 0),
        ("", "spleen", 0, 0, 0),
        ("the", "spleen", 0, 0, 0),
        ("", "the", 1, 1, 1),  # both empty after normalising
        ("right upper lobe", "left upper lobe", 2 / 3, 2 / 3, 2 / 3),
        ("a b b c", "b b d", 2 / 3, 2 / 3, 2 / 3),
    ],
)
def test_token_overlap_has_the_values_of_the_table(prediction, gold, precision, recall, f1):
    assert overlap(squad(prediction).split(), squad(gold).split()) == pytest.approx((precision, recall, f1), abs=1e-15)


PAPINENI = "it is a guide to action which ensures that the military always obeys the commands of the party"
REFERENCE = "it is a guide to action that ensures that the military will forever heed party commands"


@pytest.mark.parametrize(
    ("prediction", "gold", "weights", "value"),
    [
        ("the the the the the the the", "the cat is on the mat", (1,), 2 / 7),  # Papineni 2002, section 2.1
        (PAPINENI, REFERENCE, (1,), 12 / 18),  # counted by hand: 12 of 18 words, 8 of 17 pairs
        (PAPINENI, REFERENCE, (0.5, 0.5), math.sqrt(12 / 18 * 8 / 17)),
        (PAPINENI, REFERENCE, (0, 1), 8 / 17),
        ("the cat sat", "the cat sat on", (1,), math.exp(-1 / 3)),
        ("the cat sat", "the cat sat on", (0.5, 0.5), math.exp(-1 / 3)),
        ("liver", "liver", (1,), 1),
        ("liver", "liver", (0.5, 0.5), 0),  # no pair of words
        ("cyst", "liver", (1,), 0),
        ("", "liver", (1,), 0),
    ],
)
def test_bleu_has_the_values_worked_out_by_hand(prediction, gold, weights, value):
    assert bleu(prediction.split(), gold.split(), weights) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Ｂ．Ｘ－ｒａｙ", "B.X-ray"),
        ("\u0392 \u0412", "B B"),  # Greek beta, Cyrillic ve
        ("\u0421\u0422", "CT"),  # Cyrillic es and te
        ("Ⓑ 𝐁", "B B"),
        ("\u200bB\ufeff", "B"),
        ("**Left** _lung_ `B` $C$", "Left lung B C"),
        ("***B***", "B"),
        ("T2* and x_1", "T2* and x_1"),
        ("## B\n- left\n> right", "B\nleft\nright"),
        ("> 5 mm", "> 5 mm"),
        (r"\text{B}", "B"),
        ("β-blocker", "β-blocker"),
        ("左肺。", "左肺。"),
    ],
)
def test_one_alphabet_without_layout(text, same):
    assert plain(text) == same


def test_normal_forms():
    assert bare(" No.\n") == "no" == bare("no") == bare("**No**") and bare("左肺。") == "左肺"
    assert bare("Two") == "2" == bare("２") and numbered("one to twenty, none") == "1 to 20, none"
    assert squad("The two X-rays") == "two xrays"  # SQuAD's as published: number words stay
