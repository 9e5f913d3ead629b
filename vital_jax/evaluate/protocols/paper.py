"""Protocol `paper`: VITAL, appendix B.4, with what the appendix leaves open named.

The appendix gives two rules: closed-ended answers are compared "after lowercasing and whitespace normalization", and token F1 takes "bags
of tokens (after lowercasing and whitespace tokenization)". It does not say how a choice is read, what becomes of a full stop, or which
questions are closed; the published VQA-RAD percentages fit 451 questions for some systems and 251 for others. So three denominators are
always printed.
"""

from vital_jax.evaluate.items import Item
from vital_jax.evaluate.protocols.core import Parsed, Protocol
from vital_jax.evaluate.protocols.measures import accuracy, closed, golds, overlaps
from vital_jax.scoring.choice import named_letter, same_option
from vital_jax.scoring.reading import is_yes_no, yes_no
from vital_jax.scoring.text import bare, normalise

ABOUT = (
    "VITAL appendix B.4. Left open there and settled here: a choice is its letter, alone or before words, or its text without a full stop "
    "at the end; yes and no are read as whole words; other closed answers are compared after lower case and single spaces, without a full "
    "stop at the end; the prompt is the question with its options. Closed means what the benchmark marks so; yes/no questions and all "
    "questions are printed beside it."
)


def prompt(item: Item) -> str:
    """The question, and the options one a line; the project's own records name theirs within the question, as they do in training."""
    if item.benchmark == "records":
        return item.question
    options = [f"{name}. {option}" for name, option in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", item.options, strict=False)]
    return "\n".join([item.question, *options])


def parse(item: Item, text: str) -> Parsed:
    if item.options:
        for how, rule in (("letter", named_letter), ("text", lambda t, o: same_option(t, o, bare))):
            if found := rule(text, item.options):
                return Parsed(text, found, how)
        return Parsed(text, "", "none")
    if is_yes_no(item.answer):
        said = yes_no(text)
        return Parsed(text, said, "word" if said else "none")
    return Parsed(text, normalise(text), "text")


def correct(item: Item, parsed: Parsed) -> bool:
    if item.options:
        return parsed.value == item.gold
    return bool(parsed.value) and any(bare(parsed.value) == bare(gold) for gold in golds(item))


def is_open(item: Item) -> bool:
    return not closed(item)


PAPER = Protocol(
    name="paper",
    version=1,
    about=ABOUT,
    prompt=prompt,
    parse=parse,
    correct=correct,
    measures=(
        accuracy("closed accuracy", "what the benchmark marks closed-ended, else options or yes/no", correct, closed),
        accuracy(
            "yes/no accuracy",
            "answer is yes or no, no options",
            correct,
            lambda i: not i.options and is_yes_no(i.answer),
        ),
        accuracy("accuracy", "all questions, open ones by exact match", correct),
        *overlaps("open", "what is not closed-ended", is_open, lambda text: normalise(text).split())[2:],
    ),
)
