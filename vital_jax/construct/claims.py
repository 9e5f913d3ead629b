"""Reads claims out of constructed sentences with regular expressions: what is said, about which target, compared with which.

The reader shares nothing with the teacher that writes the sentences, neither templates nor word lists, so that a wording which says
something else than was meant is read as what it says. What the words are to mean, and whether it is true, stands in `checker`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

SIZES = ("very small", "small", "moderate", "large", "dominant")
AXES = ("horizontal", "rising to the right", "vertical", "falling to the right")
DIRECTIONS = ("above", "below", "to the left of", "to the right of")
RELATIONS = ("direction", "within", "larger", "brighter")


@dataclass(frozen=True)
class Claim:
    """One statement read from a sentence.

    Attributes:
      kind: place, side, third, half, quarter, share, grey, size, reach, from_top, apart, shape, parts, axis, tone, boundary, texture,
        direction, within, larger, brighter, presence or name.
      value: what is said; its form depends on the kind.
      about: whose it is; "" is the region in question ("it", "the area").
      other: the neighbour compared with; "" where there is none.
      negated: the sentence denies it.
    """

    kind: str
    value: Any
    about: str = ""
    other: str = ""
    negated: bool = False


_NAME = r"(?:the |an? )?<(\d+)>"
_OTHER = r"(?:(?:the |an? )?<(\d+)>|(it|them)\b|(?:the |an? )((?!surroundings)[a-z][a-z -]*?)(?=[,.;:]| and | lies| is | are |$))"
_PCT = r"(?:(?:about )?(\d+)|(less than 1)) percent"
# A sentence that names something else than targets and these says, first of all, that it is there.
_NOUNS = (
    "centers?|boundary|texture|brightness|mean|area|image|distance|places?|size|shape|form|width|height|whole|four quarters|"
    "surroundings"
)
_AFTER = r"(?=[,.;:#<]| (?:is|are|in|on|at|of|and|or|to|with|from|[a-z]+s)\b|$)"
# What each pattern reads; earlier ones take their words away from later ones.
_PATTERNS = [
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("name", rf"^the [^,;.]*? shown (?:is|are) {_NAME}"),
        ("present", rf"^yes, {_NAME} (?:is|are) visible"),
        ("lacking", rf"^no, {_NAME} (?:is|are) not visible"),
        (
            "lacking",
            rf"(?:nothing (?:(?:that )?fits?|like|has the form of)|no area (?:that )?(?:fits?|looks like)) {_NAME}",
        ),
        ("lacking", rf"(?:\b(?:does|do) not fit|\bunlike) {_NAME}"),
        ("present", rf"\b(?:fits?|expected of) {_NAME}"),
        ("apart", rf"{_PCT} of the (?:image )?height and {_PCT} of the (?:image )?width"),
        ("from_top", rf"{_PCT} of the image height from the top"),
        ("reach", r"from (?:about )?(\d+) to (?:about )?(\d+) percent of the image (width|height)"),
        ("share", rf"{_PCT} of the image(?! width| height)"),
        ("grey", rf"{_PCT} of white"),
        ("size", rf"\ba ({'|'.join(SIZES)}) part of (?:it|the image)\b"),
        ("place", r"\bacross the (?P<row>upper|central|lower) part(?: of the image)? from left to right"),
        ("place", r"\balong the (?P<column>left|central|right) part(?: of the image)? from top to bottom"),
        ("place", r"\bacross most of the image"),
        ("place", r"\bin the (?P<row>upper|lower) (?P<column>left|central|right) part(?: of the image)?"),
        ("place", r"\bin the (?P<column>left|right) part(?: of the image)?"),
        ("place", r"\bin the (?P<row>center)\b(?! of <)(?: of the image)?"),
        ("side", r"\bon the (left|right) of the image"),
        ("third", r"\bthe (left|central|right) third(?: of the image)?"),
        ("third", r"\b(?:the )?left, (?:the )?center and (?:the )?right(?: of the image)?"),
        ("half", r"\b(upper|lower) half\b"),
        ("quarter", r"\b(upper|lower) (left|right) (?:quarter(?: of the image)?|one\b)"),
        ("parts", r"\bdivided into (\d+|many) separate parts"),
        ("axis", rf"\bthe long axis ({'|'.join(AXES)})"),
        ("shape", r"\b(round|oval|elongated|irregular|divided)\b"),
        ("tone", r"(?:\b(slightly|clearly) )?\b(brighter|darker) than (?:the|its|their) surroundings"),
        ("tone", r"\babout as bright as (?:the|its|their) surroundings"),
        ("tone", r"\bwithout any surroundings to compare with"),
        ("direction", rf"\b({'|'.join(DIRECTIONS)}) {_OTHER}"),
        ("within", rf"\b(within) {_OTHER}"),
        ("larger", rf"\b(larger|smaller) than {_OTHER}"),
        ("larger", rf"\babout as (large) as {_OTHER}"),
        ("brighter", rf"\b(brighter|darker) than {_OTHER}"),
        ("brighter", rf"\babout as (bright) as {_OTHER}"),
        ("boundary", r"\b(well-defined|soft|blurred|faint)\b"),
        ("texture", r"\b(slightly uneven|uneven|even)\b"),
        ("stranger", rf"\b(?:the|an?) ((?!(?:{_NOUNS})\b)[a-z][a-z -]*?){_AFTER}"),
    )
]
_FILLER = re.compile(r"\bfrom left to right\b|\bfrom top to bottom\b")
_MEASURE = re.compile(
    r"\b(percent|upper|lower|left|right|thirds?|half|quarter|bright|brighter|darker?|larger?|smaller?|above|below|within|round|oval|"
    r"elongated|irregular|divided|even|uneven|axis|horizontal|vertical|rising|falling|moderate|dominant|surroundings)\b"
)
_DENIAL = re.compile(r"\b(?:not|never|neither|nor)\b|n't\b")
_CLAUSE = re.compile(r"[,;:.]| but | and ")


def claims(sentence: str, names: Iterable[str], ask: str = "") -> list[Claim]:
    """What a sentence claims, in the order of the patterns.

    Args:
      sentence: one sentence of a chain, an answer or a caption.
      names: targets that may be spoken of, in the image or not; a neighbour that is none of them is returned as it is written.
      ask: what the question asks; after "side", "in the center of the image" speaks of the width alone.
    """
    return _read(sentence, names, ask)[0]


def unread(sentence: str, names: Iterable[str], ask: str = "") -> bool:
    """Whether a sentence holds no claim that can be read, or a measuring word outside all claims."""
    found, rest = _read(sentence, names, ask)
    return not found or bool(_MEASURE.search(rest))


@lru_cache(maxsize=64)
def _spelled(known: tuple[str, ...]) -> dict[str, str]:
    """Names by how they stand in a sentence in small letters."""
    return {name.lower(): name for name in known}


@lru_cache(maxsize=64)
def _finder(known: tuple[str, ...]) -> re.Pattern:
    """Finds names, the longest that fits: "left kidney" before "kidney"."""
    longest = sorted(_spelled(known), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)")


def _read(sentence: str, names: Iterable[str], ask: str) -> tuple[list[Claim], str]:
    known = tuple(dict.fromkeys(names))
    text = _finder(known).sub(lambda match: f"<{known.index(_spelled(known)[match[0]])}>", sentence.lower())
    rest, found = text, []
    for kind, pattern in _PATTERNS:
        for match in pattern.finditer(rest):
            found.append((kind, match))
            if kind != "stranger":  # its words may measure something: "the left edge" is not read
                rest = rest[: match.start()] + "#" * len(match[0]) + rest[match.end() :]
    free = [(match.start(), known[int(match[1])]) for match in re.finditer(r"<(\d+)>", rest)]
    named = sorted((m.start(), _other(m, known)) for kind, m in found if kind in RELATIONS and not m[3])
    result = []
    for kind, match in found:
        before = [name for start, name in free if start < match.start()]
        about = before[-1] if before else free[0][1] if free else ""
        denied = bool(_DENIAL.search(_CLAUSE.split(text[: match.start()])[-1]))
        claim = _claim(kind, match, known, ask)
        if kind in RELATIONS:
            earlier = [name for start, name in named if start < match.start()]
            claim = replace(claim, other=earlier[-1] if match[3] and earlier else _other(match, known))
        if kind == "apart" and len({name for _, name in free}) == 2:
            about, other = dict.fromkeys(name for _, name in free)
            claim = replace(claim, other=other)
        result.append(replace(claim, about=claim.about or about, negated=denied and kind not in ("lacking", "name")))
    return result, _FILLER.sub("", rest)


def _other(match: re.Match, known: Sequence[str]) -> str:
    """The neighbour of a relation: a known name, "" for a pronoun without one before it, otherwise the words as written."""
    return known[int(match[2])] if match[2] else match[4] or ""


def _claim(kind: str, match: re.Match, known: Sequence[str], ask: str) -> Claim:
    if kind in ("present", "lacking", "name"):
        name = known[int(match[1])]
        return Claim("name", name) if kind == "name" else Claim("presence", kind == "present", name)
    if kind == "stranger":
        return Claim("presence", True, match[1])
    if kind == "apart":
        return Claim(kind, (match[1] or match[2], match[3] or match[4]))
    if kind in ("from_top", "share", "grey"):
        return Claim(kind, match[1] or match[2])
    if kind in ("reach", "quarter"):
        return Claim(kind, match.groups())
    if kind == "place":
        said = match.groupdict()
        if said.get("row") == "center":
            return Claim("side", "center") if ask == "side" else Claim(kind, ("central", "central"))
        missing = "span" if match[0].startswith(("across", "along")) else "central"
        return Claim(kind, (said.get("row") or missing, said.get("column") or missing))
    if kind == "third":
        return Claim(kind, match[1] if match.re.groups else "span")
    if kind == "tone":
        if match.re.groups:
            return Claim(kind, (match[1] or "", match[2]))
        return Claim(kind, ("none" if match[0].startswith("without") else "equal", ""))
    return Claim(kind, match[1])
