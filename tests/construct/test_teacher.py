"""Measurements, words and the teacher: numbers against SciPy, NumPy and drawn shapes; texts against methods.md §1.4."""

import re
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from rules import check_rules
from scipy import ndimage

from vital_jax.construct import measure as measuring
from vital_jax.construct.checker import Look
from vital_jax.construct.measure import Facts, look, measure
from vital_jax.construct.questions import FORMS, Question, questions
from vital_jax.construct.sample import Sample
from vital_jax.construct.targets import load_targets
from vital_jax.construct.teacher import load_sentences, teach
from vital_jax.construct.words import (
    boundary,
    brightness,
    compare_brightness,
    compare_size,
    direction,
    extent,
    form,
    quarter,
    side,
    texture,
    where,
)
from vital_jax.demo.phantoms import phantoms


def canvas(height=120, width=160):
    return np.mgrid[:height, :width] + 0.5


def disc(radius, row, column, height=120, width=160):
    y, x = canvas(height, width)
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


def ellipse(long, short, degrees, row=60, column=80):
    y, x = canvas()
    angle = np.radians(degrees)
    along, across = (
        np.cos(angle) * (x - column) - np.sin(angle) * (y - row),
        np.sin(angle) * (x - column) + np.cos(angle) * (y - row),
    )
    return (along / long) ** 2 + (across / short) ** 2 <= 1


def paint(region, inside=180, outside=100):
    return np.where(region, inside, outside).astype(np.uint8)


def test_place_size_and_box_of_a_disc():
    region = disc(20, 30, 130)
    m = measure(paint(region), region)
    assert m.share == region.mean() and m.grey == pytest.approx(180 / 255)
    np.testing.assert_allclose((m.row, m.column), (30 / 120, 130 / 160), atol=1e-12)
    assert m.box == (110 / 160, 10 / 120, 150 / 160, 50 / 120)
    np.testing.assert_allclose(
        m.columns, [region[:, :53].sum(), region[:, 53:107].sum(), region[:, 107:].sum()] / region.sum()
    )
    # A drawn circle is a polygon of pixels: a few percent from the ideal.
    assert m.elongation == pytest.approx(1, abs=0.01) and m.compactness == pytest.approx(1, abs=0.03)
    assert (where(m), side(m)) == ("in the upper right part of the image", "on the right of the image")
    assert form(m) == "round in shape"


@pytest.mark.parametrize("degrees", [0, 30, 60, 90, 120, 150])
def test_axes_are_those_of_the_covariance(degrees):
    region = ellipse(50, 20, degrees)
    m = measure(paint(region), region)
    y, x = np.nonzero(region)
    values, vectors = np.linalg.eigh(np.cov(np.stack([x, y]).astype(float)))
    expected = np.degrees(np.arctan2(-vectors[1, 1], vectors[0, 1])) % 180
    # 1/12 of a pixel's own spread and n against n-1
    assert m.elongation == pytest.approx(np.sqrt(values[1] / values[0]), rel=2e-3)
    assert m.elongation == pytest.approx(2.5, rel=0.02)
    assert abs((m.angle - expected + 90) % 180 - 90) < 0.1 and abs((m.angle - degrees + 90) % 180 - 90) < 1
    word = {0: "horizontal", 30: "rising to the right", 90: "vertical", 150: "falling to the right"}.get(degrees)
    assert word is None or form(m) == f"elongated in shape, with the long axis {word}"


@pytest.mark.parametrize(
    ("difference", "words"), [(80, "clearly brighter"), (20, "slightly brighter"), (-60, "clearly darker")]
)
def test_contrast_is_the_difference_of_means(difference, words):
    region = disc(20, 60, 80)
    m = measure(paint(region, 100 + difference), region)
    assert m.contrast == pytest.approx(difference / 255, abs=1e-12) and m.texture == pytest.approx(0, abs=1e-12)
    assert m.sharpness == pytest.approx(1)
    assert brightness(m) == f"{words} than the surroundings" and boundary(m) == "well-defined"
    even = measure(paint(region, 103), region)
    assert brightness(even) == "about as bright as the surroundings" and boundary(even) == "faint"


