"""The parser of `vital` and of every command under it: a mistyped name is answered with the nearest one."""

import argparse
from difflib import get_close_matches
from typing import Any


class Parser(argparse.ArgumentParser):
    """As argparse's; sub-commands are made of the same class, so it holds at every level."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        near = get_close_matches(str(value), known, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise argparse.ArgumentError(action, f"no {value!r}: {hint}there are {', '.join(known)}")
