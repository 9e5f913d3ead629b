"""Sentences of an audit: what a line says by itself, and that no sentence says more than all lines together, whatever they are."""

import itertools
from dataclasses import replace

import pytest

from vital_jax.evaluate import audit_table as table
from vital_jax.evaluate import audit_words as words
from vital_jax.evaluate.audit_table import Line
from vital_jax.evaluate.audit_words import (
    EACH_OWN,
    EQUAL,
    HIGHER,
    LOWER,
    MEAN,
    MIXED,
    NOISE,
    OPEN,
    REPEATED,
    STILL,
    UNKNOWN,
    ZEROS,
    finding,
    sentences,
    together,
)  # fmt: skip
from vital_jax.evaluate.replacements import OTHER, REPLAYED, SAME

BASE = Line(table.TOKENS, OTHER, table.ACCURACY, 500, 0.4, 0.3, 0.5, "Wilson", 0.5, -0.1, -0.15, -0.05, 0.01, 0.3)
ENDS = {LOWER: (-0.15, -0.05), HIGHER: (0.01, 0.09), EQUAL: (-0.01, 0.01), OPEN: (-0.06, 0.03)}
FIXED, OWN = "K = 4", "K = 1 to 4, each record's own"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, LOWER),
        ({"difference_low": 0.01, "difference_high": 0.2}, HIGHER),
        ({"difference_low": -0.015, "difference_high": 0.01}, EQUAL),
        ({"difference_low": -0.06, "difference_high": 0.03}, OPEN),
        ({"difference_low": -0.06, "difference_high": 0.0}, OPEN),
        ({"difference_low": None, "difference_high": None}, OPEN),
        ({"changed": 0.0, "difference": 0.0, "n": 19}, OPEN),  # none of 19: up to 16.8 % of others may change
        ({"changed": 0.0, "difference": 0.0}, EQUAL),
    ],
)
def test_a_line_by_its_interval(changes, says):
    assert finding(replace(BASE, **changes)) == says


def test_what_changes_no_more_than_a_replay_is_open():
    assert finding(BASE, noise=0.2) == LOWER and finding(BASE, noise=0.3) == OPEN


def test_findings_together():
    assert together([LOWER, UNKNOWN, LOWER]) == LOWER and together([UNKNOWN]) == together([]) == UNKNOWN
    assert together([LOWER, EQUAL]) == MIXED == together([OPEN, EQUAL]) and together([LOWER, OPEN]) == OPEN
    assert together([LOWER, EQUAL, HIGHER]) == HIGHER


def line(audit, what, says):
    low, high = ENDS[says]
    return replace(BASE, audit=audit, what=what, difference=(low + high) / 2, difference_low=low, difference_high=high)


def said(run=FIXED, sides=None, **found):
    """The sentences of a table with these findings, by the short names below, `K0` and so on, and `own`."""
    named = {
        "other": OTHER,
        "same": SAME,
        "mean": MEAN,
        "zeros": ZEROS,
        "noise": NOISE,
        "still": STILL,
        "repeated": REPEATED,
        "replayed": REPLAYED,
    }
    images = {"swapped": table.SWAPPED, "grey": table.GREY}
    lines = [table.share(table.RUN, run, table.ACCURACY, 250, 500)]
    for name, says in found.items():
        if name in named:
            lines.append(line(table.TOKENS, named[name], says))
        elif name in images:
            lines.append(line(table.IMAGES, images[name], says))
        else:
            lines.append(line(table.SWEEP, EACH_OWN if name == "own" else f"K = {name[1:]}", says))
    if sides is not None:
        lines.append(table.share(table.MIRROR, "left and right exchanged", table.SIDES, sides, 100))
    return sentences(lines)


ALL_LOWER = {"other": LOWER, "same": LOWER, "mean": LOWER, "zeros": LOWER, "noise": LOWER}


