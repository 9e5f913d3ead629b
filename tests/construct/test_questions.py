"""Questions: drawn from seed and id alone, six types, true negatives only; closed ones certain and in balance."""

import re
from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache

import pytest
from rules import LEAKS, PATIENT, STEPS

from vital_jax.construct.measure import Facts, Measurement, look
from vital_jax.construct.questions import (
    NAME_LEAD,
    Balance,
    absent_targets,
    fields,
    load_templates,
    questions,
    wordings,
)
from vital_jax.construct.sample import Sample
from vital_jax.construct.targets import load_targets
from vital_jax.demo.phantoms import phantoms


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
        for site, regions in targets.sites.items():
            here = targets.sites.get(f"{targets.family(modality)}@{site}", regions)
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


def keyed_lists():
    """(all lists of an ask, key, templates)."""
    for kind in load_templates().values():
        for lists in (*kind["open"].values(), *kind["closed"].values()):
            yield from ((lists, key, texts) for key, texts in lists.items())


def rendered():
    """Every template for every target and modality that it is asked of: (key, target, template, text)."""
    targets = load_targets()
    for lists, key, texts in keyed_lists():
        who, _, where = key.partition("@")
        family, _, site = where.partition("@")
        axial = where == "slice"
        here = {"CT", "MRI"} if axial else {family} if family else set(targets.modalities)
        for pattern, row in targets.rows.items():
            if who not in ("any", row["type"], row.get("wording")):
                continue
            name = pattern.replace("#", "9")
            for modality in here & set(row["modalities"]):
                # A more particular list may take this target.
                if wordings(lists, name, modality, targets, site, axial) is texts:
                    words = fields(name, modality, targets) | {"the_other": "the liver", "options": "yes or no"}
                    for template in texts:
                        text = template.format(**words)
                        yield key, name, template, text[0].upper() + text[1:]


def broken(name, text, plural):
    """What is wrong with the English of a question, or with its words."""
    # Names hold words of their own ("thyroid", "upper lung lobe"), so they are taken out first.
    return broken_around(text.replace(name, "NAME"), plural, name[0].lower() in "aeiou")


@cache
def broken_around(text, plural, vowel):
    one, many = "is|has|does|lies|looks|appears|runs|shows|covers", "are|have|do|lie|look|appear|run|show|cover"
    wrong, ask = (one, "is|does") if plural else (many, "are|do")
    patterns = {
        "no sentence": r"^[^A-Z]|[^.?]$",
        "a field left over": r"[{}]",
        "space": r"  | [?.,:]|^ | $",
        "two articles": r"(?i)\b(the|an?|this) (the|an?|this)\b",
        "a before a vowel": r"\b[aA] [aeiouAEIOU]",
        "an before a consonant": r"\b[aA]n (?![aeiouAEIO]|NAME|MRI|X-)",
        "article of the name": r"\ba NAME\b" if vowel else r"\ban NAME\b",
        "a word twice": r"(?i)\b(\w+) \1\b",
        "verb after the name": rf"(?i)\b(?:where|how|what) the NAME (?:{wrong})\b",
        "verb before the name": rf"(?i)\b(?:{ask}) (?:there )?(?:the |an? )?NAME\b",
        "a leak": f"(?i){LEAKS}",
        "the patient's side": f"(?i){PATIENT}",
    }
    return [problem for problem, pattern in patterns.items() if re.search(pattern, text)]


def test_every_template_reads_for_every_target():
    targets, seen, used = load_targets(), set(), set()
    for key, name, template, text in rendered():
        problems = broken(name, text, targets.plural(name))
        assert not problems, (key, text, problems)
        seen.add(name)
        used.add((key, template))
    assert len(seen) == len(targets.rows)
    for _, key, texts in keyed_lists():
        assert {(key, text) for text in texts} <= used, f"{key} is asked of no target"
        assert len({text.lower() for text in texts}) == len(texts) >= 3, f"{key} says something twice, or too little"


