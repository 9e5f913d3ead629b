"""What a reply says: reasoning left out, the place of the answer, yes and no, and what is no statement at all."""

import pytest

from vital_jax.scoring.reading import final, is_yes_no, refuses, said, spoken, statements, tails, yes_no


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("Yes", "Yes"),
        (" as it came \n", " as it came \n"),
        ("<think>No mass.</think>\n\nYes", "Yes"),
        ("No shift.\n</think>\n\nYes", "Yes"),
        ("<think>a</think>b<think>c</think> d", "d"),
        ("<THINKING>No</ThinkINg>Yes", "Yes"),
        ("◁think▷No◁/think▷Yes", "Yes"),
        ("<think>never ends: yes", ""),
        ("B <think>or C?", "B"),
        ("<think>yes</think>", ""),
    ],
)
def test_reasoning_is_not_the_answer(text, rest):
    assert spoken(text) == rest


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{B}", "B"),
        (r"\boxed{a} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{open", r"\boxed{open"),
        ("<think>A</think><answer> C </answer>", "C"),
        ("First. The answer is B.", "B."),
        ("Answer: liver", "liver"),
        ("**Answer**: liver", "liver"),
        ("The correct option is: B", "B"),
        ("答案：B", "B"),
        ("plain", "plain"),
        ("the answer is", "the"),
        ("", ""),
    ],
)
def test_the_final_answer_is_found(text, answer):
    assert final(text) == answer


def test_places_of_the_answer_come_last_first():
    assert tails("Answer: B\nThe answer is C") == ["C", "B\nThe"]
    assert said("<think>The answer is C</think>**Answer: Left lung.**") == "Left lung."


NEITHER = [
    "", "nodule", "normal", "eyes", "Yes/No", "yes or no", "yes and no", "Yes - no", "yes, no", "Yes\nno", "Yes. No.",
    "neither yes nor no",
    "It may be yes or no", "Yes or no? I am not sure.", "Is it yes or no?", "Please answer yes or no.", "The answer is yes and no",
    "It is not possible to say yes.", "I would not say yes.", "The answer is not yes.", "Maybe yes", "Perhaps no",
    "The answer could be yes",
    "I cannot tell: no image was provided.", "No image was provided.", "no image is attached, so I cannot say", "No image", "No idea.",
    "I cannot answer yes or no", "I don't know. Yes or no.", "Unable to determine", "Yes? The answer is unclear.", "<think>yes",
    "As an AI I can not say no", "There is not enough information to say no",
]  # fmt: skip


@pytest.mark.parametrize("text", NEITHER)
def test_neither_yes_nor_no(text):
    assert yes_no(text) == ""


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Yes, there is a nodule.", "yes"),
        ("There is no nodule", "no"),
        ("No. Yes would be wrong.", "no"),
        ("No, not yes", "no"),
        ("**Yes**", "yes"),
        ("(yes)", "yes"),
        ("Yes!", "yes"),
        ("Yes—there is", "yes"),
        ("No (normal)", "no"),
        ("No (I cannot see one)", "no"),
        ("I cannot see any fracture, so no", "no"),
        ("Yes/no question: yes", "yes"),
        ("Answer yes or no: no", "no"),
        ("ｙｅｓ", "yes"),
        ("\u0423es", "yes"),  # Cyrillic u
        ("Yes it is", "yes"),
        ("Yes, there is no shift", "yes"),
        ("Yes or no? Yes.", "yes"),
        ("Is there a nodule? No.", "no"),
        ("The answer is: no.", "no"),
        ("Final answer: **No**", "no"),
        (r"\boxed{Yes}", "yes"),
        ("Answer: Yes\nExplanation: no shift is seen", "yes"),
        ("The correct answer is yes, as there is no shift", "yes"),
        ("<think>No mass is seen.</think>\n\nYes, there is.", "yes"),
        ("No shift.\n</think>\n\nYes", "yes"),
        ("No doubt, yes.", "yes"),
        ("No evidence of effusion", "no"),
        ("No, I cannot see one.", "no"),
        ("Yes, but I am not sure.", "yes"),
        ("I'm not sure, but yes.", "yes"),
        ("Sorry, I can't help with that. No.", "no"),
    ],
)
def test_yes_and_no(text, word):
    assert yes_no(text) == word


def test_a_question_or_a_refusal_states_nothing():
    assert statements("Is it CT? It is MRI; I cannot tell why, but B. X-ray") == ["It is MRI", "but B. X-ray"]
    for text in (
        "I can't see the image.",
        "It is not clear",
        "Unable to determine",
        "It depends",
        "CT or MRI?",
        "无法判断",
    ):
        assert refuses(text), text
    for text in ("", "liver", "not the kidney", "no abnormality", "No doubt it is CT"):
        assert not refuses(text), text


def test_what_is_a_yes_or_no_answer():
    assert is_yes_no("Yes.") and is_yes_no("NO") and not is_yes_no("none") and not is_yes_no("yes and no")
