"""Questions about a sample: six types, open or closed, from templates, with true negatives (VITAL A.1 and Table 4).

Open questions are drawn from (seed, sample id), so a data set can be rebuilt, grown or sharded without changing one.
A question about an absent target asks only for what the image cannot show: a target whose absence the source
guarantees or whose body regions the image's site never shows. That a data set has no mask of a target proves nothing,
for most data sets mark one organ and leave the rest of the picture unmarked.

Closed questions name their options and have one right answer that is certain from the pixels: where a measurement is
near a limit, nothing is asked. A `Balance` sees to it that no answer is more frequent than the others, so that a
student who only reads the question gains nothing. It counts as it goes: closed questions depend on the order of samples.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from vital_jax.construct.measure import Facts, Measurement, look
from vital_jax.construct.sample import Sample
from vital_jax.construct.targets import DATA, Targets, load_targets
from vital_jax.construct.words import (
    BRIGHTER,
    MIDLINE,
    capital,
    clear,
    compare_brightness,
    compare_size,
    direction,
    half,
    quarter,
    side,
    spans,
)

FORMS = ("open", "closed")
NEGATIVE_SHARE = 0.5  # of open yes/no questions, where a true negative exists
RELATION_SHARE = 0.5  # of open reasoning questions, where a neighbour can be compared with
SHAPES = {"round": (1.0, 1.15), "oval": (1.35, 1.8), "elongated": (2.2, np.inf)}  # elongations certain enough to ask
COMPACT = 0.4  # least compactness before a shape is asked for
SIDES = ("left", "center", "right")
QUARTERS = ("upper left", "upper right", "lower left", "lower right")
DIRECTIONS = ("above", "below", "to the left", "to the right")
LIGHTS = ("brighter", "darker")
PLACES = tuple(f"{row} half and {light}" for row in ("upper", "lower") for light in LIGHTS)
NAME_LEAD = 4  # (twice its right answers less its wrong ones) up to which a name may be the right one again
SHUFFLED = ("name", "larger", "brighter_of_two")  # asks whose options are names: their order is drawn
BY_TARGET = ("presence", "shape")  # asks balanced per target name too, for a name alone could tell the answer

_PLURALS = {
    "is": "are", "has": "have", "does": "do", "it": "they", "its": "their", "appears": "appear", "amounts": "amount",
    "covers": "cover", "extends": "extend", "fills": "fill", "goes": "go", "lies": "lie", "looks": "look",
    "occupies": "occupy", "reaches": "reach", "runs": "run", "shows": "show", "stretches": "stretch", "takes": "take",
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A question with the facts its answer needs.

    Attributes:
      type: yesno, identify, location_choice, location, describe or reasoning.
      text: what the student reads.
      steps: K, the number of reasoning steps.
      target: what is asked about; another than the sample's where `visible` is false.
      visible: whether that target is in the image.
      form: open, or closed where the text names options.
      ask: open: presence, name, side, place, appearance, findings or relation; closed: presence, name, side, quarter,
        shape, brightness, direction, larger, brighter_of_two or place_and_brightness.
      options, gold: closed only: what can be answered, and the number of the right one, from 0.
      other: the neighbour that the target is compared with.
    """

    type: str
    text: str
    steps: int
    target: str
    visible: bool = True
    form: str = "open"
    ask: str = ""
    options: tuple[str, ...] = ()
    gold: int | None = None
    other: str | None = None


