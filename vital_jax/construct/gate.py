"""The quality gate: what a teacher wrote, checked in six rounds, by one pure function (VITAL A.3).

    1 json, schema    exactly final_answer (a string) and reasoning_chain (a list of strings), nothing round it
    2 leak            words that betray the teacher's view: marks, masks, overlays, labels, or that the target was given
    3 pathology       words of disease where the target is anatomy
    4 patient-space   the patient's sides instead of the image's; mixed-space where both occur
    5 steps           as many steps as the type of question allows
    6                 normalisation: sentences end with a period, names and places become sentences

Every chain passes through it, the measured teacher's too. The terms are data (`data/gate.json`), in our own words, for the paper does not
publish its list. Each round has patterns that are violations and patterns that only look like some; the latter are blanked out first
("markedly", "a specular highlight"), and so is every name that the question itself says.

The pathology round follows the type of the target, not the data set as in the paper: MSD holds tumours (methods.md §1.4). Negations count:
a target that is anatomy gives no ground for ruling disease out.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from vital_jax.construct.targets import DATA, Targets, load_targets

KEYS = ("final_answer", "reasoning_chain")
FINDINGS = ("lesion", "cell")  # types of target that may be spoken of in words of disease
_PLACE = re.compile(
    r"\b(left|right|center|middle|top|bottom|third|half|quadrant|quarter|part|side|corner)$", re.IGNORECASE
)
SHORT = 4  # words; an identification with fewer becomes a sentence


@dataclass(frozen=True)
class Violation:
    """One broken rule.

    Attributes:
      code: json, schema, leak, pathology, patient-space, mixed-space or steps.
      rule: which pattern or requirement.
      where: "reply", "answer" or "step N".
      text: the words that broke it.
    """

    code: str
    rule: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.code} ({self.rule}): {self.text!r}"


@dataclass(frozen=True)
class Verdict:
    """What the gate says: the normalised answer and chain where nothing is broken, otherwise what is."""

    answer: str = ""
    chain: tuple[str, ...] = ()
    violations: tuple[Violation, ...] = ()

    @property
    def accepted(self) -> bool:
        return not self.violations

    @property
    def codes(self) -> tuple[str, ...]:
        """The different codes, sorted."""
        return tuple(sorted({violation.code for violation in self.violations}))


@dataclass(frozen=True)
class _Rules:
    """(pattern, modalities it holds for or none for all) of one round, by name; `harmless` is blanked out before they are looked for."""

    terms: Mapping[str, tuple[re.Pattern, Sequence[str]]]
    harmless: re.Pattern | None


@cache
def _tables() -> tuple[str, dict[str, _Rules]]:
    """(version, rules per round) of `data/gate.json`."""
    table = json.loads((DATA / "gate.json").read_text(encoding="utf-8"))
    rounds = {}
    for name, entry in table["rounds"].items():
        harmless = "|".join(f"(?:{pattern})" for pattern in entry.get("harmless", ()))
        rounds[name] = _Rules(
            {term: _term(pattern) for term, pattern in entry["terms"].items()},
            _compile(harmless) if harmless else None,
        )
    return str(table["version"]), rounds


def _compile(pattern: str) -> re.Pattern:
    return re.compile(rf"\b(?:{pattern})(?!\w)", re.IGNORECASE)


def _term(entry: str | Mapping) -> tuple[re.Pattern, Sequence[str]]:
    return (_compile(entry), ()) if isinstance(entry, str) else (_compile(entry["pattern"]), entry["modalities"])


def version() -> str:
    """Of the list of terms; it stands in a record's metadata, so that a set says which gate it passed."""
    return _tables()[0]


@cache
def steps_allowed(question_type: str) -> tuple[int, int]:
    """(fewest, most) reasoning steps of a type of question. Raises: ValueError for an unknown type."""
    types = json.loads((DATA / "questions.json").read_text(encoding="utf-8"))["types"]
    if question_type not in types:
        raise ValueError(f"unknown type of question {question_type!r}: use {', '.join(types)}")
    steps = [int(K) for K in types[question_type]["steps"]]
    return min(steps), max(steps)


