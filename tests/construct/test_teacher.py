"""The measured teacher: numbers against SciPy, NumPy and drawn shapes; wording against the rules of methods.md §1.4."""

import numpy as np
import pytest
from rules import check_rules
from scipy import ndimage

from vital_jax.construct import teacher
from vital_jax.construct.phantoms import phantoms
from vital_jax.construct.questions import Question, questions
from vital_jax.construct.teacher import boundary, brightness, extent, form, measure, side, teach, where


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
    assert m.share == region.mean()
    np.testing.assert_allclose((m.row, m.column), (30 / 120, 130 / 160), atol=1e-12)
    assert m.box == (110 / 160, 10 / 120, 150 / 160, 50 / 120)
    np.testing.assert_allclose(
        m.columns, [region[:, :54].sum(), region[:, 54:107].sum(), region[:, 107:].sum()] / region.sum()
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
    np.testing.assert_array_equal(teacher._grow(region, radius), expected)


def test_parts_are_scipys_labels():
    rng = np.random.default_rng(0)
    for _ in range(20):
        region = ndimage.binary_dilation(rng.random((100, 120)) > 0.998, iterations=3)
        labels, count = ndimage.label(region, np.ones((3, 3)))
        sizes = ndimage.sum(region, labels, range(1, count + 1))
        assert teacher._parts(region) == (sizes * 50 >= sizes.max()).sum()
    snake = np.zeros((101, 101), bool)
    snake[::4] = True
    snake[2::8, -1] = snake[6::8, 0] = snake[1::8, -1] = snake[3::8, -1] = snake[5::8, 0] = snake[7::8, 0] = True
    assert teacher._parts(snake) == 1


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


def test_the_rules_hold_for_every_question_about_phantoms():
    for sample in phantoms(30, seed=2, size=64):
        m = measure(np.asarray(sample.picture.convert("L")), sample.region)
        for question in questions(sample, 6, seed=0):
            chain, answer = teach(question, sample, m)
            assert (chain, answer) == teach(question, sample, m)
            check_rules(question, sample, chain, answer, sample.target_type)


def test_answers_say_what_was_measured():
    sample = next(s for s in phantoms(50, seed=0) if s.target == "bar")
    region = disc(20, 30, 130)
    m = measure(paint(region, 40), region)
    spoken = {
        kind: teach(Question(kind, "?", 1, "bar"), sample, m)[1] for kind in ("yesno", "location", "location_choice")
    }
    assert spoken == {
        "yesno": "Yes, the bar is visible in this phantom image.",
        "location": "The bar lies in the upper right part of the image.",
        "location_choice": "The bar lies on the right of the image.",
    }
    chain, answer = teach(Question("reasoning", "?", 4, "bar"), sample, m)
    assert chain == (
        "The bar lies in the upper right part of the image.",
        "The bar covers about 7 percent of the image, a moderate part of it, and is round in shape.",
        "The bar is clearly darker than the surroundings and shows a well-defined boundary.",
        "This place, size, shape and brightness together fit the bar.",
    )
    chain, answer = teach(Question("yesno", "?", 1, "disc", visible=False), sample, m)
    assert answer == "No, the disc is not visible in this phantom image."
