"""Normal forms of words and their overlap: exact match, token F1, BLEU.

Each is one published definition, stated where it is, so that a protocol or a reward only has to say which ones it uses.
"""

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
# Greek and Cyrillic letters that no reader tells from Latin ones, invisible characters, and typographic quotes.
LOOKALIKES = str.maketrans(
    "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧοАВЕКМНОРСТУХІЅЈаеорсухіѕј‘’“”",
    "ABEZHIKMNOPTYXoABEKMHOPCTYXISJaeopcyxisj''\"\"",
    "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad",
)
EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3}|_{1,3}|`{1,3}|\$)(?=\S)(.{1,400}?)(?<=\S)\1(?![\w*])", re.S)
TEX = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathit)\s*\{([^{}]*)\}")
HEADING = re.compile(r"^\s*(?:#+|[*•-]|>(?!\s*\d))\s+", re.M)
COUNTS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
NUMBERS = {word: str(number) for number, word in enumerate(COUNTS)}
_NUMBER = re.compile(rf"\b(?:{'|'.join(COUNTS)})\b")


def normalise(text: str) -> str:
    """Lower case, single spaces: what the paper's exact match compares (VITAL, appendix B.4)."""
    return " ".join(text.lower().split())


def squad(text: str) -> str:
    """SQuAD's normal form (Rajpurkar 2016, evaluate-v1.1): lower case, punctuation deleted, articles out, single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def plain(text: str) -> str:
    """The text in one alphabet and without marks of layout: compatibility forms (fullwidth, circled, mathematical), letters that look like
    Latin ones, invisible characters, Markdown emphasis, bullets and headings, TeX's text commands."""
    text = TEX.sub(r"\1", unicodedata.normalize("NFKC", text).translate(LOOKALIKES))
    while (bare := EMPHASIS.sub(r"\2", text)) != text:
        text = bare
    return HEADING.sub("", text).strip()


def numbered(text: str) -> str:
    """Number words in lower case as digits, zero to twenty: "two" is "2"."""
    return _NUMBER.sub(lambda found: NUMBERS[found[0]], text)


def bare(text: str) -> str:
    """`plain`, lower case, single spaces, number words as digits, and no full stop at the end: "No." and "no" are one answer."""
    return numbered(normalise(plain(text))).rstrip(".。 ")


def overlap(prediction: Sequence[str], gold: Sequence[str]) -> tuple[float, float, float]:
    """(precision, recall, F1) of two bags of tokens; a token counts as often as both have it.

    Where one bag is empty all three are 1 if both are and 0 otherwise (SQuAD 2.0).
    """
    if not prediction or not gold:
        return (float(not prediction and not gold),) * 3
    shared = sum((Counter(prediction) & Counter(gold)).values())
    if not shared:
        return 0.0, 0.0, 0.0
    return shared / len(prediction), shared / len(gold), 2 * shared / (len(prediction) + len(gold))


def bleu(prediction: Sequence[str], gold: Sequence[str], weights: Sequence[float]) -> float:
    """Sentence BLEU with one reference (Papineni 2002), without smoothing.

        BP · exp(Σ_n w_n log p_n),  BP = 1 if c > r else exp(1 - r / c)

    p_n is the share of the prediction's n-grams that the reference has too, each counted at most as often as there; c and r are the two
    lengths. It is 0 where a p_n with weight is 0, as for every answer shorter than n tokens: BLEU-2 of a right one-word answer is 0.

    Args:
      weights: of 1-grams, 2-grams ...
    """
    if not prediction:
        return 0.0
    logs = 0.0
    for n, weight in enumerate(weights, 1):
        if not weight:
            continue
        ours, theirs = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (prediction, gold))
        shared = sum((ours & theirs).values())
        if not shared:
            return 0.0
        logs += weight * math.log(shared / sum(ours.values()))
    penalty = 1.0 if len(prediction) > len(gold) else math.exp(1 - len(gold) / len(prediction))
    return penalty * math.exp(logs)