def test_a_smoothed_boundary_is_less_sharp():
    region = disc(30, 60, 80)
    found = []
    for width in (0, 3, 8):
        grey = ndimage.gaussian_filter(paint(region).astype(float), width)
        found.append(measure(grey.astype(np.uint8), region))
    assert [boundary(m) for m in found] == ["well-defined", "soft", "blurred"]
    assert found[0].sharpness > found[1].sharpness > found[2].sharpness


@pytest.mark.parametrize("radius", [1, 2, 9, 200])
def test_growing_is_scipys_maximum_filter(radius):
    region = np.random.default_rng(radius).random((60, 47)) > 0.99
    expected = ndimage.maximum_filter(region, 2 * radius + 1, mode="constant", cval=False)
    np.testing.assert_array_equal(measuring._grow(region, radius), expected)


def test_parts_are_scipys_labels():
    rng = np.random.default_rng(0)
    for number in range(20):
        # Large pieces, and a raster fine enough that diagonal neighbours matter.
        dots = rng.random((300, 220)) > (0.998 if number % 2 else 0.75)
        region = ndimage.binary_dilation(dots, iterations=3) if number % 2 else dots
        labels, count = ndimage.label(region, np.ones((3, 3)))
        sizes = ndimage.sum(region, labels, range(1, count + 1))
        assert measuring._parts(region) == (sizes * 50 >= sizes.max()).sum()
    snake = np.zeros((101, 101), bool)
    snake[::4] = True
    snake[2::8, -1] = snake[6::8, 0] = snake[1::8, -1] = snake[3::8, -1] = snake[5::8, 0] = snake[7::8, 0] = True
    assert measuring._parts(snake) == 1


def test_places_of_wide_tall_and_divided_targets():
    both = disc(18, 60, 30) | disc(18, 60, 130)
    m = measure(paint(both), both)
    assert where(m) == "across the central part of the image from left to right"
    assert side(m) == "across the left, the center and the right of the image"
    assert form(m) == "divided into 2 separate parts"
    tall = np.zeros((120, 160), bool)
    tall[:, 70:80] = True
    assert where(measure(paint(tall), tall)) == "along the central part of the image from top to bottom"
    whole = np.ones((120, 160), bool)
    m = measure(paint(whole), whole)
    assert where(m) == "across most of the image" and m.contrast == 0
    assert brightness(m) == "without any surroundings to compare with"
    assert extent(m) == "about 100 percent of the image, a dominant part of it"
    names = {}
    for row in (20, 60, 100):
        for column in (25, 80, 135):
            small = disc(6, row, column)
            names[row, column] = where(measure(paint(small), small))
    assert names[20, 25] == "in the upper left part of the image" and names[60, 135] == "in the right part of the image"
    assert names[60, 80] == "in the center of the image" and names[100, 80] == "in the lower central part of the image"
    assert len(set(names.values())) == 9


def test_a_pixel_and_a_line_have_finite_measures():
    for region in (disc(0.8, 10.5, 10.5), np.eye(120, 160) > 0, canvas()[0] == 5.5):
        m = measure(paint(region), region)
        assert all(np.isfinite(v).all() for v in vars(m).values())
        assert 0 < m.compactness <= 1 and m.elongation >= 1
    with pytest.raises(ValueError, match="0 pixels"):
        measure(np.zeros((5, 5), np.uint8), np.zeros((5, 5), bool))


def small(row, column, radius=8, inside=180):
    region = disc(radius, row, column)
    return measure(paint(region, inside), region)


def test_quarters_directions_and_comparisons():
    assert quarter(small(20, 30)) == "upper left" and quarter(small(100, 130)) == "lower right"
    # 0.06 of 120 rows are 7.2: a center 6 rows off the midline says nothing.
    assert quarter(small(54, 30)) is None and quarter(small(52, 30)) == "upper left" and quarter(small(20, 80)) is None
    center = small(60, 80)
    assert direction(small(20, 85), center) == "above" and direction(small(100, 85), center) == "below"
    assert (
        direction(small(55, 30), center) == "to the left of" and direction(small(65, 140), center) == "to the right of"
    )
    assert direction(small(50, 80), center) is None and direction(small(30, 44), center) is None
    assert compare_size(small(60, 80, 12), center) == "larger" and compare_size(small(60, 80, 6), center) == "smaller"
    assert compare_size(small(20, 20), center) == "about as large"
    assert [compare_brightness(small(60, 80, 8, grey), center) for grey in (200, 190, 184, 180, 160)] == [
        "brighter",
        None,
        "about as bright",
        "about as bright",
        "darker",
    ]
    assert texture(center) == "even"
    region = disc(20, 60, 80)
    noise = np.random.default_rng(0).normal(0, 1, region.shape)
    assert [texture(measure(np.uint8(128 + spread * 255 * noise), region)) for spread in (0.03, 0.08, 0.16)] == [
        "even",
        "slightly uneven",
        "uneven",
    ]


