"""Captions of images with several marked structures: what a small backbone reads before it is ever asked anything.

A caption states what was measured, as a report would: what there is and is not, where, how large, of which shape and how bright, and how
two structures stand to each other. It answers no question and none is put: the prompt only asks for a description. Several short styles
keep the order in which facts are told from being the only thing learned.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby, permutations

import numpy as np

from vital_jax.construct.measure import Measurement, measure
from vital_jax.construct.sample import Sample
from vital_jax.construct.targets import Targets, load_targets
from vital_jax.construct.words import (
    brightness,
    compare_brightness,
    compare_size,
    direction,
    quarter,
    shape,
    side,
    texture,
    where,
)
from vital_jax.pipeline.records import Record

Marked = list[tuple[str, Measurement]]  # (the target with its article, its measurement)

_LONGEST = 200  # characters of a caption of several styles
_PROMPTS = ("Describe this {} image.", "What does this {} image show?", "Report on this {} image.")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _light(m: Measurement) -> str:
    """brighter, darker, or as bright: the bare word of `brightness`."""
    words = brightness(m)
    return next((word for word in ("brighter", "darker") if word in words), "as bright")


def _place(m: Measurement) -> str:
    return where(m).removeprefix("in the ").removesuffix(" part of the image").removesuffix(" of the image")


def _grouped(marked: Marked, words: dict[str, str]) -> str:
    """Word after word, the targets it is true of: Darker: the liver, the aorta."""
    parts = []
    for word in dict.fromkeys(words[name] for name, _ in marked if words[name]):
        parts.append(f"{_capital(word)}: {', '.join(name for name, _ in marked if words[name] == word)}.")
    return " ".join(parts)


def _by_name(marked: Marked, rng: np.random.Generator) -> str:
    facts = (_place, shape, _light)
    return " ".join(f"{_capital(name)}: {', '.join(fact(m) for fact in facts)}." for name, m in marked)


def _by_place(marked: Marked, rng: np.random.Generator) -> str:
    return " ".join(f"{_capital(_place(m))}: {name}, {_light(m)}, {shape(m)}." for name, m in marked)


def _by_side(marked: Marked, rng: np.random.Generator) -> str:
    words = {name: side(m).split(" of the image")[0].split()[-1] for name, m in marked if "across" not in side(m)}
    return _grouped([pair for pair in marked if pair[0] in words], words)


def _by_quarter(marked: Marked, rng: np.random.Generator) -> str:
    return _grouped(marked, {name: quarter(m) or "" for name, m in marked})


def _by_shape(marked: Marked, rng: np.random.Generator) -> str:
    return _grouped(marked, {name: shape(m) for name, m in marked})


def _by_light(marked: Marked, rng: np.random.Generator) -> str:
    words = {name: f"{'upper' if m.row < 0.5 else 'lower'} half and {_light(m)}" for name, m in marked}
    return _grouped(marked, words if rng.random() < 0.5 else {name: _light(m) for name, m in marked})


def _by_texture(marked: Marked, rng: np.random.Generator) -> str:
    return _grouped(marked, {name: texture(m) for name, m in marked})


def _pairs(marked: Marked, rng: np.random.Generator) -> str:
    """How two structures stand to each other, for up to two pairs."""
    told = []
    pairs = list(permutations(marked, 2))
    for i in rng.permutation(len(pairs))[:2]:
        (one, a), (other, b) = pairs[i]
        if place := direction(a, b):
            told.append(f"{_capital(place)} {other}: {one}.")
        for word in (compare_size(a, b), compare_brightness(a, b)):
            if word in ("larger", "brighter"):
                told.append(f"{_capital(word)} than {other}: {one}.")
    return " ".join(told)


_STYLES = (_by_name, _by_place, _by_side, _by_quarter, _by_shape, _by_light, _by_texture, _pairs)


def _presence(marked: Marked, absent: list[str], rng: np.random.Generator) -> str:
    there = f"Yes: {', '.join(name for name, _ in marked)}."
    return f"{there} No: {', '.join(absent)}." if absent else there


def caption(marked: Marked, absent: list[str], rng: np.random.Generator, parts: int = 2) -> str:
    """Words one caption.

    Args:
      marked: the structures; their order is drawn. absent: what is certainly not there, with articles.
      parts: how many styles; presence is one of them every second time.
    """
    order = lambda items: [items[i] for i in rng.permutation(len(items))]  # noqa: E731
    styles = [_STYLES[i] for i in rng.permutation(len(_STYLES))[:parts]]
    told = [style(order(marked), rng) for style in styles]
    if rng.random() < 0.5:
        told[0] = _presence(order(marked), order(absent), rng)
    told = [text for text in told if text] or [_by_name(marked, rng)]
    whole = " ".join(told)
    return whole if len(whole) <= _LONGEST else told[0]


def caption_records(
    samples: Iterable[Sample], per_image: int, seed: int, targets: Targets | None = None
) -> Iterator[Record]:
    """One or more captions of every image; samples of one image (one group) must follow each other.

    Args:
      samples: with certain absent targets, as phantoms have them.
      per_image: captions of an image, each in other styles.
      seed: with the group's name it decides everything.
    """
    targets = targets or load_targets()
    for number, (group, members) in enumerate(groupby(samples, key=lambda sample: sample.group)):
        members = list(members)
        grey = np.asarray(members[0].picture.convert("L"))
        marked = [(targets.phrase(s.target), measure(grey, s.region)) for s in members]
        absent = [targets.phrase(name) for name in members[0].absent]
        rng = np.random.default_rng([seed, number])
        modality = targets.modality_words(members[0].modality)
        for turn in range(per_image):
            yield Record(
                id=f"{group}/caption-{turn}",
                images=(members[0].image,),
                question=_PROMPTS[rng.integers(len(_PROMPTS))].format(modality),
                answer=caption(marked, absent, rng),
                metadata={
                    "source": members[0].source,
                    "modality": members[0].modality,
                    "site": members[0].site,
                    "licence": members[0].licence,
                    "group": group,
                },
            )
