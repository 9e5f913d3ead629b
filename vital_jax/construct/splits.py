"""Which side of the split everything is on: patients and near-duplicates whole, and every number of reasoning steps in its share.

A source's own split is kept (`divide`); the rest is divided here. A patient, case or volume is one group. Groups are united where two of
their pictures are the same, or nearly: breast ultrasound sets hold the same frame under two names, a volume comes as a crop of another.
What is united is assigned as one.

Near-duplicates are found by `near`. In memory: 330 bytes per picture and the names of the groups; thumbnails lie in a temporary file
(2 KB per picture).
"""

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from vital_jax.construct import near

SPLITS = ("train", "val", "test")
HELD_OUT = ("val", "test")

_OFFICIAL = {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing", "ts"),
}
_WORD = re.compile(r"([a-z]+?)(?:[-_ ]?set)?(?:[-_ ]?\d+)?")  # train, trainset, val2017


def official(word: str) -> str:
    """The side that a source's own word for it means ("valid", "testset", "train2017"): train, val, test, or "" where it means none."""
    found = _WORD.fullmatch(word.strip().lower())
    return next((side for side, words in _OFFICIAL.items() if found and found[1] in words), "")


class Pictures:
    """Collects pictures with their groups, and unites groups that share one.

    Args:
      folder: where the thumbnails' temporary file may lie.
    """

    def __init__(self, folder: Path):
        self._contents, self._groups = array("Q"), array("Q")
        self._numbers: dict[str, int] = {}
        self._parent = array("Q")
        self._thumbs = TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as this object

    def group(self, name: str) -> int:
        """The number of a group, given out when its name first comes."""
        if name not in self._numbers:
            self._numbers[name] = len(self._numbers)
            self._parent.append(len(self._parent))
        return self._numbers[name]

    def add(self, group: str, content: str, thumb: bytes) -> None:
        """Adds a picture: its group, the SHA-256 of its file in hexadecimal, and what `near.describe` gives."""
        self._groups.append(self.group(group))
        self._contents.append(int(content[:16], 16))
        self._thumbs.write(thumb)

    def root(self, group: int) -> int:
        """The number that stands for all groups united with this one."""
        parent = self._parent
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    def _unite(self, one: int, other: int) -> None:
        one, other = sorted((self.root(one), self.root(other)))
        self._parent[other] = one

    def unite(self) -> int:
        """Unites groups that share a picture; returns how many groups went into others."""
        before = sum(self.root(group) == group for group in range(len(self._parent)))
        contents = np.frombuffer(self._contents, np.uint64)
        groups = np.frombuffer(self._groups, np.uint64).astype(np.int64)
        order = np.argsort(contents, kind="stable")
        for i in np.flatnonzero(contents[order][1:] == contents[order][:-1]):
            self._unite(groups[order[i]], groups[order[i + 1]])
        if len(groups) > 1:
            self._thumbs.flush()
            thumbs = np.memmap(self._thumbs, np.uint8, "r", shape=(len(groups), near.SIDE**2))
            self._unite_near(thumbs, groups)
        return before - sum(self.root(group) == group for group in range(len(self._parent)))

    def _unite_near(self, thumbs: np.ndarray, groups: np.ndarray) -> None:
        """Unites groups that have a near-duplicate in common; the most alike pairs first, which spares others."""
        starts = range(0, len(thumbs), near.ROWS)
        found = np.concatenate([near.descriptors(near.ranks(thumbs[i : i + near.ROWS])) for i in starts])
        blocks = near.candidates(found, np.array([self.root(group) for group in groups]))
        one, other, flips, cosines = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        first, second = np.minimum(one, other), np.maximum(one, other)
        # Every pair once, in an order that does not hang on the last digit of a cosine.
        order = np.lexsort((second, first, -np.round(cosines, 3)))
        _, once = np.unique((first * len(thumbs) + second)[order], return_index=True)
        order = order[np.sort(once)]
        for start in range(0, len(order), near.PAIRS):
            chosen = order[start : start + near.PAIRS]
            apart = [
                self.root(groups[i]) != self.root(groups[j]) for i, j in zip(one[chosen], other[chosen], strict=True)
            ]
            chosen = chosen[apart]
            a, b = (near.ranks(thumbs[np.array(side[chosen])]) for side in (one, other))
            for k in chosen[near.same(a, near.mirrored(b, flips[chosen]))] if len(chosen) else ():
                self._unite(groups[one[k]], groups[other[k]])

    def components(self) -> dict[str, int]:
        """Group name -> number of what it was united to."""
        return {name: self.root(number) for name, number in self._numbers.items()}

    def close(self) -> None:
        """Removes the temporary file."""
        self._thumbs.close()


@dataclass(frozen=True)
class Key:
    """What is divided as one: a source's part of a group on one side of the source's own split.

    Attributes:
      source: its name. group: a patient, case or volume. official: train, val, test, or "" where the source has no split of its own.
    """

    source: str
    group: str
    official: str = ""


