"""The rows that need no image: counted by hand, under every protocol, and only beside scores of the same questions."""

import pytest
from asked import choice, item

from vital_jax.evaluate.protocols import PROTOCOLS, apply, get, with_floors
from vital_jax.evaluate.protocols.floors import CHANCE, MAJORITY

YES_NO = [item("no", str(n), closed=True, image=str(n)) for n in range(4)] + [item("yes", "4", closed=True, image="4")]
CHOICES = [choice(gold, name=f"c{n}", benchmark="vqa_rad", image=f"c{n}") for n, gold in enumerate("ABBBC")]
OPEN = [item("left lung", "o1", closed=False, image="o1"), item("left lung", "o2", closed=False, image="o2")]


def scored(items, name="paper", **options):
    protocol = get(name, **options)
    return with_floors(apply(protocol, items, {one.id: one.gold or one.answer for one in items}), protocol, items)


def floors(found, measure):
    """{row: (value, N)} of what stands beside a measure."""
    return {one.group: (one.value, one.n) for one in found.metrics if one.measure == measure and one.group != "all"}


def test_each_form_has_its_commonest_answer_and_its_chance():
    found = scored([*YES_NO, *CHOICES])
    options = len(CHOICES[0].options)
    assert floors(found, "yes/no accuracy") == {MAJORITY: (4 / 5, 5), CHANCE: (1 / 2, 5)}
    assert floors(found, "closed accuracy") == {
        MAJORITY: (pytest.approx((4 + 3) / 10), 10), CHANCE: (pytest.approx((5 / 2 + 5 / options) / 10), 10),
    }  # fmt: skip
    majority, chance = found.metric("accuracy", MAJORITY), found.metric("accuracy", CHANCE)
    assert majority.interval == "Wilson" and majority.low < majority.value < majority.high
    assert (chance.low, chance.high, chance.interval) == (None, None, "arithmetic")
    # They stand right under the score that they belong to, with its questions, and say what they are.
    places = [(one.measure, one.group) for one in found.metrics]
    at = places.index(("accuracy", "all"))
    assert places[at : at + 3] == [("accuracy", "all"), ("accuracy", MAJORITY), ("accuracy", CHANCE)]
    assert "commonest right answer" in majority.rule and majority.rule.endswith(found.metric("accuracy").rule)
    assert "| majority answer |" in " ".join(found.table().split())


def test_open_questions_offer_nothing_to_guess_among():
    found = scored([*YES_NO, *OPEN])
    assert floors(found, "accuracy") == {MAJORITY: (6 / 7, 7)}
    assert floors(found, "open token F1") == {MAJORITY: (1, 2)}
    assert CHANCE in floors(found, "yes/no accuracy")


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name not in ("gemex", "pathvqa", "llava_med")])
def test_every_protocol_reads_them_as_it_reads_a_model(name):
    found = scored(CHOICES, name)
    assert floors(found, "accuracy") == {MAJORITY: (3 / 5, 5), CHANCE: (pytest.approx(1 / len(CHOICES[0].options)), 5)}


def test_a_scorer_that_is_reproduced_is_left_as_it_is():
    found = scored(CHOICES, "pmc_vqa", compat=True)
    assert {one.group for one in found.metrics} == {"all"}