@pytest.mark.parametrize(
    ("found", "starts"),
    [
        (ALL_LOWER, "Accuracy depends on what the latents hold about this image."),
        # The published run's table: another sample's latents harm, the mean and the same question's do not.
        (ALL_LOWER | {"same": EQUAL, "mean": EQUAL}, "Wrong latents mislead, but vectors that know nothing"),
        (ALL_LOWER | {"same": OPEN, "mean": OPEN}, "Latents of another sample lower accuracy, but neither"),
        (ALL_LOWER | {"mean": EQUAL}, "Wrong latents mislead"),
        (ALL_LOWER | {"zeros": EQUAL}, "Wrong latents mislead"),
        (ALL_LOWER | {"noise": EQUAL, "same": EQUAL}, "Wrong latents mislead"),
        (ALL_LOWER | {"same": EQUAL}, "Accuracy depends on the latents only as far as they tell which kind of question"),
        (ALL_LOWER | {"same": OPEN}, "Accuracy depends on what the latents hold; that it is about this image is not shown."),
        (ALL_LOWER | {"swapped": EQUAL, "grey": EQUAL}, "Accuracy depends on what the latents hold; that it is about this image is"),
        (ALL_LOWER | {"zeros": HIGHER}, "Some other vectors serve the answers better"),
        (ALL_LOWER | {"replayed": LOWER}, "Replaying the run's own latents changes accuracy by itself"),
        (dict.fromkeys(ALL_LOWER, EQUAL), "Accuracy does not depend on what stands in the latent slots."),
        (dict.fromkeys(ALL_LOWER, EQUAL) | {"zeros": LOWER}, "Accuracy does not depend on what one latent holds and another"),
        ({"mean": EQUAL, "zeros": LOWER}, "The mean latent serves as well"),
        (dict.fromkeys(ALL_LOWER, OPEN), "Whether accuracy depends on what the latents hold is open."),
        ({"other": EQUAL, "same": LOWER, "mean": LOWER}, "Whether accuracy depends on what the latents hold is open."),
    ],
)  # fmt: skip
def test_the_latents(found, starts):
    assert said(**found)[0].startswith(starts)


def fixed(k0, *others):
    return {"K0": k0} | {f"K{k}": says for k, says in enumerate(others, 1)}


@pytest.mark.parametrize(
    ("run", "found", "starts"),
    [
        # Every fixed number loses: that is no sign that steps matter.
        (OWN, fixed(LOWER, LOWER, LOWER, LOWER, LOWER), "Every other number of steps loses, as taking none does"),
        (OWN, ALL_LOWER | fixed(LOWER, LOWER, LOWER, LOWER, LOWER), "Every other number of steps loses"),
        (FIXED, ALL_LOWER | fixed(LOWER, LOWER, LOWER, LOWER, EQUAL), "Every other number of steps loses"),
        (FIXED, ALL_LOWER | fixed(LOWER, LOWER, EQUAL, EQUAL, EQUAL), "Accuracy needs the latent steps"),
        ("K = 1", ALL_LOWER | fixed(LOWER, EQUAL), "Accuracy needs the latent steps"),
        (FIXED, ALL_LOWER | {"mean": EQUAL} | fixed(LOWER, EQUAL, EQUAL, EQUAL), "Without latent slots accuracy is lower, but vectors"),
        (FIXED, ALL_LOWER | {"still": EQUAL} | fixed(LOWER, EQUAL, EQUAL, EQUAL), "Without latent slots accuracy is lower, but the state"),
        (FIXED, ALL_LOWER | {"repeated": EQUAL} | fixed(LOWER, EQUAL, EQUAL, EQUAL), "Without latent steps accuracy is lower; whether"),
        (FIXED, fixed(LOWER, EQUAL, EQUAL, EQUAL), "Without latent steps accuracy is lower; whether"),
        (FIXED, fixed(EQUAL, EQUAL, EQUAL, EQUAL), "Accuracy is the same at every number of steps and without any"),
        (FIXED, fixed(EQUAL, LOWER, LOWER, EQUAL), "Without latent steps accuracy is the same"),
        (FIXED, fixed(HIGHER, LOWER, LOWER, LOWER), "Without latent steps accuracy is higher."),
        (FIXED, fixed(LOWER, LOWER, HIGHER, LOWER), "With another number of steps accuracy is higher"),
        (FIXED, fixed(OPEN, LOWER, LOWER, LOWER), "Whether accuracy needs the latent steps is open."),
        ("K = 0", fixed(EQUAL, LOWER, LOWER), "The run is asked without latent steps, and with any number of them accuracy is lower."),
        ("K = 0", fixed(EQUAL, HIGHER, LOWER), "The run is asked without latent steps, and with some number"),
    ],
)  # fmt: skip
def test_the_steps(run, found, starts):
    made = said(run, **found)
    assert made[any(name in ALL_LOWER for name in found)].startswith(starts)


