"""Which side of the split everything is on: patients and near-duplicates whole, and every number of reasoning steps in its share.

A patient, case or volume is one group. Groups are united where two of their pictures are the same, or nearly: breast ultrasound sets hold
the same frame under two names, a volume comes as a crop of another. What is united is assigned as one.

Near-duplicates are found in two steps. A perceptual hash (signs of the 63 lowest frequencies of a 32 x 32 thumbnail) proposes pairs that
differ in at most `HAMMING` of its bits; a correlation of at least `CORRELATION` between the thumbnails decides. On the twelve folders of
images and three of volumes that the tests use, the most alike pair of two different patients has 0.982 and 12 bits, and every picture that
was saved as a poor JPEG, halved, brightened or given another gamma has at least 0.992 and at most 8 bits. A turned, mirrored or cropped
copy is not found. No two pictures are compared unless two of eight bands of their hashes are equal, and in a long run of equal bands only
those near each other, so the work grows as N log N.

In memory: 24 bytes per picture and the names of the groups; thumbnails lie in a temporary file (1 KB per picture).
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from PIL import Image

SIDE = 32
HAMMING = 6  # of 63 bits; two of eight bands are then equal, so that no such pair is missed in a short run
CORRELATION = 0.985
_BANDS = [(0x7F << 56 if band == 7 else 0xFF << 8 * band) for band in range(8)]
_WINDOW = 32  # how far apart two pictures of a long run of equal bands may stand to be compared
_CHUNK = 4096  # pairs of thumbnails compared at once
SPLITS = ("train", "val", "test")

_OFFICIAL = {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing", "ts"),
}
_WORD = re.compile(r"([a-z]+?)(?:[-_ ]?set)?(?:[-_ ]?\d+)?")  # train, trainset, val2017

_rows = np.arange(SIDE)
# Whole numbers, so that a sum's last digit cannot turn a bit on another machine.
_COSINES = np.rint(4096 * np.cos(np.pi * (_rows[None] + 0.5) * _rows[:8, None] / SIDE)).astype(np.int64)


def official(word: str) -> str:
    """The side that a source's own word for it means ("valid", "testset", "train2017"): train, val, test, or "" where it means none."""
    found = _WORD.fullmatch(word.strip().lower())
    return next((side for side, words in _OFFICIAL.items() if found and found[1] in words), "")


def describe(picture: Image.Image) -> tuple[int, bytes]:
    """A picture's perceptual hash (63 bits) and its thumbnail (SIDE x SIDE grey bytes)."""
    thumb = np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))
    waves = (_COSINES @ thumb.astype(np.int64) @ _COSINES.T).ravel()[1:]
    bits = np.packbits(np.r_[False, waves > np.median(waves)])
    return int.from_bytes(bits.tobytes()), thumb.tobytes()


