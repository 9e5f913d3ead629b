"""What a reply says before anything is compared: where its answer stands, which of its clauses state something, and its yes or no.

A clause that asks, refuses or hedges states nothing, however often the right word stands in it ("yes or no? I am not sure"), and what a
clause denies is not said either. Whatever cannot be read is "", which tables count: to guess for a model adds chance to its accuracy.
"""

import re

from vital_jax.scoring.text import bare, plain

LONGEST = 4000  # characters: a model that repeats itself writes more, and what it repeats is read in vain
_TAGS = "think|thinking|thought|reasoning"
_CLOSED = re.compile(rf"<\s*/\s*(?:{_TAGS})\s*>|◁/think▷|<\|end_of_thought\|>", re.I)
_OPENED = re.compile(rf"<\s*(?:{_TAGS})\s*>|◁think▷|<\|begin_of_thought\|>", re.I)
_MARK = re.compile(
    r"\b(?:answer|(?:correct|right|best)\s+(?:option|choice)|(?:option|choice)(?=\s*:))\s*\**\s*"
    r"(?:(?:is|would\s+be|should\s+be|must\s+be)\b(?:\s*:)?|[:：=])\s*\**|\bfinal\s+answer\s|\byes\s*(?:/|or)\s*no\s*(?:question\s*)?[:?]|答案\s*(?:[:：是]\s*)+",
    re.I,
)
# Where one statement ends and the next begins; the full stop of a label ("B. X-ray") ends none.
_CLAUSE = re.compile(
    r"(?<=[.!?。！？])(?<!\b[A-Za-z]\.)\s*(?=\s|[^\x00-\x7f])|[\n;；]+"
    r"|(?<!anything)(?<!everything),?\s+\b(?=(?:but|however|although|though|because|since|whereas|while)\b)|,\s+(?=(?:so|thus|therefore|hence)\b)",
    re.I,
)
_KNOW = (
    "say|tell|know|determin|answer|decide|assess|judge|conclude|see|view|be (?:sure|certain)|interpret|identif|confirm|provide|evaluat|"
    "ascertain|access|open|analy[sz]|diagnos|state|establish|distinguish|differentiat|give|make|respond|choose|select|pick"
)
_REFUSED = re.compile(
    rf"\b(?:can(?:not|'t|\s+not)|could(?:\s+not|n't)|(?:un|not\s+)able\s+to|(?:impossible|not\s+possible|hard|difficult|no\s+way)\s+to)\b"
    rf"[^.;]{{0,80}}?\b(?:{_KNOW})"
    r"|\b(?:not|n't|never|hardly)\s+(?:\w+\s+){0,2}?(?:sure|certain|clear|know|enough|sufficient|provided|available|given|attached|uploaded)\b"
    r"|n't\s+(?:\w+\s+)?(?:know|sure|have|see\s+(?:an?|any|the)\s+(?:image|picture))\b"
    r"|\b(?:unsure|uncertain|unclear|unknown|undetermined|indeterminate|inconclusive|insufficient|ambiguous|depends|sorry|apologi[sz]e)\b"
    r"|\bas\s+an\s+ai\b|\bno\s+(?:idea|comment|information|answer|context|opinion|data)\b"
    r"|\bno\s+(?:image|picture|photo|scan|figure|x-?ray)s?\s*(?:$|[.,!]|(?:is|was|were|are|has|have|had|provided|attached|given|available|uploaded"
    r"|included|visible|to)\b)"
    r"|\b(?:need|require)s?\s+(?:more|further|additional)\b"
    r"|不确定|不知道|无法|不能(?:确定|判断|回答)",
    re.I,
)
_ASSURED = re.compile(r"\b(?:no|without(?:\s+(?:a|any))?)\s+(?:doubt|question)\b|\bnot\s+(?:only|just|merely)\b", re.I)
_VERDICT = re.compile(
    r"[\W_]*(yes|no)\b(?!\s*(?:/|&|-|\bor\b|\band\b)\s*(?:yes|no)\b)(?!\s*,\s*(?:yes|no)\W*$)(\s*[\W_]+(?=\s|$)|\s*[(\[]|$)?",
    re.I,
)
_HEDGED = re.compile(
    r"\b(?:maybe|perhaps|possibly|(?:may|might|could|can)(?:\s+(?:be|say|also\s+be))?(?:\s+either)?)\W+(?:an?\s+)?['\"]?(?:yes|no)\b"
    r"|\b(?:not|n't|never|cannot|rather\s+than|instead\s+of|neither)\s+(?:\w+\s+){0,3}?['\"]?(?:yes|no)\b",
    re.I,
)


