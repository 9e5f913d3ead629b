"""The compat modes give what the published programs give: cases whose values those programs were run for.

official_cases.jsonl holds, one a line, a question and an answer written for this test, and what the named program at the named commit made
of them. A value of null is an answer that the program does not count; "stops" one at which it ends with an error.
"""

import json
from pathlib import Path

import pytest
from asked import choice, item, row

from vital_jax.evaluate.protocols import ScorerStops

CASES = [json.loads(line) for line in (Path(__file__).parent / "official_cases.jsonl").read_text("utf-8").splitlines()]
# Both names of a MedEvalKit score: in its output, and here.
PRINTED = {
    "precision": " (is F1 of token sets)",
    "recall": " (is precision of token sets)",
    "f1": " (is recall of token sets)",
}


def asked(case):
    """The item of a case."""
    if case["options"]:
        return choice(case["gold"], case["options"], case["benchmark"], question=case["question"])
    return item(case["gold"], benchmark=case["benchmark"], closed=case["closed"], question=case["question"])


def ours(made, name):
    """The value of a judged row that has a name in the file."""
    if name in ("correct", "parsed"):
        return made[name]
    if made["protocol"].startswith("medevalkit"):
        name = f"open {name} as printed{PRINTED.get(name, '')}"
    return made["measures"].get(name)


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case['protocol']}-{case['benchmark']}-{case['prediction'][:30]!r}"
)
def test_a_published_program_gives_the_same(case):
    if case["official_value"].get("stops"):
        with pytest.raises(ScorerStops):
            row(case["protocol"], asked(case), case["prediction"])
        return
    made = row(case["protocol"], asked(case), case["prediction"])
    for name, value in case["official_value"].items():
        said = ours(made, name)
        assert said == (value if value is None or isinstance(value, str | bool) else pytest.approx(value, abs=1e-9)), (
            name
        )


def test_the_file_has_cases_of_every_program():
    assert len(CASES) >= 200
    assert {case["protocol"] for case in CASES} == {
        "medevalkit compat", "llava_med compat", "pathvqa compat", "pmc_vqa compat", "omnimedvqa compat", "medxpertqa",
        "mmmu compat", "lmms_eval compat",
    }  # fmt: skip
    assert all(case["scorer"] and case["commit"] and case["official_value"] for case in CASES)
