"""Scores without a model: intervals against published values, the majority's answer, and the table."""

from dataclasses import replace

import pytest

from vital_jax.evaluate.score import Score, chance, frequent, judge, kind, majority, table
from vital_jax.pipeline.records import Record
from vital_jax.scoring.text import normalise


def record(number, answer, ask="side", question_type="location", **changes):
    metadata = {"question_type": question_type, "ask": ask}
    return Record(f"r{number}", (b"x",), "Where?", answer, metadata=metadata, **changes)


def test_an_answer_is_judged_after_normalising():
    assert normalise("  Upper\n LEFT. ") == "upper left."
    assert judge(record(1, "Upper left."), "upper  left.")["exact"]
    assert not judge(record(1, "Upper left."), "Upper right.")["exact"]
    assert kind({"ask": "side", "modality": "CT"}) == {"question_type": "", "ask": "side"}


def test_the_majority_answers_by_type_and_ask_from_training_alone():
    train = [record(i, a) for i, a in enumerate(["Left.", "Right.", "Right."])]
    train += [record(i, "No.", ask="presence", question_type="yesno") for i in range(9)]
    train += [record(i, a, ask="quarter") for i, a in enumerate(["Low.", "High."])]
    test = [
        record(1, "Left."),
        record(2, "Right."),
        record(3, "No.", "presence", "yesno"),
        record(4, "x", "quarter"),
        record(5, "x", "never asked"),
    ]
    rows = majority(frequent(iter(train)), iter(test))
    assert [row["answer"] for row in rows] == ["Right.", "Right.", "No.", "High.", "No."]
    assert [row["exact"] for row in rows] == [False, True, True, False, False]
    assert rows[2] == {**judge(test[2], "No."), "question_type": "yesno", "ask": "presence"}
    with pytest.raises(ValueError, match="no training records"):
        frequent([])


def test_the_majority_of_a_question_goes_by_its_words_and_else_by_what_it_asks():
    train = [replace(record(i, a), question="Where is A?") for i, a in enumerate(["Up.", "Up.", "Down."])]
    train += [replace(record(i, "Down."), question="Where is B?") for i in range(3)]
    train += [record(9, "Left.", ask="other")]
    test = [replace(record(i, "Up."), question=f"Where is {name}?") for i, name in enumerate("ABC")]
    best = frequent(train)
    # Of all six of this kind four are "Down."; C was never asked about.
    assert [row["answer"] for row in majority(best, test)] == ["Down."] * 3
    assert [row["answer"] for row in majority(best, test, worded=True)] == ["Up.", "Down.", "Down."]
    never = [replace(record(1, "Up.", ask="new"), question="Where is C?")]
    assert majority(best, never, worded=True) == majority(best, never) and best[None] == "Down."


def test_chance_is_one_of_the_offered_answers():
    two, four = (record(n, "Left.", options=("left", "right", "up", "down")[:n]) for n in (2, 4))
    assert [row["exact"] for row in chance([two, four])] == [1 / 2, 1 / 4]
    score = Score.of("chance", chance([two, four]))
    assert (score.correct, score.n, score.by_type) == (0.75, 2, {"location": (0.75, 2)}) and "37.5" in table([score])
    assert chance([two, record(5, "Left.")]) == []  # who offers nothing leaves nothing to draw
    free = record(5, "Left.")
    free = replace(free, metadata={**free.metadata, "choices": 8})
    assert [row["exact"] for row in chance([two, free])] == [1 / 2, 1 / 8]
    assert chance([two, replace(free, metadata={**free.metadata, "choices": 0})]) == []
    with pytest.raises(ValueError, match="'choices'"):
        replace(free, metadata={"choices": "8"})


def test_the_table_shows_n_and_intervals_and_refuses_other_questions():
    rows = [
        {"exact": i % 4 == 0, "question_type": ("yesno", "location")[i < 4]}
        for i in range(20)  # 1 of 4 and 4 of 16
    ]
    score = Score.of("VITAL", rows)
    assert (score.correct, score.n, score.by_type) == (5, 20, {"location": (1, 4), "yesno": (4, 16)})
    better = replace(score, name="majority", correct=20, by_type={"location": (4, 4), "yesno": (16, 16)})
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table([score, better]).splitlines()]
    assert lines[0] == ["system", "N", "accuracy", "95 % interval", "location (4)", "yesno (16)"]
    assert lines[2] == ["VITAL", "20", "25.0", "11.2 to 46.9", "25.0", "25.0"]
    assert lines[3] == ["majority", "20", "100.0", "83.9 to 100.0", "100.0", "100.0"]
    assert set(lines[1][1]) <= set("-:") and lines[1][1].endswith(":")
    other = replace(score, name="other", by_type={"location": (1, 5), "yesno": (4, 15)})
    with pytest.raises(ValueError, match=r"'VITAL' and 'other' did not answer the same questions"):
        table([score, other])
    with pytest.raises(ValueError, match="no scores"):
        table([])
    with pytest.raises(ValueError, match="VITAL: no answers"):
        Score.of("VITAL", [])