def spoken(text: str) -> str:
    """The reply without its reasoning: what follows the last `</think>`, up to a `<think>` that never ends; "" where it only thinks."""
    after = _CLOSED.split(text)[-1]
    before = _OPENED.split(after, maxsplit=1)[0]
    return text if before == text else before.strip()


def readable(text: str) -> str:
    """The reply in `plain` words without its reasoning; of one longer than `LONGEST` the two ends, where answers stand."""
    rest = spoken(text).strip()
    if len(rest) > LONGEST:
        rest = f"{rest[: LONGEST // 2]}\n{rest[-LONGEST // 2 :]}"
    # Private characters stand for names later on (`mentions.mark`).
    return plain(re.sub("[\ue000-\uefff]", "", rest))


def tails(text: str) -> list[str]:
    r"""Where the answer may stand, the most certain place first.

    The last <answer>...</answer> or \boxed{...} alone; else what follows each "answer is", "answer:" or "final answer", the last first, and
    then what stands before the first.
    """
    if boxed := re.findall(r"<answer>(.*?)</answer>", text, re.S | re.I) or _boxed(text):
        return [boxed[-1].strip()]
    return [part.strip() for part in reversed(_MARK.split(text)) if part.strip()] or [text.strip()]


def final(text: str) -> str:
    """The first of `tails`."""
    return tails(text)[0]


def said(text: str) -> str:
    """The final answer of a reply, in `readable` words."""
    return final(readable(text))


def _boxed(text: str) -> list[str]:
    start = text.rfind("\\boxed{")
    depth = 0
    for end in range(start + len("\\boxed"), len(text)) if start >= 0 else ():
        depth += (text[end] == "{") - (text[end] == "}")
        if not depth:
            return [text[start + len("\\boxed{") : end]]
    return []


def statements(text: str) -> list[str]:
    """The clauses of a plain text that state something: no questions, no refusals."""
    clauses = [clause.strip() for clause in _CLAUSE.split(_ASSURED.sub(" ", text)) if clause.strip()]
    return [clause for clause in clauses if not clause.endswith(("?", "？")) and not _REFUSED.search(clause)]


def refuses(text: str) -> bool:
    """Whether a text says something, and none of it is a statement."""
    return bool(text.strip()) and not statements(text)


def yes_no(text: str) -> str:
    """ "yes" or "no"; "" where a reply says neither, both, or does not commit itself.

    A clause that begins with the word and a stop is a verdict ("Yes, there is"); without any, the only one of the two words in the
    statements counts, unless it is denied or hedged ("I would not say yes", "maybe no").
    """
    for tail in tails(readable(text)):
        # A verdict stands even before a refusal to say more: "No, I cannot see one."
        clauses = [clause.strip() for clause in _CLAUSE.split(_ASSURED.sub(" ", tail)) if clause.strip()]
        asserted = [clause for clause in clauses if not clause.endswith(("?", "？"))]
        verdicts = {
            found[1].lower() for clause in asserted if (found := _VERDICT.match(clause)) and found[2] is not None
        }
        if len(verdicts) == 1:
            return verdicts.pop()
        kept = [clause for clause in asserted if not _REFUSED.search(clause)]
        words = {word for clause in kept for word in re.findall(r"[^\W\d_]+", clause.lower())} & {"yes", "no"}
        unsaid = asserted and not kept
        if unsaid or len(verdicts) > 1 or len(words) > 1 or any(_HEDGED.search(clause) for clause in kept):
            return ""
        if words:
            return words.pop()
    return ""


def is_yes_no(answer: str) -> bool:
    return bare(answer) in ("yes", "no")
