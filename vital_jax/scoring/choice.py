"""Which option an answer names: by its letter, its place, its text, or the nearest text.

An answer that names none, several, or one that it denies gives the empty string: to guess for a model, as some scorers do, adds chance to
its accuracy.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from vital_jax.scoring.mentions import FIRST, asserted, key, mark, tokens
from vital_jax.scoring.reading import final, readable, refuses, tails, yes_no

ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
NONE = ("", "none")
# From the private character of an option's text to that of its letter where a mark or a word tells that a choice is meant, and to that of
# its capital which only stands alone.
LABEL, WEAK = 0x800, 0x400
GAP = r"[^\w\ue000-\uefff]*"
PLACES = {
    "first": 0,
    "1st": 0,
    "second": 1,
    "2nd": 1,
    "third": 2,
    "3rd": 2,
    "fourth": 3,
    "4th": 3,
    "fifth": 4,
    "5th": 4,
    "last": -1,
}
ORDINAL = re.compile(
    rf"\b({'|'.join(PLACES)})\s+(?:answer\s+|listed\s+)?(?:option|choice|answer|one|alternative)\b", re.I
)
PLACE = re.compile(rf"\A\W*(?:the\s+)?({'|'.join(PLACES)})\W*\Z", re.I)
CARDINAL = re.compile(r"\b(?:option|choice)\s+(?:number\s+|no\.?\s*|#\s*)?(\d+|one|two|three|four|five|six)\b", re.I)
# "hepatitis B" and "type A" name no option, nor does the E of "E. coli".
TERM = re.compile(
    r"\b(?:hepatitis|vitamin|type|group|class|grade|stage|fig(?:ure)?\.?|panel|image|influenza|protein)\s+$", re.I
)
SPECIES = r"(?!\.\s+(?:coli|aureus|epidermidis|pyogenes|pneumoniae|difficile|perfringens|albicans|pylori|faecalis|granulosus)\b)"
# A capital that is named together with a label, before or behind it, is one too: "options A and B", "either A or B."
_AND = r"[)\]]?\s*(?:[,/&+]\s*(?:(?:and|or)\s+)?|(?:and|or|nor|plus)\s+)[(\[]?"
JOINED = re.compile(rf"(?<=[\ue800-\uefff])({_AND})([\ue400-\ue7ff])|([\ue400-\ue7ff])(?={_AND}[\ue800-\uefff])")
# Behind a capital A or I these words tell a choice from the article and the pronoun.
PROSE = r"(?!(?<=[AI])\s+(?!(?:and|or|nor|but|is|was|because|since|as|then|rather)\b)[a-z\ue000-\ue3ff])"


def letter(place: int) -> str:
    """0 -> "A": the letter of an option by its place. Raises: ValueError outside A to Z."""
    if not 0 <= place < 26:
        raise ValueError(f"option number {place + 1} has no letter: only A to Z are used")
    return chr(ord("A") + place)


def letters_of(options: Sequence[str]) -> list[str]:
    return [letter(place) for place in range(len(options))]


def same_option(text: str, options: Sequence[str]) -> str:
    """The letter of the only option whose `key` is that of a plain text; "" where none or several are."""
    found = [name for name, option in zip(letters_of(options), options, strict=True) if key(option) == key(text)]
    return found[0] if len(found) == 1 else ""


def nearest_option(text: str, options: Sequence[str]) -> str:
    """The letter of the option with the highest difflib ratio, the first of equals; "" where no character is shared."""
    ratios = [SequenceMatcher(None, option, text).ratio() for option in options]
    best = max(ratios, default=0.0)
    return letter(ratios.index(best)) if best > 0 else ""


def _labels(names: str) -> tuple[re.Pattern[str], ...]:
    """How a letter is written where a choice is meant; group 1 is the letter, what stands before it goes with it."""
    low, text = names.lower(), r"\ue000-\ue3ff"
    stop = r"(?=\s*(?:[.,;:)\]\"']|$|(?:is|and|or|because)\b))"
    called = r"(?i:\b(?:(?:option|choice|answer|letter)s?\s*[#:]?\s*|(?:choose|chose|pick|select|go\s+with)\s+)|选项?\s*|答案\s*)[(\[\"']*"
    right = r"(?=\s+is\s+(?:the\s+)?(?:most\s+)?(?:correct|right|best|likely|appropriate|answer)\b)"
    return tuple(
        re.compile(pattern, re.M)
        for pattern in (
            rf"{called}([{names}])(?!\w)(?!['-]\w)",  # option B, answer (B), choose B
            rf"{called}([{low}])(?!\w){stop}",
            rf"(?<![\w'-])([{names}]){right}",  # B is the best answer
            rf"(?<!\w)[(\[]\s*([{names}{low}])\s*(?=[)\]])",  # (b)
            rf"(?<![\w('-])([{names}{low}])(?=\))",  # b)
            rf"^\W*([{names}])(?=[.:](?:\s|$|[{text}])){SPECIES}",  # B. words
            rf"(?<![\w'&.-])([{names}])(?=[.:](?:\s+[^a-z\s]|\s*$|[{text}]))",  # ... B. Words
            rf"^\W*([{low}])(?=[.:]\s*(?:[{text}]|$))",  # b. with an option's text behind it
            rf"\A\W*([{names}])(?=\s*[,–—-]\s+[a-z{text}]|(?<!A)\s+[{text}])",  # B - left lung, B left lung
        )
    )


def marked(text: str, options: Sequence[str]) -> str:
    """A plain text with private characters for the options that it names (`mentions.mark`): by their text, by a letter or place that is
    meant as a choice (`LABEL` further on), or by a capital that only stands alone (`WEAK`)."""
    names = "".join(letters_of(options))

    def label(found: re.Match[str]) -> str:
        return chr(FIRST + LABEL + names.index(found[1].upper()))

    def placed(found: re.Match[str]) -> str:
        place = PLACES[found[1].lower()] if found.re is not CARDINAL else int(key(found[1])) - 1
        place %= len(names) if place < 0 else 1000
        return chr(FIRST + LABEL + place) if place < len(names) else found[0]

    text = PLACE.sub(placed, ORDINAL.sub(placed, text))
    if not any(key(option).isdigit() for option in options):
        text = CARDINAL.sub(placed, text)
    text = mark(text, options)
    for pattern in _labels(names):
        text = pattern.sub(label, text)
    alone = rf"(?<![A-Za-z0-9])(?<!\w[-.'])([{names}])(?![A-Za-z0-9]|['-][A-Za-z]|\.\s+[a-z]){PROSE}"

    def weak(found: re.Match[str]) -> str:
        return found[0] if TERM.search(text[: found.start()]) else chr(FIRST + WEAK + names.index(found[1]))

    text = re.sub(alone, weak, text)

    def joins(found: re.Match[str]) -> str:
        return (found[1] or "") + chr(ord(found[2] or found[3]) - WEAK + LABEL)

    while (joined := JOINED.sub(joins, text)) != text:
        text = joined
    # A reply that repeats the list of options has not chosen them all.
    listed = GAP.join(chr(FIRST + LABEL + i) + GAP + chr(FIRST + i) for i in range(len(names)))
    return re.sub(listed, "\n", text) if len(names) > 1 else text


def _within(options: Sequence[str], short: int, long: int) -> bool:
    a, b = (f" {' '.join(word for word, *_ in tokens(options[place]))} " for place in (short, long))
    return a != b and a in b


def _said(text: str, options: Sequence[str]) -> tuple[set[int], set[int], set[int], bool]:
    """The options that a marked text says by label, by text and by a lone capital, and whether it mentions any."""
    said, named = asserted(text)
    labels = {i - LABEL for i in said if i >= LABEL}
    texts = {i for i in said if i < WEAK}
    texts = {i for i in texts if not any(_within(options, i, j) for j in texts)}
    return labels, texts, {i - WEAK for i in said if WEAK <= i < LABEL}, bool(named)


def _lead(text: str, labels: set[int]) -> int | None:
    """The option whose letter a marked text begins with ("B. X-ray"), -1 where the text of another follows it; None for none."""
    found = re.match(rf"{GAP}([\ue800-\uefff])", text)
    if not found or ord(found[1]) - FIRST - LABEL not in labels:
        return None
    place = ord(found[1]) - FIRST - LABEL
    rest = re.sub(rf"^{GAP}(?:(?:the|an?)\s+)?{chr(FIRST + place)}", "", text[found.end() :])
    if re.match(rf"{GAP}(?:(?:and|or|nor|plus)\b{GAP})?[\ue400-\uefff]", rest):
        return None
    other = re.match(rf"{GAP}(?:(?:the|an?)\s+)?[\ue000-\ue3ff]{GAP}(?:$|(?<=[.;\n])\s)", rest)
    return -1 if other and rest == text[found.end() :] else place


def _chosen(said: str, options: Sequence[str]) -> tuple[str, str] | None:
    """As `choose` of one place where an answer may stand; None where nothing there has to do with the options."""
    names = letters_of(options)
    ends = (said, said.partition("\n")[0], said.rpartition("\n")[2])
    alone = {only[1].upper() for line in ends if "?" not in line and (only := ALONE.fullmatch(line))} & set(names)
    if len(alone) == 1:
        return alone.pop(), "letter"
    if alone:
        return NONE
    if not said.endswith("?") and (found := same_option(said, options)):
        return found, "text"
    if ALONE.fullmatch(said):
        return NONE
    text = marked(said, options)
    labels, texts, weak, named = _said(text, options)
    lead = _lead(text, labels)
    if lead is not None:
        return (names[lead], "letter") if lead >= 0 else NONE
    keys = list(map(key, options))
    verdicts = {word: place for place, word in enumerate(keys) if word in ("yes", "no")}
    if len(verdicts) == 2 and not labels:
        if word := yes_no(said):
            return names[verdicts[word]], "word"
        texts -= set(verdicts.values())
    if places := labels | texts or weak:
        how = "letter" if labels else "contained" if texts else "letter within"
        place = places.pop()
        # Of two options with the same words a text names neither.
        return NONE if places or (how == "contained" and keys.count(keys[place]) > 1) else (names[place], how)
    return NONE if named or refuses(said) or not key(text) else None


def choose(text: str, options: Sequence[str], nearest: bool = False) -> tuple[str, str]:
    """(letter, rule that found it).

    A letter, alone, first, or marked as a choice; an option's text; the only option that is stated within the text; the only capital that
    stands alone in it; and, if asked for, the nearest option. What an answer only asks, denies or leaves open is not chosen, nor is any of
    several, and a refusal chooses none.
    Raises: ValueError for no options, or more than have letters.
    """
    if not options:
        raise ValueError("no options to choose from")
    places = tails(readable(text))
    for said in places:
        if found := _chosen(said, options):
            return found
    if nearest and (near := nearest_option(places[0].lower(), [option.lower() for option in options])):
        return near, "nearest"
    return NONE


def several(text: str, options: Sequence[str]) -> str:
    """All letters that an answer chooses, in order: "A, C and D", "ACD", "(A) ... (C) ...", or options whose words it states."""
    said, names = final(readable(text)), letters_of(options)
    every = "".join(names)
    if re.fullmatch(rf"[\s(*]*[{every}](?:[\s,;.()&+/*]|and\b|[{every}])*", said):
        return "".join(name for name in names if re.search(rf"{name}(?![a-z])", said))
    labels, texts, weak, _ = _said(marked(said, options), options)
    return "".join(names[place] for place in sorted(labels | texts or weak))
