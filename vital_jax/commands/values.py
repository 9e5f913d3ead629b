"""What the doors have in common: exit statuses, words for folders, the rule of --limit, and values of flags that are refused alike."""

import argparse
import re

# Exit statuses of every command; 130 is what shells have after Ctrl-C.
DONE, INCOMPLETE, MISTAKE, INTERRUPTED = 0, 1, 2, 130
STATUSES = {
    DONE: "done",
    INCOMPLETE: "finished, and the answer is no or not all: something was set aside, is incomplete, does not fit or does not agree",
    MISTAKE: "a mistake in what was given, or something else to mend before it can go on (a full disk); one line says what",
    INTERRUPTED: "stopped by Ctrl-C; a command that keeps its work goes on when it is given again",
}
EXITS = f"Exit status: {'; '.join(f'{status} {meaning}' for status, meaning in STATUSES.items())}. Research only, not a medical device."
LIMIT = "N, evenly spaced"  # what --limit takes everywhere, see `statistics.spread`
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
