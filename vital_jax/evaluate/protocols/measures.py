"""The measures that several protocols share: accuracies, token overlap and BLEU over a named part of the questions.

Overlaps compare tokens in SQuAD's normal form unless a protocol names another; of several accepted answers the one that scores best counts.
"""

from collections.abc import Callable, Sequence

from vital_jax.evaluate.items import Item
from vital_jax.evaluate.protocols.core import Measure, Parsed
from vital_jax.scoring.reading import is_yes_no, readable, refuses, said
from vital_jax.scoring.text import bare, bleu, overlap, squad

Tokens = Callable[[str], Sequence[str]]
Counts = Callable[[Item], bool]
Right = Callable[[Item, Parsed], bool]


def golds(item: Item) -> tuple[str, ...]:
    """The right answer and the others that the benchmark accepts."""
    return item.answer, *item.answers


def squad_tokens(text: str) -> list[str]:
    return squad(text).split()


def closed(item: Item) -> bool:
    """Closed-ended as the benchmark says; where it says nothing: with options, or answered by yes or no."""
    return item.closed if item.closed is not None else bool(item.options) or is_yes_no(item.answer)


def in_words(item: Item, text: str, value: str) -> Parsed:
    """An answer in words, taken to say `value`; nothing where it only refuses to answer, unless that is the right answer."""
    refused = refuses(readable(text)) and bare(said(text)) not in map(bare, golds(item))
    return Parsed(text, "", "none") if refused or not value else Parsed(text, value, "text")


def accuracy(name: str, rule: str, right: Right, counts: Counts = lambda item: True) -> Measure:
    """The share of right answers among the items that count."""
    return Measure(name, rule, lambda item, parsed: float(right(item, parsed)) if counts(item) else None)


def overlaps(prefix: str, rule: str, counts: Counts, tokens: Tokens = squad_tokens) -> tuple[Measure, ...]:
    """Mean token precision, recall and F1."""

    def part(place: int) -> Callable[[Item, Parsed], float | None]:
        def score(item: Item, parsed: Parsed) -> float | None:
            if not counts(item):
                return None
            return max(overlap(tokens(parsed.value), tokens(gold))[place] for gold in golds(item))

        return score

    names = ("token precision", "token recall", "token F1")
    return tuple(Measure(f"{prefix} {name}", rule, part(place), share=False) for place, name in enumerate(names))


def bleus(
    prefix: str, rule: str, counts: Counts, tokens: Tokens = squad_tokens, orders: int = 4
) -> tuple[Measure, ...]:
    """Mean sentence BLEU-1 to BLEU-`orders`, uniform weights."""

    def order(n: int) -> Callable[[Item, Parsed], float | None]:
        def score(item: Item, parsed: Parsed) -> float | None:
            if not counts(item):
                return None
            return max(bleu(tokens(parsed.value), tokens(gold), [1 / n] * n) for gold in golds(item))

        return score

    return tuple(Measure(f"{prefix} BLEU-{n}", rule, order(n), share=False) for n in range(1, orders + 1))