def png(pixels):
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def scene(target="liver", **others):
    """A sample with discs: name=(radius, row, column, grey) with spaces of names as underscores."""
    discs = {name.replace("_", " "): values for name, values in others.items()}
    grey = np.full((120, 160), 100, np.uint8)
    masks = {}
    for name, (radius, row, column, inside) in discs.items():
        region = disc(radius, row, column)
        grey[region] = inside
        masks[name] = png(np.uint8(region) * 255)
    return Sample(
        id=f"drawn/{target}",
        image=png(grey),
        mask=masks[target],
        target=target,
        target_type=load_targets().row(target)["type"],
        modality="CT",
        site="abdomen",
        group="drawn",
        source="drawn",
        present=tuple(masks),
        absent=("uterus", "prostate"),
        neighbours=tuple(pair for pair in masks.items() if pair[0] != target),
    )


PAIR = {"liver": (20, 30, 40, 180), "spleen": (12, 40, 120, 60)}


def test_facts_of_an_image_with_neighbours():
    sample = scene(**PAIR, tumor=(4, 30, 40, 200))
    facts = look(sample)
    region = disc(20, 30, 40)
    assert facts.own.share == region.mean() and list(facts.others) == ["spleen", "tumor"]
    assert facts.others["spleen"].share == disc(12, 40, 120).mean()
    assert (facts.within, facts.holds) == (frozenset(), {"tumor"})
    assert look(scene("tumor", **PAIR, tumor=(4, 30, 40, 200))).within == {"liver"}
    empty = replace(sample, neighbours=(("spleen", png(np.zeros((120, 160), np.uint8))),))
    assert look(empty).others == {}
    with pytest.raises(ValueError, match=r"drawn/liver.*empty"):
        look(replace(sample, mask=empty.neighbours[0][1]))


def test_the_rules_hold_for_every_question_about_phantoms():
    targets = load_targets()
    for sample in phantoms(12, seed=2, size=64):
        facts = look(sample)
        for kind in FORMS:
            for question in questions(sample, 6, seed=0, form=kind, facts=facts):
                lesson = teach(question, sample, facts)
                assert lesson == teach(question, sample, facts)
                assert len(lesson.slots) == len(lesson.chain) == question.steps
                check_rules(question, sample, lesson.chain, lesson.answer, targets.row(question.target)["type"])


def test_open_answers_say_what_was_measured():
    sample = scene(**{"liver": (20, 30, 130, 40)})
    facts = look(sample)

    def say(kind, ask, steps=1, **known):
        return teach(Question(kind, "?", steps, "liver", ask=ask, **known), sample, facts)

    assert say("yesno", "presence").answer == "Yes, the liver is visible in this CT image."
    assert say("location", "place", 2).answer == "The liver lies in the upper right part of the image."
    assert say("location_choice", "side").answer == "The liver lies on the right of the image."
    described = (
        "The liver lies in the upper right part of the image, is round and clearly darker than the surroundings, "
        "and has a well-defined boundary"
    )
    assert say("describe", "appearance", 2).answer == f"{described}."
    lesson = say("reasoning", "findings", 4)
    assert lesson.answer == f"{described}, which fits the liver."
    assert lesson.slots == ("position", "extent_and_shape", "brightness_boundary", "conclusion")
    facts_said = ("in the upper right part", "about 7 percent of the image", "clearly darker", "fit")
    assert all(fact in sentence.lower() for fact, sentence in zip(facts_said, lesson.chain, strict=True))
    no = teach(Question("yesno", "?", 1, "uterus", False, ask="presence"), sample, facts)
    assert no.answer == "No, the uterus is not visible in this CT image."
    assert "the liver in the upper right part" in no.chain[0].lower() and "the uterus" in no.chain[0]


