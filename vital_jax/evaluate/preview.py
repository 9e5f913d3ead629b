"""What a model answers: greedy text for records, while training runs and afterwards.

It decodes as inference does (the loop, then greedy tokens; no scaffold), with the parameters of the moment, so that a loss curve is never
all there is to look at.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vital_jax.evaluate.score import Row, judge
from vital_jax.latent.engine import Reply, in_order, with_images
from vital_jax.latent.loop import variables_of
from vital_jax.methods.base import Budgets, Method
from vital_jax.pipeline.feed import Feed
from vital_jax.pipeline.records import Record


def ask(
    method: Method,
    params: Mapping[str, Any],
    feed: Feed,
    numbers: Sequence[int],
    max_steps: int,
    batch: int = 8,
    *,
    images: Sequence[int] | None = None,
    length: int = 0,
) -> list[Reply]:
    """Greedy replies to these records, in order, at K = `max_steps` for all.

    Args:
      params: base, and lora if any. batch: rows of the program.
      images: one record number per record, whose images are shown instead of its own (see `shuffled`).
      length: T, the most tokens of an answer; by default the feed's.
    Raises: ValueError for `images` that are not one per record, or as `Engine.batches`.
    """
    if images is not None and len(images) != len(numbers):
        raise ValueError(f"{len(images)} images for {len(numbers)} records: give one per record")
    asked = [feed.source[int(number)] for number in numbers]
    if images is not None:
        asked = [with_images(record, feed.source[int(i)]) for record, i in zip(asked, images, strict=True)]
    engine = method.engine(feed.encoder, feed.buckets, Budgets(feed.answer, feed.chain, feed.written))
    decoding = engine.decoding(length or feed.answer)
    return in_order(engine.ask(variables_of(params), asked, max_steps, decoding, batch=batch))


def answers(
    method: Method,
    params: Mapping[str, Any],
    feed: Feed,
    numbers: Sequence[int],
    max_steps: int,
    batch: int = 8,
    worth: Callable[[Record, Reply], Mapping[str, float]] = lambda record, reply: {},
) -> list[Row]:
    """`ask`, judged: {"id", "question", "gold", "answer", "exact"}; `exact` compares after `normalise`. worth: further numbers of each."""
    records = [feed.source[int(number)] for number in numbers]
    replies = ask(method, params, feed, numbers, max_steps, batch)
    return [judge(record, reply.text) | worth(record, reply) for record, reply in zip(records, replies, strict=True)]


def shuffled(numbers: Sequence[int], feed: Feed, seed: int) -> list[int]:
    """For each record another one of the same modality and another group: whose images a blind model is shown.

    Within a modality every record is chosen once, so the images are no stranger than before; only what they show has nothing to do with the
    question. Where one group holds more than half of a modality's records, no such exchange exists, and some are chosen more often.

    Args:
      numbers: of the records. seed: of the exchange.
    Raises: ValueError where a modality has a single group.
    """
    rng, out = random.Random(seed), {}
    modalities: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, number in enumerate(numbers):
        row = feed.source.index[number]
        group = row["metadata"].get("group", row["id"])
        modalities[row["metadata"].get("modality", "")][group].append(place)
    for modality, members in modalities.items():
        if len(members) == 1:
            raise ValueError(
                f"modality {modality!r}: all records are of the group {next(iter(members))!r}, so there is no other "
                "image to show; take more held-out images, or leave this modality out"
            )
        # Groups one after the other, turned by the size of the largest: nobody lands in its own group while that holds at most half.
        order = list(members.values())
        rng.shuffle(order)
        for group in order:
            rng.shuffle(group)
        line = [place for group in order for place in group]
        turn = max(map(len, order))
        turned = dict(zip(line, line[turn:] + line[:turn], strict=True))
        for group in order:
            others = [place for place in line if place not in group]
            out |= {place: turned[place] if turned[place] not in group else rng.choice(others) for place in group}
    return [int(numbers[out[place]]) for place in range(len(numbers))]
