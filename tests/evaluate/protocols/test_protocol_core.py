"""From predictions to scores: which questions a number is of, its interval, and what is not scored but named."""

import json

import numpy as np
import pytest
from asked import choice, item

from vital_jax.evaluate.protocols import (
    OFFICIAL,
    PROTOCOLS,
    apply,
    family,
    get,
    official,
    protocols_table,
    read_predictions,
    write_predictions,
)
from vital_jax.evaluate.protocols.core import image_of, values_of
from vital_jax.statistics import wilson

ITEMS = [
    item("yes", "1", closed=True, image="a", modality="CT", question_type="POS, PRES"),
    item("no", "2", closed=True, image="a", modality="CT", question_type="PRES"),
    item("left lung", "3", closed=False, image="b", modality="MRI", question_type="POS"),
    item("liver", "4", closed=True, image="c", modality="CT", question_type="ORGAN"),
]
ANSWERS = {"1": "Yes.", "2": "yes", "3": "the left", "4": "liver"}


def test_every_score_says_what_it_is_a_score_of():
    scored = apply(get("paper"), ITEMS, ANSWERS)
    # Counted by hand: 1 and 4 of the closed 1, 2, 4; 1 of the yes/no 1, 2; 1 and 4 of all.
    for measure, right, n in (("closed accuracy", 2, 3), ("yes/no accuracy", 1, 2), ("accuracy", 2, 4)):
        metric = scored.metric(measure)
        assert (metric.value, metric.n, metric.interval) == (pytest.approx(right / n), n, "Wilson")
        assert (metric.low, metric.high) == wilson(right, n) and metric.rule
    f1 = scored.metric("open token F1")
    assert (f1.value, f1.n) == (pytest.approx(2 * 1 / (2 + 2)), 1)
    # One image gives no bootstrap, and says so.
    assert (f1.low, f1.high, f1.interval) == (None, None, "one image")
    with pytest.raises(KeyError, match="no 'BLEU' of 'all'"):
        scored.metric("BLEU")


def test_scores_are_broken_down_and_averaged_over_groups():
    scored = apply(get("paper"), ITEMS, ANSWERS)
    assert scored.metric("accuracy", "modality=CT").value == pytest.approx(2 / 3)
    assert scored.metric("accuracy", "modality=MRI").n == 1
    macro = scored.metric("accuracy", "macro over modality")
    assert macro.value == pytest.approx((2 / 3 + 0) / 2) and macro.n == 4 and macro.low <= macro.value <= macro.high
    # A question of two types counts in both.
    assert scored.metric("accuracy", "question_type=PRES").n == 2 == scored.metric("accuracy", "question_type=POS").n
    assert values_of(ITEMS[0], "question_type") == ("POS", "PRES")
    assert not any(metric.group.startswith("language") for metric in scored.metrics)  # no item differs in it
    table, breakdown = scored.table(), scored.breakdown()
    assert "paper/2" in table and "options or yes/no" in table and "modality=CT" not in table
    assert "modality=CT" in breakdown and "macro" not in breakdown
    assert apply(get("paper"), ITEMS[1:2], {"2": "yes"}).breakdown() == ""


def test_tables_say_how_many_answers_could_not_be_read():
    answers = {"1": "I cannot tell.", "2": "yes and no", "3": "", "4": "liver"}
    scored = apply(get("paper"), ITEMS, answers)
    found = {name: scored.metric(name).unread for name in ("accuracy", "closed accuracy", "yes/no accuracy")}
    assert found == {"accuracy": 3, "closed accuracy": 2, "yes/no accuracy": 2}
    assert scored.metric("accuracy", "modality=MRI").unread == 1
    assert scored.metric("accuracy", "macro over modality").unread == 3
    header, _, first, *_ = scored.table().splitlines()
    assert [cell.strip() for cell in header.split("|")][2:5] == ["group", "N", "unread"]
    assert [cell.strip() for cell in first.split("|")][2:5] == ["all", "3", "2"]
    # A drawn letter was not read either.
    asked = choice(benchmark="mmmu_health")
    assert apply(get("mmmu", compat=True), [asked], {"q1": "I cannot tell."}).metric("accuracy").unread == 1


