"""Rewards that come with the package: each takes a record and a reply and returns a number, as those of a user do.

Options are keyword-only, and a recipe states them beside the weight. Texts are compared in the normal forms of `scoring`, those that
`vital evaluate` uses, so that what is rewarded is what is scored.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vital_jax.pipeline.records import Record
from vital_jax.rl.choices import Names, Number, Texts
from vital_jax.scoring.boxes import matched_iou, union_iou
from vital_jax.scoring.choice import choose, same_option
from vital_jax.scoring.reading import said, spoken
from vital_jax.scoring.text import bare, normalise, overlap, plain, squad

_NUMBER = r"\s*(-?\d+(?:\.\d*)?|-?\.\d+)\s*"
_BOX = re.compile(rf"[\[(]{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}[\])]")


@dataclass(frozen=True)
class Reply:
    """What the policy wrote for a record.

    Attributes:
      text: the answer. chain: the reasoning before it, where a method has some.
      tokens: ids of all that was written. limit: how many could have been. ended: false where the limit cut the reply off.
    """

    text: str
    tokens: tuple[int, ...]
    limit: int
    ended: bool
    chain: str = ""


def exact(record: Record, reply: Reply) -> float:
    """1 where reply and answer differ in case and spaces alone: the exact match of `vital evaluate`."""
    return float(normalise(reply.text) == normalise(record.answer))


def normalised(record: Record, reply: Reply) -> float:
    """1 where the final answer of the reply ("... the answer is **two**.") is the record's, marks and number words aside."""
    return float(bare(said(reply.text)) == bare(record.answer))


def choice(record: Record, reply: Reply) -> float:
    """1 where the reply names the right option and no other, by letter or by text. Raises: ValueError for a record without options."""
    if not record.options or not (gold := record.gold or same_option(plain(record.answer), record.options)):
        raise ValueError("the record has no options, or none of them is its answer")
    return float(choose(reply.text, record.options)[0] == gold)


def token_f1(record: Record, reply: Reply) -> float:
    """F1 of the words of the final answer and of the record's, in SQuAD's normal form."""
    return overlap(squad(said(reply.text)).split(), squad(record.answer).split())[2]


def boxes(record: Record, reply: Reply, *, scale: float = 1.0, by: str = "matched") -> float:
    """IoU of the boxes in the reply, written as [x_min, y_min, x_max, y_max], and the record's.

    Args:
      scale: what the full width and height are in the reply: 1 for fractions, 1000 for thousandths.
      by: `matched`, the mean of pairs matched greedily; `union`, of the two areas that are covered.
    Raises: ValueError for a record without boxes.
    """
    if not record.boxes:
        raise ValueError("the record has no boxes")
    # A model may write any number: what lies outside the image is cut, and four hundred digits are as far outside as two.
    found = [
        [min(max(float(x) / scale, 0.0), 1.0) for x in box] for box in dict.fromkeys(_BOX.findall(spoken(reply.text)))
    ]
    measure = union_iou if by == "union" else matched_iou
    return measure(np.asarray(found, np.float64).reshape(-1, 4), record.boxes)


def format(record: Record, reply: Reply, *, markers: tuple[str, ...], around: bool = True) -> float:
    """1 where the reply has every marker once, in this order ("<think>", "</think>", "<answer>", "</answer>").

    Args: around: nothing may stand before the first marker or behind the last.
    """
    places = [reply.text.find(marker) for marker in markers]
    once = all(reply.text.count(marker) == 1 for marker in markers)
    rest = reply.text[: places[0]] + reply.text[places[-1] + len(markers[-1]) :] if once and around else ""
    return float(once and places == sorted(places) and not rest.strip())


def length(record: Record, reply: Reply) -> float:
    """The price of length: minus the share of the limit that was used, 0 to -1."""
    return -len(reply.tokens) / reply.limit


def overlong(record: Record, reply: Reply, *, buffer: int) -> float:
    """DAPO's soft punishment (Yu 2025, arXiv 2503.14476): 0, and in the last `buffer` tokens before the limit linear down to -1.

    Raises: ValueError where the buffer is longer than the limit.
    """
    if buffer > reply.limit:
        raise ValueError(f"buffer={buffer} is longer than the longest reply, {reply.limit} tokens")
    return max(-1.0, min(0.0, (reply.limit - buffer - len(reply.tokens)) / buffer))


def repetition(record: Record, reply: Reply, *, n: int = 3) -> float:
    """Minus the share of n-grams of tokens that were there before (Yeo 2025, arXiv 2502.03373, appendix C.2; TRL), 0 to -1."""
    grams = list(zip(*(reply.tokens[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) - 1 if grams else 0.0


# By name: the function, and what its options may be.
BUILT_IN: dict[str, tuple[Callable[..., float], dict[str, Names | Number | Texts]]] = {
    "exact": (exact, {}),
    "normalised": (normalised, {}),
    "choice": (choice, {}),
    "token_f1": (token_f1, {}),
    "boxes": (boxes, {"scale": Number("a number of at least 1", 1), "by": Names(("matched", "union"))}),
    "format": (format, {"markers": Texts(), "around": Names((True, False))}),
    "length": (length, {}),
    "overlong": (overlong, {"buffer": Number("a whole number of tokens, at least 1", 1, whole=True)}),
    "repetition": (repetition, {"n": Number("a whole number of at least 1", 1, whole=True)}),
}