@pytest.mark.parametrize(
    ("name", "text", "plural", "problem"),
    [
        ("liver", "Is the the liver in view?", False, "two articles"),
        ("nuclei", "Is the nuclei in view?", True, "verb before the name"),
        ("liver", "Are the liver in view?", False, "verb before the name"),
        ("liver", "Describe how the liver appear in this image.", False, "verb after the name"),
        ("adrenal gland", "Is there a adrenal gland?", False, "article of the name"),
        ("liver", "Is a organ in view?", False, "a before a vowel"),
        ("liver", "Is {the} in view?", False, "a field left over"),
        ("liver", "Where is the highlighted liver?", False, "a leak"),
        ("liver", "Is it on the patient's left?", False, "the patient's side"),
        ("liver", "Is this this liver?", False, "a word twice"),
        ("liver", "is it there", False, "no sentence"),
    ],
)
def test_broken_english_is_found(name, text, plural, problem):
    assert problem in broken(name, text, plural)
    assert not broken("thyroid gland", "Is the thyroid gland visible in this CT slice?", False)


def test_closed_templates_name_their_options():
    said = {
        "presence": ("yes", "no"),
        "side": ("left", "center", "right"),
        "quarter": ("upper left", "upper right", "lower left", "lower right"),
        "shape": ("round", "oval", "elongated"),
        "brightness": ("brighter", "darker"),
        "direction": ("above", "below", "to the left", "to the right"),
        "place_and_brightness": (
            "upper half and brighter",
            "upper half and darker",
            "lower half and brighter",
            "lower half and darker",
        ),
    }
    for kind in load_templates().values():
        for ask, lists in kind["closed"].items():
            for text in (text for texts in lists.values() for text in texts):
                assert all(option in text.lower() for option in said.get(ask, ("{options}",))), text


def test_what_could_tell_the_answer_is_not_said():
    # "this chest X-ray" would answer "is the knee joint visible?", "this image of the liver" "which organ is shown?"
    body = "chest|breast|cardiac|heart|brain|abdom|pelvi|lung|liver|prostate|eye|retina|fetal"
    for kind, ask in (("yesno", "presence"), ("identify", "name")):
        for form in ("open", "closed"):
            for texts in load_templates()[kind][form][ask].values():
                assert not [text for text in texts if re.search(body, text)]


def test_slices_and_films_are_called_what_they_are():
    def asked(one):
        return {q.text for i in range(40) for q in questions(replace(one, id=str(i)), 6, seed=0)}

    assert not [text for text in asked(sample()) if "slice" in text or "axial" in text]
    slices = asked(replace(sample(), orientation="radiological"))
    assert sum("slice" in text for text in slices) > 0.9 * len(slices)
    assert any("on this chest X-ray" in text for text in asked(sample("lung", "X-Ray", "chest")))
    assert any("microscopy" in text for text in asked(sample("nuclei", "pathology", "tissue")))
    assert any("OCT scan" in text for text in asked(sample("choroid", "OCT", "retinal")))
    assert not any("{" in text for text in slices)


def test_templates_are_looked_up_by_type_and_modality():
    texts = {"any": ["a"], "lesion": ["b"], "lesion@MRI": ["c"]}
    found = [
        wordings(texts, name, modality, load_targets())
        for name, modality in (("liver", "MRI"), ("polyp", "endoscope"), ("lesion", "MRI-FLAIR"))
    ]
    assert found == [["a"], ["b"], ["c"]]
    texts |= {"any@slice": ["d"], "branching": ["e"], "any@CT": ["f"], "any@CT@liver": ["g"]}
    table = load_targets()
    assert wordings(texts, "liver", "CT", table, "liver", True) == ["d"]
    assert wordings(texts, "liver", "CT", table, "liver") == ["g"] and wordings(texts, "liver", "CT", table) == ["f"]
    assert wordings(texts, "hepatic vessels", "CT", table, "liver", True) == ["e"]
    assert wordings(texts, "polyp", "CT", table, "liver", True) == ["b"]


def test_phantoms_are_asked_about_structures_that_were_not_drawn():
    asked = Counter()
    for one in phantoms(20, seed=1, size=64):
        for q in questions(one, 6, seed=0):
            if q.type == "yesno":
                neutral = {load_targets().neutral(name) for name in one.present}
                assert q.visible == (q.target == load_targets().neutral(one.target)) == (q.target in neutral)
                asked[q.visible] += 1
    assert min(asked.values()) > 8


# --- closed questions ----------------------------------------------------------------------------------


