"""The measured teacher: reasoning steps and answers from what can be measured in a picture, without a language model.

It words where a target lies, how large it is, its shape, its brightness against the surroundings, how sharp its
boundary is and how it stands to a neighbour. So every statement is true of the pixels, nothing has to be paid for or
sent away, and the same sample always gives the same text. The rules of methods.md §1.4 hold by construction: image
space only (never the patient's left), no word about how the target was found, one step per latent, every sentence ends
with a period, and words of disease come only with a target that is itself a finding.

Each step fills a slot, and each slot has several wordings in `data/sentences.json`, which also lists what they claim.
"""

import json
from dataclasses import dataclass
from functools import cache

from vital_jax.construct.measure import Facts, Measurement
from vital_jax.construct.questions import Question, beside, fields, generator, wordings
from vital_jax.construct.sample import Sample
from vital_jax.construct.targets import DATA, Targets, load_targets
from vital_jax.construct.words import (
    boundary,
    brightness,
    capital,
    clear,
    compare_brightness,
    compare_size,
    extent,
    form,
    grey,
    half,
    quarter,
    reach,
    shape,
    share,
    side,
    spans,
    texture,
    third,
    where,
)

TEACHER = "measured-3"
LONG = 24  # words; a list of what is seen instead of an absent target stops before a sentence gets longer
AROUND = 9  # words that stand around that list in the longest wording


@dataclass(frozen=True)
class Lesson:
    """What the teacher says: K sentences, the slot each of them fills, and the answer."""

    chain: tuple[str, ...]
    answer: str
    slots: tuple[str, ...]


@cache
def load_sentences() -> dict[str, dict[str, list[str]]]:
    """The built-in wordings: {slot: {target type@modality, target type or "any": texts}}."""
    return json.loads((DATA / "sentences.json").read_text(encoding="utf-8"))["slots"]


def teach(question: Question, sample: Sample, facts: Facts, targets: Targets | None = None) -> Lesson:
    """Reasoning chain and answer of a question; the chain of a closed question says what decides it.

    Args:
      question: from `questions`, about this sample.
      sample: whose target was measured.
      facts: what `look` measured.
      targets: another table than the built-in one.

    Raises:
      ValueError: the target, the neighbour or the modality is not in the table.
    """
    targets = targets or load_targets()
    steps = _steps(question, sample, facts, targets)[question.steps]
    chain = tuple(_say(slot, words, turn, question, sample, targets) for turn, (slot, words) in enumerate(steps))
    slots = tuple(slot for slot, _ in steps)
    if question.form == "closed":
        return Lesson(chain, f"{capital(question.options[question.gold])}.", slots)
    return Lesson(chain, _open_answer(question, sample, facts, targets), slots)


def _say(slot: str, words: dict, turn: int, question: Question, sample: Sample, targets: Targets) -> str:
    """One sentence; its wording is drawn by the sample, the kind of question, the slot and its turn."""
    texts = wordings(load_sentences()[slot], question.target, sample.modality, targets)
    rng = generator(0, "wording", sample.id, question.type, question.form, question.ask, slot, str(turn))
    return texts[rng.integers(len(texts))].format(**words)


def _described(name: str, m: Measurement, sample: Sample, targets: Targets) -> dict[str, str]:
    """Everything that a wording can say about one target."""
    words = {
        "where": where(m),
        "shape": shape(m),
        "a_shape": _article(shape(m)),
        "brightness": brightness(m),
        "tone": "brighter" if m.contrast > 0 else "darker",
        "boundary": boundary(m),
        "grey": grey(m),
        "texture": texture(m),
        "a_texture": _article(texture(m)),
        "extent": extent(m),
        "share": share(m),
        "form": form(m),
        "reach": reach(m),
        "third": third(m),
        "quarter": quarter(m),
        "half": half(m),
        "from_top": f"at about {round(100 * m.row)} percent of the image height from the top",
    }
    words |= {capital(key): capital(words[key]) for key in ("where", "a_shape")}
    return fields(name, sample.modality, targets) | words


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _compared(words: dict, facts: Facts, other: str, targets: Targets) -> dict[str, str]:
    """The same, against a neighbour."""
    a, b = facts.own, facts.others[other]
    place, light = beside(facts, other) or "", compare_brightness(a, b)
    down, right = round(100 * abs(a.row - b.row)), round(100 * abs(a.column - b.column))
    return words | {
        "the_other": targets.definite(targets.neutral(other)),
        "direction": place,
        "Direction": place.capitalize(),
        "apart": f"about {down} percent of the height and {right} percent of the width",
        "larger": _than(compare_size(a, b)),
        "brighter": _than(light) if light else "",
    }


def _than(word: str) -> str:
    return f"{word} {'as' if word.startswith('about') else 'than'}"


