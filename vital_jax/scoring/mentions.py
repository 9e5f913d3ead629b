"""Which of several texts a reply names, where, and whether it says so or denies it.

Names are looked for as whole words whatever their spelling ("X-ray", "xray", "x ray"; "two", "2"), longer names before shorter ones inside
them. What is found is replaced by one private character each, so that clauses, denials ("not the kidney", "A is wrong") and alternatives
("left or right") can be read from what stands around it, and the words of a name ("No effusion") are not read as such.
"""

import re
from collections.abc import Sequence

from vital_jax.scoring.reading import statements
from vital_jax.scoring.text import NUMBERS

FIRST = 0xE000  # of Unicode's private characters: one for each name
ANY = "[\ue000-\uefff]"
_TOKEN = re.compile(
    r"(?:[<>≤≥]=?\s*(?=-?\d))?(?:(?<![^\W_])-(?=\d))?(?:[\u3040-\u9fff]|(?:(?![\u3040-\u9fff])[^\W_])+(?:[.,/]\d+)*[+*]?)"
)
_ARTICLES, _NOUN = ("a", "an", "the"), re.compile(r"\s+\W*\w")
_NEGATIONS = (
    r"(?:\b(?:not|no|never|neither|nor|without|cannot|rather\s+than|instead\s+of|other\s+than|(?:any|every)thing\s+but|except(?:\s+for)?|unlike|exclud\w*|rules?\s+out|"
    r"ruled\s+out|absence\s+of|lacks?|(?:i|we)\s+doubt|doubtful)\b|n't\b|不|没|并非)"
)
_BEFORE = re.compile(rf"{_NEGATIONS}[^,:()]*$", re.I)
_WRONG = (
    r"(?:absent|unlikely|excluded|ruled\s+out|incorrect|wrong|false|improbable|impossible|implausible|less\s+likely)\b"
)
_NOT = r"(?:(?:is|are|was|were|does|do|did|can|could|has|have|would|seems?|looks?)(?:\s+not\b|n't\b)|cannot\b)"
_AFTER = re.compile(
    rf"[)\]'\"]*(?:\s+(?:\w+\s+){{0,2}}?(?:{_NOT}|{_WRONG})|\s+not\s+(?:seen|visible|shown|present|involved|affected|correct|right)\b"
    rf"|\s*[:(–—-]+\s*(?:is\s+)?(?:not\b|{_WRONG}))",
    re.I,
)
# "not A, B or C" denies all three.
_CHAIN = re.compile(rf"(?:{ANY}[\s,/()\[\].:]*(?:(?:or|nor|and)\b\s*)?(?:(?:the|an?|option|choice)\s+)*)+$", re.I)
_JOINED = r"\s*(?:/|\b(?:or|vs\.?|versus)\b)\s*"
OPPOSITES = (
    ("left", "right"), ("upper", "lower"), ("superior", "inferior"), ("anterior", "posterior"), ("medial", "lateral"),
    ("proximal", "distal"), ("benign", "malignant"), ("normal", "abnormal"), ("male", "female"), ("present", "absent"),
    ("increased", "decreased"),
)  # fmt: skip


def tokens(text: str) -> list[tuple[str, int, int]]:
    """(word, start, end) of a plain text: lower case, number words as digits, signs kept with their number, no article before a word."""
    found = []
    for match in _TOKEN.finditer(text):
        word = re.sub(r"(?<=\d),(?=\d{3}\b)|\s", "", match[0].lower())
        if word not in _ARTICLES or not _NOUN.match(text, match.end()):
            found.append((NUMBERS.get(word, word), match.start(), match.end()))
    return found


def key(text: str) -> str:
    """A plain text as one word: equal for texts that differ in case, articles, marks, spaces and the spelling of numbers alone."""
    return "".join(word for word, *_ in tokens(text))


def mark(text: str, names: Sequence[str]) -> str:
    """The plain text with every mention of `names[i]` replaced by `chr(FIRST + i)`; of names with the same words the first is meant."""
    words = tokens(text)
    keys: dict[str, int] = {}
    for place, name in enumerate(names):
        if found := key(name):
            keys.setdefault(found, place)
    longest, spans = max(map(len, keys), default=0), []
    for first, (_, start, _) in enumerate(words):
        joined = ""
        for word, _, end in words[first:]:
            joined += word
            if len(joined) > longest:
                break
            if joined in keys:
                spans.append((start, end, keys[joined]))
    taken: list[tuple[int, int, int]] = []
    for span in sorted(spans, key=lambda span: span[0] - span[1]):
        if all(span[1] <= start or end <= span[0] for start, end, _ in taken):
            taken.append(span)
    for start, end, place in sorted(taken, reverse=True):
        text = text[:start] + chr(FIRST + place) + text[end:]
    return text


def asserted(marked: str) -> tuple[set[int], set[int]]:
    """(said, named): the names that a marked text states, and all that it mentions.

    A name is said where a statement holds it and does not deny it.
    """
    named = {ord(mark) - FIRST for mark in re.findall(ANY, marked)}
    said = set()
    for clause in statements(marked):
        clause = re.sub(r"^\W*(?:no|yes)\s*[,.:–—]", "", clause, flags=re.I)
        for found in re.finditer(ANY, clause):
            before = _CHAIN.sub("", clause[: found.start()])
            before = re.split(ANY, before)[-1]
            after = re.split(ANY, clause[found.end() :])[0]
            if not _BEFORE.search(before) and not _AFTER.match(after):
                said.add(ord(found[0]) - FIRST)
    return said, named


def states(text: str, name: str) -> bool:
    """Whether a plain text says a name, does not deny it, and leaves no other open beside it ("left or right", "right and left")."""
    marked = mark(text, [name])
    said, _ = asserted(marked)
    words = {word for word, *_ in tokens(name)}
    other = "|".join(b for pair in OPPOSITES for a, b in (pair, pair[::-1]) if a in words)
    article = r"(?:(?:the|an?|on|in)\s+)*"
    alternative = rf"{ANY}{_JOINED}{article}\w|\w{_JOINED}{article}{ANY}"
    if other:
        both = r"\s*(?:,|&|\band\b)\s*"
        alternative += rf"|{ANY}{both}{article}(?:{other})\b|\b(?:{other}){both}{article}{ANY}"
    return bool(said) and not any(re.search(alternative, clause, re.I) for clause in statements(marked))
