"""Protocol `paper`: the two rules of appendix B.4, and the denominators that it leaves open."""

import dataclasses

import pytest
from asked import choice, item, right, row, scores

from vital_jax.evaluate.benchmarks import load
from vital_jax.evaluate.protocols import PROTOCOLS, apply, get


@pytest.mark.parametrize(
    ("answer", "text", "correct"),
    [
        ("Upper left.", "upper  LEFT.", True),  # lower case, single spaces
        ("Upper left.", "Upper left", True),  # a full stop at the end
        ("Upper left.", "It is the upper left.", False),
        ("yes", "Yes, there is a nodule.", True),
        ("no", "There is no nodule.", True),
        ("no", "nodule", False),
        ("liver", "", False),
    ],
)
def test_closed_answers(answer, text, correct):
    assert right("paper", item(answer, closed=True), text) is correct


def test_f1_takes_bags_of_tokens_split_at_white_space():
    asked = item("left lower lobe", closed=False)
    # Six tokens with "of the lung", three of them shared: 2 · 3 / (6 + 3).
    assert scores("paper", asked, "left lower lobe of the Lung")["open token F1"] == pytest.approx(6 / 9)
    assert scores("paper", asked, "left lower lobe.")["open token F1"] == pytest.approx(
        4 / 6
    )  # "lobe." is another token
    assert "closed accuracy" not in scores("paper", asked, "x")


def test_a_choice_is_its_letter_or_its_text():
    for text, correct in (
        ("B", True),
        ("b.", True),
        ("B. Left lung", True),
        ("left  LUNG", True),
        ("Left lung.", True),
        ("the left lung", True),
        ("A", False),
    ):
        assert right("paper", choice(), text) is correct, text


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("no", "I cannot tell: no image was provided."),
        ("yes", "Yes/No"),
        ("yes", "It is not possible to say yes."),
        ("no", "Yes or no? I am not sure."),
        ("left", "left or right"),
        ("kidney", "It is not the kidney."),
        ("liver", "I cannot see the image."),
    ],
)
@pytest.mark.parametrize("protocol", ["paper", "medevalkit", "llava_med", "lmms_eval"])
def test_hedges_refusals_and_denials_are_wrong(protocol, gold, text):
    assert not right(protocol, item(gold, benchmark="slake", closed=True), text)


@pytest.mark.parametrize("protocol", ["paper", "medevalkit", "pmc_vqa", "omnimedvqa", "gemex"])
def test_choices_are_read_alike(protocol):
    asked = choice("B", ("CT", "X-ray", "MRI", "Ultrasound"))
    for text in ("B. X-ray", "Option B", "<think>A</think>(b)", "Final answer: **B**", "not A, but B\nB"):
        assert right(protocol, asked, text), text
    for text in ("It is not the X-ray.", "CT or X-ray", "I cannot tell: no image was provided.", "<think>B"):
        assert row(protocol, asked, text)["parsed"] == "", text


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_reasoning_is_scored_by_no_protocol_but_published_arithmetic(protocol):
    made = get(protocol)
    asked = item("left lung", closed=False) if made.needs and "no options" in made.needs[0] else choice()
    said = "Left lung" if protocol == "omnimedvqa" or not asked.options else "B"
    for text in (f"<think>(A), (C) or liver</think>\n\n{said}", f"It may be the spleen.\n</think>{said}"):
        assert right(protocol, asked, text), text
    assert row("llava_med compat", item("no", closed=True), "<think>no</think> yes")["correct"]


def test_the_rule_of_the_appendix_as_it_stands():
    literal = "closed accuracy, literal"
    for answer, text, ours, theirs in (
        ("yes", " YES ", 1, 1),
        ("yes", "Yes.", 1, 0),
        ("yes", "Yes, there is.", 1, 0),
        ("upper left", "Upper  left", 1, 1),
        ("upper left", "**Upper left**", 1, 0),
        ("2", "two", 1, 0),
    ):
        made = scores("paper", item(answer, closed=True), text)
        assert (made["closed accuracy"], made[literal]) == (ours, theirs), text
    assert [scores("paper", choice(), text)[literal] for text in ("b", "left lung", "B.")] == [1, 1, 0]
    assert literal not in scores("paper", item("yes", closed=False), "yes")


def test_another_accepted_answer_is_right():
    assert right("paper", item("xray", answers=("x-ray",), closed=True), "X-Ray")


def test_vqa_rad_has_three_denominators(real):
    import json

    rows = json.loads((real("vqa_rad") / "testset.json").read_text(encoding="utf-8"))
    items = [
        item(
            str(row["answer"]).strip(),
            str(number),
            closed=row["answer_type"].strip() == "CLOSED",
            image=row["image_name"],
        )
        for number, row in enumerate(rows)
    ]
    scored = apply(get("paper"), items, {one.id: one.answer for one in items})
    n = {name: scored.metric(name).n for name in ("accuracy", "closed accuracy", "yes/no accuracy")}
    # Of the 284 questions whose images are in the fixtures.
    closed = sum(row["answer_type"].strip() == "CLOSED" for row in rows)
    yes_no = sum(str(row["answer"]).strip().lower() in ("yes", "no") for row in rows)
    assert n == {"accuracy": len(rows), "closed accuracy": closed, "yes/no accuracy": yes_no}
    assert len(rows) > closed > yes_no
    assert all(scored.metric(name).value == 1.0 for name in n)


def test_own_records_are_asked_as_in_training():
    asked = choice()
    assert get("paper").prompt(asked).splitlines()[0] == asked.question and "\n" in get("paper").prompt(asked)
    assert get("paper").prompt(dataclasses.replace(asked, benchmark="records")) == asked.question


def test_the_rule_as_it_stands_is_printed_for_real_questions_too(real):
    """VQA-RAD's own: a full stop is no matter to whoever reads, and all the difference to the appendix."""
    items = load("vqa_rad", real("vqa_rad"), "all").items
    read, literal = "closed accuracy", "closed accuracy, literal"
    stop, bare = (apply(get("paper"), items, {one.id: text for one in items}, draws=100) for text in ("Yes.", "yes"))
    assert stop.metric(literal).n == stop.metric(read).n > 500 and literal in stop.table()
    assert stop.metric(literal).value == 0 < stop.metric(read).value == bare.metric(read).value
    assert 0 < bare.metric(literal).value <= bare.metric(read).value
