"""Where the answer stands within a reply, and whether it is a yes or a no."""

import re

from vital_jax.scoring.text import bare


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
