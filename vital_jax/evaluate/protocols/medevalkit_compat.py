"""MedEvalKit's arithmetic as it stands, so that its published tables can be checked; the correct measures are in `medevalkit.py`.

Written from reading the code (utils/utils.py and the benchmark files at 9b12e3b; VQA_RAD.py at 564d279), not copied from it. Every oddity
below is one of the source; `defects.py` lists those that change a score. One number is not given as printed: the open accuracy, which the
source divides by the number of open questions twice, so that it depends on how many there are.
"""

from collections.abc import Callable
from difflib import SequenceMatcher

from vital_jax.evaluate.items import Item
from vital_jax.evaluate.protocols.core import Measure, Parsed, ScorerStops, family
from vital_jax.scoring.choice import letter, letters_of
from vital_jax.scoring.text import bleu

MARKERS = (
    "**answer**:", "**answer**", "*answer*:", "**answer:**", "answer is", "answer:", "答案:", "final answer", "final answer is",
)  # fmt: skip
# How options are shown, and compared, with their letters in front: by its own code, or as PMC-VQA's file holds them.
LETTERED = {"omnimedvqa": "{}. {}", "medxpertqa": "{}. {}", "pmc_vqa": " {}:{}"}
# (F1, precision, recall) are unpacked under these names.
PRINTED = ("precision", "recall", "f1")


def choices(item: Item) -> list[str]:
    """The options as MedEvalKit shows and compares them."""
    form = LETTERED.get(family(item.benchmark), "{1}")
    return [form.format(letter(place), option) for place, option in enumerate(item.options)]


def verdict(item: Item, parsed: Parsed) -> bool:
    """The verdict that came with a prediction. Raises: ValueError where none did."""
    if parsed.judge is None:
        raise ValueError(
            f"prediction of {item.id!r} has no 'judge'; give the verdict of your judge as true or false, or score without judge"
        )
    return parsed.judge


def boxed(text: str) -> str:
    r"""The last \boxed{...}, or the word "None" (mathruler.grader.extract_boxed_content)."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return "None"
    inside, depth = text[start + len("\\boxed{") :], 0
    for end, mark in enumerate(inside):
        depth += (mark == "{") - (mark == "}")
        if depth < 0:
            return inside[:end].strip()
    return "None"


def tagged(text: str) -> str:
    """What stands between <answer> and </answer>, every time, joined by spaces; the text itself without such."""
    found, rest = [], text
    while "<answer>" in rest and "</answer>" in (tail := rest.split("<answer>", 1)[1]):
        inside, rest = tail.split("</answer>", 1)
        found.append(inside)
    return " ".join(found).strip() or text


def after_marker(text: str) -> str:
    """Lower case; the box or tag; then what follows the last of each marker in turn. White space stays."""
    text = text.lower()
    if "boxed" in text:
        text = boxed(text)
    elif "<answer>" in text:
        text = tagged(text)
    for marker in MARKERS:
        text = text.split(marker)[-1]
    return text


def response(item: Item, text: str) -> str:
    """What the benchmark's file hands to the rules below."""
    if item.options:
        return text if family(item.benchmark) == "pmc_vqa" else tagged(text)
    if boxed(text) != "None":
        text = boxed(text)
    elif "<answer>" in text:
        text = tagged(text)
    return text if family(item.benchmark) == "slake" else text.lower().strip()


def kind(item: Item) -> str:
    """ "choice", "judgement", "closed" or "open", as the benchmark files branch when they score."""
    if item.options:
        return "choice"
    if family(item.benchmark) == "slake":
        # Compared without lower case: SLAKE's "Yes" and "No" are no judgements there.
        return "open" if not item.closed else "judgement" if item.answer in ("yes", "no") else "closed"
    return "judgement" if item.answer.lower().strip() in ("yes", "no") else "open"


def judgement(answer: str, said: str) -> bool:
    """Right if exactly one of "yes" and "no" is in the answer, inside words too, and it is the gold one."""
    said = after_marker(said).replace("\n", "").replace(".", "")
    return (("yes" in said) ^ ("no" in said)) and answer.lower() in said


def closed(answer: str, said: str) -> bool:
    """Right if equal without line breaks and full stops; spaces at the ends count."""
    return after_marker(said).replace("\n", "").replace(".", "") == answer.lower()


def choice(options: list[str], gold: str, said: str) -> tuple[str, str]:
    """(letter, rule) that an answer is taken for; an answer without any likeness is taken for A."""
    low = [option.lower() for option in options]
    names = [name.lower() for name in letters_of(options)]
    said = said.lower()
    parts = said.split("\n\n")
    if parts[0] in names:
        said = parts[0]
    elif parts[-1].split(".")[0] in names:
        said = parts[-1].split(".")[0]
    said = after_marker(said).strip().replace("\n", "")
    first = said.split(".")[0].split(":")[-1]
    if first == gold.lower():
        return gold, "letter"
    if first in names:
        return first.upper(), "letter"
    if first in low:
        # Two options of the same text: the gold one is taken.
        return (gold if low[names.index(gold.lower())] == first else letter(low.index(first))), "text"
    best, place = 0.0, 0
    for number, option in enumerate(low):
        ratio = SequenceMatcher(None, option, said).ratio()
        if ratio > best:
            best, place = ratio, number
    return letter(place), "nearest"