def test_an_organ_is_not_denied_or_compared_with_words_of_disease():
    sample = scene("polyp", polyp=(10, 30, 40, 180))
    lesson = teach(Question("yesno", "?", 1, "uterus", False, ask="presence"), sample, look(sample))
    assert lesson.slots == ("absent_area",) and "polyp" not in lesson.chain[0] and "round" in lesson.chain[0]
    both = {"liver": (20, 30, 40, 180), "tumor": (12, 40, 120, 60)}
    liver, tumor = (
        [q for i in range(30) for q in questions(replace(scene(name, **both), id=str(i)), 6, 0, form=kind)]
        for name, kind in (("liver", "closed"), ("tumor", "open"))
    )
    assert {q.other for q in liver} == {None} and {q.other for q in tumor} == {None, "liver"}


@pytest.mark.parametrize("steps", [3, 4])
def test_comparisons_lead_to_their_answer(steps):
    sample = scene(**PAIR)
    facts = look(sample)

    def say(ask, options, gold):
        question = Question("reasoning", "?", steps, "liver", True, "closed", ask, options, gold, "spleen")
        return teach(question, sample, facts)

    def last(ask, options, gold):
        return say(ask, options, gold).chain[-1].lower()

    names = ("the spleen", "the liver")
    assert "to the left of the spleen" in last("direction", ("above", "below", "to the left", "to the right"), 2)
    assert "larger than the spleen" in last("larger", names, 1)
    assert "brighter than the spleen" in last("brighter_of_two", names, 1)
    lesson = say("larger", names, 1)
    assert lesson.answer == "The liver." and "about 2 percent" in lesson.chain[-2] and len(lesson.chain) == steps
    relation = teach(Question("reasoning", "?", steps, "liver", ask="relation", other="spleen"), sample, facts)
    assert relation.answer == "The liver lies to the left of the spleen and is larger than the spleen."
    inner = scene("spleen", liver=(30, 60, 80, 180), spleen=(8, 60, 80, 60))
    lesson = teach(Question("reasoning", "?", steps, "spleen", ask="relation", other="liver"), inner, look(inner))
    assert lesson.answer == "The spleen lies within the liver and is smaller than the liver."
    assert "neighbour_within" in lesson.slots


def test_every_wording_reads_and_wordings_vary():
    for slot, kinds in load_sentences().items():
        for texts in kinds.values():
            assert len(texts) == len(set(texts)) >= 6, slot
            assert all(text.endswith(".") and (text[0].isupper() or text[0] == "{") for text in texts)
    sample = scene(**PAIR)
    said = {
        teach(Question("location_choice", "?", 1, "liver", ask="side"), replace(sample, id=str(i)), look(sample)).chain
        for i in range(60)
    }
    assert len(said) == len(load_sentences()["reach"]["any"])


def test_verbs_agree_with_plural_targets():
    whole = Facts(measure(paint(disc(30, 60, 80)), disc(30, 60, 80)))
    sample = replace(scene(**PAIR), target="nuclei", target_type="cell", modality="pathology")
    for number in range(40):
        for kind, ask, steps in (
            ("location", "place", 2),
            ("describe", "appearance", 3),
            ("location_choice", "side", 1),
        ):
            question = Question(kind, "?", steps, "nuclei", ask=ask)
            lesson = teach(question, replace(sample, id=str(number)), whole)
            for sentence in (*lesson.chain, lesson.answer):
                assert not re.search("(^The|, the) nuclei (is|lies|has|covers|shows|appears|looks) ", sentence)


def test_a_shape_keeps_its_compactness_when_it_is_turned():
    """The truth for a square is pi/4; four directions shorten the perimeter of one by 5 %, which way ever it stands."""
    y, x = np.mgrid[:96, :96] - 47.5
    grey = np.full((96, 96), 100, np.uint8)
    straight, corner = np.maximum(abs(x), abs(y)) <= 30, abs(x) + abs(y) <= 30 * np.sqrt(2)
    found = [measure(grey, region).compactness for region in (straight, corner)]
    assert found[0] == pytest.approx(found[1], rel=0.02)
    assert found == pytest.approx([np.pi / 4] * 2, rel=0.15)


# --- surroundings, spans, parts ------------------------------------------------------------------------


