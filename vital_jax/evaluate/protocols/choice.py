"""Official protocols of four benchmarks with options: `pmc_vqa`, `omnimedvqa`, `medxpertqa` and `gemex`.

PMC-VQA and OmniMedVQA take the option that difflib finds nearest to the answer. Alone that rule misreads plain letters, so by default it
comes last, after a letter, an option's text and an option within the answer; `compat` uses nothing else, and of an answer to PMC-VQA only
the last character, as its script does.
"""

import re

from vital_jax.evaluate.items import Item
from vital_jax.evaluate.protocols.core import Parsed, Protocol
from vital_jax.evaluate.protocols.measures import accuracy, golds
from vital_jax.scoring.choice import choose, letters_of, nearest_option, several
from vital_jax.scoring.reading import is_yes_no, said, yes_no
from vital_jax.scoring.text import bare

OPTIONS = ("options", lambda item: bool(item.options))
ALL = "all questions"


def correct(item: Item, parsed: Parsed) -> bool:
    return bool(parsed.value) and parsed.value == item.gold


def labelled(item: Item) -> list[str]:
    """PMC-VQA's options as its files hold them: " A:Uterus"."""
    return [f" {name}:{option}" for name, option in zip(letters_of(item.options), item.options, strict=True)]


def _same_text(item: Item, parsed: Parsed) -> bool:
    """Right where the chosen option's text is the right one's, whatever its letter."""
    chosen = dict(zip(letters_of(item.options), item.options, strict=True)).get(parsed.value)
    return chosen is not None and chosen == item.answer


def _nearest(name: str, about: str, note: str, prompt, heard, right, compat: bool) -> Protocol:
    """Args:
    heard: with `compat`, what of an item and its answer is compared: (text, options). right: then decides.
    """
    right = right if compat else correct

    def parse(item: Item, text: str) -> Parsed:
        if not compat:
            return Parsed(text, *choose(text, item.options, nearest=True))
        found = nearest_option(*heard(item, text))
        return Parsed(text, found, "nearest" if found else "none")

    return Protocol(
        name=name,
        version=1 if compat else 2,
        about=note if compat else about,
        prompt=prompt,
        parse=parse,
        correct=right,
        measures=(accuracy("accuracy", ALL, right),),
        needs=OPTIONS,
        options=("compat",) if compat else (),
    )


def pmc_vqa(compat: bool = False) -> Protocol:
    """PMC-VQA, src/MedVInT_TD/test.py at 475db75; `compat` for nothing but its last character and nearest option."""
    return _nearest(
        "pmc_vqa",
        "PMC-VQA (MedVInT): accuracy of the nearest option, which a letter or an option's text goes before. test.csv, test_clean.csv and "
        "test_2.csv are three benchmarks: the split belongs to every number.",
        "PMC-VQA's script as it stands: the option, with its letter, nearest to the last character of the answer, upper and lower case "
        "apart. It was made for answers of one letter; the question's text, which its decoded text begins with, is taken to be cut off.",
        lambda item: f"Question: {item.question}Choices:{''.join(labelled(item))}The Answer is:",
        lambda item, text: (text[-1:], labelled(item)),
        correct,
        compat,
    )


def omnimedvqa(compat: bool = False) -> Protocol:
    """OmniMedVQA's question-answering score (Multi-Modality-Arena at ddd9465); `compat` for nothing but its nearest option."""

    def prompt(item: Item) -> str:
        shown = f"{item.question}Here are {len(item.options)} candidate answers:{list(item.options)}"
        ask = "Only return what you think is the correct answer from the candidate answers, do not return any other irrelevant text!"
        return f"{shown} {ask}"

    return _nearest(
        "omnimedvqa",
        "OmniMedVQA's question-answering score; a letter or an option's text goes before the nearest option. Its prefix score needs the "
        "model's losses and is not computed here. The open-access part is scored by modality.",
        "OmniMedVQA's nearest option alone, upper and lower case apart. Questions whose image fails are left out there; here every "
        "question counts.",
        prompt,
        lambda item, text: (text, item.options),
        _same_text,
        compat,
    )


def _range(item: Item) -> str:
    names = letters_of(item.options)
    return f"{names[0]} through {names[-1]}"


