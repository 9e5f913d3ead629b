"""What a score has to be read beside: the answers that need no image, scored under the same protocol on the same questions.

A benchmark whose yes/no questions are answered by no in two of three cases gives 67 % to whoever never looks. Both rows are made of the
scored questions themselves, so they have the N of the score that they stand under.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace

from vital_jax.evaluate.items import Item
from vital_jax.evaluate.protocols.core import Metric, Protocol, Scored, metric_of
from vital_jax.scoring.choice import letters_of
from vital_jax.scoring.reading import is_yes_no
from vital_jax.scoring.text import bare

MAJORITY, CHANCE = "majority answer", "chance"
FLOORS = (MAJORITY, CHANCE)
RULES = {
    MAJORITY: "the commonest right answer among these questions to each form (so many options, yes or no, words)",
    CHANCE: "one of the offered answers, each as likely",
}


def with_floors(scored: Scored, protocol: Protocol, items: Sequence[Item]) -> Scored:
    """The scores with the rows `FLOORS` behind those of all questions; chance where every counted question offers its answers.

    A scorer that is reproduced with its mistakes, or that needs a judge's verdicts, has none.

    Args: items: those that were scored.
    """
    if protocol.options:
        return scored
    found = {MAJORITY: _majority(items), CHANCE: [_offered(item) for item in items]}
    metrics = []
    for metric in scored.metrics:
        metrics.append(metric)
        if metric.group == "all":
            floors = (_floor(protocol, metric, name, items, replies) for name, replies in found.items())
            metrics += [floor for floor in floors if floor]
    return replace(scored, metrics=metrics)


def _form(item: Item) -> Hashable:
    """What a question shows of its answer before anybody looks at an image."""
    return len(item.options) or ("yes/no" if is_yes_no(item.answer) else "words")


def _right(item: Item) -> str:
    return ", ".join(item.gold) if item.options else bare(item.answer)


def _majority(items: Sequence[Item]) -> list[list[str]]:
    """One reply to each question; a tie goes to the first in the alphabet."""
    counts: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for item in items:
        counts[_form(item)][_right(item)] += 1
    best = {form: min(count, key=lambda reply, c=count: (-c[reply], reply)) for form, count in counts.items()}
    return [[best[_form(item)]] for item in items]


def _offered(item: Item) -> list[str]:
    """The replies to choose from; none where the question offers none, or has several right options."""
    if item.options:
        return letters_of(item.options) if len(item.gold) == 1 else []
    return ["yes", "no"] if is_yes_no(item.answer) else []


def _floor(
    protocol: Protocol, metric: Metric, name: str, items: Sequence[Item], replies: Sequence[Sequence[str]]
) -> Metric | None:
    """The metric of these replies, each as likely; None where a counted question has none."""
    (measure,) = (one for one in protocol.measures if one.name == metric.measure)
    counted = []
    for item, said in zip(items, replies, strict=True):
        if measure.score(item, protocol.parse(item, _right(item))) is None:
            continue
        scores = [measure.score(item, protocol.parse(item, reply)) for reply in said]
        if not scores or None in scores:
            return None
        counted.append((item, sum(scores) / len(scores), False))
    found = metric_of(replace(measure, rule=f"{RULES[name]}; {measure.rule}"), name, counted)
    return found if name == MAJORITY else replace(found, low=None, high=None, interval="arithmetic")
