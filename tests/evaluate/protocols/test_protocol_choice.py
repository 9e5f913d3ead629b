"""Protocols `pmc_vqa`, `omnimedvqa`, `medxpertqa` and `gemex`."""

import pytest
from asked import choice, item, right, row

from vital_jax.evaluate.protocols import apply, get


def test_pmc_vqa_reads_letters_before_it_looks_for_the_nearest_option():
    asked = choice("A", ("Brain stem tumour", "Bone"))
    assert right("pmc_vqa", asked, "A") and right("pmc_vqa", asked, "brain stem tumor")
    assert row("pmc_vqa", asked, "brain stem tumor")["how"] == "nearest"
    assert not right("pmc_vqa", asked, "")
    # By the nearest option alone: " A:Brain stem tumour" and " B:Bone" hold a capital B each, the shorter wins.
    assert row("pmc_vqa compat", asked, "B")["parsed"] == "B"
    assert row("pmc_vqa compat", asked, "A")["parsed"] == "A"  # only the first option has a capital A
    assert row("pmc_vqa compat", choice("A", ("Bone", "Aorta")), "A")["parsed"] == "A"
    assert row("pmc_vqa compat", choice("A", ("Carcinoma of the Breast", "CT")), "C")["parsed"] == "B"
    assert row("pmc_vqa compat", asked, "§")["parsed"] == "" == row("pmc_vqa compat", asked, "")["parsed"]
    # Only the last character counts.
    assert row("pmc_vqa compat", asked, "It is A")["parsed"] == "A" and not right("pmc_vqa compat", asked, "A.")
    assert get("pmc_vqa").prompt(choice()) == (
        "Question: Is it?Choices: A:Uterus B:Left lung C:Liver cyst D:SpleenThe Answer is:"
    )


def test_omnimedvqa_takes_the_nearest_text():
    asked = choice(benchmark="omnimedvqa")
    assert right("omnimedvqa", asked, "left lungs") and right("omnimedvqa compat", asked, "Left lungs")
    assert right("omnimedvqa", asked, "B")
    # Capitals count in theirs: no character of "LUNG" but L is in an option, and the shortest with an L wins over "Left lung".
    assert row("omnimedvqa compat", choice("A", ("Left lung", "L5")), "LUNG")["parsed"] == "B"
    assert right("omnimedvqa", choice("A", ("Left lung", "L5")), "LEFT LUNGS")
    # Of two options with the same text either is right there.
    twins = choice("B", ("Left lung", "Left lung"), benchmark="omnimedvqa")
    assert right("omnimedvqa compat", twins, "left lung") and not right("omnimedvqa", twins, "A")
    assert "Here are 4 candidate answers:['Uterus', 'Left lung', 'Liver cyst', 'Spleen'] Only return" in get(
        "omnimedvqa"
    ).prompt(asked)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C", "C"),
        ("I weigh B. Therefore, among A through D, the answer is C.", "C"),
        ("therefore, among a through d, the answer is D", "D"),
        ("E", ""),  # four options only
        ("the answer is c", ""),
        ("A through E: B", "B"),  # the repeated range is no choice
        ("B and D. So the answer is C.", "C"),
        ("The answer is B, no, the answer is C", "B"),  # kept: between the first two
        ("It is B\n", "B"),
        ("A lesion; D", "A"),  # the rule's known weakness
        ("", ""),
    ],
)
def test_medxpertqa_takes_the_first_letter_after_the_trigger(text, letter):
    assert row("medxpertqa", choice(benchmark="medxpertqa_mm"), text)["parsed"] == letter


def test_medxpertqa_asks_twice():
    protocol, asked = get("medxpertqa"), choice(benchmark="medxpertqa_mm")
    assert protocol.prompt(asked) == (
        "Q: Is it?\nAnswer Choices: (A) Uterus (B) Left lung (C) Liver cyst (D) Spleen\nA: Let's think step by step."
    )
    assert protocol.follow_up(asked) == "Therefore, among A through D, the answer is" and protocol.system
    published = choice(benchmark="medxpertqa_mm", published_question="Is it?\nAnswer Choices: (A) as printed")
    assert protocol.prompt(published) == "Q: Is it?\nAnswer Choices: (A) as printed\nA: Let's think step by step."


@pytest.mark.parametrize("name", ["pmc_vqa", "omnimedvqa", "medxpertqa"])
def test_questions_without_options_are_refused(name):
    with pytest.raises(ValueError, match=f"item 'q1' of 'vqa_rad': {name} scores only items with options"):
        right(name, item("liver"), "liver")


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("A, C", "AC"),
        ("AC", "AC"),
        ("C and A.", "AC"),
        ("(A) Uterus, (C) Liver cyst", "AC"),
        ("The answer is A and C", "AC"),
        ("uterus; liver cyst", "AC"),
        ("A", "A"),
        ("A, B, C", "ABC"),
        ("none of them", ""),
    ],
)
def test_gemex_sets_of_letters(text, letters):
    asked = choice("AC", benchmark="gemex", task="multi_choice")
    assert row("gemex", asked, text)["parsed"] == letters
    assert right("gemex", asked, text) is (letters == "AC")


def test_gemex_has_three_parts_and_leaves_open_questions_out():
    items = [
        item("yes", "1", benchmark="gemex", task="closed_ended", closed=True),
        choice("B", name="2", benchmark="gemex", task="single_choice"),
        choice("B", name="3", benchmark="gemex", task="multi_choice"),
        item("The heart is large.", "4", benchmark="gemex", task="open_ended", closed=False),
    ]
    scored = apply(get("gemex"), items, {"1": "Yes, it is.", "2": "B. Left lung", "3": "A, B", "4": "heart"})
    assert scored.metric("accuracy").value == pytest.approx(2 / 3) and scored.metric("accuracy").n == 3
    for name, value in (("closed accuracy", 1), ("single-choice accuracy", 1), ("multiple-choice accuracy", 0)):
        assert (scored.metric(name).value, scored.metric(name).n) == (value, 1)
    assert get("gemex").prompt(items[2]).endswith("Answer with all correct options' letters.")
    assert get("gemex").prompt(items[0]) == "Is it?"