def _medxpertqa_parse(item: Item, text: str) -> Parsed:
    said = text
    for mark in (f"Therefore, among {_range(item)}, the answer is", " answer is "):
        if mark in said:
            # What stands between the first and the second of them.
            said = said.split(mark)[1]
            break
    for echo in ECHOES:
        said = said.replace(echo, "")
    found = re.search(rf"\b[A-{letters_of(item.options)[-1]}]\b", said)
    return Parsed(text, found[0] if found else "", "letter" if found else "none")


ECHOES = ("I understand", "A through J", "A through E", "A through D")  # their letters are no choice


def _medxpertqa_prompt(item: Item) -> str:
    pairs = zip(letters_of(item.options), item.options, strict=True)
    listed = " ".join(f"({name}) {option}" for name, option in pairs)
    asked = item.metadata.get("published_question") or f"{item.question}\nAnswer Choices: {listed}"
    return f"Q: {asked}\nA: Let's think step by step."


MEDXPERTQA = Protocol(
    name="medxpertqa",
    version=2,
    about=(
        "MedXpertQA, zero-shot with a chain of thought: a first turn that thinks, a second that ends with 'Therefore, among A through E, "
        "the answer is', and the first capital among the letters that stands alone in the reply, or behind that sentence or 'answer is' "
        "where the reply has it. Known weakness, kept: a reply that begins with the article 'A' is read as option A. The parser is that of "
        "its eval/utils.py, as code that carries it shows it. Reported by question type and task."
    ),
    system="You are a helpful medical assistant.",
    prompt=_medxpertqa_prompt,
    follow_up=lambda item: f"Therefore, among {_range(item)}, the answer is",
    parse=_medxpertqa_parse,
    correct=correct,
    measures=(accuracy("accuracy", ALL, correct),),
    needs=OPTIONS,
)


def gemex_kind(item: Item) -> str:
    """ "multi", "single", "closed" or "open", by the form that the item's task names, else by its options and answer."""
    said = str(item.metadata.get("task", "")).lower()
    for name in ("multi", "single", "closed", "open"):
        if said.startswith(name):
            return name
    if item.options:
        return "multi" if len(item.gold) > 1 else "single"
    return "closed" if item.closed or is_yes_no(item.answer) else "open"


def _gemex_parse(item: Item, text: str) -> Parsed:
    if gemex_kind(item) == "multi" and item.options:
        found = several(text, item.options)
        return Parsed(text, found, "letters" if found else "none")
    if item.options:
        return Parsed(text, *choose(text, item.options))
    if is_yes_no(item.answer):
        word = yes_no(text)
        return Parsed(text, word, "word" if word else "none")
    return Parsed(text, bare(said(text)), "text")


def _gemex_correct(item: Item, parsed: Parsed) -> bool:
    if item.options:
        return correct(item, parsed)
    return bool(parsed.value) and any(bare(parsed.value) == bare(gold) for gold in golds(item))


def _gemex_prompt(item: Item) -> str:
    if not item.options:
        return item.question
    ask = "all correct options' letters" if gemex_kind(item) == "multi" else "the correct option's letter"
    pairs = zip(letters_of(item.options), item.options, strict=True)
    return "\n".join([item.question, *(f"{name}. {option}" for name, option in pairs), f"Answer with {ask}."])


def _gemex_part(kind: str):
    return lambda item: gemex_kind(item) == kind


GEMEX = Protocol(
    name="gemex",
    version=2,
    about=(
        "GEMeX: accuracy of closed, single-choice and multiple-choice questions; of the last only the whole set of letters is right. No "
        "official script is published, so prompt and parsing are ours; its A-score (a language model's grade) and V-score (boxes) are "
        "not computed. The public subset has 20 questions of each type."
    ),
    prompt=_gemex_prompt,
    parse=_gemex_parse,
    correct=_gemex_correct,
    measures=(
        accuracy(
            "accuracy",
            "closed, single- and multiple-choice questions",
            _gemex_correct,
            lambda i: gemex_kind(i) != "open",
        ),
        accuracy("closed accuracy", "closed-ended questions", _gemex_correct, _gemex_part("closed")),
        accuracy("single-choice accuracy", "questions with one right option", _gemex_correct, _gemex_part("single")),
        accuracy(
            "multiple-choice accuracy", "questions with several right options", _gemex_correct, _gemex_part("multi")
        ),
    ),
)