def fundus(size=400):
    """A bright disc on a black ground with a net of thin darker vessels, as a fundus camera gives; grey and vessels."""
    y, x = np.mgrid[:size, :size]
    inside = np.hypot(y - size / 2, x - size / 2) < 0.45 * size
    vessels = inside & (((x + 2 * y) % 57 < 6) | ((2 * x - y) % 61 < 6))
    grey = np.where(inside, np.where(vessels, 90, 120), 2).astype(np.uint8)
    return grey, vessels


def test_vessels_of_a_fundus_are_darker_than_what_is_beside_them():
    grey, vessels = fundus()
    m = measure(grey, vessels)
    assert m.contrast == pytest.approx(-30 / 255, abs=0.01) and brightness(m) == "slightly darker than the surroundings"
    assert Look(vessels, grey / 255).contrast == pytest.approx(m.contrast, abs=1e-9)


def test_surroundings_end_with_the_field_of_view():
    grey, _ = fundus()
    y, x = np.mgrid[:400, :400]
    rim = (np.hypot(y - 200, x - 200) < 178) & (x > 320)  # at the edge of the bright disc, of its own brightness
    grey[rim] = 120
    assert abs(measure(grey, rim).contrast) < 0.13  # black ground would make it brighter by 0.25 and more
    dark = np.zeros((60, 60), np.uint8)
    dark[20:40, 20:40] = 200  # nothing but dead ground around: then it is what there is to compare with
    assert measure(dark, dark > 0).contrast == pytest.approx(200 / 255)


def test_what_spans_the_image_does_not_lie_in_its_center():
    across = np.zeros((90, 120), bool)
    across[35:55, 40:80] = across[44:47, 4:116] = True
    m = measure(np.zeros((90, 120), np.uint8), across)
    assert (
        min(m.columns[0], m.columns[2]) < 0.2 and where(m) == "across the central part of the image from left to right"
    )
    assert Look(across, np.zeros((90, 120))).place == ("central", "span")
    assert where(measure(np.zeros((90, 120), np.uint8), disc(20, 45, 60)[:90, :120])) == "in the center of the image"


def test_a_whole_is_not_above_its_part_nor_beside_what_lies_in_its_hole():
    sample = scene("kidney", **{"kidney": (40, 60, 80, 90), "left kidney": (18, 80, 80, 90)})
    facts = look(sample)
    assert facts.holds == {"left kidney"} == facts.shared and direction(facts.own, facts.others["left kidney"])
    answer = teach(Question("reasoning", "?", 4, "kidney", ask="relation", other="left kidney"), sample, facts).answer
    assert "above" not in answer and "larger than the left kidney" in answer
    ring = disc(40, 60, 80) & ~disc(20, 75, 80)
    masks = (("optic cup", png(disc(18, 76, 80).astype(np.uint8) * 255)),)
    around = replace(sample, mask=png(ring.astype(np.uint8) * 255), neighbours=masks)
    assert look(around).shared == {"optic cup"} and look(around).holds == frozenset()
    # Two that touch are still beside each other.
    assert look(scene(**PAIR)).shared == frozenset()


def test_which_is_brighter_is_shown_by_grey_itself():
    # The liver is darker than its bright surroundings and still brighter than the spleen, which is brighter than its dark ones.
    sample = scene(**PAIR)
    a, b = (replace(m, contrast=c) for m, c in ((look(sample).own, -0.3), (look(sample).others["spleen"], 0.2)))
    facts = Facts(replace(a, grey=0.7), {"spleen": replace(b, grey=0.25)})
    question = Question("reasoning", "?", 4, "liver", form="closed", ask="brighter_of_two", other="spleen",
                        options=("the spleen", "the liver"), gold=1)  # fmt: skip
    lesson = teach(question, sample, facts)
    assert lesson.slots == ("position", "grey", "grey", "neighbour_brightness")
    assert "about 70 percent of white" in lesson.chain[1] and "about 25 percent of white" in lesson.chain[2]
    assert not any("surroundings" in sentence for sentence in lesson.chain) and lesson.answer == "The liver."


def test_open_answers_name_no_place_near_a_border():
    sample = scene(**PAIR)
    facts = look(sample)
    near = replace(facts, own=replace(facts.own, row=0.34))
    for kind, ask in (("describe", "appearance"), ("reasoning", "findings")):
        question = Question(kind, "?", 3, "liver", ask=ask)
        assert (
            " lies " in teach(question, sample, facts).answer and " lies " not in teach(question, sample, near).answer
        )
