"""Accuracies by group: the same answers counted again, so every number follows from those of the single questions."""

import csv
import io

import numpy as np
import pytest

from vital_jax.evaluate import audit_groups as groups
from vital_jax.evaluate import audit_table as table
from vital_jax.evaluate import figure
from vital_jax.evaluate.audit_groups import UNKNOWN, Compared, by_group, groups_of
from vital_jax.evaluate.audit_table import Line
from vital_jax.evaluate.score import CHANCE, markdown

KIND = ["10 hops", "2 hops", "2 hops", "2 hops", "10 hops", "2 hops"]
IMAGES = list("abcdef")
RUN = np.array([1, 1, 1, 0, 0, 1], bool)
ZEROS = np.array([0, 0, 1, 1, 0, 0], bool)
ALL = np.ones(6, bool)
PARTS = [
    Compared(table.RUN, "K = 2 to 10", RUN, ALL),
    Compared(table.FLOOR, CHANCE, np.array([0.5, 0.25, 0.25, 0.25, 0.5, 0.25]), ALL),
    Compared(table.TOKENS, "zeros", ZEROS, np.array([0, 1, 1, 1, 0, 1], bool), RUN != ZEROS),
    Compared(
        table.TOKENS, "shuffled order", np.array([0, 1, 0, 0, 0, 0], bool), np.array([0, 1, 1, 0, 0, 0], bool), RUN
    ),
]


@pytest.fixture(scope="module")
def by():
    return by_group(PARTS, "question_type", KIND, RUN, IMAGES)


def test_each_group_has_the_lines_of_its_questions(by):
    found = {(one["group"], one["audit"]): one for one in by["lines"] if one["what"] != "shuffled order"}
    # No replacement touches a question of ten hops, so these have no such line.
    assert list(found) == [
        ("2 hops", table.RUN), ("2 hops", table.FLOOR), ("2 hops", table.TOKENS), ("10 hops", table.RUN), ("10 hops", table.FLOOR),
    ]  # fmt: skip
    value = lambda *key: (found[key]["n"], found[key]["value"])  # noqa: E731
    assert value("2 hops", table.RUN) == (4, 0.75) and value("10 hops", table.RUN) == (2, 0.5)
    assert value("2 hops", table.FLOOR) == (4, 0.25) and value("10 hops", table.FLOOR) == (2, 0.5)
    zeros = found["2 hops", table.TOKENS]
    # Right before: rows 1, 2, 5; after: 2, 3. Two are lost, one is won, and row 2 alone stays.
    assert (zeros["n"], zeros["run"], zeros["value"], zeros["difference"]) == (4, 0.75, 0.5, -0.25)
    assert zeros["changed"] == 0.75 and zeros["p"] == pytest.approx(mid_p := 2 * (1 + 3) / 8 - 3 / 8) and mid_p == 0.625
    assert (zeros["low"], zeros["high"]) == pytest.approx((0.1500, 0.8500), abs=1e-4)  # Wilson's for 2 of 4
    assert zeros["difference_low"] < -0.25 < zeros["difference_high"]


def test_side_by_side_and_line_by_line(by):
    side, every = groups.tables(by)
    assert side[1] == ["audit", "what", "2 hops (4)", "10 hops (2)"]
    assert side[2] == [
        [table.RUN, "", "75.0", "50.0"],
        [table.FLOOR, CHANCE, "25.0", "50.0"],
        [table.TOKENS, "zeros", "50.0 (-25.0)", ""],
        [table.TOKENS, "shuffled order", "50.0 (-50.0), N 2", ""],
    ]
    assert len(every[2]) == 6 and every[1][:2] == ["question_type", "audit"] and every[2][2][:3] == [
        "2 hops", table.TOKENS, "zeros",
    ]  # fmt: skip
    assert groups.tables(by, brief=True) == [side] and "75.0" in markdown(*side[1:])


def test_the_file_and_the_page_have_the_groups_only_where_they_are_asked_for(by):
    lines = [Line(**{name: value for name, value in one.items() if name != "group"}) for one in by["lines"]]
    plain, grouped = (list(csv.DictReader(io.StringIO(table.to_csv(lines[:1], more)))) for more in ((), by["lines"]))
    assert "group" not in plain[0] and [row["group"] for row in grouped] == ["", *["2 hops"] * 4, *["10 hops"] * 2]
    assert {name: value for name, value in grouped[0].items() if name != "group"} == plain[0]
    found = {"lines": [vars(lines[0])], "sentences": [], "left_out": []}
    without, with_groups = figure.page("run", "", found), figure.page("run", "", found | {"by": by})
    assert without.count("<table>") == 1 and with_groups.count("<table>") == 3 and "10 hops (2)" in with_groups


def test_groups_are_what_the_metadata_says():
    known = [{"hops": 2, "ask": "a"}, {"hops": 3}, {}]
    assert groups_of(known, "hops") == ["2", "3", UNKNOWN]
    with pytest.raises(ValueError, match=r"no record has metadata 'question_typ' to group by; there are: ask, hops"):
        groups_of(known, "question_typ")
    with pytest.raises(ValueError, match="there are: none"):
        groups_of([{}], "hops")
