"""The table and the page: numbers by hand, markup that stays text."""

import csv
import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from vital_jax.construct import drawing
from vital_jax.evaluate import audit_table as table
from vital_jax.evaluate import figure
from vital_jax.evaluate.audit_table import Line
from vital_jax.evaluate.audit_words import sentences
from vital_jax.evaluate.calibration import calibration
from vital_jax.evaluate.replacements import OTHER


def test_an_accuracy_stands_beside_the_run_on_the_same_questions():
    before, after = [1, 1, 1, 0, 1, 0, 1, 1], [0, 0, 1, 0, 0, 1, 1, 0]
    line = table.accuracy(table.TOKENS, "zeros", before, after, list("aabbccdd"), 0.5)
    assert (line.n, line.run, line.value, line.difference) == (8, 0.75, 0.375, -0.375)
    assert (line.low, line.high) == pytest.approx((0.1368, 0.6943), abs=1e-4)  # Wilson's for 3 of 8
    # Four lost and one won: (1 + 5 + 5 / 2 ... ) mid-p = 2 * (1 + 5) / 32 - 5 / 32.
    assert line.p == pytest.approx(7 / 32)
    assert line.difference_low < line.difference < line.difference_high
    assert table.accuracy(table.TOKENS, "zeros", before, after, ["one"] * 8).difference_low is None


BASE = Line(table.TOKENS, OTHER, table.ACCURACY, 500, 0.4, 0.3, 0.5, "Wilson", 0.5, -0.1, -0.15, -0.05, 0.01, 0.3)


def test_the_table_has_percent_for_shares_and_digits_for_the_rest():
    lines = [
        replace(BASE, value=0.375),
        Line(table.TEXT, "mean latent", "nats per token", 7, 1.23456, 1.1, 1.4, "", 1.0, 0.23456),
    ]
    text = table.to_markdown(lines)
    first, second = text.splitlines()[2:]
    assert "37.5" in first and "30.0 to 50.0" in first and "-15.0 to -5.0" in first and "30.0 %" in first
    assert "1.235" in second and "+0.2346" in second and "1.1 to 1.4" in second
    rows = list(csv.DictReader(io.StringIO(table.to_csv(lines))))
    assert float(rows[0]["difference_low"]) == -0.15 and rows[1]["p"] == "" and float(rows[1]["value"]) == 1.23456


def whole(extra: str = "zeros"):
    r = np.random.default_rng(0)
    p = r.uniform(0, 1, 50)
    mean = {"n": 5, "value": 0.5, "low": 0.4, "high": 0.6}
    latents = {
        "cosine": {"z_1 z_2": mean},
        "rank": {"2": mean},
        "data_rank": {"z_1": {"n": 5, "most": 5, "value": 2.0, "centred": 3.0}},
        "length": {name: {**mean, "sd": 0.1} for name in ("z_0", "z_1", "z_2", "token embeddings")},
    }
    steps = {step: {**mean, "own": 0.4, "difference": 0.1} for step in ("all", "1", "2")}
    hits = {"n": 5, **{f"hit@{k}": {"share": 0.5, "low": 0.2, "high": 0.8} for k in (1, 5, 10)}}
    retrieval = {"n": 5, "gallery": 4, "chance": {f"hit@{k}": 0.25 for k in (1, 5, 10)}, "last": {"own": hits}}
    sure = calibration(p, r.random(50) < p, range(50))
    lines = [table.share(table.RUN, "K = 2", table.ACCURACY, 20, 40), replace(BASE, what=extra), BASE]
    lines += [replace(BASE, audit=table.SWEEP, what=f"K = {k}") for k in range(3)]
    lines += table.lines_of_latents(latents) + table.lines_of_text({"own latents": steps})
    lines += table.lines_of_retrieval(retrieval) + table.lines_of_calibration("probability", sure)
    return {
        "lines": [vars(line) for line in lines],
        "sentences": sentences(lines),
        "left_out": [["<oracle>", "none"]],
        "latents": latents,
        "text": {"own latents": steps},
        "retrieval": retrieval,
        "calibration": {"probability": sure},
    }