@dataclass
class Balance:
    """Counts the answers of closed questions as they are asked, and keeps them even; one per split.

    Of any ask, and for `BY_TARGET` of any ask and target, the most frequent answer (of names: position) is at most
    `slack` ahead of the rarest.
    """

    slack: int = 2
    answers: Counter = field(default_factory=Counter)
    asked: Counter = field(default_factory=Counter)
    names: Counter = field(default_factory=Counter)

    def leads(self, question: Question) -> list[int]:
        """How far the question's answer is ahead of the rarest, in each of its counts."""
        size = range(len(question.options))
        return [
            self.answers[count, question.gold] - min(self.answers[count, i] for i in size)
            for count in _counts(question)
        ]

    def allows(self, question: Question) -> bool:
        """Whether the question can be asked without its answer getting more than `slack` ahead."""
        return max(self.leads(question)) < self.slack

    def add(self, question: Question) -> None:
        """Counts a question that is asked."""
        self.asked[question.ask] += 1
        self.answers.update((count, question.gold) for count in _counts(question))
        if question.ask == "name":
            self.names.update({name: 2 if i == question.gold else -1 for i, name in enumerate(question.options)})

    def position(self, ask: str, size: int, rng: np.random.Generator) -> int:
        """A position for the right one of `size` names: one of the rarest."""
        return min(rng.permutation(size).tolist(), key=lambda i: self.answers[(ask,), i])


def _counts(question: Question) -> list[tuple[str, ...]]:
    return [(question.ask,)] + [(question.ask, question.target)] * (question.ask in BY_TARGET)


@cache
def load_templates() -> dict[str, dict]:
    """Per question type "steps" {K: weight}, "open" and "closed" {ask: {key of `wordings`: texts}}."""
    return json.loads((DATA / "questions.json").read_text(encoding="utf-8"))["types"]


def generator(seed: int, *names: str) -> np.random.Generator:
    """A generator that depends on the seed and the names alone, the same in every process and on every machine."""
    digest = hashlib.sha256("\n".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def wordings(
    texts: dict[str, list[str]], target: str, modality: str, targets: Targets, site: str = "", axial: bool = False
) -> list[str]:
    """The texts for a target, the most particular list that there is.

    Keys are "who" or "who@where". Who: the row's own `wording`, the target's type, or any. Where: "slice" (of a volume, axial),
    "modality@site", or the modality.

    Args:
      texts: lists by key; "any" must be there.
      site, axial: of the image; sentences, which depend on neither, leave them out.
    """
    row, family = targets.row(target), targets.family(modality)
    places = [f"@{place}" for place in (["slice"] * axial + [f"{family}@{site}"] * bool(site) + [family])] + [""]
    keys = (who + place for who in (row.get("wording", ""), row["type"], "any") for place in places)
    return texts[next(key for key in keys if key in texts)]


def fields(target: str, modality: str, targets: Targets) -> dict[str, str]:
    """What templates and sentences say of a target: its names, the modality, and verbs that agree with it."""
    plural = targets.plural(target)
    words = {
        "phrase": targets.phrase(target),
        "the": targets.definite(target),
        "noun": targets.noun(target),
        "modality": targets.modality_words(modality),
    } | {one: many if plural else one for one, many in _PLURALS.items()}
    return words | {capital(key): capital(words[key]) for key in ("the", "is", "does")}


def absent_targets(sample: Sample, targets: Targets | None = None) -> list[str]:
    """Targets that are certainly not in the sample's image; empty where none is certain.

    That a source marks a target wherever it can be seen does not exclude what is a part, a kind or the whole of something marked: where the
    left kidney is marked, a kidney is there.
    """
    targets = targets or load_targets()
    here = {sample.target, *sample.present}
    certain = [name for name in sample.absent if not any(targets.related(name, other) for other in here)]
    certain = dict.fromkeys([*certain, *targets.never_at(sample.modality, sample.site)])
    return [name for name in certain if name not in here]


def questions(
    sample: Sample,
    count: int,
    seed: int,
    targets: Targets | None = None,
    form: str = "open",
    facts: Facts | None = None,
    balance: Balance | None = None,
) -> list[Question]:
    """Draws up to `count` questions of different types; fewer where fewer can be asked.

    The open "What is shown?" is asked only where the image has one marked target, and one whose name says something.

    Args:
      sample: what is asked about.
      count: 1 to 6.
      seed: of the data set.
      targets: another table than the built-in one.
      form: open or closed.
      facts: what `look` measured; by default it is measured here where it is needed.
      balance: of closed questions, counts what is asked; without it each sample stands alone.

    Raises:
      ValueError: count out of range, an unknown form, the target is not in the table, or what `look` raises.
    """
    targets, templates = targets or load_targets(), load_templates()
    if not 1 <= count <= len(templates):
        raise ValueError(f"questions per sample must be 1..{len(templates)}, not {count}")
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r} of questions: use {' or '.join(FORMS)}")
    if facts is None and (form == "closed" or sample.neighbours):
        facts = look(sample)
    balance = balance or Balance()
    rng = generator(seed, "questions" if form == "open" else "closed questions", sample.id)
    made, called = [], targets.neutral(sample.target)
    # "Where is the tumor?" has no answer where a benign and a malignant one are marked.
    named = sum(targets.neutral(name) == called for name in {sample.target, *sample.present})
    several = named > 1 and called != sample.target
    for kind in rng.permutation(list(templates)).tolist():
        if len(made) == count:
            break
        if several and kind != "identify":
            continue
        closed = form == "closed"
        question = (
            _closed(kind, sample, facts, targets, balance, rng) if closed else _open(kind, sample, facts, targets, rng)
        )
        if question:
            made.append(question)
    return made