@pytest.mark.parametrize("text", ["wrong", "right"])
def test_no_interval_is_a_point(text):
    items = [
        item("right", str(n), closed=n % 2 == 0, image=str(n), modality=("CT", "MRI", "PET")[n % 3]) for n in range(12)
    ]
    scored = apply(get("paper"), items, {one.id: text for one in items})
    assert {"open token F1", "accuracy"} <= {metric.measure for metric in scored.metrics}
    assert all(metric.high - metric.low > 0.05 for metric in scored.metrics)
    macro = scored.metric("accuracy", "macro over modality")
    # Wilson of 0 of 4 is 0 to 0.490: sqrt(3 * 0.490²) / 3.
    end = 0.4899 / 3**0.5
    assert (macro.low, macro.high) == pytest.approx((0, end) if text == "wrong" else (1 - end, 1), abs=1e-3)
    # One group always right, one always wrong: no draw of images differs from another.
    halves = apply(get("paper"), items, {one.id: ("wrong", "right", "wrong")[n % 3] for n, one in enumerate(items)})
    macro = halves.metric("accuracy", "macro over modality")
    assert macro.low < macro.value - 0.05 and macro.high > macro.value + 0.05


def test_means_are_drawn_by_image():
    rng = np.random.default_rng(0)
    values = rng.random(20)
    golds = [["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"][: 1 + int(9 * value)] for value in values]
    items, answers = [], {}
    for image, gold in enumerate(golds):
        for copy in range(5):
            items.append(item(" ".join(gold), f"{image}-{copy}", closed=False, image=str(image)))
            answers[f"{image}-{copy}"] = "a"
    many = apply(get("paper"), items, answers).metric("open token F1")
    once = apply(get("paper"), items[::5], {key: text for key, text in answers.items() if key.endswith("-0")})
    # Five copies of the same question about an image tell nothing more than one.
    assert (many.low, many.high) == pytest.approx(
        (once.metric("open token F1").low, once.metric("open token F1").high), abs=1e-12
    )
    assert many.n == 100 and many.interval == "bootstrap by image"


def test_rows_hold_what_a_predictions_file_holds(tmp_path):
    rows = [{"id": key, "prediction": text, "K": 4, "latency": 0.5} for key, text in ANSWERS.items()]
    scored = apply(get("paper"), ITEMS, rows)
    first = scored.rows[0]
    assert first["id"] == "1" and first["gold"] == "yes" and first["parsed"] == "yes" and first["correct"] is True
    assert first["protocol"] == "paper/2" and first["image"] == "vqa_rad/a" and first["modality"] == "CT"
    assert first["K"] == 4 and first["latency"] == 0.5 and "tokens" not in first
    assert first["measures"] == {
        "closed accuracy": 1.0,
        "closed accuracy, literal": 0.0,
        "yes/no accuracy": 1.0,
        "accuracy": 1.0,
    }
    path = write_predictions(tmp_path / "scored.jsonl", scored.rows)
    assert read_predictions(path) == json.loads(json.dumps(scored.rows))
    assert apply(get("paper"), ITEMS, read_predictions(path)).metrics == scored.metrics
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "1", "prediction": "yes"}], r"3 items have no prediction: vqa_rad/2, vqa_rad/3, vqa_rad/4"),
        ([*({"id": k, "prediction": "x"} for k in "1234"), {"id": "9", "prediction": "x"}], "belong to no item: 9"),
        ([*({"id": k, "prediction": "x"} for k in "11234")], "predicted twice: 1"),
        ([{"id": "1", "prediction": ["yes"]}], "'1': 'prediction' must be text, got list"),
        ([{"id": "1", "prediction": 3}], "must be text, got int"),
        ([{"prediction": "yes"}], "'no id'"),
        ([*({"id": k, "prediction": "x", "judge": "0"} for k in "1234")], "'judge' must be true or false"),
    ],
)
def test_what_cannot_be_paired_is_named(rows, message):
    with pytest.raises(ValueError, match=message):
        apply(get("paper"), ITEMS, rows)


