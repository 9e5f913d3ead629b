"""Questions: drawn from seed and id alone, six types, true negatives only."""

from collections import Counter
from dataclasses import replace

import pytest
from rules import STEPS

from vital_jax.construct.folders import Sample
from vital_jax.construct.phantoms import phantoms
from vital_jax.construct.questions import absent_targets, load_templates, questions
from vital_jax.construct.targets import load_targets


def sample(target="liver", modality="CT", site="liver", number=0, **fields):
    row = load_targets().row(target)
    return Sample(
        id=f"set/{number}/{target}",
        image=b"i",
        mask=b"m",
        target=target,
        target_type=row["type"],
        modality=modality,
        site=site,
        group="g",
        source="s",
        present=(target,),
        **fields,
    )


def test_types_and_steps_are_the_papers():
    made = [q for i in range(400) for q in questions(sample(number=i), 6, seed=0)]
    assert Counter(q.type for q in made) == dict.fromkeys(STEPS, 400)
    for q in made:
        assert STEPS[q.type][0] <= q.steps <= STEPS[q.type][1]
        assert (q.text.endswith(("?", ".")) and "{" not in q.text and "CT" in q.text) or "image" in q.text
    for name, (low, high) in STEPS.items():
        assert {q.steps for q in made if q.type == name} == set(range(low, high + 1))


def test_everything_follows_from_seed_and_id():
    one = sample(number=5)
    assert questions(one, 4, seed=1) == questions(replace(one, image=b"other"), 4, seed=1)
    assert questions(one, 4, seed=1) != questions(one, 4, seed=2)
    assert len({tuple(questions(sample(number=i), 3, seed=1)) for i in range(20)}) > 10
    with pytest.raises(ValueError, match=r"1\.\.6, not 7"):
        questions(one, 7, seed=0)


def test_half_of_yes_or_no_is_no_and_never_wrong():
    made = [next(q for q in questions(sample(number=i), 6, seed=0) if q.type == "yesno") for i in range(600)]
    share = sum(not q.visible for q in made) / len(made)
    # Three standard deviations of 600 fair coins are 6 %.
    assert abs(share - 0.5) < 0.06
    absent = {q.target for q in made if not q.visible}
    assert "uterus" in absent and len(absent) >= 4
    # A slice through the liver may show every abdominal organ and the lung bases, marked or not.
    may_show = {
        "spleen",
        "kidney",
        "stomach",
        "pancreas",
        "aorta",
        "lung",
        "left lung",
        "heart",
        "spinal cord",
        "vessel",
    }
    assert not absent & may_show


def test_what_has_a_mask_or_a_place_in_the_image_is_never_called_absent():
    targets = load_targets()
    for modality in ("CT", "MRI-T2", "X-Ray", "ultrasound"):
        for site, here in targets.sites.items():
            names = absent_targets(sample("tumor", modality, site))
            for name in names:
                assert not set(targets.row(name)["regions"]) & set(here) and "#" not in name
                assert targets.family(modality) in targets.row(name)["modalities"]
            for name in names[:3]:
                assert name not in absent_targets(replace(sample("tumor", modality, site), present=("tumor", name)))
    assert absent_targets(sample("tumor", "CT", "an unknown site")) == []
    # One region only, so nothing is certain; a source that marks everything makes it certain.
    assert absent_targets(sample("edema", "OCT", "retinal")) == []
    complete = sample("edema", "OCT", "retinal", absent=("retinal drusen", "intraretinal cyst"))
    assert absent_targets(complete) == ["retinal drusen", "intraretinal cyst"]
    assert absent_targets(replace(complete, present=("edema", "retinal drusen"))) == ["intraretinal cyst"]


def test_what_is_shown_needs_one_answer():
    def kinds(one):
        return {q.type for q in questions(one, 6, seed=0)}

    assert "identify" in kinds(sample())
    assert "identify" not in kinds(replace(sample(), present=("liver", "vessel")))
    assert "identify" not in kinds(sample("vessel", "fundus", "retinal"))


def test_every_template_reads_for_every_target():
    targets, templates = load_targets(), load_templates()
    names = [name.replace("#", "9") for name in targets.rows]
    for name in names:
        one = sample(name, "MRI-FLAIR", "brain")
        for q in questions(one, 6, seed=3):
            assert "{" not in q.text and "  " not in q.text
    plural = [q.text for i in range(30) for q in questions(sample("nuclei", "pathology", "tissue", i), 6, seed=0)]
    assert not any(" is the nuclei" in text or text.startswith(("Is the", "Does the")) for text in plural)
    assert all("any" in kind["templates"] for kind in templates.values())


def test_phantoms_are_asked_about_shapes_that_were_not_drawn():
    asked = Counter()
    for one in phantoms(40, seed=1, size=32):
        for q in questions(one, 6, seed=0):
            if q.type == "yesno":
                assert q.visible == (q.target == one.target)
                asked[q.visible] += 1
    assert min(asked.values()) > 8
