"""Protocol `medevalkit`, correct and compat: the cases of its known mistakes with values worked out by hand, in both modes."""

import pytest
from asked import choice, item, right, scores

from vital_jax.evaluate.protocols import ScorerStops, apply, get

F1, PRECISION, RECALL = "open token F1", "open token precision", "open token recall"
PRINTED = {
    "precision": "open precision as printed (is F1 of token sets)",
    "recall": "open recall as printed (is precision of token sets)",
    "f1": "open f1 as printed (is recall of token sets)",
}


@pytest.mark.parametrize(
    ("text", "gold", "true", "printed"),
    [
        # (precision, recall, F1) of bags in SQuAD's normal form; what is printed as (precision, recall, F1): F1, precision, recall of sets.
        ("left lower lobe of the lung", "left lower lobe", (3 / 5, 1, 6 / 8), (6 / 9, 3 / 6, 1)),
        ("no no cyst", "no cyst", (2 / 3, 1, 4 / 5), (1, 1, 1)),
        ("the liver.", "liver", (1, 1, 1), (0, 0, 0)),  # "liver." is another token there
        ("spleen", "liver", (0, 0, 0), (0, 0, 0)),
    ],
)
def test_the_printed_f1_is_recall_on_sets(text, gold, true, printed):
    asked = item(gold)
    ours, theirs = scores("medevalkit", asked, text), scores("medevalkit compat", asked, text)
    assert [ours[name] for name in (PRECISION, RECALL, F1)] == pytest.approx(true)
    assert [theirs[PRINTED[name]] for name in ("precision", "recall", "f1")] == pytest.approx(printed)


def test_an_empty_answer_is_wrong_and_ends_their_run():
    asked = item("liver")
    assert not right("medevalkit", asked, "") and scores("medevalkit", asked, "")[F1] == 0
    for text in ("", "  ", "...", "The answer is"):
        with pytest.raises(ScorerStops, match="item 'q1': MedEvalKit ends with an error"):
            scores("medevalkit compat", asked, text)
    # Closed questions and choices get through.
    assert not right("medevalkit compat", item("yes"), "")


@pytest.mark.parametrize(
    ("text", "gold", "ours", "theirs"),
    [
        ("Yes, there is a nodule.", "yes", True, False),  # "no" in "nodule"
        ("There is a nodule.", "no", False, True),
        ("normal", "no", False, True),
        ("eyes", "yes", False, True),
        ("Yes", "yes", True, True),
        ("No, not yes", "no", True, False),
        ("The answer is: no.", "no", True, True),
        (r"\boxed{Yes}", "yes", True, True),
    ],
)
def test_yes_and_no_inside_words(text, gold, ours, theirs):
    for benchmark in ("vqa_rad", "pathvqa"):
        asked = item(gold, benchmark=benchmark)
        assert (right("medevalkit", asked, text), right("medevalkit compat", asked, text)) == (ours, theirs)


@pytest.mark.parametrize(
    ("text", "ours", "theirs"),
    [
        ("B", True, True),
        ("b. left lung", True, True),
        ("Left lung", True, True),
        ("The answer is B.", True, True),
        ("B\n\nbecause of the ribs", True, True),
        ("A", False, False),
        ("It is the left lung", True, True),  # difflib finds it too
        ("Spleen", False, False),
    ],
)
def test_choices(text, ours, theirs):
    assert (right("medevalkit", choice(), text), right("medevalkit compat", choice(), text)) == (ours, theirs)


def test_nothing_is_taken_for_option_a():
    for text in ("", "§"):
        assert right("medevalkit compat", choice("A"), text) and not right("medevalkit", choice("A"), text)


def test_options_have_letters_in_front_where_theirs_have():
    asked = choice(benchmark="omnimedvqa")
    assert "A. Uterus\nB. Left lung" in get("medevalkit").prompt(asked)
    assert "Options: \n A:Uterus\n B:Left lung" in get("medevalkit").prompt(choice())  # as PMC-VQA's file holds them
    assert "Options: \nUterus\nLeft lung" in get("medevalkit").prompt(choice(benchmark="file"))
    published = choice(benchmark="medxpertqa_mm", published_question="Is it?\nAnswer Choices: (A) as printed")
    assert (
        get("medevalkit")
        .prompt(published)
        .startswith("\nQuestion: Is it?\nAnswer Choices: (A) as printed\nOptions: \nA. Uterus")
    )
    assert right("medevalkit compat", asked, "b. left lung")


def test_closed_answers_of_slake():
    asked = item("left", benchmark="slake", closed=True)
    assert right("medevalkit", asked, "The answer is Left.")
    assert not right("medevalkit compat", asked, "The answer is Left.")  # " left" there
    assert right("medevalkit compat", asked, "Left.")
    # "Yes" with a capital is no judgement there, so "Yes, it is" is wrong; ours reads the word.
    asked = item("Yes", benchmark="slake_en", closed=True)
    assert right("medevalkit", asked, "Yes, it is") and not right("medevalkit compat", asked, "Yes, it is")
    assert right("medevalkit", item("是", benchmark="slake_zh", closed=True), "是。")


