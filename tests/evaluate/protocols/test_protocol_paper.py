"""Protocol `paper`: the two rules of appendix B.4, and the denominators that it leaves open."""

import dataclasses

import pytest
from asked import choice, item, right, scores

from vital_jax.evaluate.protocols import apply, get


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


def test_a_choice_is_a_letter_or_an_exact_text():
    for text, correct in (
        ("B", True),
        ("b.", True),
        ("B. Left lung", True),
        ("left  LUNG", True),
        ("Left lung.", True),
        ("the left lung", False),
        ("A", False),
    ):
        assert right("paper", choice(), text) is correct, text


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
