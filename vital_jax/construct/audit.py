"""The human audit: a random share of a set to look at, and what the verdicts say about all of it (VITAL A.3: 5 %, leakage under 0.3 %).

`draw` picks the records, `audit_page` makes one HTML file in which somebody accepts or rejects each with a key, and `read_verdicts` and
`summary` turn the file downloaded from it into rates. A share of every stratum (modality and question type) is drawn, rounded up, so that
no kind is missing; small strata therefore weigh a little more in the rate over all than in the set. The page shows the records in random
order, so that what was judged by somebody who stopped early is a random sample still.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vital_jax.construct.pages import Album, card, fingerprint, open_splits, page, place, traits, write_text
from vital_jax.statistics import spread, wilson

FORMAT, FORMAT_VERSION = "vital-audit-verdicts", 1
ACCEPT = "accept"
REASONS = {  # the order is that of the keys 1, 2, 3
    "leak": "the text lets on that a mask, an outline, a label or a given name was seen",
    "wrong": "the question, a step or the answer is not true of the image",
    "unclear": "it cannot be judged, or the text cannot be understood",
}
LIMIT = 4000  # records in one page: about 100 MB, which a browser still opens


@dataclass(frozen=True)
class Drawn:
    """A sample of a set.

    Attributes:
      fingerprint: of the set. share, seed, limit: what it was drawn with. count: records in the set.
      rows: per record (split, number in the split, id, modality, question type), in the order in which they are shown.
    """

    fingerprint: str
    share: float
    seed: int
    limit: int
    count: int
    rows: tuple[tuple[str, int, str, str, str], ...]


def draw(path: str | Path, share: float = 0.05, seed: int = 0, limit: int = LIMIT) -> Drawn:
    """Draws the records to look at; the same set and numbers always give the same ones.

    Args:
      path: the factory's output or a record folder.
      share: of each stratum, above 0 and up to 1.
      seed: of the draw.
      limit: most records in all, evenly spaced in the random order.

    Raises:
      FileNotFoundError, ValueError: as `pages.open_splits`; a share or a limit that is none.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and up to 1, got {share}")
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    strata, count = defaultdict(list), 0
    for split, source in open_splits(path).items():
        for number, row in enumerate(source.index):
            kind = traits(row, split)
            strata[kind["modality"], kind["type"]].append((split, number, row["id"]))
            count += 1
    chosen = []
    for stratum, rows in strata.items():
        rows.sort(key=lambda row: place(seed, row[2]))
        # 25 * 0.28 is a little more than 7 in floating point, and would be rounded up to 8.
        chosen += [(*row, *stratum) for row in rows[: math.ceil(len(rows) * share - 1e-9)]]
    chosen.sort(key=lambda row: place(seed, row[2]))
    return Drawn(fingerprint(path), share, seed, limit, count, tuple(spread(chosen, limit)))


def audit_page(path: str | Path, drawn: Drawn) -> str:
    """The page of a sample. Raises: ValueError for an image or mask that cannot be decoded, naming the record."""
    sources, album = open_splits(path), Album()
    cards = []
    for split, number, *_ in drawn.rows:
        record = sources[split][number]
        cards.append(card(record, split) | {"images": album.show(record)})
    data = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **{name: getattr(drawn, name) for name in ("fingerprint", "share", "seed", "limit", "count")},
        "reasons": list(REASONS),
        "pictures": album.pictures,
        "cards": cards,
    }
    return page("audit", title=Path(path).resolve().name, data=data, reasons=REASONS)