def gate(
    raw: str | Mapping,
    *,
    question_type: str,
    target_type: str,
    target: str,
    modality: str,
    ask: str = "",
    steps: tuple[int, int] | None = None,
    options: Sequence[str] = (),
    names: Sequence[str] = (),
    targets: Targets | None = None,
) -> Verdict:
    """Checks a teacher's reply.

    Args:
      raw: the reply as it came, or its two fields already read.
      question_type, ask, options: what was asked; `options` of a closed question.
      target, target_type, modality: what it was asked about.
      names: other targets that the question names. No name and no option is a violation, whatever its words.
      steps: (fewest, most) reasoning steps; by default those of the type.
      targets: another table than the built-in one.

    Raises: ValueError for an unknown type of question, or an unknown modality.
    """
    low, high = steps or steps_allowed(question_type)
    found = _read(raw)
    if isinstance(found, Violation):
        return Verdict(violations=(found,))
    answer, chain = found
    texts = {"answer": answer} | {f"step {number}": step for number, step in enumerate(chain, 1)}
    said = [target, *options, *names]
    family = (targets or load_targets()).family(modality)
    broken = list(_terms("leak", texts, said, family))
    if target_type not in FINDINGS:
        broken += _terms("pathology", texts, said, family)
    broken += _sides(texts)
    if not low <= len(chain) <= high:
        broken.append(Violation("steps", f"{low} to {high} steps", "reply", f"{len(chain)} steps"))
    if broken:
        return Verdict(violations=tuple(broken))
    chain = tuple(_sentence(step) for step in chain)
    return Verdict(_answer(answer, question_type, ask, bool(options), target, targets or load_targets()), chain)


def _read(raw: str | Mapping) -> tuple[str, tuple[str, ...]] | Violation:
    """Round 1."""
    if isinstance(raw, str):
        try:
            raw = json.loads(raw, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            return Violation("json", str(error).split(":")[0], "reply", raw[:60])
    if not isinstance(raw, Mapping):
        return Violation("schema", "one object", "reply", type(raw).__name__)
    if set(raw) != set(KEYS):
        return Violation("schema", f"exactly {' and '.join(KEYS)}", "reply", ", ".join(map(str, raw)) or "no keys")
    answer, chain = (raw[key] for key in KEYS)
    if not _worded(answer):
        return Violation("schema", "final_answer is text", "answer", repr(answer)[:60])
    if not isinstance(chain, list | tuple):
        return Violation("schema", "reasoning_chain is a list", "reply", repr(chain)[:60])
    for number, step in enumerate(chain, 1):
        if not _worded(step):
            return Violation("schema", "every step is text", f"step {number}", repr(step)[:60])
    return answer, tuple(chain)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key comes twice")
    return made


def _worded(text: object) -> bool:
    return isinstance(text, str) and any(letter.isalpha() for letter in text)


def _terms(code: str, texts: Mapping[str, str], said: Sequence[str] = (), family: str = "") -> Iterator[Violation]:
    """Rounds 2 and 3: the first of each term in each text."""
    rules = _tables()[1][code]
    for where, text in texts.items():
        left = _blank(rules.harmless, text)
        for words in said:
            # Something that still reads as a word: "the provided spleen region" says no less than "the provided region".
            left = _blank(_phrase(words), left, "x")
        for rule, (pattern, modalities) in rules.terms.items():
            if (not modalities or family in modalities) and (match := pattern.search(left)):
                yield Violation(code, rule, where, match.group())


@cache
def _phrase(words: str) -> re.Pattern | None:
    return re.compile(rf"\b{re.escape(words)}(?:s|es)?\b", re.IGNORECASE) if words.strip() else None


def _blank(pattern: re.Pattern | None, text: str, by: str = "\0") -> str:
    return pattern.sub(lambda match: by * len(match.group()), text) if pattern else text


def _sides(texts: Mapping[str, str]) -> Iterator[Violation]:
    """Round 4: a reply that names the patient's sides; mixed where it names the image's too."""
    left = texts
    for pattern, _ in _tables()[1]["patient-space"].terms.values():
        left = {where: _blank(pattern, text) for where, text in left.items()}
    mixed = any(_terms("image-space", left))
    for violation in _terms("patient-space", texts):
        yield replace(violation, code="mixed-space") if mixed else violation


def _sentence(text: str) -> str:
    """Round 6: one line, a capital first, a period last."""
    text = " ".join(text.split()).rstrip(" .;,:")
    return f"{text[0].upper()}{text[1:]}{'' if text[-1] in '!?' else '.'}"


def _answer(text: str, question_type: str, ask: str, closed: bool, target: str, targets: Targets) -> str:
    """Round 6 for answers: a bare name becomes a sentence, a bare place one of the image."""
    text = " ".join(text.split()).rstrip(" .;,:")
    if closed:
        return _sentence(text)
    if question_type == "identify" and len(text.split()) < SHORT:
        bare = re.sub(r"^(the|an?)\s+", "", text, flags=re.IGNORECASE)
        named = targets.phrase(target) if bare.lower() == target.lower() else text
        text = f"The {targets.noun(target)} shown is {named[0].lower() + named[1:] if named[1:2].islower() else named}"
    if question_type in ("location", "location_choice") and _PLACE.search(text) and "image" not in text.lower():
        text = f"{text} of the image"
    return _sentence(text)
