"""The checker against hand-drawn regions, scipy and corrupted sentences; then the teacher's text against the checker, drawn and real."""

import re
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from rules import FLAT
from scipy import ndimage

from vital_jax.construct.build import build_records
from vital_jax.construct.checker import Look, by_sample, check_records, contradictions
from vital_jax.construct.claims import Claim, claims, unread
from vital_jax.construct.folders import MaskFolder
from vital_jax.construct.targets import load_targets
from vital_jax.demo.phantoms import phantoms

NAMES = ("kidney", "left kidney", "liver", "tumor")
BUILD = partial(build_records, questions_per_sample=6, seed=0, form="both")


def disc(row, column, radius, wide=1.0, shape=(120, 160)):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return ((y - row) ** 2 + ((x - column) / wide) ** 2) <= radius**2


# --- reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("The kidney lies in the upper left part of the image.", [Claim("place", ("upper", "left"), "kidney")]),
        ("It lies in the center of the image.", [Claim("place", ("central", "central"))]),
        ("The left kidney is below the liver.", [Claim("direction", "below", "left kidney", "liver")]),
        ("To the left of the liver lies the kidney.", [Claim("direction", "to the left of", "kidney", "liver")]),
        (
            "The kidney lies above the liver, is larger than it and darker than it.",
            [
                Claim("direction", "above", "kidney", "liver"),
                Claim("larger", "larger", "kidney", "liver"),
                Claim("brighter", "darker", "kidney", "liver"),
            ],
        ),
        ("This is not within the liver.", [Claim("within", "within", "", "liver", negated=True)]),
        (
            "The kidney is not brighter than the surroundings, but oval in shape.",
            [
                Claim("shape", "oval", "kidney"),
                Claim("tone", ("", "brighter"), "kidney", negated=True),
            ],
        ),
        ("The kidney is smaller than the gall bladder.", [Claim("larger", "smaller", "kidney", "gall bladder")]),
        ("It covers less than 1 percent of the image.", [Claim("share", "less than 1")]),
        (
            "It reaches from about 10 to 45 percent of the image height.",
            [Claim("reach", ("10", "45", "height"))],
        ),
        (
            "One sees the liver in the lower right part, but nothing like the kidney.",
            [Claim("presence", False, "kidney"), Claim("place", ("lower", "right"), "liver")],
        ),
        ("The organ shown is the left kidney.", [Claim("name", "left kidney")]),
        (
            "The pylorus lies in the left part.",
            [Claim("place", ("central", "left")), Claim("presence", True, "pylorus")],
        ),
    ],
)
def test_claims_of_a_sentence(sentence, expected):
    assert claims(sentence, NAMES) == expected and not unread(sentence, NAMES)


def test_the_center_answers_a_question_about_sides_by_the_width_alone():
    sentence = "The kidney lies in the center of the image."
    assert claims(sentence, NAMES, "side") == [Claim("side", "center", "kidney")]


@pytest.mark.parametrize(
    "sentence",
    ["Nothing more can be said.", "The kidney is bright.", "The liver lies above the kidney at the left edge."],
)
def test_what_is_not_wholly_read_is_unread(sentence):
    assert unread(sentence, NAMES)


# --- measuring and judging --------------------------------------------------------------------------

REGIONS = {"kidney": disc(30, 30, 14), "liver": disc(85, 110, 16, wide=2.0), "tumor": disc(30, 30, 5)}
GREY = np.select([REGIONS["tumor"], REGIONS["kidney"], REGIONS["liver"]], [230, 200, 110], 90)
GREY = np.where(np.indices(GREY.shape).sum(0) % 2, GREY, GREY + 2)  # sums of floats, not of equal numbers


