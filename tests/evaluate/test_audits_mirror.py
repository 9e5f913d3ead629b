"""Mirrored and grey pictures, and which answers a mirror must exchange."""

import io

import numpy as np
import pytest
from PIL import Image

from vital_jax.evaluate import mirror
from vital_jax.pipeline.images import decode
from vital_jax.pipeline.records import Record


def png(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


def record(ask="side", options=("left", "center", "right"), answer="Left.", images=None, **metadata) -> Record:
    known = {"form": "closed", "ask": ask, "teacher": "measured-2", "target_name": "spleen"}
    images = images or (png(np.zeros((2, 4), np.uint8)),)
    return Record("r", images, "Where?", answer, options=options, metadata={**known, **metadata})


def test_only_questions_that_certainly_ask_in_the_image_count():
    assert mirror.countable(record())
    assert mirror.countable(
        record("quarter", ("upper left", "upper right", "lower left", "lower right"), "Upper left.")
    )
    assert mirror.countable(record("direction", ("above", "below", "to the left", "to the right"), "Above."))
    # Axial slices are shown as radiologists look at them; the question is about the image all the same.
    assert mirror.countable(record(orientation="radiological"))
    refused = [
        record(form="open"),
        record(teacher=""),
        record(target_name="left kidney"),
        record(neighbour="right lung"),
        record("shape", ("round", "oval", "elongated"), "Round."),
        record("name", ("left lung", "right lung", "heart"), "Left lung."),
        record(options=("left", "right")),
        Record("r", (b"x",), "Is it on the left side of the patient?", "Yes"),
    ]
    assert not any(map(mirror.countable, refused))


def test_words_exchange_sides_and_nothing_else():
    assert mirror.mirrored_words("lower left") == "lower right"
    assert mirror.mirrored_words("to the right") == "to the left"
    assert mirror.mirrored_words("center") == "center" and mirror.mirrored_words("leftover") == "leftover"
    assert mirror.mirrored_right(record()) == "right" and mirror.right(record(answer="Center.")) == "center"
    with pytest.raises(ValueError, match=r"'On top\.' is none of its options"):
        mirror.right(record(answer="On top."))


@pytest.mark.parametrize(
    "before, after, verdict",
    [
        ("Left.", "Right.", 0),
        ("left", " RIGHT", 0),
        ("Left.", "Left.", 1),
        ("Left.", "Center.", 2),
        ("Left.", "The spleen.", 2),
        ("Center.", "Center.", None),
        ("The spleen.", "Left.", None),
    ],
)
def test_verdicts(before, after, verdict):
    expected = None if verdict is None else mirror.VERDICTS[verdict]
    assert mirror.verdict(record(), before, after) == expected


def test_a_mirrored_image_is_turned_left_to_right_upright_and_through_its_window():
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    seen = lambda one, i=0: np.asarray(decode(one.images[i], "it", one.metadata.get("window"))[0])  # noqa: E731
    plain = record(images=(png(pixels), png(pixels.T.copy())))
    np.testing.assert_array_equal(seen(mirror.mirrored(plain)), seen(plain)[:, ::-1])
    np.testing.assert_array_equal(seen(mirror.mirrored(plain), 1), seen(plain, 1)[:, ::-1])
    deep = record(images=(png(pixels.astype(np.uint16) * 16),), window=[0, 2000])
    turned = mirror.mirrored(deep)
    np.testing.assert_array_equal(seen(turned), seen(deep)[:, ::-1])
    assert "window" not in turned.metadata and turned.metadata["ask"] == "side"
    exif = Image.Exif()
    exif[0x0112] = 6
    tilted = record(images=(png(pixels, exif=exif),))
    assert seen(tilted).shape[:2] == (6, 4)
    np.testing.assert_array_equal(seen(mirror.mirrored(tilted)), seen(tilted)[:, ::-1])


def test_grey_is_one_for_all_and_keeps_the_size():
    dark, bright = (png(np.full((3, 5), shade, np.uint8)) for shade in (20, 100))
    records = [record(images=(dark,)), record(images=(bright,)), record(images=(bright,))]
    grey = mirror.mean_grey(records)
    assert grey == 60  # of two images, not of three questions
    image = np.asarray(decode(mirror.greyed(records[0], grey).images[0], "it")[0])
    assert image.shape == (3, 5, 3) and (image == 60).all()
