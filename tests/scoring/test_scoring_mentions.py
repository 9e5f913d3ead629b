"""Names within a text: found whatever their spelling, longer before shorter, and stated or not."""

import pytest

from vital_jax.scoring.mentions import FIRST, asserted, key, mark, states


def test_spelling_does_not_matter_but_signs_and_numbers_do():
    assert key("An X-ray") == key("xray") == key("x ray") and key("Two") == key("2") and key("1,000") == key("1000")
    assert key("A") == "a"  # alone it is no article
    different = ("2.5", "25", "-25", "<25", ">25", "25+", "1/2", "12", "T2", "T2*")
    assert len(set(map(key, different))) == len(different)


def test_longer_names_go_first_and_words_stay_whole():
    a, b = chr(FIRST), chr(FIRST + 1)
    assert mark("the left lung and a lung, lungs", ["lung", "left lung"]) == f"the {b} and a {a}, lungs"
    assert mark("an infarct on CT", ["CT"]) == f"an infarct on {a}"
    assert asserted(mark("not the left lung; a lung", ["lung", "left lung"])) == ({0}, {0, 1})


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("Left", "left", True),
        ("It is on the left side", "left", True),
        ("The answer is left.", "left", True),
        ("on the left, not the right", "left", True),
        ("the heart and lungs", "heart", True),
        ("two", "2", True),
        ("It is not the kidney.", "kidney", False),
        ("I doubt it is the kidney.", "kidney", False),
        ("Beyond doubt the kidney.", "kidney", True),
        ("not left", "left", False),
        ("left or right", "left", False),
        ("left/right", "left", False),
        ("left and right", "left", False),
        ("right and left lung", "left lung", False),
        ("CT or MRI", "MRI", False),
        ("Is it left? I cannot tell", "left", False),
        ("leftover", "left", False),
        ("", "left", False),
    ],
)
def test_a_name_is_stated_alone(text, name, said):
    assert states(text, name) is said
