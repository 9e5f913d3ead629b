"""Protocol `medevalkit`: prompts and rules of MedEvalKit, with correct measures, or with `compat` its own arithmetic.

MedEvalKit (github.com/alibaba-damo-academy/MedEvalKit, read at 9b12e3b) made the medical tables of Lingshu and of papers after it. Which
questions are closed differs by benchmark: by the answer string in VQA-RAD and PathVQA, by the data's own mark in SLAKE. With `judge` the
open answers count as right where the verdict that comes with the prediction says so; no judge is called here.
"""

from collections.abc import Callable

from vital_jax.evaluate.items import Item
from vital_jax.evaluate.protocols import medevalkit_compat as kit
from vital_jax.evaluate.protocols.core import Measure, Parsed, Protocol, family
from vital_jax.evaluate.protocols.measures import accuracy, bleus, golds, in_words, overlaps
from vital_jax.scoring.choice import choose
from vital_jax.scoring.reading import said, yes_no
from vital_jax.scoring.text import bare

ABOUT = (
    "MedEvalKit's prompts and question kinds with correct measures: yes and no as whole words, token overlap on bags in SQuAD's normal "
    "form, an empty answer is wrong. A choice is a letter, an option's text, the only option that the text states, else the nearest option "
    "by difflib; an answer that is empty, refuses, denies or names several chooses nothing. Its ROUGE scores are left out. PMC-VQA is "
    "there test_2.csv. MMMU has rules of its own there: use `mmmu`."
)
COMPAT = "MedEvalKit at 9b12e3b, arithmetic as it stands (see the table of defects); its ROUGE scores are left out."
KINDS = ("choice", "judgement", "closed", "open")
LAST_LINE = {
    ("choice", "en"): "Answer with the option's letter from the given choices directly.",
    ("choice", "zh"): "请直接使用给定选项中的选项字母来回答该问题。",
    ("judgement", "en"): "Please output 'yes' or 'no'(no extra output).",
    ("judgement", "zh"): "请输出'是'或'否'(不要有任何其它输出)。",
    ("closed", "en"): "Answer the question using a single word or phrase.",
    ("closed", "zh"): "请用一个单词或者短语回答该问题。",
    ("open", "en"): "Please answer the question concisely.",
    ("open", "zh"): "请简要回答该问题。",
}


def kind(item: Item) -> str:
    """Which of `KINDS` MedEvalKit takes a question for: options; yes or no as the answer; what the data marks closed; the rest."""
    if item.options:
        return "choice"
    if family(item.benchmark) == "slake" and not item.closed:
        return "open"
    if item.answer.lower().strip() in ("yes", "no"):
        return "judgement"
    # VQA-RAD and PathVQA are split by the answer string alone there.
    by_string = family(item.benchmark) in ("vqa_rad", "pathvqa")
    return "closed" if item.closed and not by_string else "open"


def prompt(item: Item) -> str:
    """The user turn; Chinese where the item says that it is."""
    language = "zh" if item.metadata.get("language") == "zh" else "en"
    asks = kind(item)
    if family(item.benchmark) == "slake" and asks == "judgement":
        asks = "closed"  # SLAKE is never asked for yes or no
    if asks != "choice":
        return f"{item.question}\n{LAST_LINE[asks, language]}"
    title, options = ("问题：", "选项：") if language == "zh" else ("Question:", "Options:")
    listed = "\n".join(kit.choices(item))
    # MedXpertQA's question repeats its options there.
    asked = item.metadata.get("published_question") or item.question
    return f"\n{title} {asked}\n{options} \n{listed}\n{LAST_LINE[asks, language]}"


def parse(item: Item, text: str) -> Parsed:
    asks = kind(item)
    if asks == "choice":
        return Parsed(text, *choose(text, item.options, nearest=True))
    if asks == "judgement":
        word = yes_no(text)
        return Parsed(text, word, "word" if word else "none")
    if asks == "closed":
        return in_words(item, text, bare(said(text)))
    return Parsed(text, bare(said(text)), "text")


def correct(item: Item, parsed: Parsed) -> bool:
    if kind(item) == "choice":
        return bool(parsed.value) and parsed.value == item.gold
    return bool(parsed.value) and any(bare(parsed.value) == bare(gold) for gold in golds(item))


def _judged(item: Item, parsed: Parsed) -> bool:
    if kind(item) != "open":
        return correct(item, parsed)
    return kit.verdict(item, parsed)


def _is(*kinds: str) -> Callable[[Item], bool]:
    return lambda item: kind(item) in kinds


def medevalkit(compat: bool = False, judge: bool = False) -> Protocol:
    """The protocol.

    Args:
      compat: MedEvalKit's own arithmetic, mistakes included. judge: its runs with a language model as judge; every prediction that the
      judge is asked about must then carry its verdict as "judge".
    """
    options = tuple(name for name, on in (("compat", compat), ("judge", judge)) if on)
    base = dict(name="medevalkit", version=1 if compat else 2, prompt=prompt, options=options)
    if compat:
        return Protocol(**base, about=COMPAT, parse=kit.parse, correct=kit.correct(judge), measures=kit.measures(judge))
    right = _judged if judge else correct
    by = "right by the verdict that came with it" if judge else "right by exact match"
    measures: tuple[Measure, ...] = (
        accuracy("accuracy", f"all questions; an open one is {by}", right),
        accuracy("choice accuracy", "questions with options", right, _is("choice")),
        accuracy(
            "closed accuracy", "SLAKE: marked closed; others: answer is yes or no", right, _is("judgement", "closed")
        ),
        accuracy("open accuracy", f"neither options nor closed; {by}", right, _is("open")),
        *overlaps("open", "neither options nor closed", _is("open")),
        *bleus("open", "neither options nor closed", _is("open")),
    )
    return Protocol(**base, about=ABOUT, parse=parse, correct=right, measures=measures)
