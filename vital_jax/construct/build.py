"""Samples to records: the line that turns images with masks into training data, and the split that leaks nothing.

folder = MaskFolder("kvasir")
records = build_records(folder, questions_per_sample=3, seed=0)
write_splits(assign_splits(records), "data/kvasir")
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from vital_jax.construct.measure import Facts, look
from vital_jax.construct.questions import FORMS, Balance, Question, questions
from vital_jax.construct.sample import Sample, png
from vital_jax.construct.splits import official
from vital_jax.construct.targets import Targets, load_targets
from vital_jax.construct.teacher import TEACHER, Lesson, teach
from vital_jax.pipeline.masks import decode_mask
from vital_jax.pipeline.records import Record

_LOG = logging.getLogger(__name__)


def build_records(
    samples: Iterable[Sample],
    questions_per_sample: int,
    seed: int,
    targets: Targets | None = None,
    form: str = "open",
    val: float = 0.075,
    test: float = 0.075,
) -> Iterator[Record]:
    """Asks, answers and packs every sample; a sample's records follow each other.

    A record about an absent target has no mask, no box and no region feature: there is nothing to look at.

    Args:
      samples: from `MaskFolder`, `phantoms` or any other source.
      questions_per_sample: 1 to 6, each of another type; of either form where both are asked.
      seed: of the questions; with the sample's id it decides everything about open ones. Closed ones are kept in
        balance over the samples before, so they depend on these too.
      targets: another table than the built-in one.
      form: open, closed or both.
      val, test: shares of the splits, as `assign_splits` gets them: answers are balanced within each split.

    Raises:
      ValueError: an unknown form or target, or an image or mask that cannot be decoded.
    """
    if form not in (*FORMS, "both"):
        raise ValueError(f"unknown form {form!r} of questions: use {', '.join(FORMS)} or both")
    targets = targets or load_targets()
    balances = defaultdict(Balance)
    for sample in samples:
        facts = look(sample)
        mask = encode_mask(sample)
        for each in FORMS if form == "both" else (form,):
            balance = balances[split_of(sample.group, val, test)]
            for question in questions(sample, questions_per_sample, seed, targets, each, facts, balance):
                fields = record_fields(question, sample, facts, teach(question, sample, facts, targets), targets)
                yield Record(images=(sample.image,), masks=(mask,) if question.visible else (), **fields)


def record_id(sample: Sample, question: Question) -> str:
    """The id of the record that a question about a sample makes."""
    return f"{sample.id}/{question.type}{'/closed' if question.form == 'closed' else ''}"


def record_fields(
    question: Question, sample: Sample, facts: Facts, lesson: Lesson, targets: Targets, teacher: str = TEACHER, **extra
) -> dict:
    """A record's fields but for its image and mask, which only writing needs; `extra` goes into the metadata, empty values are left out."""
    metadata = {
        "source": sample.source,
        "modality": sample.modality,
        "site": sample.site,
        "target_name": question.target,
        "target_type": targets.row(question.target)["type"],
        "question_type": question.type,
        "form": question.form,
        "ask": question.ask,
        "neighbour": targets.neutral(question.other or ""),
        "latent_steps": len(lesson.chain),
        "slots": list(lesson.slots),
        "orientation": sample.orientation,
        "window": list(sample.window),
        "intensity": sample.intensity,
        "spacing": list(sample.spacing),
        "teacher": teacher,
        "licence": sample.licence,
        "group": sample.group,
        "source_split": sample.split,
        **extra,
    }
    return {
        "id": record_id(sample, question),
        "question": question.text,
        "answer": lesson.answer,
        "chain": lesson.chain,
        "options": question.options,
        "gold": chr(ord("A") + question.gold) if question.form == "closed" else "",
        "boxes": (facts.own.box,) if question.visible else (),
        "metadata": {key: value for key, value in metadata.items() if value not in ("", [])},
    }


def encode_mask(sample: Sample) -> bytes:
    """The mask as a single-channel PNG of 0 and 255, on the image's stored pixel grid as the record's image is."""
    upright = sample.info["orientation"] == 1
    stored = sample.region if upright else decode_mask(sample.mask, "the mask", sample.info | {"orientation": 1})
    return png(stored.astype(np.uint8) * 255)


def split_of(group: str, val: float = 0.075, test: float = 0.075) -> str:
    """The side of a group: train, val or test, by its hash, so that growing a data set moves nothing.

    This is the rule of streams whose end is not known, read once from one place: phantoms, captions, the TFDS builder of mask folders.
    It looks at no picture but for equal ones and keeps its shares only on the average. `vital data build` has the whole set on disk and
    divides it by `splits.assign`: near-duplicates united, each number of steps in its share. The default shares are VITAL's
    85 / 7.5 / 7.5 (methods.md §1.3).
    """
    place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) / 2**64
    return "val" if place < val else "test" if place < val + test else "train"


def assign_splits(records: Iterable[Record], val: float = 0.075, test: float = 0.075) -> Iterator[tuple[str, Record]]:
    """Pairs records with their split for `pipeline.records.write_splits`; no group and no image is on two sides.

    What its source holds out (`source_split`) stays held out, and where the source has a split of its own, the rest of it is for training.
    The same image sometimes comes under two groups (a data set within another). Its first group decides; records that
    would put it on another side are left out and counted in a warning.

    Raises:
      ValueError: shares that are no shares, or a record without `group` in its metadata.
    """
    if not (min(val, test) >= 0 and val + test <= 1):
        raise ValueError(f"shares must be between 0 and 1 together, not val={val} and test={test}")
    side, dropped = {}, 0
    for record in records:
        if "group" not in record.metadata:
            raise ValueError(
                f"record {record.id!r}: metadata has no group, so it cannot be kept on one side of a split"
            )
        split = official(record.metadata.get("source_split", "")) or split_of(record.metadata["group"], val, test)
        images = [hashlib.sha256(data).digest() for data in record.images]
        if any(side.get(image, split) != split for image in images):
            dropped += 1
            continue
        side.update(dict.fromkeys(images, split))
        yield split, record
    if dropped:
        _LOG.warning("%d records left out: their image is on another side of the split under another group", dropped)