class Pictures:
    """Collects pictures with their groups, and unites groups that share one.

    Args:
      folder: where the thumbnails' temporary file may lie.
    """

    def __init__(self, folder: Path):
        self._hashes, self._contents, self._groups = array("Q"), array("Q"), array("Q")
        self._numbers: dict[str, int] = {}
        self._parent = array("Q")
        self._thumbs = TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as this object

    def group(self, name: str) -> int:
        """The number of a group, given out when its name first comes."""
        if name not in self._numbers:
            self._numbers[name] = len(self._numbers)
            self._parent.append(len(self._parent))
        return self._numbers[name]

    def add(self, group: str, content: str, hashed: int, thumb: bytes) -> None:
        """Adds a picture: its group, the SHA-256 of its file in hexadecimal, and what `describe` gives."""
        self._groups.append(self.group(group))
        self._contents.append(int(content[:16], 16))
        self._hashes.append(hashed)
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
        hashes, contents = (np.frombuffer(values, np.uint64) for values in (self._hashes, self._contents))
        groups = np.frombuffer(self._groups, np.uint64).astype(np.int64)
        order = np.argsort(contents, kind="stable")
        for i in np.flatnonzero(contents[order][1:] == contents[order][:-1]):
            self._unite(groups[order[i]], groups[order[i + 1]])
        if len(hashes):
            self._thumbs.flush()
            thumbs = np.memmap(self._thumbs, np.uint8, "r", shape=(len(hashes), SIDE * SIDE))
            for bands in combinations(_BANDS, 2):
                self._unite_alike(hashes, groups, thumbs, np.uint64(bands[0] | bands[1]))
        return before - sum(self.root(group) == group for group in range(len(self._parent)))

    def _unite_alike(self, hashes: np.ndarray, groups: np.ndarray, thumbs: np.ndarray, bands: np.uint64) -> None:
        """Compares pictures whose hashes are equal in two bands."""
        order = np.lexsort((hashes, hashes & bands))
        keys = hashes[order] & bands
        for apart in range(1, min(_WINDOW, len(order) - 1) + 1):
            same = np.flatnonzero(keys[apart:] == keys[:-apart])
            if not len(same):
                break
            i, j = order[same], order[same + apart]
            alike = (groups[i] != groups[j]) & (np.bitwise_count(hashes[i] ^ hashes[j]) <= HAMMING)
            pairs = [
                pair for pair in zip(i[alike], j[alike], strict=True) if len({self.root(groups[k]) for k in pair}) > 1
            ]
            for start in range(0, len(pairs), _CHUNK):
                one, other = np.array(pairs[start : start + _CHUNK]).T
                for k in np.flatnonzero(correlation(thumbs[one], thumbs[other]) >= CORRELATION):
                    self._unite(groups[one[k]], groups[other[k]])

    def components(self) -> dict[str, int]:
        """Group name -> number of what it was united to."""
        return {name: self.root(number) for name, number in self._numbers.items()}

    def close(self) -> None:
        """Removes the temporary file."""
        self._thumbs.close()


def correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pearson correlation of each row of two uint8 arrays [N, pixels]; 0 where a row is all equal, for an even ground is like nothing."""
    a, b = (rows.astype(np.float32) - rows.mean(1, keepdims=True, dtype=np.float32) for rows in (one, other))
    scale = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return (a * b).sum(1) / np.where(scale, scale, 1)


def assign(weights: Mapping[int, Counter], names: Mapping[int, str], val: float, test: float) -> dict[int, str]:
    """Gives every component a side so that each stratum is divided in the shares train / val / test.

    Largest components first, each to the side on which it leaves the strata nearest to their targets (the least sum of squared distances,
    each in units of its target). A function of the components alone, not of their order. When a set grows, components may change sides:
    a set that was published, or trained on, is kept as it was built. This is the rule of `vital data build`, which has the whole set before
    it; records that are made as a stream (phantoms, captions) are divided by hash, `build.split_of`.

    Args:
      weights: component -> {stratum: how many}; a stratum is a number of steps, a modality, ...
      names: component -> a name that decides between equals.
      val, test: shares; the rest is for training.

    Raises: ValueError for shares that are none.
    """
    if not (min(val, test) >= 0 and val + test <= 1):
        raise ValueError(f"shares must be between 0 and 1 together, not val={val} and test={test}")
    strata = sorted({stratum for counts in weights.values() for stratum in counts})
    column = {stratum: i for i, stratum in enumerate(strata)}
    total = np.zeros(len(strata))
    for counts in weights.values():
        for stratum, number in counts.items():
            total[column[stratum]] += number
    shares = {"train": 1 - val - test, "val": val, "test": test}
    sides = [side for side in SPLITS if shares[side] > 0]
    target = np.array([[shares[side] * n for n in total] for side in sides])
    held, found = np.zeros_like(target), {}
    for component in sorted(weights, key=lambda c: (-sum(weights[c].values()), names[c])):
        columns = [column[stratum] for stratum in weights[component]]
        more = np.array(list(weights[component].values()), float)
        goal, here = target[:, columns], held[:, columns]
        cost = (more * (2 * (here - goal) + more) / np.maximum(goal, 1e-9)).sum(1)
        side = int(np.argmin(np.round(cost, 9)))
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