def test_each_records_own_number_is_no_advice():
    made = said(FIXED, **fixed(LOWER, LOWER, LOWER, LOWER), own=HIGHER)
    assert made[-1].startswith("At each record's own number of steps accuracy is higher, but") and len(made) == 2


@pytest.mark.parametrize(
    ("found", "sides", "starts"),
    [
        ({"swapped": LOWER, "grey": LOWER}, None, "Accuracy depends on the image. Measured:"),
        ({"swapped": LOWER, "grey": LOWER}, 90, "Accuracy depends on the image. Measured:"),
        (
            {"swapped": LOWER, "grey": LOWER},
            7,
            "Accuracy depends on the image, but most answers that name a side do not",
        ),
        ({"swapped": LOWER, "grey": EQUAL}, None, "The image of another question misleads, but an evenly grey one"),
        ({"swapped": LOWER, "grey": OPEN}, None, "The image of another question lowers accuracy; whether"),
        (
            {"swapped": EQUAL, "grey": LOWER},
            None,
            "Accuracy needs an image, but that of another question does as well.",
        ),
        ({"swapped": EQUAL, "grey": EQUAL}, None, "Accuracy does not depend on the image."),
        ({"swapped": HIGHER, "grey": LOWER}, None, "With the image of another question accuracy is higher"),
        ({"swapped": OPEN, "grey": LOWER}, None, "Whether accuracy depends on the image is open."),
    ],
)
def test_the_image(found, sides, starts):
    assert said(sides=sides, **found)[0].startswith(starts)


def test_no_table_makes_a_sentence_say_more_than_its_lines():
    """All tables of four findings over seven lines: a claim of use needs every line, a claim of no use forbids every effect."""
    names = ("other", "same", "mean", "zeros", "K0", "K1", "swapped")
    for each in itertools.product(ENDS, repeat=len(names)):
        found = dict(zip(names, each, strict=True))
        latents, steps, image = said(**found)[:3]
        tokens = each[:4]
        if latents.startswith("Accuracy depends on what the latents hold"):
            assert found["other"] == found["mean"] == LOWER and not {EQUAL, HIGHER} & {found["zeros"]}, found
        if "hold about this image." in latents:
            assert found["same"] == LOWER and found["swapped"] != EQUAL, found
        if latents.startswith("Accuracy does not depend on what stands"):
            assert set(tokens) == {EQUAL}, found
        if steps.startswith("Accuracy needs the latent steps"):
            assert found["K0"] == found["mean"] == found["zeros"] == LOWER and found["K1"] == EQUAL, found
        if image.startswith(("Accuracy depends on the image", "Accuracy does not depend on the image")):
            raise AssertionError(f"{image}: no grey image was shown")


def test_evidence_stands_behind_every_conclusion():
    made = said(**ALL_LOWER, swapped=LOWER, grey=LOWER, sides=30)
    assert (
        f"{OTHER} -10.0 points (95 % interval -15.0 to -5.0, N = 500, 30 % of the answers change); {SAME} -10.0"
        in made[0]
    )
    assert made[2].startswith("In a mirrored image 30 % of the answers that name a side")
    few = replace(BASE, changed=0.0, difference=0.0, n=19)
    assert f"{OTHER}, none of 19 answers changes (95 % interval 0 to 16.8 %)." in sentences([few])[0]
    one = replace(BASE, difference_low=None, difference_high=None)
    assert "no interval, all about one image" in sentences([one])[0]


def test_rounding_is_told():
    replayed = replace(BASE, what=REPLAYED, changed=0.004, difference_low=-0.004, difference_high=0.004)
    assert sentences([replayed, BASE])[-1].startswith(
        "Caution: replaying the run's own latents changes 0.4 % of the answers"
    )
    assert sentences([replace(replayed, changed=0.0)]) == []


@pytest.mark.parametrize("rows", [words.LATENTS, words.STEPS, words.NO_STEPS_TAKEN, words.PICTURES])
def test_every_row_of_a_decision_table_can_be_reached(rows):
    for number, (row, sentence) in enumerate(rows):
        assert words.conclude(rows[number:], {what: allowed[0] for what, allowed in row.items()}) == sentence
    assert rows[-1][0] == {} and "open" in rows[-1][1]
