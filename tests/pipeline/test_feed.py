"""Prompts for decoding: the rows of a feed, and the same questions about other records' images."""

import io

import numpy as np
import pytest
from PIL import Image

from vital_jax.pipeline.batch import Encoder
from vital_jax.pipeline.feed import Feed
from vital_jax.pipeline.records import Record, RecordSource, write_records


def picture(seed: int, side: int, deep: bool = False) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side)).astype(np.uint16 if deep else np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def feed(real, tmp_path_factory):
    """Two records of one size, one large one, and one whose 16-bit image needs its window."""
    images = [picture(0, 256), picture(1, 256), picture(2, 512), picture(3, 256, deep=True)]
    records = [
        Record(
            f"r{i}",
            (image,),
            "Where is the spleen?" + " Be brief." * i,
            "Left.",
            chain=("One.",) * (1 + i),
            masks=(picture(4, 8),),
            boxes=((0, 0, 1, 1),),
            metadata={"window": [0, 255]} if i == 3 else {},
        )
        for i, image in enumerate(images)
    ]
    folder = write_records(records, tmp_path_factory.mktemp("feed") / "records")
    encoder = Encoder.from_folder(real("model_configs") / "Qwen3-VL-8B-Instruct", max_pixels=262_144)
    return Feed(RecordSource(folder), encoder, None, ((96, 256), (320, 1024)), 8, 16)


def test_rows_are_prompts_in_the_smallest_bucket_without_answers(feed):
    rows = feed.rows([1, 0], 4)
    assert rows["tokens"].shape == (2, 96) and rows["patches"].shape[:2] == (2, 256)
    assert rows["index"].tolist() == [1, 0] and rows["latent_steps"].tolist() == [4, 4]
    assert rows["answer"].size == rows["chain"].size == rows["roi"].size == 0
    assert feed.rows([1, 0], 4, "per_sample")["latent_steps"].tolist() == [2, 1]
    assert feed.rows([1, 2], 4)["tokens"].shape == (2, 320)
    with pytest.raises(ValueError, match="unknown eval_k='both'"):
        feed.rows([1], 4, "both")


def test_rows_about_other_images_keep_question_and_steps(feed):
    own, other = feed.rows([0, 1], 4, "per_sample"), feed.rows([0, 1], 4, "per_sample", images=[1, 0])
    assert not np.array_equal(own["patches"][0], own["patches"][1])
    np.testing.assert_array_equal(other["patches"], own["patches"][::-1])
    for name in own.keys() - {"patches"}:
        np.testing.assert_array_equal(other[name], own[name], name)
    for name, value in feed.rows([0, 1], 4, "per_sample", images=[0, 1]).items():
        np.testing.assert_array_equal(value, own[name], name)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        feed.rows([0, 1], 4, images=[1])


def test_rows_are_as_large_as_the_images_that_are_shown(feed):
    large = feed.rows([0], 4, images=[2])
    assert large["tokens"].shape == (1, 320)
    patches = feed.rows([2], 4)["patches"]
    np.testing.assert_array_equal(large["patches"], patches)
    small = feed.rows([2], 4, images=[0])
    assert small["tokens"].shape == (1, 96)
    with pytest.raises(ValueError, match="no bucket holds them"):
        Feed(feed.source, feed.encoder, None, ((96, 256),), 8, 16).rows([0], 4, images=[2])


def test_an_image_brings_its_own_grey_window(feed):
    np.testing.assert_array_equal(feed.rows([0], 4, images=[3])["patches"], feed.rows([3], 4)["patches"])
    np.testing.assert_array_equal(feed.rows([3], 4, images=[0])["patches"], feed.rows([0], 4)["patches"])
