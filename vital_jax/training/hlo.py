"""What a compiled program sends between chips, read from its HLO text.

XLA's own cost analysis counts a loop's body once, whatever the number of turns, so collectives are counted here: every computation is
walked from the entry with the product of the trip counts of the loops around it. TPU programs do not record trip counts; they are then read
from the loop's condition, a comparison of its counter with a constant.

Bytes are what one chip sends when a collective over n chips runs as a ring (receiving is the same again): (n - 1) / n of the whole for an
all-gather, a reduce-scatter and an all-to-all, twice that for an all-reduce, everything for a permutation.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_WIDTHS = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "token": 0, "opaque": 0}
_KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLS = re.compile(r"\b(?:calls|to_apply|called_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}|\b(?:true|false)_computation=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_SCOPE = re.compile(r'op_name="([^"]*)"')


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str  # its result's type, as written
    opcode: str
    rest: str  # operands and attributes

    @property
    def scope(self) -> str:
        """Where in the source it comes from; empty where the compiler does not say."""
        found = _SCOPE.search(self.rest)
        return found[1] if found else ""


class Collective(NamedTuple):
    """One collective of a program."""

    kind: str
    sent: float  # bytes that one chip sends each time
    times: int  # how often it runs
    scopes: tuple[str, ...]  # of the loops around it, outermost first, and its own last

    def within(self, scope: str) -> bool:
        """Whether it or a loop around it comes from this named scope."""
        return any(scope in found for found in self.scopes)


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Every computation of an HLO module by name, and the entry's name. Raises: ValueError for a text without an entry."""
    found: dict[str, list[Instruction]] = {}
    entry, body = None, None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            body = found.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif body is not None and (parts := _LINE.match(line)):
            body.append(Instruction(*parts.groups()))
    if entry is None:
        raise ValueError("this is no HLO module: it has no ENTRY computation")
    return found, entry


def size(shape: str) -> float:
    """Bytes of a type as HLO writes it; of a tuple, all of its arrays."""

    def one(kind: str, dimensions: str) -> float:
        digits = re.search(r"\d+", kind)
        width = _WIDTHS.get(kind, int(digits[0]) / 8 if digits else 0)
        return width * math.prod(int(n) for n in dimensions.split(",") if n)

    return sum(one(*found) for found in _ARRAY.findall(shape))


class Uncounted(ValueError):
    """A loop that ends when its data says so: no program states how often it runs."""


def trip_count(loop: Instruction, found: dict[str, list[Instruction]]) -> int:
    """How often a while loop runs. Raises: Uncounted where neither it nor its condition says."""
    if known := _TRIPS.search(loop.rest):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]
    # The comparison may stand in a fusion that the condition calls, and its constant outside of it.
    bodies = [condition, *(name for line in found[condition] for name in _CALLS.findall(line.rest))]
    lines = [line for name in bodies for line in found.get(name, ())]
    compared = any(line.opcode == "compare" and "direction=LT" in line.rest for line in lines)
    constants = {
        int(value[1]) for line in lines if line.opcode == "constant" and (value := re.match(r"(\d+)\)", line.rest))
    }
    if not compared or len(constants) != 1:
        raise Uncounted(
            f"loop {loop.name}: no trip count, and its condition {condition} compares with {sorted(constants) or 'no constant'}"
        )
    return constants.pop()


def _group(line: Instruction) -> int:
    """How many chips take part, from any of the three ways in which HLO writes groups. Raises: ValueError for another."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line.rest):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line.rest):
        return int(counted[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line.rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])  # a part of an axis says its size
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    raise ValueError(f"collective {line.name}: its groups are written in a way that is not read: {line.rest[:200]}")


def _sent(kind: str, line: Instruction, scatters: bool) -> float:
    whole = size(line.shape)
    if line.opcode.endswith("-start") and line.shape.startswith("("):
        # A started collective's type holds its operands too.
        whole -= size(line.shape) - size(_second(line.shape))
    if kind in ("collective-permute", "collective-broadcast"):
        return whole
    n = _group(line)
    if kind == "reduce-scatter":
        return whole * (n - 1)
    ring = whole * (n - 1) / n
    return 2 * ring if kind == "all-reduce" and not scatters else ring


def _second(shape: str) -> str:
    """The second element of a tuple type."""
    depth, parts = 0, [""]
    for character in shape[1:-1]:
        depth += character in "([{"
        depth -= character in ")]}"
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts[1] if len(parts) > 1 else parts[0]


def collectives(text: str) -> list[Collective]:
    """Every collective of a compiled program (`jax.stages.Compiled.as_text()`).

    Raises: Uncounted as `trip_count`; ValueError as `computations`, or for groups written in a way that is not read.
    """
    found, entry = computations(text)

    def walk(name: str, times: int, scopes: tuple[str, ...], counted: set[str]) -> Iterator[Collective]:
        # A fused all-reduce whose result is sliced is a reduce-scatter by another name.
        scatters = (
            any(line.opcode == "all-reduce" for line in found[name]) and found[name][-1].opcode == "dynamic-slice"
        )
        for line in found[name]:
            kind = line.opcode.removesuffix("-start")
            if kind in _KINDS:
                # A TPU spreads one transfer over the fusions that it hides behind, each of which shows it whole, with its channel.
                channel = _CHANNEL.search(line.rest)
                if channel and channel[1] in counted:
                    continue
                counted.update(channel.groups() if channel else ())
                yield Collective(kind, _sent(kind, line, scatters), times, (*scopes, line.scope))
            elif line.opcode == "while":
                body = re.search(r"body=%?([\w.\-]+)", line.rest)[1]
                if any(True for _ in _reached(found, body)):
                    yield from walk(body, times * trip_count(line, found), (*scopes, line.scope), set())
            elif line.opcode == "conditional":
                names = [n.strip().lstrip("%") for a, b in _BRANCHES.findall(line.rest) for n in (a or b).split(",")]
                branches = [list(walk(name, times, (*scopes, line.scope), set())) for name in names]
                yield from max(branches, key=lambda branch: sum(c.sent * c.times for c in branch))
            elif line.opcode in ("fusion", "call", "async-start", "custom-call"):
                for called in _CALLS.findall(line.rest):
                    yield from walk(called, times, (*scopes, line.scope), set() if line.opcode == "call" else counted)

    return list(walk(entry, 1, (), set()))


def _reached(found: dict[str, list[Instruction]], name: str) -> Iterator[Instruction]:
    """Collectives of a computation and of all it calls: a loop without any needs no trip count."""
    for line in found[name]:
        if line.opcode.removesuffix("-start") in _KINDS:
            yield line
        for called in re.findall(r"\b(?:calls|body|to_apply)=%?([\w.\-]+)", line.rest):
            if line.opcode not in (
                "reduce",
                "all-reduce",
                "reduce-scatter",
                "scatter",
                "sort",
                "map",
                "reduce-window",
                "all-reduce-start",
            ):
                yield from _reached(found, called)


def sent(found: list[Collective], scope: str = "") -> float:
    """Bytes that one chip sends in these collectives; with `scope`, in those within it."""
    return sum(c.sent * c.times for c in found if not scope or c.within(scope))