def _steps(question: Question, sample: Sample, facts: Facts, targets: Targets) -> dict[int, list[tuple[str, dict]]]:
    """The slots of a chain with the words that fill them, by number of steps."""
    own = _described(question.target if question.visible else sample.target, facts.own, sample, targets)
    if not question.visible:
        return {1: [_absence(question, sample, facts, targets)]}
    position, light = ("position", own), ("brightness_boundary", own)
    size = ("extent_and_shape", own)
    if question.type in ("yesno", "identify"):
        return {1: [("seen_area", own)]}
    if question.type == "location_choice":
        return {1: [("span" if spans(facts.own, "columns") else "reach", own)]}
    if question.type == "location":
        return {2: [position, ("quarter", own)] if question.form == "closed" else [("seen_area", own), position]}
    if question.type == "describe":
        return {2: [size, light], 3: [size, light, ("texture", own)]}
    if question.other:
        return _comparison(question, sample, facts, targets, own)
    if question.form == "closed":
        place, end = ("half", own), ("conclusion_half", own)
        return {3: [place, light, end], 4: [place, size, light, end]}
    return {3: [position, size, light], 4: [position, size, light, ("conclusion", own)]}


def _absence(question: Question, sample: Sample, facts: Facts, targets: Targets) -> tuple[str, dict]:
    """What is there instead of an absent target: by name, or by its look where only a finding could be named."""
    seen = {targets.neutral(name): m for name, m in ({sample.target: facts.own} | facts.others).items()}
    finding = targets.row(question.target)["type"] == "lesion"
    names = [name for name in seen if finding or targets.row(name)["type"] != "lesion"]
    words = fields(question.target, sample.modality, targets)
    if not names:
        about = _described(targets.neutral(sample.target), facts.own, sample, targets)
        return "absent_area", about | {key: words[key] for key in ("phrase", "the", "The")}
    texts = [f"{targets.phrase(name)} {where(seen[name]).replace(' of the image', '')}" for name in names[:2]]
    present = " and ".join(texts)
    if len(f"{present} {words['phrase']}".split()) > LONG - AROUND:
        present = texts[0]
    return "absent", words | {"present": present, "Present": capital(present)}


def _comparison(question: Question, sample: Sample, facts: Facts, targets: Targets, own: dict) -> dict[int, list]:
    """Steps that place and compare two targets; the last ones decide."""
    other = question.other
    near = _described(targets.neutral(other), facts.others[other], sample, targets)
    both = _compared(own, facts, other, targets)
    first, second = ("position", own), ("position", near)
    if question.ask == "direction":
        end = ("neighbour_direction", both)
        return {3: [first, second, end], 4: [first, second, ("neighbour_apart", both), end]}
    if question.ask == "larger":
        steps = [("extent", own), ("extent", near), ("neighbour_size", both)]
        return {3: steps, 4: [first, *steps]}
    if question.ask == "brighter_of_two":
        # Contrast to two different surroundings would be no evidence of which is brighter itself.
        steps = [("grey", own), ("grey", near), ("neighbour_brightness", both)]
        return {3: steps, 4: [first, *steps]}
    size = ("neighbour_size", both)
    if other in facts.within:
        place = ("neighbour_within", both)
    elif other in facts.holds:
        place = ("neighbour_within", near | {"the_other": own["the"]})
    elif both["direction"]:
        place = ("neighbour_direction", both)
    else:
        place = ("neighbour_apart", both)
    return {3: [first, place, size], 4: [first, second, place, size]}


def _open_answer(question: Question, sample: Sample, facts: Facts, targets: Targets) -> str:
    m = facts.own
    say = fields(question.target, sample.modality, targets)
    look = f"{shape(m)} and {brightness(m)}, and {{has}} a {boundary(m)} boundary"
    # An answer names no place that a little measuring would change.
    sure = clear(m, "rows", "columns")
    described = f"{{The}} {{lies}} {where(m)}, {{is}} {look}" if sure else f"{{The}} {{is}} {look}"
    texts = {
        "presence": "Yes, {phrase} {is} visible in this {modality} image."
        if question.visible
        else "No, {phrase} {is} not visible in this {modality} image.",
        "name": "The {noun} shown is {phrase}.",
        "side": f"{{The}} {{lies}} {side(m)}.",
        "place": f"{{The}} {{lies}} {where(m)}.",
        "appearance": f"{described}.",
        "findings": f"{described}, which fits {{phrase}}.",
    }
    if question.ask != "relation":
        return texts[question.ask].format(**say)
    words = _compared(say, facts, question.other, targets)
    place = f"{words['direction']} {words['the_other']}" if words["direction"] else where(m) if sure else ""
    if question.other in facts.within:
        place = f"within {words['the_other']}"
    lies = f"{say['lies']} {place} and " if place else ""
    return f"{say['The']} {lies}{say['is']} {words['larger']} {words['the_other']}."
