"""Values of a question file's rows: what a cell means, whatever the file's form (`pipeline.tables` reads that)."""

import ast
import math
import re
from collections.abc import Sequence
from typing import Any

from vital_jax.pipeline.tables import Row

_MAX_LITERAL = 100_000


def first(row: Row, *names: str) -> Any:
    """The first value that is not empty, by the names it may have; None where there is none."""
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def needed(row: Row, *names: str) -> Any:
    """As `first`. Raises: ValueError, the row has none: it is one of another benchmark."""
    value = first(row, *names)
    if value is None:
        raise ValueError(f"no {' or '.join(names)}; the row has {', '.join(sorted(map(str, row)))}")
    return value


def plain(value: Any, name: str) -> str:
    """Text without spaces at its ends: numbers as they are written, nothing as "".

    Raises: ValueError, it is neither text nor a number; a yes or no must be written as such.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name} must be text or a number, not {type(value).__name__}: {str(value)[:80]}")
    return str(value).strip()


def several(value: Any, name: str) -> list[str]:
    """One text or a list of texts, as a list; Python's way of writing a list is read too. Raises: ValueError as `plain`."""
    if isinstance(value, str):
        value = literal_list(value, name)
    values = value if isinstance(value, list | tuple) else [value]
    return [text for text in (plain(part, name) for part in values) if text]


def literal_list(value: str, name: str) -> list | str:
    """A text that holds a Python list, as MMMU writes options, becomes that list; any other text stays as it is.

    It is read as a literal, never evaluated. Raises: ValueError, it opens like a list and is none.
    """
    text = value.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return value
    try:
        if len(text) > _MAX_LITERAL:
            raise ValueError("too long")
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{name} {text[:80]!r} is no list that can be read") from error
    return found if isinstance(found, list) else value


def options_of(value: Any) -> tuple[str, ...]:
    """Options in the order of their letters: from a list, a text that holds a list, {"A": text}, or [{"letter": "A", "content": text}].

    Empty ones at the end are left out.

    Raises: ValueError, it is none of these, or letters are not A, B, C ...
    """
    if isinstance(value, str):
        value = literal_list(value, "options")
    if isinstance(value, list | tuple) and value and all(isinstance(part, dict) for part in value):
        value = {part.get("letter"): part.get("content") for part in value}
    if isinstance(value, dict):
        lettered = {key: text for key, text in value.items() if text is not None}
        expected = [chr(ord("A") + place) for place in range(len(lettered))]
        if sorted(map(str, lettered)) != expected:
            raise ValueError(f"options have the letters {sorted(map(str, value))}, not {expected}")
        value = [lettered[key] for key in expected]
    if value is None or value == "":
        return ()
    if not isinstance(value, list | tuple):
        raise ValueError(f"options must be a list of texts, not {str(value)[:80]!r}")
    texts = [plain(part, "options") for part in value]
    while texts and not texts[-1]:
        texts.pop()
    return tuple(texts)


def unlettered(options: Sequence[str]) -> tuple[str, ...]:
    """Options without their own letter before a colon: "B:axial" -> "axial" in the second place."""
    cut = (
        re.sub(rf"^\(?{chr(ord('A') + place)}\)?\s*:\s*", "", option) or option for place, option in enumerate(options)
    )
    return tuple(cut)
