"""What stands behind a prompt: the suffix of a method as a list of segments, as data, and the one rule that places its columns.

    VITAL     latent K, answer                       Coconut   <bot>, latent cs, <eot>, chain[s:], answer
    text CoT  chain, lead-in, answer                 LVR       <start>, given ROI tokens, <end>, answer
    CODI      <bot>, latent K, <eot>, lead-in, answer, and a branch at the prompt's end: chain, lead-in, answer

The rule, for every row of a batch:

- A column is real or padding. Its position is that of the prompt's end plus the number of real columns before it on its branch. It sees
  the prompt and every real column up to itself on its branch.
- A column is predicted from the last real column before it on its branch, or from the prompt's last.
- A row's K_i latents stand at the right end of their segment, so the last latent of every row is in the same column. The input of a
  latent is made from the state that would predict it.
- A branch sees and counts what its parent holds before the fork, and nothing after it.
- A segment may be hidden from all but some segments (`seen_by`), and may bring positions of its own, as an image does.

This file is the rule's static half, in NumPy: which columns there are and which are on one another's branch. What differs by row is data in
the batch; `latent/interpret.py` runs both.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

KINDS = ("tokens", "latent", "given", "recorded")
COUNTS = ("own", "all")
PADDING, TOKEN, FORCED, LATENT = range(4)  # the mode of a recorded column
_CHAIN = re.compile(r"chain\[(\d*):(\d*)\]")


class Tokens(Protocol):
    """What turns literal text into tokens (`pipeline.prompts.Prompter`)."""

    def literal(self, text: str) -> Sequence[int]: ...


@dataclass(frozen=True)
class Segment:
    """Neighbouring suffix columns of one kind.

    Attributes:
      kind: `tokens`; `latent` (inputs made from states, one after the other); `given` (vectors of the batch, or made from the prefix); or
        `recorded` (a rollout replayed: a mode per column says whether a token or a recorded vector stands there).
      name: of the segment, and of its arrays in a batch.
      budget: U, its columns. Of a segment with `text` it is the number of that text's tokens, known once the text is bound.
      source: where the tokens of a record come from: `answer`, or `chain[a:b]`, its steps a..b-1. Of given vectors: `batch`, where they are
        an array of it; empty, where the method makes them.
      text: literal text, the same in every row, in place of a source.
      ids: the tokens of `text`; see `Suffix.bound`.
      supervised: whether the task loss reads its columns.
      branch: the branch it stands on; empty: the main one.
      seen_by: names of the segments that may look at it, besides itself; empty: all behind it on its branch.
      own_positions: its columns bring position offsets on three axes and an advance, as images do.
      count: of latents: `own` (K_i is the record's number of steps times `per_step`, at most the budget) or `all` (K_i is the budget).
      per_step: latents for each step of a record's chain.
      cut: whether a record with more steps than the budget keeps its first ones; otherwise it is an error.
    """

    kind: str
    name: str
    budget: int = 0
    source: str = ""
    text: str = ""
    ids: tuple[int, ...] = ()
    supervised: bool = False
    branch: str = ""
    seen_by: tuple[str, ...] = ()
    own_positions: bool = False
    count: str = "own"
    per_step: int = 1
    cut: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"segment {self.name!r}: unknown kind {self.kind!r}; use one of {', '.join(KINDS)}")
        if self.count not in COUNTS:
            raise ValueError(f"segment {self.name!r}: unknown count {self.count!r}; use one of {', '.join(COUNTS)}")
        if self.budget < 0 or self.per_step < 1:
            raise ValueError(f"segment {self.name!r}: budget {self.budget} and per_step {self.per_step} are too small")
        known = ("", "batch") if self.kind == "given" else ("", "answer")
        if self.source not in known and not (self.kind == "tokens" and _CHAIN.fullmatch(self.source)):
            raise ValueError(f"segment {self.name!r}: unknown source {self.source!r}; use answer, chain[a:b] or batch")

    @property
    def fixed(self) -> bool:
        """Whether its tokens are the same in every row."""
        return bool(self.text or self.ids)

    def steps(self, chain: Sequence[str]) -> Sequence[str]:
        """The steps of a record's chain that this segment spells out."""
        first, last = _CHAIN.fullmatch(self.source).groups()  # type: ignore[union-attr]  # checked when the segment was made
        return chain[int(first or 0) : int(last) if last else None]


@dataclass(frozen=True)
class Branch:
    """A second continuation of the same columns: it forks behind the first `columns` columns of the parent's segment `after`.

    Attributes: name; parent (empty: the main branch); after (empty: the prompt's end); columns (None: the whole segment).
    """

    name: str
    parent: str = ""
    after: str = ""
    columns: int | None = None


@dataclass(frozen=True)
class Suffix:
    """The segments of a method in the order of their columns, and their branches.

    Raises: ValueError for names used twice, or a branch or segment that is named and not there.
    """

    segments: tuple[Segment, ...] = ()
    branches: tuple[Branch, ...] = ()

    def __post_init__(self) -> None:
        for kind, names in (
            ("segments", [s.name for s in self.segments]),
            ("branches", [b.name for b in self.branches]),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"two {kind} are named {', '.join(twice)}")
        segments, branches = {s.name for s in self.segments}, {"", *(b.name for b in self.branches)}
        named = {name for s in self.segments for name in s.seen_by} | {b.after for b in self.branches if b.after}
        if lost := sorted(named - segments):
            raise ValueError(f"no segment is named {', '.join(lost)}; there are {', '.join(sorted(segments))}")
        if lost := sorted({s.branch for s in self.segments} | {b.parent for b in self.branches} - branches):
            lost = [name for name in lost if name not in branches]
            if lost:
                raise ValueError(f"no branch is named {', '.join(lost)}")

    @property
    def width(self) -> int:
        """U, the columns of all segments."""
        return sum(segment.budget for segment in self.segments)

    @cached_property
    def starts(self) -> dict[str, int]:
        """The first column of each segment."""
        ends = np.cumsum([0, *(segment.budget for segment in self.segments)])
        return {segment.name: int(start) for segment, start in zip(self.segments, ends, strict=False)}

    def __getitem__(self, name: str) -> Segment:
        found = [segment for segment in self.segments if segment.name == name]
        if not found:
            raise KeyError(f"no segment {name!r}; there are {', '.join(self.starts)}")
        return found[0]

    def __contains__(self, name: str) -> bool:
        return name in self.starts

    def of_kind(self, kind: str) -> tuple[Segment, ...]:
        """The segments of a kind, in order."""
        return tuple(segment for segment in self.segments if segment.kind == kind)

    def bound(self, tokens: Tokens) -> "Suffix":
        """The same suffix with its literal texts as tokens; a text of no tokens is no segment."""

        def bind(segment: Segment) -> Segment:
            if not segment.text:
                return segment
            ids = tuple(int(i) for i in tokens.literal(segment.text))
            return replace(segment, text="", ids=ids, budget=len(ids))

        bound = (bind(segment) for segment in self.segments)
        return replace(
            self,
            segments=tuple(
                segment for segment in bound if segment.budget or segment.source or segment.kind != "tokens"
            ),
        )

    def fork(self, branch: str) -> int:
        """The column from which on a branch no longer sees its parent."""
        found = next(b for b in self.branches if b.name == branch)
        if not found.after:
            return 0
        segment = self[found.after]
        return self.starts[found.after] + (segment.budget if found.columns is None else found.columns)

    @cached_property
    def path(self) -> np.ndarray:
        """[U, U] bool: whether column j is on the branch of column i, j anywhere on it and not only before i."""
        branch = np.array([segment.branch for segment in self.segments for _ in range(segment.budget)], dtype=object)
        columns = np.arange(self.width)
        shared = {}
        for name in {"", *(b.name for b in self.branches)}:
            row, seen, limit = np.zeros(self.width, bool), name, self.width
            while True:
                row |= (branch == seen) & (columns < limit)
                if not seen:
                    break
                limit = min(limit, self.fork(seen))
                seen = next(b.parent for b in self.branches if b.name == seen)
            shared[name] = row
        return np.array([shared[name] for name in branch], bool).reshape(self.width, self.width)

    @cached_property
    def between(self) -> np.ndarray:
        """[U, U] bool: whether column i may look at column j: on its branch, and not hidden from its segment."""
        names = [segment.name for segment in self.segments for _ in range(segment.budget)]
        seen = self.path.copy()
        for segment in self.segments:
            if segment.seen_by:
                allowed = np.array([name in (*segment.seen_by, segment.name) for name in names])
                start = self.starts[segment.name]
                seen[:, start : start + segment.budget] &= allowed[:, None]
        return seen

    @cached_property
    def before(self) -> np.ndarray:
        """[U, U] bool: whether column j counts for the position of column i: on its branch and before it."""
        return self.path & np.tri(self.width, k=-1, dtype=bool)


def steps_taken(segment: Segment, own: int) -> int:
    """K_i of a record with `own` steps in a latent segment.

    Raises: ValueError where it exceeds the budget and may not be cut.
    """
    if segment.count == "all":
        return segment.budget
    wanted = own * segment.per_step
    if wanted > segment.budget and not segment.cut:
        raise ValueError(
            f"needs {wanted} latent steps (K), the budget is {segment.budget}; use a layout that holds {wanted}"
        )
    return min(wanted, segment.budget)


def arrays_of(segment: Segment, D: int) -> Mapping[str, tuple[tuple[int, ...], type, str]]:
    """A segment's arrays in a row of a batch: name -> (shape, dtype, meaning). D: width of the model, for vectors."""
    name, U = segment.name, segment.budget
    i, f = np.int32, np.float32
    found: dict[str, tuple[tuple[int, ...], type, str]] = {}
    if segment.kind == "tokens" and not segment.fixed:
        found[name] = (U,), i, f"{segment.source or name}: tokens; 0 on padding"
        found[f"{name}_mask"] = (U,), bool, "its real columns"
    elif segment.kind == "latent":
        found[f"{name}_steps"] = (), i, "K_i, the latent steps this row takes"
    elif segment.kind == "given":
        if segment.source:
            found[name] = (U, D), f, "the vectors that stand there; 0 on padding"
        found[f"{name}_mask"] = (U,), bool, "its real columns"
    elif segment.kind == "recorded":
        found[f"{name}_mode"] = (U,), i, "of each column: 0 padding, 1 token, 2 forced token, 3 latent"
        found[f"{name}_tokens"] = (U,), i, "its token; 0 where there is none"
        found[f"{name}_inputs"] = (U, D), f, "the recorded input of a latent; 0 elsewhere"
    if segment.own_positions:
        found[f"{name}_positions"] = (3, U), i, "offsets of its columns on the three axes (time, row, column)"
        found[f"{name}_advance"] = (), i, "by how much it moves the position of what follows"
    return found