def divide(
    weights: Mapping[Key, Counter], components: Mapping[str, int], val: float, test: float
) -> tuple[dict[Key, str], dict[Key, set[str]]]:
    """Gives everything a side: the one that its source gives it, or else one with the whole component so that strata get their shares.

    A source that holds something out keeps its split. What it has no side for (most have no validation) is drawn from its training part.
    A source without such a split goes with the near-duplicates that others hold out, test before val. So training meets a source's test
    images only where another's own split, or its own, puts them there, and that is told.

    Args:
      weights: per part {stratum: how many}. components: group -> number of what it was united to.
      val, test: shares.

    Returns: sides; and of parts on the training side, the sources whose test images, or near-duplicates of them, they hold.
    Raises: ValueError as `assign`.
    """
    offered, out, tested = defaultdict(set), defaultdict(set), defaultdict(set)
    for key in weights:
        offered[key.source].add(key.official)
        if key.official in HELD_OUT:
            out[components[key.group]].add(key.official)
        if key.official == "test":
            tested[components[key.group]].add(key.source)
    sides, free, allowed = {}, defaultdict(Counter), defaultdict(lambda: set(SPLITS))
    for key, counts in weights.items():
        component, keeps = components[key.group], not offered[key.source].isdisjoint(HELD_OUT)
        if key.official in HELD_OUT:
            sides[key] = key.official
        elif out[component]:
            kept = key.official == "train" and keeps
            sides[key] = "train" if kept else max(out[component], key=SPLITS.index)
        else:
            free[component].update(counts)
            if keeps:
                allowed[component] &= {"train", *HELD_OUT} - (offered[key.source] & set(HELD_OUT))
    fixed = defaultdict(Counter)
    for key, side in sides.items():
        fixed[side].update(weights[key])
    names = first_names((key.group for key in weights), components)
    found = assign(free, names, val, test, allowed, fixed)
    sides |= {key: found[components[key.group]] for key in weights if key not in sides}
    overlaps = {key: tested[components[key.group]] for key, side in sides.items() if side == "train"}
    return sides, {key: sources for key, sources in overlaps.items() if sources}


def assign(
    weights: Mapping[int, Counter],
    names: Mapping[int, str],
    val: float,
    test: float,
    allowed: Mapping[int, set[str]] | None = None,
    fixed: Mapping[str, Counter] | None = None,
) -> dict[int, str]:
    """Gives every component a side so that each stratum is divided in the shares train / val / test.

    Largest components first, each to the side on which it leaves the strata nearest to their targets (the least sum of squared distances,
    each in units of its target). A function of the components alone, not of their order. When a set grows, components may change sides:
    a set that was published, or trained on, is kept as it was built. This is the rule of `vital data build`, which has the whole set before
    it; records that are made as a stream (phantoms, captions) are divided by hash, `build.split_of`.

    Args:
      weights: component -> {stratum: how many}; a stratum is a number of steps, a modality, ...
      names: component -> a name that decides between equals.
      val, test: shares; the rest is for training.
      allowed: component -> sides, where not all of them may be chosen; training where none with a share is left.
      fixed: side -> {stratum: how many} that is there before.

    Raises: ValueError for shares that are none.
    """
    if not (min(val, test) >= 0 and val + test <= 1):
        raise ValueError(f"shares must be between 0 and 1 together, not val={val} and test={test}")
    allowed, fixed = allowed or {}, fixed or {}
    strata = sorted({stratum for counts in (*weights.values(), *fixed.values()) for stratum in counts})
    column = {stratum: i for i, stratum in enumerate(strata)}
    shares = {"train": 1 - val - test, "val": val, "test": test}
    sides = [side for side in SPLITS if shares[side] > 0]
    held = np.array([[float(fixed.get(side, {}).get(stratum, 0)) for stratum in strata] for side in SPLITS])
    total = held.sum(0)
    for counts in weights.values():
        for stratum, number in counts.items():
            total[column[stratum]] += number
    held, found = held[[SPLITS.index(side) for side in sides]], {}
    target = np.array([[shares[side] * n for n in total] for side in sides])
    for component in sorted(weights, key=lambda c: (-sum(weights[c].values()), names[c])):
        columns = [column[stratum] for stratum in weights[component]]
        more = np.array(list(weights[component].values()), float)
        goal, here = target[:, columns], held[:, columns]
        cost = np.round((more * (2 * (here - goal) + more) / np.maximum(goal, 1e-9)).sum(1), 9)
        open_ = [side in allowed.get(component, SPLITS) for side in sides]
        if not any(open_):
            found[component] = "train"
            continue
        side = int(np.argmin(np.where(open_, cost, np.inf)))
        held[side, columns] += more
        found[component] = sides[side]
    return found


def first_names(groups: Iterable[str], components: Mapping[str, int]) -> dict[int, str]:
    """Component -> the least of its groups' names."""
    names: dict[int, str] = {}
    for group in groups:
        number = components[group]
        names[number] = min(group, names.get(number, group))
    return names
