"""Words: token overlap and BLEU against values worked out by hand, and what an answer is taken to say."""

import math

import pytest

from vital_jax.scoring.choice import choose, contained_option, named_letter, nearest_option
from vital_jax.scoring.reading import final, yes_no
from vital_jax.scoring.text import bare, bleu, overlap, squad


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
    ("text", "said"),
    [
        ("Yes, there is a nodule.", "yes"),
        ("There is no nodule", "no"),
        ("No. Yes would be wrong.", "no"),
        ("**Yes**", "yes"),
        ("nodule", ""),
        ("normal", ""),
        ("It may be yes or no", ""),
        ("eyes", ""),
        ("", ""),
    ],
)
def test_yes_and_no_are_whole_words(text, said):
    assert yes_no(text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (r"so \boxed{B}", "B"),
        (r"\boxed{a} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{open", r"\boxed{open"),
        ("<think>A</think><answer> C </answer>", "C"),
        ("First. The answer is B.", "B."),
        ("Answer: liver", "liver"),
        ("**Answer**: liver", "liver"),
        ("答案：B", "B"),
        ("plain", "plain"),
        ("the answer is", "the answer is"),
    ],
)
def test_the_final_answer_is_found(text, said):
    assert final(text) == said


OPTIONS = ("Uterus", "Left lung", "lung", "Liver cyst")


@pytest.mark.parametrize(
    ("text", "letter", "how"),
    [
        ("B", "B", "letter"),
        ("b", "B", "letter"),
        ("(c)", "C", "letter"),
        ("D.", "D", "letter"),
        ("**A**", "A", "letter"),
        ("B. Left lung", "B", "letter"),
        ("(D) something else", "D", "letter"),
        ("The answer is (A).", "A", "letter"),
        ("E", "", "none"),
        ("left lung.", "B", "text"),
        ("lung", "C", "text"),
        ("It shows the left lung", "B", "contained"),  # "lung" stands only inside "left lung"
        ("the uterus and a liver cyst", "", "none"),
        ("A cyst of the liver", "", "none"),  # an article is no choice
        ("a. m. dose", "", "none"),
        ("", "", "none"),
        ("*B*", "B", "letter"),
        ("[B]", "B", "letter"),
        ("‘B’。", "B", "letter"),
        ("Ｂ", "B", "letter"),
        ("\u200bB", "B", "letter"),
        ("*Answer*: B", "B", "letter"),
        ("Final Answer\nB", "B", "letter"),
        ("neither A nor D\n\nB", "B", "letter"),
        ("B\n\nD would be the uterus", "B", "letter"),
        ("A\n\nB", "", "none"),
        ("b. left lung", "B", "letter"),
        ("Option B", "B", "letter within"),
        ("选B", "B", "letter within"),
        ("B是正确的", "B", "letter within"),
        ("it's D", "D", "letter within"),
        ("I choose 'D' here", "D", "letter within"),
        ("D's wall", "", "none"),
        ("A lesion; D", "D", "letter within"),
        ("A is right", "A", "letter within"),
        ("The answer is not A but B", "B", "letter within"),
        ("A and B", "", "none"),
        ("(A), (B)", "", "none"),
        ("MRA", "", "none"),
    ],
)
def test_an_answer_names_an_option_or_none(text, letter, how):
    assert choose(text, OPTIONS) == (letter, how)


def test_the_nearest_option_is_difflibs_and_comes_last():
    assert nearest_option("Uterrus", OPTIONS) == "A"
    assert choose("uterrus", OPTIONS) == ("", "none") and choose("uterrus", OPTIONS, nearest=True) == ("A", "nearest")
    # A letter of no option and several letters are no reason to look for the nearest.
    assert choose("e", OPTIONS, nearest=True) == ("", "none") == choose("A or D", OPTIONS, nearest=True)
    assert nearest_option("", OPTIONS) == "" == nearest_option("§", OPTIONS)
    assert choose("", OPTIONS, nearest=True) == ("", "none")
    # Equal ratios: the first.
    assert nearest_option("ab", ("xa", "xb")) == "A"
    # Why letters go first: alone, the rule takes a short option that holds the letter.
    assert nearest_option("B", ("Brain", "Bone")) == "B" and named_letter("A", ("Brain", "Bone")) == "A"


def test_normal_forms():
    assert bare(" No.\n") == "no" == bare("no") and bare("左肺。") == "左肺"
    assert contained_option("the the", ("the",)) == ""  # an option of nothing but articles is in no text
