"""Protocol `mmmu`: the benchmark's own parser, and the mean over subjects.

From MMMU's `eval/eval_utils.py` (44b45b5) and MMMU-Pro's `evaluate.py` (56eede8). Where the parser finds nothing it draws a letter at
random, a gift of 1/4 of a point for every answer that cannot be read. Here such an answer is wrong; `compat` draws as they do, with the
seed 42, which gives their letters where items come in their order (subjects in theirs, questions by number). MMMU-Pro sets no seed, so its
own draws cannot be had again; 42 stands in for them.
"""

import re
from collections.abc import Callable, Sequence

from vital_jax.evaluate.items import Item
from vital_jax.evaluate.protocols.core import Parsed, Protocol, family
from vital_jax.evaluate.protocols.measures import accuracy, golds
from vital_jax.scoring.choice import letters_of

ABOUT = (
    "MMMU's parser for choices and for open answers, MMMU-Pro's where items are of mmmu_pro; an answer that names no option is wrong. "
    "The mean over subjects is the row 'macro over subject'."
)
COMPAT = "MMMU's parser as it stands: an answer that names no option is drawn at random (seed 42; MMMU-Pro itself sets none)."
SEED = 42
STRIPPED = (",", ".", "!", "?", ";", ":", "'")
KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)
DIRECT = "Answer with the option's letter from the given choices directly."
PHRASE = "Answer the question using a single word or phrase."

Marks = Sequence[Callable[[str], str]]
OFFICIAL: Marks = ("({})".format, " {} ".format)
# lmms-eval and MMMU-Pro: a letter followed by a space or a full stop, also at the end of a longer word ("MRA ").
LOOSE: Marks = ("({})".format, "{} ".format, "{}.".format)


def pick(text: str, options: Sequence[str], marks: Marks) -> tuple[str, str]:
    """(letter, rule): the last letter in brackets, else in the next form of `marks`, else the last option within a text of over 5 words."""
    for mark in STRIPPED:
        text = text.strip(mark)
    text = f" {text} "
    names = letters_of(options)
    for mark in marks:
        if found := [name for name in names if mark(name) in text]:
            # The loose forms look a letter's last place up between spaces, where it may not be.
            form = OFFICIAL[1] if marks is LOOSE and mark is not marks[0] else mark
            return _last(found, [text.rfind(form(name)) for name in found]), "letter"
    low = text.lower()
    words = dict(zip(names, (option.lower() for option in options), strict=True))
    if len(text.split()) > 5 and (found := [name for name in names if words[name] in low]):
        return _last(found, [low.rfind(words[name]) for name in found]), "contained"
    return "", "none"


def _last(names: Sequence[str], places: Sequence[int]) -> str:
    return names[places.index(max(places))]


def pick_pro(text: str, options: Sequence[str]) -> tuple[str, str]:
    """MMMU-Pro: the only letter after the last "Answer:", else as lmms-eval does."""
    _, said, after = text.rpartition("Answer:")
    found = [name for name in letters_of(options) if name in after] if said else []
    return (found[0], "letter") if len(found) == 1 else pick(text, options, LOOSE)


def normal(text: str) -> list[str | float]:
    """A number rounded to 2 places, else lower case; a single character with a space before or behind it, so that it matches no word."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def said_openly(text: str) -> list[str | float]:
    """The candidates of an open answer: of every line the shortest tail behind a word such as "is", and the numbers in it."""
    low = text.strip().strip(".").lower()
    # The original also splits at a full stop before a capital, but after lower case, so never.
    lines = low.split("\n")
    keys = []
    for number, line in enumerate(lines):
        words = (*KEYS, "=") if number == len(lines) - 1 else KEYS
        shortest = ""
        for tail in (line.split(word)[-1].strip() for word in words if word in line):
            # An empty tail is the shortest until the next word takes its place, whatever its length.
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in STRIPPED:
            keys.append(shortest)
    keys = keys or [low]
    numbers = [number for key in keys for pattern in NUMBERS for number in re.findall(pattern, key)]
    return list(dict.fromkeys(value for part in [*keys, *numbers] for value in normal(part)))


def open_right(answers: Sequence[str], said: Sequence[str | float]) -> bool:
    """A gold text within a candidate, or a number equal to it."""
    gold = [value for answer in answers for value in normal(answer)]
    texts = [value for value in gold if isinstance(value, str)]
    return any(any(t in value for t in texts) if isinstance(value, str) else value in gold for value in said)


def prompt(item: Item) -> str:
    """MMMU's own form with (A), MMMU-Pro's with A. for its items."""
    if not item.options:
        return f"{item.question}\n\n{PHRASE}"
    pairs = list(zip(letters_of(item.options), item.options, strict=True))
    if family(item.benchmark) == "mmmu_pro":
        return "\n".join([item.question, *(f"{name}. {option}" for name, option in pairs), DIRECT])
    listed = "".join(f"({name}) {option}\n" for name, option in pairs)
    return f"{item.question}\n\n{listed}\n\n{DIRECT}"


def parser(guess: bool, marks: Marks = OFFICIAL) -> Callable[[Item, str], Parsed]:
    """How an answer is read; with `guess` one that names nothing asks for a draw."""

    def parse(item: Item, text: str) -> Parsed:
        if not item.options:
            return Parsed(text, text.strip(), "text")
        if family(item.benchmark) == "mmmu_pro":
            value, how = pick_pro(text, item.options)
        else:
            value, how = pick(text, item.options, marks)
        return Parsed(text, value, "guess" if guess and how == "none" else how)

    return parse


def correct(item: Item, parsed: Parsed) -> bool:
    if item.options:
        return bool(parsed.value) and parsed.value == item.gold
    return open_right(golds(item), said_openly(parsed.text))


def mmmu(compat: bool = False) -> Protocol:
    """The protocol; `compat` for the official random draws."""
    return Protocol(
        name="mmmu",
        version=1 if compat else 2,
        about=COMPAT if compat else ABOUT,
        prompt=prompt,
        parse=parser(compat),
        correct=correct,
        measures=(accuracy("accuracy", "all questions", correct),),
        guess=SEED if compat else None,
        options=("compat",) if compat else (),
    )
