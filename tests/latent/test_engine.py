"""How questions become programs: shapes, groups, order, and the same questions about other records' images."""

import io

import numpy as np
import pytest
import toy
import toyfeed
from PIL import Image

from vital_jax.latent.engine import Engine, in_order, rounded, with_images
from vital_jax.latent.loop import variables_of
from vital_jax.pipeline.batch import Encoder
from vital_jax.pipeline.records import Record


def picture(seed: int, side: int, deep: bool = False) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side)).astype(np.uint16 if deep else np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def records():
    """Two of one size, one large one, and one whose 16-bit image needs its window."""
    images = [picture(0, 256), picture(1, 256), picture(2, 512), picture(3, 256, deep=True)]
    return [
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


@pytest.fixture(scope="module")
def engine(real):
    encoder = Encoder.from_folder(real("model_configs") / "Qwen3-VL-8B-Instruct", max_pixels=262_144)
    return Engine(toy.backbone(), encoder, ((96, 256), (320, 1024)))


def only(batches):
    """The rows of a single batch."""
    ((_, rows),) = batches
    return rows


def test_sizes_grow_by_an_eighth_at_most_and_are_few():
    assert [rounded(n) for n in (1, 64, 65, 1024, 1025, 2048, 2049)] == [64, 64, 128, 1024, 1152, 2048, 2304]
    sizes = {rounded(n) for n in range(1, 16385)}
    assert len(sizes) < 50 and all(n <= rounded(n) < n + 64 or rounded(n) <= 1.13 * n for n in range(1, 16385, 7))


def test_rows_are_prompts_in_the_smallest_shape_without_answers(engine, records):
    rows = only(engine.batches(records[:2][::-1], 4))
    assert rows["tokens"].shape == (2, 96) and rows["patches"].shape[:2] == (2, 256)
    assert rows["latent_steps"].tolist() == [4, 4]
    assert not {"answer", "chain", "index"} & set(rows)
    assert only(engine.batches(records[:2][::-1], 4, "per_sample"))["latent_steps"].tolist() == [2, 1]
    assert engine.shape(records[2]) == (320, 1024)
    with pytest.raises(ValueError, match="unknown eval_k='both'"):
        next(engine.batches(records, 4, "both"))


def test_questions_of_one_shape_go_together_and_the_large_ones_first(engine, records):
    asked = [records[i] for i in (0, 2, 1, 3, 0, 1)]
    found = list(engine.batches(asked, 4, batch=4))
    assert [places for places, _ in found] == [[1], [0, 2, 3, 4], [5]]
    # A shape that filled a group before keeps its size; one that did not takes a power of two.
    assert [len(rows["tokens"]) for _, rows in found] == [1, 4, 4]
    assert [len(rows["tokens"]) for _, rows in engine.batches(records[:1] * 3, 4, batch=8)] == [4]


def test_a_question_without_a_bucket_takes_a_rounded_shape(engine, records):
    small = Engine(engine.model, engine.encoder, ((32, 128), (96, 256)))
    assert small.shape(records[0]) == (96, 256) and small.shape(records[2]) == (320, 1024)
    assert Engine(engine.model, engine.encoder).shape(records[0])[1] == 256
    long = Record("r", records[0].images, "Where is the spleen?" + " Say." * 200, "Left.")
    # Its images are those training met, so their budget serves.
    S, P = small.shape(long)
    assert S > 96 and P == 256 and S % 64 == 0


def test_rows_about_other_images_keep_question_and_steps(engine, records):
    first, second = records[:2]
    own = only(engine.batches([first, second], 4, "per_sample"))
    other = only(engine.batches([with_images(first, second), with_images(second, first)], 4, "per_sample"))
    assert not np.array_equal(own["patches"][0], own["patches"][1])
    np.testing.assert_array_equal(other["patches"], own["patches"][::-1])
    for name in own.keys() - {"patches"}:
        np.testing.assert_array_equal(other[name], own[name], name)
    assert engine.shape(with_images(first, records[2])) == engine.shape(records[2])
    assert engine.shape(with_images(records[2], first)) == engine.shape(first)


def test_an_image_brings_its_own_grey_window(engine, records):
    plain, deep = records[0], records[3]
    patches = lambda record: only(engine.batches([record], 4))["patches"]  # noqa: E731
    np.testing.assert_array_equal(patches(with_images(plain, deep)), patches(deep))
    np.testing.assert_array_equal(patches(with_images(deep, plain)), patches(plain))


# --- the toy backbone -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toys():
    vital = toy.method()
    asked = list(toyfeed.records("test", 3))
    return Engine(vital.model, toyfeed.Encoder(), ((toyfeed.S, toyfeed.P),)), variables_of(toy.params(vital)), asked


def test_replies_come_back_in_order_with_their_own_steps(toys):
    engine, variables, asked = toys
    replies = in_order(engine.ask(variables, asked, 4, engine.decoding(4), "per_sample", batch=4))
    backwards = in_order(engine.ask(variables, asked[::-1], 4, engine.decoding(4), "per_sample", batch=4))
    assert [reply.text for reply in replies] == [reply.text for reply in backwards[::-1]]
    for record, reply in zip(asked, replies, strict=True):
        K = len(record.chain)
        assert reply.latent_steps == K and reply.u.shape == reply.z.shape == (K, toy.WIDTH)
        np.testing.assert_allclose(reply.u[0], reply.z0, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(reply.u[1:], reply.z[:-1], rtol=1e-5, atol=1e-6)
        assert reply.log_prob == pytest.approx(sum(reply.log_probs)) and len(reply.tokens) == len(reply.log_probs)
        assert reply.complete == (toyfeed.END in reply.tokens) and toyfeed.END not in reply.tokens[:-1]


def test_vectors_that_are_given_stand_in_the_latent_slots(toys):
    engine, variables, asked = toys
    options = dict(latent_steps=4, decoding=engine.decoding(4), batch=4)
    own = in_order(engine.ask(variables, asked, **options))
    recorded = np.stack([reply.u for reply in own])
    again = in_order(engine.ask(variables, asked, given=recorded, **options))
    assert [reply.tokens for reply in again] == [reply.tokens for reply in own]
    zeros = in_order(engine.ask(variables, asked, given=np.zeros_like(recorded), **options))
    assert not any(reply.u.any() for reply in zeros)
    assert all(a.log_probs != b.log_probs for a, b in zip(own, zeros, strict=True))


def test_several_draws_of_a_prompt_differ_and_repeat_with_the_seed(toys):
    engine, variables, asked = toys
    warm = engine.decoding(4, temperature=2.0)
    options = dict(latent_steps=4, decoding=warm, batch=4, groups=3)
    drawn = {
        place: group
        for places, groups in engine.ask(variables, asked[:4], **options)
        for place, group in zip(places, groups, strict=True)
    }
    assert len({reply.tokens for reply in drawn[0]}) > 1
    (_, again), *_ = engine.ask(variables, asked[:4], **options)
    assert [reply.tokens for reply in again[0]] == [reply.tokens for reply in drawn[0]]
    (_, other), *_ = engine.ask(variables, asked[:4], seed=1, **options)
    assert [[r.tokens for r in group] for group in other] != [[r.tokens for r in drawn[i]] for i in range(4)]
