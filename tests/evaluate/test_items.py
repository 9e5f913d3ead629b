"""Items: what they refuse, how their images are read, and what becomes of them in the pipeline."""

import io
from pathlib import Path

import pytest
from PIL import Image

from vital_jax.evaluate.items import Item, read_picture
from vital_jax.scoring.choice import letter


def png(value: int = 7, size: tuple[int, int] = (3, 2)) -> bytes:
    out = io.BytesIO()
    Image.new("L", size, value).save(out, "PNG")
    return out.getvalue()


def item(**changes) -> Item:
    return Item(**({"id": "a", "images": (png(),), "question": "Which plane?", "answer": "axial"} | changes))


def test_a_choice_becomes_a_record_with_its_letter(tmp_path):
    path = tmp_path / "1.png"
    path.write_bytes(png(9))
    made = item(
        images=[path, png(8)], options=["coronal", "axial"], gold="B", benchmark="b", split="test", closed=True,
        metadata={"modality": "CT", "site": ""},
    ).record()  # fmt: skip
    assert made.images == (png(9), png(8))
    assert (made.options, made.gold, made.answer) == (("coronal", "axial"), "B", "axial")
    assert made.metadata == {"source": "b", "split": "test", "modality": "CT"}


def test_several_right_letters_go_to_the_metadata():
    made = item(options=["x", "y", "z"], gold="AC", answer="x; z").record()
    assert (made.gold, made.metadata["gold"]) == ("", "AC")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "id must be text"),
        ({"question": " \n"}, "'a': question must be text"),
        ({"answer": 5}, "'a': answer must be text that is not empty, got 5"),
        ({"answer": ["A"]}, r"got \['A'\]"),
        ({"options": ["x", ""], "gold": "A"}, "option B must be text"),
        ({"answers": [""]}, r"answers\[0\] must be text"),
        ({"options": ["x", "y"], "gold": "C"}, r"gold 'C' is none of the options' letters \['A', 'B'\]"),
        ({"options": ["x", "y"], "gold": "BA"}, "gold 'BA'"),
        ({"options": ["x", "y"], "gold": "AA"}, "gold 'AA'"),
        ({"gold": "A"}, r"letters \[\]"),
        ({"options": ["x", "y"]}, "has 2 options, and none is said to be right"),
        ({"options": ["x"] * 27, "gold": "A"}, "option number 27 has no letter"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        item(**changes)


def test_ten_options_have_letters_to_j():
    assert item(options=[f"o{i}" for i in range(10)], gold="J", answer="o9").gold == "J"
    assert [letter(0), letter(9), letter(25)] == ["A", "J", "Z"]
    with pytest.raises(ValueError, match="number 27"):
        letter(26)


def test_a_missing_image_is_an_error_when_it_is_looked_at(tmp_path):
    made = item(images=(Path(tmp_path / "gone.png"),), benchmark="vqa_rad")
    with pytest.raises(FileNotFoundError, match=r"item 'a': .*gone.png: not found; add the images of vqa_rad"):
        made.record()


def test_what_is_no_image_is_named(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("no image")
    with pytest.raises(ValueError, match=r"item 'a': .*text.png"):
        item(images=(path,)).pictures()
    with pytest.raises(ValueError, match="item 'a': image 2"):
        item(images=(png(), b"no image")).pictures()
    with pytest.raises(ValueError, match="cannot be read"):
        read_picture(tmp_path)


def test_a_question_without_an_image_is_no_record():
    assert item(images=()).pictures() == ()
    with pytest.raises(ValueError, match="has no image"):
        item(images=()).record()