@pytest.mark.parametrize(
    ("target", "true", "false"),
    [
        ("kidney", "It lies in the upper left part of the image.", "It lies in the left part of the image."),
        ("liver", "It lies in the lower right part.", "It lies across the lower part from left to right."),
        ("kidney", "The center lies in the left third.", "The center lies in the central third."),
        ("kidney", "It is centered in the upper half.", "It is centered in the lower half."),
        ("kidney", "It is in the upper left quarter.", "It is in the upper right quarter."),
        ("kidney", "It is about 25 percent of the image height from the top.",
         "It is about 27 percent of the image height from the top."),
        ("kidney", "It covers about 3 percent of the image.", "It covers about 4 percent of the image."),
        ("tumor", "It covers less than 1 percent of the image.", "It covers about 2 percent of the image."),
        ("kidney", "It is a small part of the image.", "It is a very small part of the image."),
        ("kidney", "It reaches from 10 to 28 percent of the image width.",
         "It reaches from 10 to 30 percent of the image width."),
        ("kidney", "It reaches from 13 to 37 percent of the image height.",
         "It reaches from 10 to 28 percent of the image height."),
        ("kidney", "It is round in shape.", "It is oval in shape."),
        ("liver", "It is elongated in shape.", "It is irregular in shape."),
        ("liver", "It has the long axis horizontal.", "It has the long axis rising to the right."),
        ("liver", "It is slightly brighter than the surroundings.", "It is clearly brighter than the surroundings."),
        ("kidney", "It is clearly brighter than the surroundings.", "It is about as bright as the surroundings."),
        ("liver", "The texture is even.", "The texture is uneven."),
        ("liver", "It lies below the kidney.", "It lies within the kidney."),
        ("tumor", "It lies within the kidney.", "It lies above the kidney."),
        ("liver", "The liver and the kidney are about 46 percent of the height and 50 percent of the width apart.",
         "The liver and the kidney are about 50 percent of the height and 46 percent of the width apart."),
        ("liver", "It is larger than the kidney.", "It is about as large as the kidney."),
        ("tumor", "It is brighter than the liver.", "It is about as bright as the liver."),
        ("liver", "The organ shown is the liver.", "The organ shown is the kidney."),
        ("liver", "This fits the kidney.", "This does not fit the kidney."),
        ("liver", "The kidney is not larger than the liver.", "The liver is not larger than the kidney."),
        ("liver", "Nothing fits the spleen.", "The spleen lies in the upper left part of the image."),
        ("liver", "It is larger than the kidney.", "It is larger than the spleen."),
        ("liver", "It is larger than the kidney.", "It is larger than the pylorus."),
    ],
)  # fmt: skip
def test_true_and_false_sentences(target, true, false):
    # The liver's center is .458 of the height and .5 of the width off: neither axis prevails, so it has no direction.
    regions = REGIONS | {"liver": disc(85, 40, 16, wide=2.0)} if "below" in true else REGIONS
    assert contradictions([true], GREY, regions, target, ["spleen"]) == []
    (line,) = contradictions([false], GREY, regions, target, ["spleen"])
    assert repr(false) in line


def test_spans_parts_and_a_region_that_fills_the_image():
    both, whole = disc(60, 15, 14) | disc(60, 145, 14), np.ones((120, 160), bool)
    grey = np.full((120, 160), 100)
    for mask, true, false in (
        (both, "It lies across the central part of the image from left to right.", "It lies in the center."),
        (both, "It is divided into 2 separate parts.", "It is divided into 3 separate parts."),
        (both, "It reaches across the left, the center and the right.", "The center lies in the central third."),
        (whole, "It lies across most of the image.", "It lies in the upper right part of the image."),
        (whole, "It is without any surroundings to compare with.", "It is about as bright as the surroundings."),
        (whole, "It is a dominant part of the image.", "It is a large part of the image."),
    ):
        assert contradictions([true], grey, {"lung": mask}, "lung") == []
        assert len(contradictions([false], grey, {"lung": mask}, "lung")) == 1


def test_parts_are_scipys_labels():
    rng = np.random.default_rng(0)
    for seed in range(20):
        mask = ndimage.gaussian_filter(rng.random((150, 170 + seed)), 1.5) > 0.53
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        sizes = ndimage.sum(mask, labels, range(1, count + 1))
        assert Look(mask, mask).parts == (sizes * 50 >= sizes.max()).sum() > 1


def test_the_ring_is_scipys_dilation():
    rng = np.random.default_rng(1)
    for radius in (1, 7, 20):
        mask, grey = disc(30, 30, radius), rng.random((120, 160)) + 0.1
        reach = max(2, round(1.06 * mask.sum() / Look(mask, grey).perimeter))
        assert radius < 3 or abs(reach - radius / 2) <= 1  # half a disc's radius
        ring = ndimage.binary_dilation(mask, np.ones((2 * reach + 1,) * 2)) & ~mask
        assert Look(mask, grey).contrast == pytest.approx(grey[mask].mean() - grey[ring].mean(), abs=1e-12)


