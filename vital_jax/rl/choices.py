"""Named choices: what a recipe may say, checked when it is read, with an error that lists what there is.

Published trainers differ in details that nobody writes down, so nothing here has a default: a recipe states every choice, and a run can be
told from another by its recipe alone.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Names(NamedTuple):
    """One of these."""

    names: tuple[str | bool, ...]

    def complaint(self, value: Any) -> str:
        if any(value == name and type(value) is type(name) for name in self.names):
            return ""
        near = difflib.get_close_matches(str(value), map(str, self.names), 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{hint}use one of {', '.join(map(repr, self.names))}"


class Number(NamedTuple):
    """A finite number from `low` to `high`, both allowed, or one of `others`; `rule` says so in words."""

    rule: str
    low: float
    high: float = math.inf
    others: tuple[float, ...] = ()
    whole: bool = False

    def complaint(self, value: Any) -> str:
        number = isinstance(value, int if self.whole else int | float) and not isinstance(value, bool)
        if number and math.isfinite(value) and (self.low <= value <= self.high or value in self.others):
            return ""
        return f"use {self.rule}"


class Texts(NamedTuple):
    """A list of texts, none empty."""

    def complaint(self, value: Any) -> str:
        good = isinstance(value, list | tuple) and value and all(isinstance(text, str) and text for text in value)
        return "" if good else "use a list of texts, none empty"


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """What is said of a name that is none of the known ones, the nearest first."""
    known = tuple(known)
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {near[0]!r}? There are" if near else "there are"
    return f"{what} {name!r} is not known; {hint} {', '.join(known)}"


def check(values: Mapping[str, Any], table: Mapping[str, Names | Number | Texts]) -> None:
    """Checks the values that the table knows. Raises: ValueError naming the first that is not allowed, and what is."""
    for name, allowed in table.items():
        if name in values and (complaint := allowed.complaint(values[name])):
            raise ValueError(f"{name}={values[name]!r}: {complaint}")


def choose(kind: type[T], settings: Mapping[str, Any], where: str) -> T:
    """The dataclass that the settings of a recipe spell out.

    Args: where: how the recipe calls them (`config.rl.objective`), for errors.
    Raises: ValueError naming a setting that is unknown, missing, or has a value that is not allowed.
    """
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in settings:
        if name not in known:
            raise ValueError(unknown(f"{where}: setting", name, known))
    if missing := [name for name in known if name not in settings]:
        raise ValueError(f"{where}: nothing is implied; state {', '.join(missing)} as well")
    try:
        return kind(**settings)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None
