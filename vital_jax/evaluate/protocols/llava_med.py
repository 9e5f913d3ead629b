"""Protocol `llava_med`: what papers mean by "closed accuracy and open recall" of VQA-RAD, SLAKE and PathVQA.

The rule comes from `llava/eval/run_eval.py` of LLaVA-Med 1.0, which most later code copies. By default the two ideas are scored as
described: a closed answer is right if it contains the gold answer, an open one by the share of gold tokens that it has. With `compat` the
script's own arithmetic is done, mistakes included (see `defects.py`), except its accuracy over a list of candidate answers, which needs a
file of its own.
"""

import re
from collections import Counter

from vital_jax.evaluate.items import Item
from vital_jax.evaluate.protocols.core import NO_OPTIONS, Measure, Parsed, Protocol
from vital_jax.evaluate.protocols.measures import accuracy, closed, golds, in_words, overlaps
from vital_jax.scoring.mentions import states
from vital_jax.scoring.reading import is_yes_no, readable, yes_no
from vital_jax.scoring.text import bare, bleu, squad

ABOUT = (
    "LLaVA-Med 1.0, run_eval.py, as papers describe it. The prompt is the question alone. Closed: what the benchmark marks closed-ended, "
    "right if the answer states the gold answer as whole words, neither denied nor beside another (yes and no: as its own yes or no). "
    "Open: token recall, SQuAD's normal form."
)
COMPAT = "LLaVA-Med 1.0, run_eval.py at ad758b6, arithmetic as it stands; without its accuracy over candidate answers."
RULE_CLOSED = "what the benchmark marks closed-ended, else options or yes/no"
RULE_OPEN = "what is not closed-ended"
NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"zero": "0", **{word: str(number) for number, word in enumerate(NUMBERS)}}
MARKS = ';/[]"{}()=+\\_-><@`,?!'
CONTRACTIONS = """
    ain't aren't can't couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't isn't mightn't mightn't've mustn't needn't
    oughtn't shan't shouldn't shouldn't've wasn't weren't won't wouldn't wouldn't've could've might've must've not've should've would've
    he'd he'd've he's how'd how'll how's it'd it'd've it'll she'd've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've
    we'd've we've what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
    you'd you'd've you'll you're you've y'all y'all'll y'all'd've ma'am o'clock 'twas 'ow's'at
"""
# A word that lacks one apostrophe of these gets it back; of "somebody'd" it is taken out.
RESTORED = {
    word[:place] + word[place + 1 :]: word
    for word in CONTRACTIONS.split()
    for place, mark in enumerate(word)
    if mark == "'"
} | {"somebody'd": "somebodyd"}


def parse(item: Item, text: str) -> Parsed:
    if closed(item) and is_yes_no(item.answer):
        said = yes_no(text)
        return Parsed(text, said, "word" if said else "none")
    return in_words(item, text, text.strip()) if closed(item) else Parsed(text, text.strip(), "text")


def correct(item: Item, parsed: Parsed) -> bool:
    if closed(item):
        return any(bare(parsed.value) == bare(gold) or states(readable(parsed.value), gold) for gold in golds(item))
    said = squad(parsed.value)
    return bool(said) and said in map(squad, golds(item))


def words(text: str) -> str:
    """The normal form of the script: marks out, number words to digits, articles out, apostrophes back into contractions."""
    made = text
    for mark in MARKS:
        beside = mark + " " in text or " " + mark in text or re.search(r"\d,\d", text)
        made = made.replace(mark, "" if beside else " ")
    # The script passes re.UNICODE as the count of `sub`, so full stops after the 32nd stay.
    made = re.sub(r"\.(?!\d)", "", made, count=32)
    kept = (DIGITS.get(word, word) for word in made.lower().split())
    kept = (RESTORED.get(word, word) for word in kept if word not in ("a", "an", "the"))
    return " ".join(kept).replace(",", "")


def compat_closed(item: Item, parsed: Parsed) -> float | None:
    """1 for an answer with "yes" or "no" in it, inside words too, and the gold answer; without either 0; else not counted at all."""
    if not closed(item):
        return None
    said, gold = words(parsed.text.lower()), words(item.answer.lower())
    if "yes" in said or "no" in said:
        return 1.0 if gold in said else None
    return 0.0


def unclipped(said: str, gold: str) -> tuple[float, float, float, float]:
    """(precision, recall, F1, "exact match") of the scripts of PathVQA and LLaVA-Med.

    A word of the answer that the gold answer has too counts as often as the *answer* has it, in the recall as well. "Exact match" is the
    number of shared words over the answer's length.
    """
    ours, theirs = Counter(said.lower().split()), Counter(gold.lower().split())
    both = ours.keys() & theirs.keys()
    exact = len(both) / ours.total() if ours else 0.0
    hits = sum(ours[word] for word in both)
    if not hits:
        return 0.0, 0.0, 0.0, exact
    precision = hits / ours.total()
    recall = hits / (hits + sum(count for word, count in theirs.items() if word not in ours))
    return precision, recall, 2 * precision * recall / (precision + recall), exact


def _compat_open(place: int):
    def score(item: Item, parsed: Parsed) -> float | None:
        if closed(item):
            return None
        # The script normalises before and inside each measure.
        return unclipped(words(words(parsed.text.lower())), words(words(item.answer.lower())))[place]

    return score


def _compat_bleu(weights: tuple[float, ...]):
    def score(item: Item, parsed: Parsed) -> float | None:
        if closed(item):
            return None
        return bleu(words(parsed.text.lower()).split(), words(item.answer.lower()).split(), weights)

    return score


def _contains(item: Item, parsed: Parsed) -> bool:
    if closed(item):
        return compat_closed(item, parsed) == 1.0
    return words(parsed.text.lower()) == words(item.answer.lower())


def llava_med(compat: bool = False) -> Protocol:
    """The protocol; `compat` for the published script's own arithmetic."""
    base = dict(name="llava_med", version=1 if compat else 2, prompt=lambda item: item.question, needs=NO_OPTIONS)
    if not compat:
        measures = (
            accuracy("closed accuracy", RULE_CLOSED, correct, closed),
            *overlaps("open", RULE_OPEN, lambda item: not closed(item)),
        )
        return Protocol(**base, about=ABOUT, parse=parse, correct=correct, measures=measures)
    dropped = RULE_CLOSED + ", but not the wrong answers that hold yes or no: the script drops them"
    parts = ((0, "precision"), (1, "recall"), (2, "f1 score"), (3, "exact match score (shared-word ratio)"))
    grams = ((0.25,) * 4, (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0))
    measures = (
        Measure("yes/no accuracy as printed", dropped, compat_closed),
        *(Measure(f"{name} as printed", RULE_OPEN, _compat_open(place), share=False) for place, name in parts),
        *(
            Measure(f"bleu_score{f'_{n}' if n else ''} as printed", RULE_OPEN, _compat_bleu(weights), share=False)
            for n, weights in enumerate(grams)
        ),
    )
    return Protocol(
        **base,
        about=COMPAT,
        parse=lambda item, text: Parsed(text, words(text.lower()), "text"),
        correct=_contains,
        measures=measures,
        options=("compat",),
    )
