"""What a model answers: greedy text for records, while training runs and afterwards.

It decodes as inference does (the loop, then greedy tokens; no scaffold), with the parameters of the moment, so that a loss curve is never
all there is to look at.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from vital_jax.evaluate.score import judge
from vital_jax.latent.loop import variables_of
from vital_jax.latent.sample import respond
from vital_jax.methods.vital import Vital
from vital_jax.pipeline.feed import Feed


def groups(
    feed: Feed, numbers: Sequence[int], max_steps: int, eval_k: str, batch: int, images: Sequence[int] | None = None
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """(record numbers, their prompts as arrays of `batch` rows), in order; the last group repeats its last row to be as large.

    Raises: ValueError as `Feed.rows`, or where `images` are not one per record.
    """
    if images is not None and len(images) != len(numbers):
        raise ValueError(f"{len(images)} images for {len(numbers)} records: give one per record")
    for start in range(0, len(numbers), batch):
        fill = lambda chosen: chosen + chosen[-1:] * (batch - len(chosen))  # noqa: E731
        chosen = list(numbers[start : start + batch])
        shown = None if images is None else fill(list(images[start : start + batch]))
        rows = feed.rows(fill(chosen), max_steps, eval_k, shown)
        yield chosen, {name: value for name, value in rows.items() if name not in ("roi", "roi_mask", "index")}


def answers(
    method: Vital,
    params: Mapping[str, Any],
    feed: Feed,
    numbers: Sequence[int],
    max_steps: int,
    eval_k: str = "fixed",
    batch: int = 8,
    images: Sequence[int] | None = None,
) -> Iterator[dict[str, Any]]:
    """Greedy answers to these records, in order, at K = `max_steps` or at each record's own (`eval_k`).

    Args:
      params: base, and lora if any. batch: rows of the program, whatever the number of records.
      images: one record number per record, whose images are shown instead of its own (see `shuffled`).
    Raises: ValueError for another `eval_k`, or where a group of `batch` records fits no bucket.
    Yields: {"id", "question", "gold", "answer", "exact"}; `exact` compares after `normalise`.
    """
    prompter, variables = feed.encoder.prompter, variables_of(params)
    for chosen, rows in groups(feed, numbers, max_steps, eval_k, batch, images):
        tokens = respond(method.model, variables, rows, max_steps, feed.answer, prompter.end_token_id).tokens[:, 0]
        for number, ids in zip(chosen, jax.device_get(tokens), strict=False):
            yield judge(feed.source[number], prompter.decode(ids))


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