def test_a_disc_is_round_and_a_comb_is_not():
    assert Look(disc(60, 80, 30), disc(60, 80, 30)).roundness == pytest.approx(1, abs=0.03)
    comb = np.zeros((120, 160), bool)
    comb[20:100:4, 20:140] = comb[20:100, 20:24] = True
    assert Look(comb, comb).roundness < 0.1


# --- the teacher's text -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn():
    return list(by_sample(phantoms(150, seed=11), BUILD))


def audit(pairs):
    """Sentences read per slot and in all, after a check that finds nothing."""
    read, total, forms = Counter(), Counter(), Counter()
    for sample, records in pairs:
        problems, seen = check_records(records, sample)
        assert problems == []
        forms.update(record.metadata["form"] for record in records)
        for _, _, slot, known in seen:
            total[slot] += 1
            read[slot] += known
    assert forms["open"] > 0
    return read, total


def test_phantoms_are_not_contradicted(drawn):
    read, total = audit(drawn)
    assert total.total() > 5000 and read.total() > 0.99 * total.total()
    assert min(read[slot] / total[slot] for slot in total) > 0.95


@pytest.mark.parametrize("name", FLAT)
def test_real_masks_are_not_contradicted(real, name):
    read, total = audit(by_sample(MaskFolder(real(name)), BUILD))
    assert read.total() > 0.99 * total.total()


KEPT = r"from left to right|(?:rising|falling) to the right|the left, the center and the right"


def swap(a, b):
    """Exchanges two words wherever they claim something."""
    return lambda text: re.sub(
        rf"{KEPT}|\b{a}\b|\b{b}\b", lambda m: {a: b, b: a}.get(m[0], m[0]), text, flags=re.IGNORECASE
    )


def doubled(text):
    return re.sub(r"(\d+)(?= (?:to|percent))", lambda m: str(2 * int(m[0])), text)


@pytest.mark.parametrize(
    "change",
    [swap("left", "right"), swap("upper", "lower"), swap("above", "below"), swap("larger", "smaller"),
     swap("brighter", "darker"), swap("round", "elongated"), swap("horizontal", "vertical"), doubled],
    ids=["left-right", "upper-lower", "above-below", "larger-smaller", "brighter-darker", "round-elongated",
         "horizontal-vertical", "doubled"],
)  # fmt: skip
def test_every_corrupted_sentence_is_caught(drawn, change):
    tried = 0
    for sample, records in drawn[:120]:
        grey, regions = np.asarray(sample.picture.convert("L")), {sample.target: sample.region, **sample.others}
        for sentence in {text for record in records for text in record.chain}:
            false = change(sentence)
            if false != sentence:
                tried += 1
                assert contradictions([false], grey, regions, sample.target, load_targets().rows), (sentence, false)
    assert tried > 20


def test_exchanged_and_foreign_names_are_caught(drawn):
    exchanged = foreign = 0
    for sample, records in drawn[:120]:
        grey, regions = np.asarray(sample.picture.convert("L")), {sample.target: sample.region, **sample.others}
        rows = load_targets().rows
        for sentence in {text for record in records for text in record.chain}:
            found = [
                claim for claim in claims(sentence, rows) if claim.kind in ("direction", "within", "larger", "brighter")
            ]
            if not found or any(claim.value in ("large", "bright") for claim in found):
                continue
            a, b = found[0].about, found[0].other
            names = {a.lower(): b, b.lower(): a}
            turned = re.sub(
                rf"\b({a}|{b})\b", lambda m, names=names: names[m[0].lower()], sentence, flags=re.IGNORECASE
            )
            assert contradictions([turned], grey, regions, sample.target, rows), turned
            strange = re.sub(rf"\b{b}\b", sample.absent[0], sentence, flags=re.IGNORECASE)
            assert contradictions([strange], grey, regions, sample.target, rows), strange
            exchanged, foreign = exchanged + 1, foreign + 1
    assert min(exchanged, foreign) > 50


def test_a_wrong_option_is_caught(drawn):
    asks = Counter()
    for sample, records in drawn:
        for record in records:
            if record.options:
                other = (ord(record.gold) - ord("A") + 1) % len(record.options)
                text = record.options[other]
                wrong = replace(record, gold=chr(ord("A") + other), answer=f"{text[0].upper()}{text[1:]}.")
                assert len(check_records([wrong], sample)[0]) == 2, record
                asks[record.metadata["ask"]] += 1
    assert set(asks) >= {"presence", "name", "side", "quarter", "shape", "brightness", "direction", "larger",
                         "brighter_of_two", "place_and_brightness"}  # fmt: skip
