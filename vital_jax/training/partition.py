"""Regex tables over parameter paths: one mechanism for what trains, how it is sharded and how fast it learns.

A parameter tree is one nested dict of arrays; a leaf's path is its keys joined by "/"
(`lora/language_model/layers/self_attn/q_proj/a`). A table is a sequence of rows (regex, value). A row must match the
whole path, and every leaf must be matched by exactly one row: with "first row wins" a new parameter falls silently into
whichever catch-all stands below, and a renamed one silently stops being trained.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Table = Sequence[tuple[str, Any]]

TRAINABLE, FROZEN = "trainable", "frozen"
_SHOWN = 20


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a nested dict by path, in the tree's order.

    Raises: TypeError for a key that is no string; ValueError for one that holds "/".
    """
    flat: dict[str, Any] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for key, value in node.items():
            if not isinstance(key, str):
                raise TypeError(f"parameter key {key!r} under {prefix or 'the root'!r} is no string")
            if "/" in key:
                raise ValueError(
                    f"parameter key {key!r} under {prefix or 'the root'!r} holds '/', which separates keys"
                )
            if isinstance(value, Mapping):
                walk(value, f"{prefix}{key}/")
            else:
                flat[prefix + key] = value

    walk(tree, "")
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict of leaves by path; undoes `flatten` (but for empty dicts, which hold no leaf)."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def _listed(lines: list[str]) -> str:
    rest = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "".join(f"\n  {line}" for line in lines[:_SHOWN] + rest)


def match(table: Table, paths: Iterable[str], allow_unused: bool = False) -> dict[str, Any]:
    """The value of the one row that matches each path.

    Args:
      table: rows (regex, value); a regex must match the whole path.
      paths: leaf paths.
      allow_unused: accept rows that match nothing (a table written for several models).
    Raises: ValueError that lists every leaf matched by no row, every leaf matched by several (with the rows) and every
      row that matches nothing.
    """
    rows = [(re.compile(regex), value) for regex, value in table]
    hits = {path: [row for row in rows if row[0].fullmatch(path)] for path in paths}
    met = {id(row) for found in hits.values() for row in found}
    unmatched = [path for path, found in hits.items() if not found]
    doubled = [
        f"{path}  <- {', '.join(repr(regex.pattern) for regex, _ in found)}"
        for path, found in hits.items()
        if len(found) > 1
    ]
    unused = [repr(row[0].pattern) for row in rows if id(row) not in met and not allow_unused]
    problems = [
        f"{len(found)} {words}:{_listed(found)}"
        for found, words in (
            (unmatched, "leaves matched by no row (add a row)"),
            (doubled, "leaves matched by several rows (make the rows exclusive)"),
            (unused, "rows that match no leaf (remove or correct them)"),
        )
        if found
    ]
    if problems:
        raise ValueError("parameter table does not fit the tree: " + "\n".join(problems))
    return {path: found[0][1] for path, found in hits.items()}


def split(tree: Mapping[str, Any], table: Table) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainable, frozen), two nested dicts that share no leaf. Row values are `trainable` or `frozen`.

    Raises: ValueError as `match`, or for another value.
    """
    flat = flatten(tree)
    values = match(table, flat)
    if strange := sorted({str(value) for value in values.values()} - {TRAINABLE, FROZEN}):
        raise ValueError(f"a row says {', '.join(strange)}: use '{TRAINABLE}' or '{FROZEN}'")
    parts = ({path: leaf for path, leaf in flat.items() if values[path] == kind} for kind in (TRAINABLE, FROZEN))
    trainable, frozen = (unflatten(part) for part in parts)
    return trainable, frozen


def merge(trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """One tree of both parts; undoes `split`.

    Raises: ValueError where both hold the same leaf, or one holds a leaf where the other holds a dict.
    """
    merged = dict(frozen)
    for key, value in trainable.items():
        if key not in merged:
            merged[key] = value
        elif isinstance(value, Mapping) and isinstance(merged[key], Mapping):
            merged[key] = merge(value, merged[key])
        else:
            raise ValueError(f"parameter {key!r} is in both parts")
    return merged


def parameter_table(tree: Mapping[str, Any], table: Table, depth: int = 2) -> str:
    """A text table by module (the first `depth` keys of a path), with a total.

    Leaves need only `shape` and `dtype`, so that the plan of a model can be printed before anything is allocated.

    Returns: lines of name, parameters, how many of them train, dtype and MiB.
    """
    flat = flatten(tree)
    values = match(table, flat)
    groups: dict[str, list[str]] = {}
    for path in flat:
        groups.setdefault("/".join(path.split("/")[:depth]), []).append(path)

    def row(name: str, members: Iterable[str]) -> tuple[str, ...]:
        sizes = {path: math.prod(flat[path].shape) for path in members}
        dtypes = {path: np.dtype(flat[path].dtype) for path in sizes}
        trained = sum(size for path, size in sizes.items() if values[path] == TRAINABLE)
        mebibytes = sum(size * dtypes[path].itemsize for path, size in sizes.items()) / 2**20
        names = "+".join(dict.fromkeys(dtype.name for dtype in dtypes.values()))
        return name, f"{sum(sizes.values()):,}", f"{trained:,}", names, f"{mebibytes:,.1f}"

    rows = [
        ("module", "parameters", "trainable", "dtype", "MiB"),
        *(row(name, members) for name, members in groups.items()),
        row("total", flat),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = (str.ljust, str.rjust, str.rjust, str.ljust, str.rjust)
    lines = ["  ".join(place(cell, w) for place, cell, w in zip(align, row, widths, strict=True)) for row in rows]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
