"""The files beside the page: notes that say what is missing, tables whose lines agree, JSON that holds no picture."""

import csv
import io
import json

import numpy as np
import pictured
import pytest
from test_pointing import ROWS

from vital_jax.explain import numbers, pointing


@pytest.fixture(scope="module")
def found():
    return numbers.summary("toy", [pictured.case(i) for i in range(3)], ROWS, ["All of a split."])


def test_the_summary_says_what_was_counted(found):
    assert found["model"] == "toy" and found["cases"] == 3 and found["table"] == pointing.table(ROWS)
    assert found["notes"][:2] == ["3 questions, K = 2 latent steps.", "All of a split."]
    assert "of the 3 questions with a mask, about 3 images; the region covers 10.0 %" in found["notes"][2]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_what_is_missing_is_said():
    cases = [pictured.with_steps(pictured.case(), text="", heat=(), scores=None), pictured.case(1, steps=1)]
    notes = numbers.summary("toy", cases, [])["notes"]
    assert notes == ["2 questions, K = 1 to 2 latent steps.",
                     "No question has a mask, so there are no numbers beside the heat maps."]  # fmt: skip
    bare = numbers.summary("toy", cases[:1], [])
    assert bare["notes"][1] == "The run has no text decoder, so no step has a text."
    assert "No visual projector" in bare["notes"][2] and bare["table"] == bare["said"] == []
    assert "## " not in numbers.to_markdown(bare)


def test_a_difference_is_one_only_where_its_interval_leaves_out_zero():
    over = lambda low, high: {"n": 9, "value": 0.1, "low": low, "high": high}  # noqa: E731
    row = {"modality": "all", "measure": "share"}
    said = numbers.sentences(
        [
            {**row, "over": {"shuffled": over(0.01, 0.2), "other": over(-0.1, 0.3), "random": over(None, None)}},
            {**row, "modality": "CT", "over": {"shuffled": over(0.01, 0.2)}},
        ]
    )
    assert len(said) == 3
    assert said[0] == "share: +0.100 against latents about other images (+0.010 to +0.200, N = 9): a difference."
    assert said[1].endswith("no difference shown.") and said[2].endswith("no interval: all about one image).")


def test_tables_hold_the_same_numbers(found):
    rows = list(csv.DictReader(io.StringIO(numbers.to_csv(found))))
    assert len(rows) == len(found["table"]) + len(found["steps"]) == 12 + 8
    first, row = found["table"][0], rows[0]
    assert (row["modality"], row["measure"], row["K"], row["other"]) == ("all", "pointing", "", "")
    assert float(row["own"]) == first["own"] and float(row["over_random_low"]) == first["over"]["random"]["low"]
    assert rows[-1]["modality"] == "" and (rows[-1]["K"], rows[-1]["step"]) == ("2", "2")
    text = numbers.to_markdown(found)
    assert f"| {first['own']:.3f} |" in text and "K = 2, z_2" in text and "not a medical device" in text
    assert "K = 2, z_2" not in numbers.to_markdown(found, steps=False)


def test_json_holds_all_but_pictures(found):
    case = pictured.case()
    held = json.loads(numbers.to_json([case], found))
    assert held["summary"] == found
    (one,) = held["cases"]
    assert one["steps"][0]["scores"] == case.steps[0].scores and one["steps"][0]["similar"][0]["id"] == "near/0"
    assert not {"images", "masks"} & one.keys() and "picture" not in one["steps"][0]["similar"][0]
    np.testing.assert_allclose(one["similarity"], case.similarity)
