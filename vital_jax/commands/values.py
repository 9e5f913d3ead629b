"""What several doors have in common: exit statuses, words for folders, and values of flags that are refused in the same way everywhere."""

import argparse
import re

# Exit statuses of `vital data ...`; 130 is what shells have after Ctrl-C.
DONE, INCOMPLETE, MISTAKE, INTERRUPTED = 0, 1, 2, 130
EXITS = (
    "Exit status: 0 done; 1 finished, but something was set aside or is incomplete; 2 a mistake in what was given, or something else to "
    "mend before it can go on (a full disk); 130 stopped by Ctrl-C. Research only, not a medical device."
)
# Positional arguments: what OUT and RECORDS stand for.
OUT = "the folder that `vital data build` makes"
RECORDS = "a record folder, or an OUT of `vital data build`"


def shard(text: str) -> tuple[int, int]:
    """I/N of the machines that share a work, counted from 0. Raises: argparse.ArgumentTypeError."""
    found = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
    i, n = map(int, found.groups()) if found else (0, 0)
    if i >= n:
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N: the first of 3 is 0/3 and the last 2/3")
    return i, n


def whole(text: str) -> int:
    """A whole number from 1. Raises: argparse.ArgumentTypeError."""
    return _number(text, int, "a whole number, 1 or more", lambda number: number >= 1)


def count(text: str) -> int:
    """A whole number from 0. Raises: argparse.ArgumentTypeError."""
    return _number(text, int, "a whole number, 0 or more", lambda number: number >= 0)


def positive(text: str) -> float:
    """A number over 0. Raises: argparse.ArgumentTypeError."""
    return _number(text, float, "a number over 0", lambda number: 0 < number < float("inf"))


def price(text: str) -> float:
    """A number from 0. Raises: argparse.ArgumentTypeError."""
    return _number(text, float, "a number, 0 or more", lambda number: 0 <= number < float("inf"))


def share(text: str) -> float:
    """A number from 0 to 1. Raises: argparse.ArgumentTypeError."""
    return _number(text, float, "a number from 0 to 1", lambda number: 0 <= number <= 1)


def _number(text: str, kind: type, what: str, good) -> int | float:
    try:
        number = kind(text)
    except ValueError:
        number = float("nan")
    if not good(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return number
