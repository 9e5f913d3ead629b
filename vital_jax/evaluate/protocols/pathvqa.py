"""Protocol `pathvqa`: the measures of the benchmark's own evaluation script.

He et al. 2020 report accuracy of yes/no questions and, of the others, BLEU-n, exact match and F1. By default these are what their names
say. With `compat` they are what `Evaluation script/evaluation_script.py` computes (see `defects.py`): a brevity penalty on characters,
n-grams without a match left out of the product, an "exact match" that is the ratio of shared words, and counts that are not clipped.
"""

import math
import re
from collections import Counter

from vital_jax.evaluate.items import Item
from vital_jax.evaluate.protocols.core import NO_OPTIONS, Measure, Parsed, Protocol
from vital_jax.evaluate.protocols.llava_med import unclipped
from vital_jax.evaluate.protocols.measures import accuracy, bleus, golds, overlaps
from vital_jax.scoring.reading import is_yes_no, yes_no
from vital_jax.scoring.text import squad

ABOUT = (
    "PathVQA's measures as their names say: accuracy of yes/no questions; exact match, BLEU-1 to 3 and token F1 of the others, in "
    "SQuAD's normal form. The script has no prompt; this one is the question alone."
)
COMPAT = (
    "PathVQA's evaluation_script.py at 01d6ffd with its utils.py (baseline/evaluate/version1 at b2609fc), arithmetic as it stands. It "
    "scores one answer at a time; where it divides by zero the answer is not counted."
)
YES_NO = "answer is yes or no"
REST = "answer is neither yes nor no"


def asks_yes_no(item: Item) -> bool:
    return is_yes_no(item.answer)


def rest(item: Item) -> bool:
    return not asks_yes_no(item)


def parse(item: Item, text: str) -> Parsed:
    if asks_yes_no(item):
        said = yes_no(text)
        return Parsed(text, said, "word" if said else "none")
    return Parsed(text, text.strip(), "text")


def compat_parse(item: Item, text: str) -> Parsed:
    """The first word where it is yes or no, else the only one of the two words in the answer."""
    if not asks_yes_no(item):
        return Parsed(text, text.strip(), "text")
    words = re.findall(r"[^\W\d_]+", text.lower())
    found = {"yes", "no"} & set(words)
    said = words[0] if words and words[0] in found else found.pop() if len(found) == 1 else ""
    return Parsed(text, said, "word" if said else "none")


def correct(item: Item, parsed: Parsed) -> bool:
    return bool(squad(parsed.value)) and any(squad(parsed.value) == squad(gold) for gold in golds(item))


def kept(text: str) -> str:
    """Letters and spaces of a text, in lower case; a mark leaves no gap behind."""
    return " ".join(re.sub("[^a-zA-Z ]", "", text).lower().split())


def compat_bleu(said: str, gold: str, n: int) -> float:
    """The script's BLEU-n with equal weights; without any word in common it is the brevity penalty alone, so 1 for a long answer.

    Raises: ZeroDivisionError, as the script, where the answer has fewer than n words.
    """
    logs = 0.0
    for order in range(1, n + 1):
        ours, theirs = (
            Counter(zip(*(w[i:] for i in range(order)), strict=False)) for w in (kept(said).split(), kept(gold).split())
        )
        precision = sum((ours & theirs).values()) / ours.total()
        logs += math.log(precision) / n if precision else 0.0
    return math.exp(logs) * (1.0 if len(said) > len(gold) else math.exp(1 - len(gold) / len(said)))


def _compat_bleu(n: int):
    def score(item: Item, parsed: Parsed) -> float | None:
        if not rest(item):
            return None
        try:
            return compat_bleu(parsed.text, item.answer, n)
        except ZeroDivisionError:
            return None

    return score


def _compat_part(place: int):
    def score(item: Item, parsed: Parsed) -> float | None:
        return unclipped(kept(parsed.text), kept(item.answer))[place] if rest(item) else None

    return score


def pathvqa(compat: bool = False) -> Protocol:
    """The protocol; `compat` for the published script's own arithmetic."""
    base = dict(
        name="pathvqa",
        version=1 if compat else 2,
        prompt=lambda item: item.question,
        parse=compat_parse if compat else parse,
        correct=correct,
        needs=NO_OPTIONS,
    )
    exact_yes_no = accuracy("yes/no accuracy", YES_NO, correct, asks_yes_no)
    if not compat:
        measures = (
            exact_yes_no,
            accuracy("exact match", REST, correct, rest),
            *bleus("open", REST, rest, orders=3),
            *overlaps("open", REST, rest)[2:],
        )
        return Protocol(**base, about=ABOUT, measures=measures)
    measures = (
        exact_yes_no,
        Measure("exact match as printed (shared-word ratio)", REST, _compat_part(3), share=False),
        Measure("F1 as printed", REST, _compat_part(2), share=False),
        *(
            Measure(
                f"BLEU-{n} as printed", f"{REST}, and the answer has {n} words of letters", _compat_bleu(n), share=False
            )
            for n in (1, 2, 3)
        ),
    )
    return Protocol(**base, about=COMPAT, measures=measures, options=("compat",))
