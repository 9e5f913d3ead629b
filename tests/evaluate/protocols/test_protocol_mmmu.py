"""Protocols `mmmu` and `lmms_eval`: the official parser on published outputs of LLaVA-1.5-13B and on made answers."""

import json
import random

import pytest
from asked import choice, item, right, row

from vital_jax.evaluate.items import Item
from vital_jax.evaluate.protocols import apply, get
from vital_jax.evaluate.protocols.lmms_eval import normal


def test_published_outputs_are_read_as_the_official_parser_reads_them(real):
    items, answers = [], {}
    for path in sorted((real("mmmu_health") / "example_outputs" / "llava1.5_13b").glob("*/output.json")):
        for found in json.loads(path.read_text(encoding="utf-8")):
            options = [found["index2ans"][name] for name in found.get("all_choices", [])]
            gold = found["answer"] if options else ""
            said = [options[ord(gold) - ord("A")]] if options else found["answer"]
            said = said if isinstance(said, list) else [said]
            metadata = {"subject": path.parent.name}
            items.append(
                Item(
                    found["id"],
                    (),
                    "q",
                    said[0],
                    options,
                    gold,
                    said[1:],
                    "mmmu_health",
                    "validation",
                    metadata=metadata,
                )
            )
            answers[found["id"]] = found["response"]
    for compat in (False, True):
        scored = apply(get("mmmu", compat=compat), items, answers)
        # 58 of 150 with the benchmark's own eval_utils.py on the same file; it had nothing to guess.
        assert sum(row["correct"] for row in scored.rows) == 58 and scored.metric("accuracy").n == 150
        assert scored.metric("accuracy", "macro over subject").value == pytest.approx(58 / 150)
        subjects = {
            m.group.split("=")[1]: round(30 * m.value) for m in scored.metrics if m.group.startswith("subject=")
        }
        assert sum(subjects.values()) == 58 and len(subjects) == 5


@pytest.mark.parametrize(
    ("text", "letter", "how"),
    [
        ("B", "B", "letter"),
        ("(A) or rather (C)", "C", "letter"),  # the last one
        ("I think B is right", "B", "letter"),
        ("A B", "B", "letter"),
        ("the picture shows the left lung here", "B", "contained"),
        ("left lung", "", "none"),  # five words or fewer: the text is not searched
        ("b", "", "none"),
        ("", "", "none"),
        ("I cannot tell.", "", "none"),
    ],
)
def test_the_official_parser(text, letter, how):
    made = row("mmmu", choice(benchmark="mmmu_health"), text)
    assert (made["parsed"], made["how"]) == (letter, how)


def test_what_cannot_be_read_is_wrong_and_was_drawn():
    items = [choice("ABCD"[n % 4], name=str(n), benchmark="mmmu_health") for n in range(40)]
    answers = {one.id: "I cannot tell." for one in items}
    assert apply(get("mmmu"), items, answers).metric("accuracy").value == 0
    drawn = random.Random(42)
    letters = [drawn.choice(["A", "B", "C", "D"]) for _ in items]
    scored = apply(get("mmmu", compat=True), items, answers)
    assert [row["parsed"] for row in scored.rows] == letters and scored.metric("accuracy").value > 0
    assert apply(get("mmmu", compat=True), items, answers).metrics == scored.metrics


def test_lmms_eval_draws_with_a_seed_of_its_own():
    items = [choice("A", name=str(n), benchmark="mmmu_health") for n in range(6)]
    scored = apply(get("lmms_eval", compat=True), items, {one.id: "I cannot tell." for one in items})
    drawn = random.Random(0)
    assert [row["parsed"] for row in scored.rows] == [drawn.choice("ABCD") for _ in items]


@pytest.mark.parametrize(
    ("gold", "text", "correct"),
    [
        ("3.5", "so the ratio is 3.50", True),
        ("1,200", "= 1200", True),
        ("liver", "It is the liver.", True),
        ("3", "It is 3. The rest is noise.", False),  # sentences are never split: lower case comes first
        ("3", "It is 3.\nThe rest is noise.", True),
        ("c", "the vitamin c", True),
        ("c", "calcium", False),  # one letter must stand beside a space
    ],
)
def test_open_answers(gold, text, correct):
    assert right("mmmu", item(gold, benchmark="mmmu_health"), text) is correct


def test_mmmu_pro_looks_behind_answer():
    asked = choice(benchmark="mmmu_pro_health")
    assert right("mmmu", asked, "Neither C nor D fits.\nAnswer: B")
    assert row("mmmu", asked, "Answer: B or C. B is it")["parsed"] == "B"
    assert row("mmmu", asked, "MRA of it")["parsed"] == "A"  # a letter at the end of a word, kept
    assert get("mmmu").prompt(asked).startswith("Is it?\nA. Uterus\nB. Left lung")
    assert get("mmmu").prompt(choice(benchmark="mmmu_health")).startswith("Is it?\n\n(A) Uterus\n(B) Left lung")


def test_lmms_eval_reads_letters_that_stand_alone():
    asked = choice(benchmark="mmmu_health")
    assert (
        row("lmms_eval compat", asked, "MRA of it")["parsed"] == "A"
        and row("lmms_eval", asked, "MRA of it")["parsed"] == ""
    )
    for text in ("B.", "The answer is B. Not C, no", "(B)"):
        assert right("lmms_eval", asked, text) and right("lmms_eval compat", asked, text), text
    assert (
        get("lmms_eval")
        .prompt(asked)
        .endswith("D. Spleen\n\nAnswer with the option's letter from the given choices directly.")
    )
    assert right("lmms_eval", item("3.5", benchmark="mmmu_health"), "so it is 3.50")


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Yes.", "yes"),
        ("yeah", "yes"),
        ("X-Ray", "xray"),
        ("  Left  lung (CT) ", "left lung"),
        ("左肺（右侧）。", "左肺"),
        ("是的。", "yes"),
        ("没有", "no"),
        ("yes, it is", "yes it is"),
        ("...", ""),
    ],
)
def test_lmms_evals_normal_form(text, same):
    assert normal(text) == same == normal(text, compat=True)


def test_lmms_eval_takes_normal_for_yes():
    asked = item("是", benchmark="slake_zh", closed=True)
    assert right("lmms_eval compat", asked, "正常") and not right("lmms_eval", asked, "正常")
    for text in ("异常", "不正常"):
        asked = item("否", benchmark="slake_zh", closed=True)
        assert right("lmms_eval compat", asked, text) and not right("lmms_eval", asked, text)
    assert right("lmms_eval", item("正常", benchmark="slake_zh"), "正常。")
    assert not right("lmms_eval", item("-", benchmark="slake"), "") and right(
        "lmms_eval compat", item("-", benchmark="slake"), ""
    )
    assert get("lmms_eval").prompt(item()) == "Is it?\nAnswer the question using a single word or phrase."
