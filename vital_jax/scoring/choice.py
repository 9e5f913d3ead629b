"""Which option an answer names: by its letter, its text, or the nearest text.

An answer that names nothing gives the empty string: to guess for a model, as some scorers do, adds chance to its accuracy.
"""

import re
import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher

from vital_jax.scoring.reading import final
from vital_jax.scoring.text import squad

ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
# Behind a capital A or I these words tell a choice from the article and the pronoun.
VERDICTS = re.compile(r"\s+(?:and|or|nor|but|is|was|because|since|as|then|rather)\b")


def letter(place: int) -> str:
    """0 -> "A": the letter of an option by its place. Raises: ValueError outside A to Z."""
    if not 0 <= place < 26:
        raise ValueError(f"option number {place + 1} has no letter: only A to Z are used")
    return chr(ord("A") + place)


def letters_of(options: Sequence[str]) -> list[str]:
    return [letter(place) for place in range(len(options))]


def named_letter(text: str, options: Sequence[str]) -> str:
    """The letter that stands alone ("B", "(b)", "B.", "Ｂ") or in front of words ("B. Uterus", "(B) Uterus"); "" for none or two."""
    text = unicodedata.normalize("NFKC", text)
    names = letters_of(options)
    if alone := ALONE.fullmatch(text):
        return alone[1].upper() if alone[1].upper() in names else ""
    found = re.match(r"\s*\**(\(?)([A-Za-z])(?:\)|\.|:|\*\*)(.*)", text, re.S)
    if not found or found[2].upper() not in names or re.match(r"\W*(?:(?:and|or)\b\W*)?[A-Z]\b", found[3]):
        return ""
    # "a. m." is no choice: in front of words only a capital, a bracket, or its own option's text marks a letter.
    own = squad(found[3]) == squad(options[names.index(found[2].upper())])
    return found[2].upper() if found[2].isupper() or ")" in found[0][:4] or own else ""


def lone_letters(text: str, options: Sequence[str]) -> list[str]:
    """The options' capitals that stand alone anywhere, but not behind "not", nor an article A or a pronoun I."""
    text = unicodedata.normalize("NFKC", text)
    found = []
    names = "".join(letters_of(options))
    for match in re.finditer(rf"(?<![A-Za-z0-9])(?<!not )([{names}])(?![A-Za-z0-9]|['’][a-z])", text):
        tail = text[match.end() :]
        prose = match[1] in "AI" and re.match(r"\s+[a-z]", tail) and not VERDICTS.match(tail)
        if not prose and match[1] not in found:
            found.append(match[1])
    return found


def same_option(text: str, options: Sequence[str], same=squad) -> str:
    """The letter of the only option that is the text after `same`; "" where none or several are."""
    found = [name for name, option in zip(letters_of(options), options, strict=True) if same(option) == same(text)]
    return found[0] if len(found) == 1 else ""


def contained_option(text: str, options: Sequence[str]) -> str:
    """The letter of the only option whose words stand in the text; an option inside a longer one that is there too does not count."""
    words = f" {squad(text)} "
    found = {name: f" {squad(option)} " for name, option in zip(letters_of(options), options, strict=True)}
    found = {name: option for name, option in found.items() if option.strip() and option in words}
    longest = [name for name, option in found.items() if not any(option in o and option != o for o in found.values())]
    return longest[0] if len(longest) == 1 else ""


def nearest_option(text: str, options: Sequence[str]) -> str:
    """The letter of the option with the highest difflib ratio, the first of equals; "" where no character is shared."""
    ratios = [SequenceMatcher(None, option, text).ratio() for option in options]
    best = max(ratios, default=0.0)
    return letter(ratios.index(best)) if best > 0 else ""


def choose(text: str, options: Sequence[str], nearest: bool = False) -> tuple[str, str]:
    """(letter, rule that found it): a letter, also alone on the first or last line; an option's text; an option within the text; the only
    letter within it; and, if asked for, the nearest option. An answer that is a letter of no option, or holds several options' letters,
    chooses none."""
    said = final(text)
    ends = (said.partition("\n")[0], said.rpartition("\n")[2])
    alone = {named_letter(line, options) for line in ends if ALONE.fullmatch(line)}
    if found := named_letter(said, options) or (alone.pop() if len(alone) == 1 else ""):
        return found, "letter"
    for how, rule in (("text", same_option), ("contained", contained_option)):
        if found := rule(said, options):
            return found, how
    letters = lone_letters(said, options)
    if letters or ALONE.fullmatch(said):
        return (letters[0], "letter within") if len(letters) == 1 else ("", "none")
    if nearest and (found := nearest_option(said.lower(), [option.lower() for option in options])):
        return found, "nearest"
    return "", "none"
