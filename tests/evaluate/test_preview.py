"""Answers of the toy backbone: one program for any number of records, other records' images, and the exchange between records."""

from collections import Counter

import numpy as np
import pytest
import toy
import toyfeed

from vital_jax.evaluate.preview import answers, ask, shuffled


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    vital = toy.method()
    return vital, toy.params(vital), toyfeed.feeds(tmp_path_factory.mktemp("toy") / "records")[1]


def texts(setup, numbers, **options):
    return [reply.text for reply in ask(*setup, numbers, 4, batch=8, **options)]


def test_answers_come_in_order_and_do_not_depend_on_their_neighbours(setup):
    numbers = list(range(11))
    together = answers(*setup, numbers, 4, batch=8)
    source = setup[2].source
    assert [row["id"] for row in together] == [source[i].id for i in numbers]
    assert all(row["gold"] == source[i].answer and not row["exact"] for row, i in zip(together, numbers, strict=True))
    assert [row["answer"] for row in together[::-1]] == texts(setup, numbers[::-1])
    assert len({row["answer"] for row in together}) > 4


def test_an_answer_follows_the_image_that_is_shown(setup):
    numbers = list(range(11))
    own = texts(setup, numbers)
    assert texts(setup, numbers, images=numbers) == own
    # The same question about two images, and each with the other's image; both take as many steps.
    feed = setup[2]
    first, second = 3, 15
    assert feed.source[first].question == feed.source[second].question
    assert feed.source[first].latent_steps == feed.source[second].latent_steps
    assert feed.source[first].images != feed.source[second].images
    mine, other = texts(setup, [first, second])
    assert mine != other
    assert texts(setup, [first, second], images=[second, first]) == [other, mine]
    with pytest.raises(ValueError, match="1 images for 2 records"):
        texts(setup, [first, second], images=[first])


def test_the_exchange_keeps_modality_and_leaves_the_group(setup):
    feed = setup[2]
    meta = lambda i: feed.source.index[i]["metadata"]  # noqa: E731
    numbers = [i for i in range(len(feed.source)) if i != 5]  # groups of unequal size
    got = shuffled(numbers, feed, 0)
    assert Counter(got) == Counter(numbers)
    for mine, other in zip(numbers, got, strict=True):
        assert meta(mine)["modality"] == meta(other)["modality"] and meta(mine)["group"] != meta(other)["group"]
    assert got == shuffled(numbers, feed, 0) != shuffled(numbers, feed, 1)
    backwards = shuffled(np.array(numbers[::-1]), feed, 0)
    assert all(meta(a)["group"] != meta(b)["group"] for a, b in zip(numbers[::-1], backwards, strict=True))


def test_the_exchange_says_where_it_cannot_be_made(setup):
    feed = setup[2]
    ct = [i for i, row in enumerate(feed.source.index) if row["metadata"]["modality"] == "CT"]
    with pytest.raises(ValueError, match="modality 'CT': all records are of the group 'test0'"):
        shuffled(ct[:4], feed, 0)
    assert sorted(shuffled(ct[:8], feed, 0)) == ct[:8]
    # One group holds four of six: its records share the images of the other two.
    few = shuffled(ct[:6], feed, 0)
    assert {*few[:4]} <= {*ct[4:6]} and {*few[4:]} <= {*ct[:4]}