def test_ids_may_clash_between_benchmarks():
    items = [item("yes", "1"), item("no", "1", benchmark="slake")]
    rows = [
        {"id": "1", "benchmark": "slake", "prediction": "no"},
        {"id": "1", "benchmark": "vqa_rad", "prediction": "no"},
    ]
    scored = apply(get("paper"), items, rows)
    assert [row["correct"] for row in scored.rows] == [False, True]
    assert scored.metric("accuracy", "benchmark=slake").value == 1.0
    with pytest.raises(ValueError, match="2 items have no prediction"):
        apply(get("paper"), items, {"1": "no"})
    with pytest.raises(ValueError, match="items named twice: vqa_rad/1"):
        apply(get("paper"), [items[0], items[0]], {"1": "no"})
    with pytest.raises(ValueError, match="no items"):
        apply(get("paper"), [], {})


def test_the_image_that_questions_share(tmp_path):
    assert image_of(item(image="a.jpg")) == "vqa_rad/a.jpg"
    assert image_of(item(image="a.jpg", group="patient 1")) == "vqa_rad/patient 1"
    assert image_of(item(name="7")) == "vqa_rad/7"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "1", "prediction": "x"}\n{"id": "2", "predi', r"p.jsonl:2: not JSON"),
        ('{"prediction": "x"}\n', r"p.jsonl:1: needs an object with an 'id'"),
        ("[1]\n", r"p.jsonl:1: needs an object"),
        ('{"id": 1, "prediction": "x"}\n\n{"id": "1", "prediction": "y"}\n', r"p.jsonl:3: '1' is answered in line 1"),
        ("\n", "no predictions"),
    ],
)
def test_a_broken_predictions_file_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_predictions(path)


def test_protocols_are_found_by_name_and_by_benchmark():
    assert get("medevalkit", compat=True, judge=True).label == "medevalkit/1 compat judge"
    assert get("medevalkit", compat=False).label == "medevalkit/2"
    with pytest.raises(ValueError, match="no protocol 'lingshu'; there are paper"):
        get("lingshu")
    with pytest.raises(ValueError, match="'paper' has no compat; it has no options"):
        get("paper", compat=True)
    assert official("pmc_vqa_clean").name == "pmc_vqa" and official("mmmu_pro_health_4").name == "mmmu"
    for name in ("vqa_rad", "slake_en"):
        with pytest.raises(ValueError, match=f"no official scorer of {name} is maintained; name a protocol"):
            official(name)
    with pytest.raises(ValueError, match="no benchmark 'x'"):
        official("x")
    assert family("slake_zh") == "slake" and family("slakes") == "slakes" and family("mmmu_pro_health") == "mmmu_pro"
    assert set(filter(None, OFFICIAL.values())) <= set(PROTOCOLS)
    assert all(f"{name}/2" in protocols_table() for name in PROTOCOLS)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_asks_and_scores(name):
    make, options = PROTOCOLS[name]
    for protocol in (make(), *(make(**{option: True}) for option in options)):
        asked = item("left lung", closed=False) if protocol.needs and "no options" in protocol.needs[0] else choice()
        prompt = protocol.prompt(asked)
        assert "Is it?" in prompt and all(option in prompt for option in asked.options)
        assert protocol.about and len({measure.name for measure in protocol.measures}) == len(protocol.measures)
        said = "B" if asked.options and name != "omnimedvqa" else "Left lung"
        assert [row["correct"] for row in apply(protocol, [asked], {"q1": said}).rows] == [True], protocol.label
        assert [row["correct"] for row in apply(protocol, [asked], {"q1": "D"}).rows] == [False], protocol.label
