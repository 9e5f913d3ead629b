"""The quality gate against 300 chains that were labelled by hand before its lists existed, and rule by rule.

Half of the chains (`half` is heldout) were kept back until the first version of the lists was finished; docs/RESULTS.md has that result.
The lists have learnt from them since, so here all 300 must come out as labelled.
"""

import json
from pathlib import Path

import pytest

from vital_jax.construct.build import build_records
from vital_jax.construct.gate import gate, steps_allowed, version
from vital_jax.demo.phantoms import phantoms

CHAINS = [json.loads(line) for line in Path(__file__).with_name("gate_chains.jsonl").read_text().splitlines()]
SPLEEN = dict(question_type="yesno", target_type="organ", target="spleen", modality="CT")
NODULE = dict(question_type="yesno", target_type="lesion", target="nodule", modality="CT")


def reply(*steps, answer="Yes, it is visible."):
    return {"final_answer": answer, "reasoning_chain": list(steps)}


def test_chains_are_balanced_and_complete():
    assert len(CHAINS) == 300 and len({row["id"] for row in CHAINS}) == 300
    assert sum(not row["violations"] for row in CHAINS) == 150
    assert {code for row in CHAINS for code in row["violations"]} == {
        "json", "schema", "leak", "pathology", "patient-space", "mixed-space", "steps",
    }  # fmt: skip


@pytest.mark.parametrize("row", CHAINS, ids=lambda row: row["id"])
def test_labelled_chain(row):
    verdict = gate(
        row["raw"],
        question_type=row["question_type"],
        target_type=row["target_type"],
        target=row["target"],
        modality=row["modality"],
        steps=tuple(row["steps"]),
    )
    assert list(verdict.codes) == row["violations"], [str(violation) for violation in verdict.violations]


def test_a_violation_says_where_and_which_words():
    (found,) = gate(reply("A crescent lies within the mask."), **SPLEEN).violations
    assert (found.code, found.where, found.text) == ("leak", "step 1", "mask")
    (found,) = gate(reply("A crescent lies there.", answer="Yes, as the overlay shows."), **SPLEEN).violations
    assert (found.code, found.where, found.text) == ("leak", "answer", "overlay")


def test_pathology_follows_the_type_of_the_target():
    text = reply("A round mass with calcification lies in the upper left.")
    assert gate(text, **SPLEEN).codes == ("pathology",)
    assert gate(text, **NODULE).accepted


POLYP = dict(question_type="yesno", target_type="lesion", target="polyp", modality="endoscope")


@pytest.mark.parametrize(
    "asked, sentence",
    [
        (SPLEEN, "The spleen is outlined by the yellow ring."),
        (SPLEEN, "The spleen is outlined by a red rim."),
        (SPLEEN, "It is delineated by a yellow ring."),
        (SPLEEN, "The spleen is highlighted by the red enhancement."),
        (SPLEEN, "The drawn contour hugs the spleen."),
        (SPLEEN, "The provided spleen region is oval."),
        (POLYP, "The polyp is outlined with a yellow ring."),
        (POLYP, "The yellow outline of the polyp is clear."),
        (POLYP, "A polyp with a yellow contour is seen."),
        (POLYP, "The red tint covers the polyp."),
    ],
)
def test_an_overlay_described_in_plain_words_is_a_leak(asked, sentence):
    """Found in the lists' second version."""
    assert "leak" in gate(reply(sentence), **asked).codes


@pytest.mark.parametrize(
    "asked, sentence",
    [
        (SPLEEN, "The spleen is outlined by a thin dark ring of fat."),
        (SPLEEN, "It is delineated from the stomach by fat."),
        (SPLEEN, "The vessels are highlighted by the contrast medium."),
        (POLYP, "The mucosa has a red tint and the polyp is paler."),
        (POLYP, "The polyp is outlined by yellowish mucus."),
        (POLYP, "A yellow line of mucus crosses the fold below the polyp."),
    ],
)
def test_the_same_words_for_what_is_in_the_image_pass(asked, sentence):
    assert gate(reply(sentence), **asked).accepted


def test_color_betrays_the_overlay_only_where_images_are_gray():
    text = reply("A red crescent lies in the upper left.")
    assert gate(text, **SPLEEN).codes == ("leak",)
    assert gate(text, **SPLEEN | dict(modality="endoscope")).accepted


def test_names_in_the_question_are_no_violations():
    text = reply("The spleen lies beside the liver tumor, toward the left of the image.")
    assert gate(text, **SPLEEN).codes == ("pathology",)
    assert gate(text, **SPLEEN, names=("liver tumor",)).accepted


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ("Here it is: {}", "json"),
        ('{"final_answer": "Yes.", "final_answer": "No.", "reasoning_chain": ["It is there."]}', "json"),
        ("[" * 100_000, "json"),
        ("[]", "schema"),
        ({"final_answer": "Yes.", "reasoning_chain": ["It is there."], "note": ""}, "schema"),
        ({"final_answer": "...", "reasoning_chain": ["It is there."]}, "schema"),
    ],
)
def test_form(raw, code):
    assert gate(raw, **SPLEEN).codes == (code,)


def test_steps_come_from_the_type_of_question():
    assert steps_allowed("reasoning") == (3, 4) and steps_allowed("describe") == (2, 3)
    assert gate(reply("It is there.", "It is dark."), **SPLEEN).codes == ("steps",)
    with pytest.raises(ValueError, match="unknown type of question 'poem'"):
        steps_allowed("poem")


@pytest.mark.parametrize(
    ("kind", "answer", "normal"),
    [
        ("identify", "spleen", "The organ shown is the spleen."),
        ("identify", "The spleen", "The organ shown is the spleen."),
        ("identify", "this is the spleen", "This is the spleen."),
        ("location_choice", "It lies on the  left", "It lies on the left of the image."),
        ("location_choice", "It lies on the left of the image", "It lies on the left of the image."),
        ("location_choice", "It lies beside the stomach", "It lies beside the stomach."),
        ("yesno", "yes, it is visible", "Yes, it is visible."),
    ],
)
def test_answers_are_normalised(kind, answer, normal):
    verdict = gate(reply("it is  a crescent", answer=answer), **SPLEEN | dict(question_type=kind))
    assert (verdict.answer, verdict.chain) == (normal, ("It is a crescent.",))


def test_options_stay_as_they_are():
    verdict = gate(
        reply("It is there.", answer="Left"),
        **SPLEEN | dict(question_type="location_choice"),
        options=("Left", "Right"),
    )
    assert verdict.answer == "Left."


def test_measured_teacher_passes_unchanged():
    seen = 0
    for record in build_records(phantoms(12, 5), 6, 0, form="both"):
        facts = record.metadata
        verdict = gate(
            {"final_answer": record.answer, "reasoning_chain": list(record.chain)},
            question_type=facts["question_type"],
            ask=facts["ask"],
            target_type=facts["target_type"],
            target=facts["target_name"],
            modality=facts["modality"],
            options=record.options,
            names=[facts["neighbour"]] if "neighbour" in facts else [],
        )
        assert verdict.accepted, [str(violation) for violation in verdict.violations]
        # Round 6 adds "of the image" to some places; it never changes a chain.
        assert verdict.chain == record.chain and verdict.answer.startswith(record.answer[:-1])
        seen += 1
    assert seen > 200 and version().isdigit()