def numbers(**changes):
    """A clear case: an oval in the upper left, brighter than its surroundings."""
    plain = {
        "share": 0.1,
        "row": 0.25,
        "column": 0.2,
        "rows": (1.0, 0.0, 0.0),
        "columns": (1.0, 0.0, 0.0),
        "box": (0.1, 0.1, 0.3, 0.4),
        "parts": 1,
        "elongation": 1.5,
        "angle": 90.0,
        "compactness": 0.9,
        "grey": 0.6,
        "contrast": 0.2,
        "texture": 0.02,
        "sharpness": 0.9,
    }
    return Measurement(**plain | changes)


def closed(kind, *, others=None, times=20, one=None, **changes):
    """Every (ask, right option) that is asked of a type, over several samples."""
    facts = Facts(numbers(**changes), others or {})
    one = one or sample("liver", absent=("uterus", "prostate"))
    found = set()
    for number in range(times):
        for q in questions(replace(one, id=str(number)), 6, 0, form="closed", facts=facts):
            if q.type == kind:
                assert len(set(q.options)) == len(q.options) and all(option in q.text.lower() for option in q.options)
                found.add((q.ask, q.options[q.gold]))
    return found


def test_closed_questions_ask_for_what_is_certain():
    assert closed("location_choice") == {("side", "left")}
    assert closed("location_choice", column=0.5) == {("side", "center")}
    assert closed("location_choice", column=0.31) == closed("location_choice", column=0.69) == set()
    assert closed("location_choice", columns=(0.3, 0.4, 0.3)) == set()
    assert closed("location") == {("quarter", "upper left")}
    assert closed("location", row=0.8, column=0.9) == {("quarter", "lower right")}
    assert closed("location", row=0.45) == closed("location", columns=(0.3, 0.4, 0.3)) == set()
    assert closed("describe") == {("shape", "oval"), ("brightness", "brighter")}
    assert closed("describe", elongation=1.3, contrast=-0.1) == {("brightness", "darker")}
    assert closed("describe", elongation=3, contrast=0.05) == {("shape", "elongated")}
    assert closed("describe", elongation=1.1, parts=2, contrast=0) == set()
    assert closed("reasoning", contrast=-0.2) == {("place_and_brightness", "upper half and darker")}
    assert closed("reasoning", row=0.52) == closed("reasoning", contrast=0.05) == set()


def test_neighbours_are_compared_where_the_difference_is_clear():
    one = sample("liver", absent=("uterus", "prostate"))
    there = {"spleen": numbers(column=0.7, share=0.05, grey=0.3)}
    expected = {("direction", "to the left"), ("larger", "the liver"), ("brighter_of_two", "the liver")}
    assert closed("reasoning", one=one, others=there) == expected
    alike = {"spleen": numbers(share=0.11, column=0.25, grey=0.58)}
    assert closed("reasoning", one=one, others=alike) == {("place_and_brightness", "upper half and brighter")}
    facts = Facts(numbers(), there, within=frozenset(there))
    asks = {q.ask for i in range(9) for q in questions(replace(one, id=str(i)), 6, 0, form="closed", facts=facts)}
    assert "place_and_brightness" in asks and not asks & {"direction", "larger", "brighter_of_two"}


def test_without_a_true_negative_nothing_is_denied():
    assert closed("yesno") == {("presence", "yes"), ("presence", "no")}
    bare = sample("tumor", "CT", "an unknown site")
    assert closed("yesno", one=bare) == closed("identify", one=bare) == set()
    assert closed("identify", one=replace(bare, absent=("uterus",))) == set()
    assert closed("identify", one=replace(bare, absent=("uterus", "vessel", "liver"))) == {("name", "a tumor")}
    assert closed("identify", one=sample("vessel", "fundus", "retinal", absent=("optic disc", "macula"))) == set()