def read_verdicts(file: str | Path, path: str | Path) -> tuple[Drawn, dict[str, str]]:
    """Reads the file that the page gave and checks that it is about this set.

    Returns:
      The sample that was shown, and per judged id "accept" or the reason of its rejection.

    Raises:
      FileNotFoundError: no such file, or no set.
      ValueError: not a file of verdicts, one about another set, an id that was not shown, or a verdict that is none; the message names it.
    """
    file = Path(file)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] != FORMAT or found["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {found['format']!r} {found['format_version']!r}")
        numbers = float(found["share"]), int(found["seed"]), int(found["limit"])
        verdicts = dict(found["verdicts"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{file}: not a file of verdicts from the audit page ({error!r})") from error
    if found["fingerprint"] != (here := fingerprint(path)):
        raise ValueError(
            f"{file}: verdicts on another set ({str(found['fingerprint'])[:8]}, this one is {here[:8]}); "
            "name the folder that the page was made from, or audit this one"
        )
    drawn = draw(path, *numbers)
    shown = {row[2] for row in drawn.rows}
    for record_id, verdict in verdicts.items():
        if record_id not in shown:
            raise ValueError(f"{file}: record {record_id!r} was not among those shown")
        if verdict not in (ACCEPT, *REASONS):
            raise ValueError(f"{file}: record {record_id!r} has verdict {verdict!r}, none of {[ACCEPT, *REASONS]}")
    return drawn, verdicts


def summary(drawn: Drawn, verdicts: Mapping[str, str]) -> dict:
    """Rates of a judged sample, over all and per modality.

    Args:
      drawn, verdicts: from `read_verdicts`.

    Returns:
      JSON values: what was drawn, {"shown", "judged"}, and "rates": per "all" and modality {"judged", "accepted", "rejected": {reason: n},
      "accept": {"share", "low", "high"}, "leak": likewise} with Wilson's interval.

    Raises:
      ValueError: no verdict at all.
    """
    if not verdicts:
        raise ValueError("no verdicts: nothing was judged")

    def rates(given: list[str]) -> dict:
        counts, n = Counter(given), len(given)
        result = {"judged": n, "accepted": counts[ACCEPT], "rejected": {reason: counts[reason] for reason in REASONS}}
        for name, count in (("accept", counts[ACCEPT]), ("leak", counts["leak"])):
            low, high = wilson(count, n)
            result[name] = {"share": count / n, "low": low, "high": high}
        return result

    by_modality = defaultdict(list)
    for *_, record_id, modality, _type in drawn.rows:
        if record_id in verdicts:
            by_modality[modality].append(verdicts[record_id])
    return {
        **{name: getattr(drawn, name) for name in ("fingerprint", "share", "seed", "limit", "count")},
        "shown": len(drawn.rows),
        "judged": len(verdicts),
        "rates": {
            "all": rates(list(verdicts.values())),
            **{name: rates(given) for name, given in sorted(by_modality.items())},
        },
    }


def write_summary(path: str | Path, found: dict) -> Path:
    """Writes `audit.json` into the set's folder. Returns its path."""
    return write_text(Path(path) / "audit.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def write_rejects(path: str | Path, verdicts: Mapping[str, str]) -> tuple[Path, int]:
    """Writes `audit_rejects.jsonl`: a line {"id", "code", "stage"} per rejected record, with what earlier audits rejected kept.

    The factory leaves these ids out when it builds again, so that an audit of what it builds then adds to the same file.

    Returns:
      The file, and how many ids it names.

    Raises:
      ValueError: an existing file with a line that is none of its own.
    """
    file, codes = Path(path) / "audit_rejects.jsonl", {}
    if file.exists():
        codes = read_rejects(file)
    codes |= {record_id: f"audit-{verdict}" for record_id, verdict in verdicts.items() if verdict != ACCEPT}
    lines = ({"id": record_id, "code": code, "stage": "audit"} for record_id, code in sorted(codes.items()))
    return write_text(file, _lines(lines)), len(codes)


def read_rejects(file: str | Path) -> dict[str, str]:
    """{record id: code} of an `audit_rejects.jsonl`. Raises: FileNotFoundError, or ValueError naming the line."""
    file, codes = Path(file), {}
    # Only \n ends a line: an id may hold what Python otherwise takes for the end of one.
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            codes[str(row["id"])] = str(row["code"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}:{number}: not a line of audit rejects ({error!r})") from error
    return codes


def _lines(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
