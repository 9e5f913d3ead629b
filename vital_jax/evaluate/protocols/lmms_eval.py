"""Protocol `lmms_eval`: lmms-eval's SLAKE task (exact match after its normalising) and its MMMU task.

From `lmms_eval/tasks/slake` (65ef07d) and `lmms_eval/tasks/mmmu` (02bc1c0) of github.com/EvolvingLMMs-Lab/lmms-eval. It has no task for
VQA-RAD, PathVQA or PMC-VQA; those get the rule of SLAKE here, or of MMMU where they have options.
"""

import re
import string

from vital_jax.evaluate.items import Item
from vital_jax.evaluate.protocols import mmmu
from vital_jax.evaluate.protocols.core import Parsed, Protocol, family
from vital_jax.evaluate.protocols.measures import accuracy, closed, golds
from vital_jax.scoring.choice import letters_of

ABOUT = (
    "lmms-eval. Without options: exact match after its normalising (brackets and punctuation out, words for yes and no in English and "
    "Chinese made one), the prompt of its SLAKE task (32 new tokens there). With options: the parser of its MMMU task; an answer that "
    "names no option is wrong. Chinese 正常 (normal) and 异常 (abnormal) are answers of their own. Only SLAKE and MMMU have a task there."
)
COMPAT = "lmms-eval as it stands: unreadable choices are drawn at random (seed 0), 正常 (normal) counts as yes and 异常 (abnormal) as no."
SEED = 0  # of `--seed`, as it is by default
YES = {"yes", "yeah", "yep", "true", "是", "是的", "有", "包含", "可以", "能", "会"}
NO = {"no", "nope", "false", "否", "不是", "没有", "无", "不包含", "不能", "不会", "不可以"}
COMPAT_YES, COMPAT_NO = YES | {"正常"}, NO | {"不正常", "异常"}
CHINESE = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～、，。；：《》？【】（）"
MARKS = str.maketrans(dict.fromkeys(string.punctuation + CHINESE, " "))


def normal(text: str, compat: bool = False) -> str:
    """The normal form that must be equal; "" for an answer of nothing but marks."""
    text = re.sub(r"\([^)]*\)|（[^）]*）", " ", text.strip().lower())
    text = " ".join(text.translate(MARKS).split())
    if text in ("x ray", "xray"):
        return "xray"
    yes, no = (COMPAT_YES, COMPAT_NO) if compat else (YES, NO)
    return "yes" if text in yes else "no" if text in no else text


def prompt(item: Item) -> str:
    """The question with SLAKE's last line, or with options and MMMU's."""
    if not item.options:
        return f"{item.question.strip()}\n{mmmu.PHRASE}"
    listed = "\n".join(f"{name}. {option}" for name, option in zip(letters_of(item.options), item.options, strict=True))
    return f"{item.question}\n{listed}\n\n{mmmu.DIRECT}"


def lmms_eval(compat: bool = False) -> Protocol:
    """The protocol; `compat` for its own arithmetic."""
    # The loose form is lmms-eval's; it finds an A in "MRA shows", so by default a letter must stand alone.
    read = mmmu.parser(compat, mmmu.LOOSE if compat else (*mmmu.OFFICIAL, " {}.".format))

    def parse(item: Item, text: str) -> Parsed:
        return read(item, text) if item.options else Parsed(text, normal(text, compat), "text")

    def correct(item: Item, parsed: Parsed) -> bool:
        if item.options:
            return bool(parsed.value) and parsed.value == item.gold
        if family(item.benchmark) == "mmmu":
            return mmmu.correct(item, parsed)
        # An answer without a word equals a gold answer without one there.
        return (compat or bool(parsed.value)) and any(parsed.value == normal(gold, compat) for gold in golds(item))

    return Protocol(
        name="lmms_eval",
        version=1 if compat else 2,
        about=COMPAT if compat else ABOUT,
        prompt=prompt,
        parse=parse,
        correct=correct,
        measures=(
            accuracy("accuracy", "all questions", correct),
            accuracy(
                "closed accuracy", "what the benchmark marks closed-ended, else options or yes/no", correct, closed
            ),
            accuracy("open accuracy", "what is not closed-ended", correct, lambda item: not closed(item)),
        ),
        guess=SEED if compat else None,
        options=("compat",) if compat else (),
    )