def parse(item: Item, text: str) -> Parsed:
    said = response(item, text)
    if item.options:
        value, how = choice(choices(item), item.gold, said)
        return Parsed(text, value, how)
    return Parsed(text, said, "text")


def printed(answer: str, said: str) -> dict[str, float]:
    """precision, recall and f1 as printed: F1, precision and recall of *sets* of tokens, in this order.

    Raises: ScorerStops for an answer of nothing but spaces, or nothing but full stops: ROUGE or the unpacking of F1 fails.
    """
    said, answer = after_marker(said), answer.lower()
    if not said.split() or not said.strip("."):
        raise ScorerStops(f"MedEvalKit ends with an error at the open answer {said!r}")
    ours, theirs = set(said.split()), set(answer.split())
    shared = len(ours & theirs)
    precision, recall = shared / len(ours), shared / len(theirs)
    f1 = 2 * precision * recall / (precision + recall) if shared else 0.0
    return dict(zip(PRINTED, (f1, precision, recall), strict=True))


def grams(text: str) -> list[str]:
    """The tokens of its BLEU."""
    return text.lower().replace(".", " .").split(" ")


def by_rule(item: Item, parsed: Parsed) -> bool:
    """Right without a judge."""
    asks = kind(item)
    if asks == "choice":
        return parsed.value == item.gold
    if asks == "judgement":
        return judgement(item.answer.strip(), parsed.value)
    if asks == "closed":
        return closed(item.answer, parsed.value)
    answer = item.answer if family(item.benchmark) == "slake" else item.answer.strip()
    return after_marker(parsed.value) == answer.lower()


def correct(judge: bool) -> Callable[[Item, Parsed], bool]:
    """What is written back as "correct" of a question."""

    def right(item: Item, parsed: Parsed) -> bool:
        asked = judge and kind(item) != "choice" and (family(item.benchmark) == "slake" or kind(item) == "open")
        return verdict(item, parsed) if asked else by_rule(item, parsed)

    return right


def _counted(judge: bool, part: str) -> Callable[[Item, Parsed], float | None]:
    """How often a question is counted as right in a part ("all", "close", "open", "choice"); with a judge this may be 2."""

    def score(item: Item, parsed: Parsed) -> float | None:
        asks = "close" if kind(item) in ("judgement", "closed") else kind(item)
        if part not in ("all", asks):
            return None
        rule = float(by_rule(item, parsed))
        if not judge or asks == "choice":
            return rule
        if family(item.benchmark) == "slake":
            # Closed hits by rule are kept, and the judge's come on top.
            return verdict(item, parsed) + (rule if asks == "close" else 0.0)
        if asks == "close":
            return 0.0 if family(item.benchmark) == "pathvqa" else rule
        # VQA-RAD starts its total from the hits by rule and adds the judge's.
        twice = part == "all" and family(item.benchmark) != "pathvqa"
        return verdict(item, parsed) + (rule if twice else 0.0)

    return score


def _overlap(name: str) -> Callable[[Item, Parsed], float | None]:
    def score(item: Item, parsed: Parsed) -> float | None:
        if kind(item) != "open":
            return None
        try:
            return printed(item.answer, parsed.value)[name]
        except ScorerStops as stop:
            raise ScorerStops(f"item {item.id!r}: {stop}; score it without compat") from None

    return score


def _bleu(n: int) -> Callable[[Item, Parsed], float | None]:
    def score(item: Item, parsed: Parsed) -> float | None:
        if kind(item) != "open":
            return None
        return bleu(grams(after_marker(parsed.value)), grams(item.answer), [1 / n] * n)

    return score


def measures(judge: bool) -> tuple[Measure, ...]:
    """What MedEvalKit prints, under its own names."""
    closed_rule = "SLAKE: marked closed; others: answer is yes or no"
    parts = (
        ("total acc", "all questions", "all"),
        ("choice acc", "questions with options", "choice"),
        ("close acc", closed_rule, "close"),
    )
    made = [Measure(f"{name} as printed", rule, _counted(judge, part), share=not judge) for name, rule, part in parts]
    # Printed divided by N once more.
    twice = "neither options nor closed"
    made.append(Measure("open acc (printed: this over N again)", twice, _counted(judge, "open"), share=not judge))
    made.append(Measure("open em as printed", twice, _counted(False, "open")))
    meaning = dict(zip(PRINTED, ("F1 of token sets", "precision of token sets", "recall of token sets"), strict=True))
    made += [
        Measure(
            f"open {name} as printed (is {meaning[name]})", "neither options nor closed", _overlap(name), share=False
        )
        for name in PRINTED
    ]
    made += [
        Measure(f"open bleu{n} as printed", "neither options nor closed", _bleu(n), share=False) for n in range(1, 5)
    ]
    return tuple(made)
