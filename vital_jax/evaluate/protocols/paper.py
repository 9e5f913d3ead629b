"""Protocol `paper`: VITAL, appendix B.4, with what the appendix leaves open named.

The appendix gives two rules: closed-ended answers are compared "after lowercasing and whitespace normalization", and token F1 takes "bags
of tokens (after lowercasing and whitespace tokenization)". It does not say how a choice is read, what becomes of a full stop, or which
questions are closed; the published VQA-RAD percentages fit 451 questions for some systems and 251 for others. So three denominators are
always printed.
"""

from vital_jax.evaluate.items import Item
from vital_jax.evaluate.protocols.core import Parsed, Protocol
from vital_jax.evaluate.protocols.measures import accuracy, closed, golds, in_words, overlaps
from vital_jax.scoring.choice import choose
from vital_jax.scoring.reading import is_yes_no, said, yes_no
from vital_jax.scoring.text import bare, normalise

ABOUT = (
    "VITAL appendix B.4. Left open there and settled here: a choice is a letter, an option's text, or the only option that the answer "
    "states; yes and no are read as whole words; an answer that asks, refuses, denies or names several says none of them; other closed "
    "answers are compared after lower case and single spaces, without 'the answer is' and a full stop; the prompt is the question with its "
    "options. Closed means what the benchmark marks so; yes/no questions and all questions are printed beside it, and the appendix's rule "
    "as it stands as 'closed accuracy, literal'."
)


def prompt(item: Item) -> str:
    """The question, and the options one a line; the project's own records name theirs within the question, as they do in training."""
    if item.benchmark == "records":
        return item.question
    options = [f"{name}. {option}" for name, option in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", item.options, strict=False)]
    return "\n".join([item.question, *options])


def parse(item: Item, text: str) -> Parsed:
    if item.options:
        return Parsed(text, *choose(text, item.options))
    if is_yes_no(item.answer):
        word = yes_no(text)
        return Parsed(text, word, "word" if word else "none")
    if closed(item):
        return in_words(item, text, bare(said(text)))
    return Parsed(text, normalise(text), "text")


def correct(item: Item, parsed: Parsed) -> bool:
    if item.options:
        return bool(parsed.value) and parsed.value == item.gold
    return bool(parsed.value) and any(bare(parsed.value) == bare(gold) for gold in golds(item))


def literal(item: Item, parsed: Parsed) -> bool:
    """The appendix's rule and nothing else; of a choice its text or its letter is the ground truth."""
    return normalise(parsed.text) in map(normalise, (*golds(item), *filter(None, [item.gold])))


def is_open(item: Item) -> bool:
    return not closed(item)


PAPER = Protocol(
    name="paper",
    version=2,
    about=ABOUT,
    prompt=prompt,
    parse=parse,
    correct=correct,
    measures=(
        accuracy("closed accuracy", "what the benchmark marks closed-ended, else options or yes/no", correct, closed),
        accuracy(
            "closed accuracy, literal",
            "the same; equal after lower case and single spaces, nothing else is read (appendix B.4)",
            literal,
            closed,
        ),
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
