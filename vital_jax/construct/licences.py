"""Whose data a record stands on: the table of data sets, their licences and what to cite.

A record carries its folder's name as `source` and, where somebody stated one, a licence. Which data set that folder belongs to (ten MSD
tasks are one; BiomedParse's subsets keep their names) and what the data set's own page says stand as data in `data/licences.json`, so that
whoever knows better can mend a line. A licence that could not be found out is "unknown" there, never a guess.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

TABLE = Path(__file__).parent / "data" / "licences.json"
UNKNOWN = "unknown"
BASES = ("page", "file", "repository", UNKNOWN)


@dataclass(frozen=True)
class Dataset:
    """One row of the table.

    Attributes:
      name: as the paper's Table 6 writes it, where it is there.
      corpus: MSD, BiomedParse, VQA or other.
      match: patterns of source names, lower case, with * and ?.
      licence: SPDX identifier, words where there is none, or "unknown".
      basis: how the licence is known: the data set's own page, a licence file that came with the copy, the repository of the copy, unknown.
      url: of the data set's own page; may be empty.
      cite: keys of data/vital_five_tuples/CITATIONS.bib.
      note: doubts and further terms; may be empty.
    """

    name: str
    corpus: str
    match: tuple[str, ...]
    licence: str
    basis: str
    url: str = ""
    cite: tuple[str, ...] = ()
    note: str = ""


@cache
def load_licences(path: Path = TABLE) -> tuple[Dataset, ...]:
    """Reads and checks a table.

    Raises:
      ValueError: not such a table, a name twice, an unknown basis, or a licence without one; the message names the file and the row.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        version = table["format_version"]
        lists = ("match", "cite")
        rows = tuple(
            Dataset(**{key: tuple(value) if key in lists else value for key, value in row.items()})
            for row in table["datasets"]
        )
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a table of licences ({error!r})") from error
    if version != 1:
        raise ValueError(f"{path}: table format {version}, this vital_jax reads 1")
    seen = set()
    for row in rows:
        if row.name in seen:
            raise ValueError(f"{path}: {row.name!r} comes twice")
        seen.add(row.name)
        if row.basis not in BASES or (row.licence == UNKNOWN) != (row.basis == UNKNOWN):
            raise ValueError(f"{path}: row {row.name!r} has licence {row.licence!r} on the basis of {row.basis!r}")
    return rows


def dataset_of(source: str, table: Sequence[Dataset] | None = None) -> Dataset | None:
    """The data set that a record's `source` belongs to; None where the table does not know it.

    Any part of a path may match: "BiomedParse/MSD/Task02_Heart" is MSD. The first row that matches counts.
    """
    names = [source.lower(), *(part for part in re.split(r"[/:\\]", source.lower()) if part)]
    for row in load_licences() if table is None else table:
        if any(fnmatchcase(name, pattern) for pattern in row.match for name in names):
            return row
    return None


def benchmark_of(source: str) -> str:
    """What a source is called as a benchmark: its data set's name, or its own."""
    dataset = dataset_of(source)
    return dataset.name if dataset else source