def _ask(
    kind: str, ask: str, sample: Sample, target: str, targets: Targets, rng, form: str = "open", **known
) -> Question:
    """A question with its text and number of steps drawn."""
    if ask != "name":
        target = targets.neutral(target)
    steps, weights = zip(*load_templates()[kind]["steps"].items(), strict=True)
    k = int(rng.choice(steps, p=np.array(weights) / sum(weights)))
    texts = load_templates()[kind][form][ask]
    axial = sample.orientation == "radiological"
    texts = wordings(texts, target, sample.modality, targets, sample.site, axial)
    words = fields(target, sample.modality, targets)
    if known.get("other"):
        words["the_other"] = targets.definite(targets.neutral(known["other"]))
    if known.get("options"):
        *most, last = known["options"]
        words["options"] = f"{', '.join(most)} or {last}"
    text = capital(texts[rng.integers(len(texts))].format(**words))
    return Question(kind, text, k, target, form=form, ask=ask, **known)


def _open(kind: str, sample: Sample, facts: Facts | None, targets: Targets, rng) -> Question | None:
    if kind == "identify" and (len(sample.present) > 1 or targets.row(sample.target).get("generic")):
        return None
    axes = {"location_choice": ["columns"], "location": ["rows", "columns"]}.get(kind, [])
    if facts and not clear(facts.own, *axes):
        return None
    if kind == "yesno":
        absent = absent_targets(sample, targets)
        if absent and rng.random() < NEGATIVE_SHARE:
            name = absent[rng.integers(len(absent))]
            return _ask(kind, "presence", sample, name, targets, rng, visible=False)
    if kind == "reasoning" and facts:
        near = comparable(sample, facts, targets)
        if near and rng.random() < RELATION_SHARE:
            other = near[rng.integers(len(near))]
            return _ask(kind, "relation", sample, sample.target, targets, rng, other=other)
    asks = load_templates()[kind]["open"]
    return _ask(kind, next(iter(asks)), sample, sample.target, targets, rng)


# --- closed questions ----------------------------------------------------------------------------------


def comparable(sample: Sample, facts: Facts, targets: Targets) -> list[str]:
    """Neighbours that a sample's target can be compared with: words of disease stay with findings."""
    finding = targets.row(sample.target)["type"] == "lesion"
    own = targets.neutral(sample.target)
    others = [name for name in facts.others if targets.neutral(name) != own]
    return [name for name in others if finding or targets.row(name)["type"] != "lesion"]


def beside(facts: Facts, other: str) -> str | None:
    """Where the target lies as seen from a neighbour; None where that is not clear, or one is a part of the other."""
    return None if other in facts.shared else direction(facts.own, facts.others[other])


