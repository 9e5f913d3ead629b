"""The rewards of a recipe: (function, weight) or (function, weight, options), each called with a record and a reply.

A function is built in (`builtin.BUILT_IN`), the `judge`, or `file.py:name` in a file that the recipe names, and only the recipe: nothing
that comes out of a data set is ever imported. A mistake in it ends the run with the record, the function and the line, as a reward that
silently were 0 would train for days.
"""

import hashlib
import importlib.machinery
import importlib.util
import inspect
import math
import numbers
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vital_jax.pipeline.records import Record
from vital_jax.rl.builtin import BUILT_IN, Reply
from vital_jax.rl.choices import Number, check, unknown

JUDGE = "judge"
WEIGHT = Number("a finite number, 0 to measure without rewarding", -math.inf)


class RewardError(ValueError):
    """A reward that is none; one line that names the record, the function and where."""


@dataclass(frozen=True)
class Reward:
    """A function with its weight.

    Attributes:
      name: in metrics and `filter_on`. weight: in the sum. function: (record, reply, **options) -> number.
      place: of its definition, "file.py:12", as errors show it.
    """

    name: str
    weight: float
    function: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""

    def __call__(self, record: Record, reply: Reply) -> float:
        """The number, unweighted. May be called from several threads at once. Raises: RewardError."""
        try:
            value = self.function(record, reply, **self.options)
        except Exception as error:
            said = f"raised {_words(error)}"
            raise RewardError(self._complaint(record, said, _line(error, self.place))) from error
        if not isinstance(value, numbers.Real | np.bool_) or not math.isfinite(value):
            said = f"returned {value!r:.80}; a reward is a finite number"
            raise RewardError(self._complaint(record, said, self.place))
        return float(value)

    def _complaint(self, record: Record, said: str, place: str) -> str:
        return f"record {record.id!r}: reward {self.name!r} {said}" + (f" ({place})" if place else "")

    def close(self) -> None:
        """Lets go of what the function holds (a judge's connections)."""
        if close := getattr(self.function, "close", None):
            close()


def load(rows: Sequence[Sequence[Any]], cache: Path | None = None) -> tuple[Reward, ...]:
    """The rewards of a recipe.

    Two rows with one function are told apart by a number ("format", "format_2").

    Args: rows: (function, weight) or (function, weight, options). cache: a folder, where a judge keeps what it said.
    Raises: ValueError naming the row: an unknown function, a file that cannot be read, a weight or an option that is none.
    """
    if not rows:
        raise ValueError(
            f"no rewards: give at least one (function, weight); built in are {', '.join(BUILT_IN)}, {JUDGE}"
        )
    found: list[Reward] = []
    for row in rows:
        if isinstance(row, str) or len(row) not in (2, 3) or not isinstance(row[0], str):
            raise ValueError(f"reward {row!r} is not (function, weight) or (function, weight, options)")
        given, weight, options = (*row, {})[:3]
        if complaint := WEIGHT.complaint(weight):
            raise ValueError(f"reward {given!r}: weight={weight!r}: {complaint}")
        base = name = given.rpartition(":")[2]
        number = 1
        while any(name == other.name for other in found):
            number += 1
            name = f"{base}_{number}"
        found.append(_reward(given, name, float(weight), dict(options), cache))
    return tuple(found)


def _reward(given: str, name: str, weight: float, options: dict[str, Any], cache: Path | None) -> Reward:
    where = f"reward {given!r}"
    if given == JUDGE:
        from vital_jax.rl.judge import Judge

        if cache is None:
            raise ValueError(f"{where} needs a folder where its replies are kept")
        _bound(where, Judge, (), {"cache": cache}, options)
        return Reward(name, weight, Judge(cache=cache, **options))
    if given in BUILT_IN:
        function, allowed = BUILT_IN[given]
        _bound(where, function, (None, None), {}, options)
        try:
            check(options, allowed)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        return Reward(name, weight, function, options)
    path, separator, called = given.rpartition(":")
    path, called = (path, called) if separator and not called.endswith(".py") else (given, "")
    if not path.endswith(".py"):
        raise ValueError(unknown("reward", given, (*BUILT_IN, JUDGE, "file.py:function")))
    module = _module(Path(path))
    own_function = getattr(module, called, None)
    if not callable(own_function):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise ValueError(unknown(f"{path}: function", called, own) if own else f"{path}: defines no function")
    _bound(where, own_function, (None, None), {}, options)
    code = getattr(inspect.unwrap(own_function), "__code__", None)
    return Reward(name, weight, own_function, options, f"{path}:{code.co_firstlineno}" if code else path)


def _bound(
    where: str, function: Callable[..., Any], args: tuple[Any, ...], own: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """Whether a function takes what it will be called with. Raises: ValueError."""
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **own, **options)
    except TypeError as error:
        taken = [key for key, one in signature.parameters.items() if one.kind is one.KEYWORD_ONLY and key not in own]
        more = f"its options are {', '.join(taken)}" if taken else "it takes no options"
        first = "" if not args else "a reward takes (record, reply), options are keyword-only; "
        raise ValueError(f"{where}: {error}; {first}{more}") from None


def _module(path: Path) -> ModuleType:
    """A file of the user's as a module, read once. Raises: ValueError naming the file, and the line where it has one."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file of rewards (looked for from {Path.cwd()})")
    whole, source = path.resolve(), path.read_bytes()
    # Known by its content too: a file that was changed is read anew.
    name = f"vital_rewards_{hashlib.sha256(bytes(whole) + source).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = importlib.machinery.SourceFileLoader(name, str(whole))
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(name, loader, origin=str(whole)))
    try:
        code = loader.source_to_code(source, str(whole))
        sys.modules[name] = module
        exec(code, vars(module))
    except Exception as error:
        sys.modules.pop(name, None)
        line = error.lineno if isinstance(error, SyntaxError) else _lineno(error, whole)
        raise ValueError(f"{path}{f':{line}' if line else ''}: cannot be read, {_words(error)}") from error
    return module


def _words(error: BaseException) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _lineno(error: BaseException, path: Path) -> int | None:
    """The line of a file that an error last went through."""
    lines = [one.lineno for one in traceback.extract_tb(error.__traceback__) if Path(one.filename) == path]
    return lines[-1] if lines else None


def _line(error: BaseException, place: str) -> str:
    """ "file.py:14": the last line of the user's file on the way to an error; without one, where the error arose."""
    path = place.rpartition(":")[0]
    if path and (line := _lineno(error, Path(path).resolve())):
        return f"{path}:{line}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"