def test_answers_stay_in_balance():
    balance, counts, by_name, names = Balance(), defaultdict(Counter), defaultdict(Counter), Counter()
    total = 0
    for one in phantoms(60, seed=3, size=64):
        for q in questions(one, 6, 0, form="closed", facts=look(one), balance=balance):
            present = {*one.present, *map(load_targets().neutral, one.present)}
            assert q.visible == (q.target in present) and (q.ask, q.gold) != ("presence", int(q.visible))
            counts[q.ask].update(dict.fromkeys(range(len(q.options)), 0) | {q.gold: 1})
            if q.ask in ("presence", "shape"):
                by_name[q.ask, q.target].update(dict.fromkeys(range(len(q.options)), 0) | {q.gold: 1})
            if q.ask == "name":
                assert q.options[q.gold].endswith(one.target)
                assert not any(
                    option.split(" ", 1)[-1] in one.present for option in q.options if option != q.options[q.gold]
                )
                names.update({option: 2 if i == q.gold else -1 for i, option in enumerate(q.options)})
            total += 1
    assert set(counts) >= {"presence", "name", "side", "quarter", "shape", "brightness", "direction", "larger"}
    for counted in (*counts.values(), *by_name.values()):
        assert max(counted.values()) - min(counted.values()) <= 2
    assert min(sum(counted.values()) for ask, counted in counts.items() if ask != "place_and_brightness") >= 10
    # A name is right about once in three, so the name alone says little: never far ahead, and behind only for want of its images.
    assert max(names.values()) <= NAME_LEAD + 2 and min(names.values()) >= -12
    assert total > 300


def test_a_balance_refuses_what_is_ahead():
    balance = Balance()
    one = sample("liver", absent=("uterus", "prostate"))
    facts = Facts(numbers())
    asked = Counter()
    for number in range(10):
        for q in questions(replace(one, id=str(number)), 6, 0, form="closed", facts=facts, balance=balance):
            asked[q.ask, q.gold] += 1
    assert asked["side", 0] == asked["quarter", 0] == asked["shape", 1] == asked["brightness", 0] == 2
    # Per name too: the liver is never absent, the others never present.
    assert asked["presence", 0] == 2 and 2 <= asked["presence", 1] <= 4
    with pytest.raises(ValueError, match=r"unknown form 'both'.*open or closed"):
        questions(one, 2, 0, form="both")


@pytest.mark.parametrize(
    "name", ["malignant breast tumor", "benign tumor", "non-neoplastic polyp", "high-grade glioma"]
)
def test_no_question_gives_a_diagnosis_away(name):
    targets, row = load_targets(), load_targets().row(name)
    one = sample(name, row["modalities"][0], "breast", neighbours=(("liver", b""),))
    facts = Facts(numbers(), {"liver": numbers(column=0.9, grey=0.9)})
    told = name.split()[0]
    for number in range(40):
        for form in ("open", "closed"):
            for q in questions(replace(one, id=str(number)), 6, 0, form=form, facts=facts):
                assert told not in q.text.lower() or q.ask == "name"
                assert q.target == (name if q.ask == "name" else targets.neutral(name)) or not q.visible
    # As a neighbour neither.
    other = replace(sample("liver", row["modalities"][0]), present=("liver", name))
    facts = Facts(numbers(), {name: numbers(column=0.9, grey=0.9)})
    for number in range(40):
        for form in ("open", "closed"):
            assert not any(
                told in q.text for q in questions(replace(other, id=str(number)), 6, 0, form=form, facts=facts)
            )


def test_two_of_one_name_are_not_asked_about_by_it():
    one = replace(sample("benign tumor", "ultrasound", "breast"), present=("benign tumor", "malignant tumor"))
    assert questions(one, 6, 0, facts=Facts(numbers())) == []


def test_open_questions_ask_for_no_place_near_a_border():
    for changes, types in (
        ({"column": 0.34}, {"location", "location_choice"}),
        ({"row": 0.65, "column": 0.5}, {"location"}),
        ({"row": 0.2, "column": 0.5}, set()),
        ({"column": 0.34, "columns": (0.3, 0.4, 0.3)}, set()),
    ):
        facts = Facts(numbers(**changes))
        asked = {q.type for number in range(20) for q in questions(sample(number=number), 6, 0, facts=facts)}
        assert asked == set(load_templates()) - types


def test_a_complete_source_does_not_exclude_parts_of_what_is_marked():
    one = sample("left kidney", "CT", "nowhere", absent=("kidney", "right kidney", "tumor"))
    assert absent_targets(replace(one, present=("left kidney", "liver tumor"))) == ["right kidney"]
