"""What scorers do with words: normalising, token overlap, BLEU, yes or no, and which option an answer names.

Each is one published definition, stated where it is, so that a protocol only has to say which ones it uses. An answer that names nothing
gives
the empty string: to guess for a model, as some scorers do, adds chance to its accuracy.
"""

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

from vital_jax.evaluate.items import letter
from vital_jax.evaluate.score import normalise

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
# Behind a capital A or I these words tell a choice from the article and the pronoun.
VERDICTS = re.compile(r"\s+(?:and|or|nor|but|is|was|because|since|as|then|rather)\b")


def squad(text: str) -> str:
    """SQuAD's normal form (Rajpurkar 2016, evaluate-v1.1): lower case, punctuation deleted, articles out, single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def bare(text: str) -> str:
    """Lower case, single spaces, and no full stop at the end: "No." and "no" are one answer."""
    return normalise(text).rstrip(".。 ")


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


def final(text: str) -> str:
    r"""The last <answer>...</answer> or \boxed{...}, else what follows the last "answer is", "answer:" or "final answer", else the text."""
    if boxed := re.findall(r"<answer>(.*?)</answer>", text, re.S | re.I) or _boxed(text):
        return boxed[-1].strip()
    marks = r"\b(?:final\s+)?answer\s*\**\s*(?:is\b|[:：])\s*\**|\bfinal\s+answer\s|答案\s*[:：是]"
    parts = re.split(marks, text, flags=re.I)
    return parts[-1].strip() or text.strip()


def _boxed(text: str) -> list[str]:
    start = text.rfind("\\boxed{")
    depth = 0
    for end in range(start + len("\\boxed"), len(text)) if start >= 0 else ():
        depth += (text[end] == "{") - (text[end] == "}")
        if not depth:
            return [text[start + len("\\boxed{") : end]]
    return []


def yes_no(text: str) -> str:
    """ "yes" or "no", read as a whole word: the first word if it is one, else the only one of the two in the text; "" where neither "
    "holds."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    found = {"yes", "no"} & set(words)
    if words and words[0] in found:
        return words[0]
    return found.pop() if len(found) == 1 else ""


def is_yes_no(answer: str) -> bool:
    return bare(answer) in ("yes", "no")


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