def _closed(kind: str, sample: Sample, facts: Facts, targets: Targets, balance: Balance, rng) -> Question | None:
    """Of all closed questions of a type that are certain and do not tip the balance, one with the rarest answer; then of the rarest ask."""
    for candidates in _candidates(kind, sample, facts, targets, balance, rng):
        drawn = []
        for ask, target, other, options, gold in candidates:
            if ask in SHUFFLED:
                options = list(options)
                right = options.pop(gold)
                gold = balance.position(ask, len(options) + 1, rng)
                options.insert(gold, right)
            known = {"options": tuple(options), "gold": gold, "other": other, "visible": (ask, gold) != ("presence", 1)}
            question = _ask(kind, ask, sample, target, targets, rng, form="closed", **known)
            if balance.allows(question):
                leads = balance.leads(question)
                drawn.append((max(leads), sum(leads), balance.asked[ask], rng.random(), question))
        if drawn:
            question = min(drawn, key=lambda row: row[:-1])[-1]
            balance.add(question)
            return question
    return None


def _candidates(kind: str, sample: Sample, facts: Facts, targets: Targets, balance: Balance, rng) -> list[list[tuple]]:
    """What can be asked: lists of (ask, target, other, options, gold); a later list is for when the earlier gives none."""
    m, name = facts.own, sample.target
    found: dict[str, tuple[tuple[str, ...], str | None]] = {}
    name = name if kind == "identify" else targets.neutral(name)
    if kind == "yesno":
        absent = absent_targets(sample, targets)
        # Without a true negative, yes would be the only answer.
        names = [name, *absent] if absent else []
        return [[("presence", other, None, ("yes", "no"), int(other != name)) for other in names]]
    if kind == "identify":
        absent = [other for other in absent_targets(sample, targets) if not targets.row(other).get("generic")]
        if len(absent) < 2 or targets.row(name).get("generic"):
            return []
        if balance.names[targets.phrase(name)] > NAME_LEAD:
            return []
        # Names that were right more often than wrong so far come first, so that no name alone says right or wrong.
        absent = sorted(rng.permutation(absent).tolist(), key=lambda other: -balance.names[targets.phrase(other)])
        return [[("name", name, None, [targets.phrase(other) for other in (name, *absent[:2])], 0)]]
    if kind == "location_choice":
        sure = not spans(m, "columns") and clear(m, "columns")
        found["side"] = SIDES, next(word for word in SIDES if word in side(m)) if sure else None
    elif kind == "location":
        found["quarter"] = QUARTERS, None if spans(m, "rows") or spans(m, "columns") else quarter(m)
    elif kind == "describe":
        found["shape"] = tuple(SHAPES), _certain_shape(m)
        found["brightness"] = LIGHTS, _certain_light(m)
    else:
        near = [other for other in comparable(sample, facts, targets) if other not in facts.within | facts.holds]
        both = [row for other in near for row in _pair(name, other, facts, targets)]
        sure = not spans(m, "rows") and abs(m.row - 0.5) >= MIDLINE and _certain_light(m)
        found["place_and_brightness"] = PLACES, f"{half(m)} half and {_certain_light(m)}" if sure else None
        return [both, _listed(found, name)]
    return [_listed(found, name)]


def _listed(found: dict, name: str) -> list[tuple]:
    return [(ask, name, None, options, options.index(gold)) for ask, (options, gold) in found.items() if gold]


def _pair(name: str, other: str, facts: Facts, targets: Targets) -> list[tuple]:
    """The questions that compare two targets."""
    a, b = facts.own, facts.others[other]
    names = targets.definite(name), targets.definite(targets.neutral(other))
    place, size, light = beside(facts, other), compare_size(a, b), compare_brightness(a, b)
    rows = []
    if place:
        rows.append(("direction", name, other, DIRECTIONS, DIRECTIONS.index(place.removesuffix(" of"))))
    if size in ("larger", "smaller"):
        rows.append(("larger", name, other, names, int(size == "smaller")))
    if light in LIGHTS:
        rows.append(("brighter_of_two", name, other, names, LIGHTS.index(light)))
    return rows


def _certain_shape(m: Measurement) -> str | None:
    if m.parts > 1 or m.compactness < COMPACT:
        return None
    return next((word for word, (low, high) in SHAPES.items() if low <= m.elongation < high), None)


def _certain_light(m: Measurement) -> str | None:
    return None if abs(m.contrast) < BRIGHTER else LIGHTS[int(m.contrast < 0)]