def test_denominators_follow_the_answer_string_or_the_mark():
    def counted(benchmark, protocol="medevalkit"):
        items = [
            item("yes", "1", benchmark=benchmark, closed=True),
            item("left", "2", benchmark=benchmark, closed=True),
            item("liver", "3", benchmark=benchmark, closed=False),
        ]
        scored = apply(
            get(protocol.split()[0], compat="compat" in protocol), items, {"1": "yes", "2": "left", "3": "cyst"}
        )
        return scored

    assert counted("vqa_rad").metric("closed accuracy").n == 1 and counted("vqa_rad").metric("open accuracy").n == 2
    assert counted("slake").metric("closed accuracy").n == 2 and counted("slake").metric("open accuracy").n == 1
    assert counted("vqa_rad", "medevalkit compat").metric("close acc as printed").n == 1
    assert counted("slake", "medevalkit compat").metric("close acc as printed").n == 2
    assert counted("slake").metric("accuracy").value == pytest.approx(2 / 3)


VERDICTS = [
    # (gold, closed, answer, verdict of the judge): one closed hit, one closed miss, one equal open answer, one that only the judge accepts.
    ("yes", True, "yes", True),
    ("no", True, "yes", False),
    ("liver", False, "liver", True),
    ("cyst", False, "a cystic lesion", True),
]


@pytest.mark.parametrize(
    ("benchmark", "options", "total", "close", "open_"),
    [
        # Correct: closed 1 of 2 by rule, open 2 of 2 by verdict.
        ("slake", "judge", 3 / 4, 1 / 2, 2 / 2),
        ("pathvqa", "judge", 3 / 4, 1 / 2, 2 / 2),
        ("vqa_rad", "judge", 3 / 4, 1 / 2, 2 / 2),
        # SLAKE: closed 1 by rule + 1 by verdict; total 1 + 3 verdicts.
        ("slake", "compat judge", 4 / 4, 2 / 2, 2 / 2),
        # PathVQA: closed set to 0; total 2 verdicts.
        ("pathvqa", "compat judge", 2 / 4, 0 / 2, 2 / 2),
        # VQA-RAD: total 2 hits by rule (one closed, one open) + 2 verdicts.
        ("vqa_rad", "compat judge", 4 / 4, 1 / 2, 2 / 2),
    ],
)
def test_runs_with_a_judge(benchmark, options, total, close, open_):
    items = [item(gold, str(n), benchmark=benchmark, closed=closed) for n, (gold, closed, *_) in enumerate(VERDICTS)]
    rows = [{"id": str(n), "prediction": text, "judge": judge} for n, (*_, text, judge) in enumerate(VERDICTS)]
    scored = apply(get("medevalkit", **dict.fromkeys(options.split(), True)), items, rows)
    names = ("accuracy", "closed accuracy", "open accuracy")
    if "compat" in options:
        names = ("total acc as printed", "close acc as printed", "open acc (printed: this over N again)")
    assert [scored.metric(name).value for name in names] == pytest.approx([total, close, open_])


def test_the_printed_open_accuracy_is_divided_twice():
    golds = ("liver", "spleen", "left lung", "cyst")
    items = [item(gold, str(n), benchmark="slake", closed=False) for n, gold in enumerate(golds)]
    items.append(item("Yes", "yes", benchmark="slake", closed=True))
    answers = dict(zip("0123", ("liver", "kidney", "left lung", "a cyst"), strict=True)) | {"yes": "Yes"}
    metric = apply(get("medevalkit", compat=True), items, answers).metric("open acc (printed: this over N again)")
    # The program prints 0.125 for 2 of 4, and 0.5 as em.
    assert metric.value / metric.n == 0.125
    assert apply(get("medevalkit", compat=True), items, answers).metric("open em as printed").value == 0.5


def test_slake_with_a_judge_can_pass_one_hundred_percent():
    items = [item("yes", str(n), benchmark="slake", closed=True) for n in range(3)]
    rows = [{"id": str(n), "prediction": "yes", "judge": True} for n in range(3)]
    metric = apply(get("medevalkit", compat=True, judge=True), items, rows).metric("close acc as printed")
    assert metric.value == 2.0 and metric.interval == "bootstrap by image"


def test_a_judge_must_have_judged():
    with pytest.raises(ValueError, match="prediction of 'q1' has no 'judge'"):
        scores("medevalkit judge", item("liver"), "liver")
    assert right("medevalkit judge", item("yes"), "yes")  # a closed question is not put to the judge


def test_bleu_is_papinenis_in_both_modes():
    asked = item("left lower lobe")
    ours, theirs = (
        scores("medevalkit", asked, "Left lower lobe."),
        scores("medevalkit compat", asked, "Left lower lobe."),
    )
    assert ours["open BLEU-2"] == 1.0
    assert theirs["open bleu1 as printed"] == pytest.approx(3 / 4)  # the full stop is a token there
    assert theirs["open bleu2 as printed"] == pytest.approx((3 / 4 * 2 / 3) ** 0.5)


def test_prompts_by_kind_and_language():
    prompt = get("medevalkit").prompt
    assert prompt(item("yes")) == "Is it?\nPlease output 'yes' or 'no'(no extra output)."
    assert prompt(item("liver")) == "Is it?\nPlease answer the question concisely."
    assert prompt(item("liver", closed=True)).endswith("concisely.")  # VQA-RAD goes by the answer string
    assert prompt(item("Yes", benchmark="slake", closed=True)).endswith("using a single word or phrase.")
    assert prompt(item("肝", benchmark="slake", closed=False, language="zh")).endswith("请简要回答该问题。")
    assert prompt(choice()) == (
        "\nQuestion: Is it?\nOptions: \n A:Uterus\n B:Left lung\n C:Liver cyst\n D:Spleen\n"
        "Answer with the option's letter from the given choices directly."
    )
