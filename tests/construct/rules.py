"""What every constructed text has to obey (methods.md §1.4), shared by the tests of this room."""

import re

from vital_jax.construct.targets import load_targets

FLAT = [
    "biomedparse_demo",
    "busi_breast_ultrasound",
    "chase_db1_vessel",
    "drishti_optic_disc_cup",
    "dsb2018_histology_nuclei",
    "hc18_fetal_head",
    "isic2017_dermoscopy",
    "kvasir_polyp",
    "msd_task08_hepaticvessel_2d",
    "oct_retina_polygons",
    "sam_med2d_demo",
    "shenzhen_cxr_lung",
]


STEPS = {
    "yesno": (1, 1),
    "identify": (1, 1),
    "location_choice": (1, 1),
    "location": (2, 2),
    "describe": (2, 3),
    "reasoning": (3, 4),
}


LEAKS = (
    "mask|overlay|annotat|label|segment|highlight|mark|roi|region of interest|ground truth|contour|outline|"
    "metadata|colou?red|provided|given|hint|tint|delineat"
)
PATIENT = r"patient|anatomical (left|right)|\bpatient's\b|viewer|radiolog"
PATHOLOGY = "lesion|mass|tumou?r|calcif|inflam|abnormal|patholog|disease|cancer|malign|benign|nodule|cyst|polyp"


def check_rules(question, sample, chain, answer, target_type):
    text = " ".join((*chain, answer)).lower()
    assert len(chain) == question.steps
    for sentence in (*chain, answer):
        assert sentence.endswith(".") and sentence[0].isupper() and "  " not in sentence and "{" not in sentence
        assert " ." not in sentence and " ," not in sentence
    assert all(len(sentence.split()) <= 30 for sentence in chain), chain
    # Names may hold such words themselves: neoplastic cells. Findings are named only where a finding is asked about.
    table = load_targets()
    for name in (question.target, *(name for name in sample.present if table.row(name)["type"] != "lesion")):
        text = text.replace(name.lower(), "x")
    assert not re.search(LEAKS, text), text
    assert not re.search(PATIENT, text), text
    if target_type != "lesion":
        assert not re.search(PATHOLOGY, text.replace(sample.modality.lower(), "x")), text