def test_every_part_has_its_lines():
    lines = [Line(**line) for line in whole()["lines"]]
    count = {audit: sum(line.audit == audit for line in lines) for audit in dict.fromkeys(line.audit for line in lines)}
    assert count == {
        table.RUN: 1, table.TOKENS: 2, table.SWEEP: 3, table.LATENTS: 12, table.TEXT: 3, table.REGIONS: 6, table.CALIBRATION: 6,
    }  # fmt: skip
    ece = [line for line in lines if line.measure.startswith("ECE")]
    assert [line.measure for line in ece] == ["ECE, 10 bins of equal mass"] * 2 and ece[1].high > ece[1].value > 0


def test_the_report_of_a_campaign_is_short():
    text = table.show(whole())
    assert text.splitlines()[0].startswith("| audit") and "- Latents of another sample lower accuracy" in text
    assert "z_1..z_2 of the rows" in text and "own latents" in text and "Brier" in text
    for absent in ("hit@1", "standard deviation", "step 2", "best order", "equation 9"):
        assert absent not in text


def test_the_page_holds_drawings_that_are_whole_and_nothing_from_elsewhere():
    page = figure.page("<b>run</b>", "N 40", whole("<script>alert(1)</script>"))
    drawn = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawn) == 7
    for svg in drawn:
        root = ElementTree.fromstring(svg)
        width, height = (float(root.get(name)) for name in ("width", "height"))
        for node in root.iter():
            assert "nan" not in " ".join(node.attrib.values())
            for name, most in (
                ("cx", width),
                ("x", width),
                ("x1", width),
                ("cy", height),
                ("y", height),
                ("y2", height),
            ):
                assert 0 <= float(node.get(name, 0)) <= most, (svg[:200], node.attrib)
    assert "<script" not in page and "<b>run" not in page and "&lt;oracle&gt;" in page
    assert "default-src 'none'" in page and "http" not in page.replace("http://www.w3.org/2000/svg", "").replace(
        "http-equiv", ""
    )
    assert "not a medical device" in page


def test_an_accuracy_of_other_questions_is_not_drawn_beside_the_runs():
    found = whole()
    n = found["lines"][0]["n"]
    changed = [line for line in found["lines"] if line["measure"] == table.ACCURACY and line["difference"] is not None]
    assert changed and all(line["n"] != n for line in changed)
    assert not any("Accuracy on all" in drawn for drawn in figure.drawings(found))
    changed[0]["n"] = n
    (drawn,) = (each for each in figure.drawings(found) if f"Accuracy on all {n} questions" in each)
    assert drawn.count("<circle") == 1 and changed[0]["what"] in drawn


def test_a_matrix_has_a_bar_of_its_colours_and_curves_have_axes():
    names = [
        node.text for node in ElementTree.fromstring(figure.heat("m", ["a", "b"], {(0, 1): 0.5})).iter() if node.text
    ]
    assert names[-3:] == ["0", "cosine", "1"]
    drawn = ElementTree.fromstring(
        figure.lines("t", {"s": [(0, 1, None, None), (1, 3, None, None)]}, "steps", "points")
    )
    words = {node.text: node for node in drawn.iter() if node.text}
    assert {"t", "steps", "points"} <= words.keys() and words["points"].get("transform").startswith("rotate(-90")


def test_a_run_without_latents_still_has_a_page():
    found = whole()
    lines = [line for line in found["lines"] if line["audit"] in (table.RUN, table.IMAGES, table.CALIBRATION)]
    bare = {"lines": lines, "sentences": [], "left_out": [], "calibration": found["calibration"]}
    assert figure.page("run", "", bare).count("<svg") == 2


@pytest.mark.parametrize("low, high", [(0, 1), (-63.6, 42.6), (12.9, 13.4), (0.001, 0.0017), (-5, 5000)])
def test_ticks_are_few_round_and_inside(low, high):
    ticks = drawing.ticks(low, high)
    assert 2 <= len(ticks) <= 7 and all(low <= x <= high for x in ticks)
    step = f"{ticks[1] - ticks[0]:.0e}"
    assert step[0] in "125"
