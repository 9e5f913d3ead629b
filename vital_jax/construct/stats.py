"""What a set holds: the tables of VITAL's appendix A.4 (6: by source and K; 7: by modality and K) and more, for any record folder.

Counting reads every record once and keeps none: memory holds counters and eight bytes per distinct text and image. Tables are plain rows,
so that the command prints them as Markdown and CSV; the pictures (the paper's figure 7) are drawn as SVG from the same rows.
"""

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

from vital_jax.construct.drawing import ticks
from vital_jax.construct.licences import UNKNOWN, Dataset, dataset_of
from vital_jax.construct.pages import NOTHING, open_splits, render, traits
from vital_jax.construct.report import HeldOut
from vital_jax.pipeline.records import Record

DEPTHS = ("1", "2", "3", "4")  # the paper's columns; deeper ones follow where there are any
SPLITS = ("train", "val", "test")
TOTAL = "Total"
# What each table by K counts; 6 and 7 are the paper's.
BY_STEPS = {
    "source": "Records by data set and K (the paper's Table 6)",
    "modality": "Records by modality and K (the paper's Table 7)",
    "split": "Records by split and K",
    "type": "Records by question type and K (the paper's Table 4)",
    "target_type": "Records by type of target and K",
    "teacher": "Records by teacher and K",
}
PICTURES = ("source", "modality", "split")
ONE_SOURCE = 0.9  # share of the records from which on a set of several sources is said to be one
TEXTS = ("question", "step", "chain", "answer")
_COLOURS = ("#0072b2", "#56b4e9", "#e69f00", "#d55e00", "#999999", "#555555")  # Okabe and Ito's: told apart by any eye


@dataclass
class Stats:
    """Counters over a set.

    Attributes:
      steps: per name of `BY_STEPS`: {(row, K): records}, K as text.
      lengths: per name of `TEXTS`: {words: how many}.
      distinct: per name of `TEXTS`: hashes of the texts.
      groups, images: per split: hashes of the groups (patients) and of the images.
      held_out: official test sets, and what training has seen of them.
      licences: {(data set, licence that its records state): records}.
      datasets: {name: its row in the table of licences, None where it has none}.
    """

    steps: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    lengths: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    distinct: dict[str, set] = field(default_factory=lambda: defaultdict(set))
    groups: dict[str, set] = field(default_factory=lambda: defaultdict(set))
    images: dict[str, set] = field(default_factory=lambda: defaultdict(set))
    licences: Counter = field(default_factory=Counter)
    held_out: HeldOut = field(default_factory=HeldOut)
    datasets: dict[str, Dataset | None] = field(default_factory=dict)

    def add(self, record: Record, split: str) -> None:
        """Counts one record."""
        metadata = record.metadata
        row = traits({"latent_steps": record.latent_steps, "metadata": metadata}, split)
        dataset = dataset_of(row["source"])
        name = dataset.name if dataset else row["source"]
        self.datasets[name] = dataset
        rows = row | {"source": name, "target_type": metadata.get("target_type", NOTHING)}
        rows["teacher"] = metadata.get("teacher", NOTHING)
        for table in BY_STEPS:
            self.steps[table][rows[table], row["steps"]] += 1
        self.licences[name, metadata.get("licence", "")] += 1
        texts = {"question": [record.question], "step": record.chain, "answer": [record.answer]}
        for kind, found in (texts | {"chain": [" ".join(record.chain)] if record.chain else []}).items():
            self.lengths[kind].update(len(text.split()) for text in found)
            self.distinct[kind].update(_short(text.encode()) for text in found)
        if "group" in metadata:
            self.groups[split].add(_short(metadata["group"].encode()))
        images = [_short(data) for data in record.images]
        self.images[split].update(images)
        self.held_out.add(metadata, split, images)

    def warnings(self) -> list[str]:
        """What a reader of the tables must not miss: one source that is nearly all of the set, and test sets that training has seen."""
        sources = Counter()
        for (name, _), number in self.steps["source"].items():
            sources[name] += number
        found = []
        for name, number in sources.most_common(1):
            share = number / sources.total()
            if len(sources) > 1 and share >= ONE_SOURCE:
                found.append(
                    f"{name} is {100 * share:.1f} % of the records: a model trained or scored on this set is mostly about {name}; give it "
                    "fewer (max_slices in a plan file), or score by source"
                )
        return found + [line for seen, line in self.held_out.lines(self.images["train"]) if seen]


def _short(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


def collect(path: str | Path) -> Stats:
    """Reads every record of the factory's output or a record folder. Raises: FileNotFoundError, ValueError as `RecordSource`."""
    stats = Stats()
    for split, source in open_splits(path).items():
        for record in source:
            stats.add(record, split)
    return stats


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers; the first column names the row.

    Attributes:
      name: of its files. title, header: as shown. rows: cells, str, int or float.
    """

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]

    def cells(self) -> list[list[str]]:
        """Rows as text for Markdown: numbers with commas, and nothing from the data that would end a cell or a line."""
        return [[_cell(value) for value in row] for row in self.rows]


def _cell(value: str | int | float) -> str:
    if isinstance(value, str):
        return " ".join(value.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def tables(stats: Stats) -> list[Table]:
    """Every table of a set; the paper's two come first."""
    found = [_by_steps(stats, name) for name in BY_STEPS]
    return [*found, _splits(stats), *_held_out(stats), _lengths(stats), _distinct(stats), _licences(stats)]


def _by_steps(stats: Stats, name: str) -> Table:
    counts = stats.steps[name]
    depths = [*DEPTHS, *sorted({depth for _, depth in counts} - set(DEPTHS))]
    totals = Counter()
    for (row, _), number in counts.items():
        totals[row] += number
    if name == "split":
        order = sorted(totals, key=lambda row: (row not in SPLITS, SPLITS.index(row) if row in SPLITS else 0, row))
    else:
        order = sorted(totals, key=lambda row: (-totals[row], row))
    if name == "source":  # the paper's order: MSD, then the rest by size
        order.sort(key=lambda row: row != "MSD")
    rows = [(row, *(counts[row, depth] for depth in depths), totals[row]) for row in order]
    ends = (sum(counts[row, depth] for row in totals) for depth in depths)
    rows.append((TOTAL, *ends, sum(totals.values())))
    header = (name.replace("_", " "), *(depth if depth == NOTHING else f"K={depth}" for depth in depths), TOTAL)
    return Table(f"by_{name}", BY_STEPS[name], header, tuple(rows))


def _splits(stats: Stats) -> Table:
    records = Counter()
    for (split, _), number in stats.steps["split"].items():
        records[split] += number
    whole = sum(records.values())
    rows = [
        (row[0], records[row[0]], 100 * records[row[0]] / whole, len(stats.images[row[0]]), len(stats.groups[row[0]]))
        for row in _by_steps(stats, "split").rows[:-1]
    ]
    title = "Splits: a group is what stays on one side, such as a patient"
    return Table("splits", title, ("split", "records", "% of records", "images", "groups"), tuple(rows))


def _held_out(stats: Stats) -> list[Table]:
    held = stats.held_out
    rows = []
    for name in held.names():
        asked = [held.asked[name, split] for split in SPLITS]
        images = held.test_images(name)
        rows.append((name, *asked, len(images), len(images & stats.images["train"]), len(held.pictures[name])))
    header = (
        "benchmark",
        *(f"questions in {split}" for split in SPLITS),
        "test images",
        "of them in training",
        "near-duplicates too",
    )
    title = "Official test sets: where their questions are, and which of their images training has seen"
    return [Table("official_test_sets", title, header, tuple(rows))] if rows else []


def _lengths(stats: Stats) -> Table:
    rows = []
    for kind in TEXTS:
        if counts := stats.lengths[kind]:
            marks = [_quantile(counts, share) for share in (0.05, 0.5, 0.95, 1)]
            mean = sum(words * number for words, number in counts.items()) / counts.total()
            rows.append((kind, counts.total(), mean, *marks))
    header = ("text", "texts", "mean words", "5 %", "median", "95 %", "longest")
    return Table("lengths", "Lengths in words", header, tuple(rows))


def _quantile(counts: Counter, share: float) -> int:
    """The least number of words that at least this share of the texts does not exceed."""
    seen = 0
    for words in sorted(counts):
        seen += counts[words]
        if seen >= share * counts.total():
            return words
    raise ValueError("no texts")


def _distinct(stats: Stats) -> Table:
    rows = tuple(
        (kind, total, len(stats.distinct[kind]), 100 * len(stats.distinct[kind]) / total)
        for kind in TEXTS
        if (total := stats.lengths[kind].total())
    )
    return Table("distinct", "Distinct texts", ("text", "texts", "distinct", "% distinct"), rows)


def _licences(stats: Stats) -> Table:
    rows = []
    order = {row[0]: number for number, row in enumerate(_by_steps(stats, "source").rows)}
    for (name, stated), number in sorted(stats.licences.items(), key=lambda item: (order[item[0][0]], item[0][1])):
        known = stats.datasets[name]
        licence = (
            UNKNOWN
            if known is None
            else known.licence
            if known.basis == UNKNOWN
            else f"{known.licence} ({known.basis})"
        )
        cite = " ".join(known.cite) if known else ""
        rows.append((name, number, stated or NOTHING, licence, cite or NOTHING))
    title = "Licences: what the records state, and what is known of the data set (on whose word)"
    header = ("data set", "records", "in the records", "of the data set", "cite")
    return Table("licences", title, header, tuple(rows))


def to_csv(table: Table) -> str:
    """The table as CSV with a header, numbers as they are."""
    file = StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(table.header)
    writer.writerows(table.rows)
    return file.getvalue()


def pictures(found: list[Table]) -> dict[str, str]:
    """Bars by K, one SVG per table of `PICTURES`: {file name without ending: SVG}."""
    by_name = {table.name: table for table in found}
    return {name: bars(by_name[name]) for name in (f"by_{each}" for each in PICTURES)}


WIDTH, LABELS, NUMBERS = 760, 200, 70  # pixels: of all, of the names, of the totals
ROW = 24  # of a bar and its gap
LETTERS = 26  # of a name that fits into LABELS


def bars(table: Table) -> str:
    """A table by K as stacked bars, one per row, without the total's. Every name is escaped."""
    rows = [row for row in table.rows if row[0] != TOTAL]
    most = max((row[-1] for row in rows), default=1)
    scale = (WIDTH - LABELS - NUMBERS) / most
    series = table.header[1:-1]
    return render(
        "bars.svg",
        title=table.title,
        width=WIDTH,
        height=ROW * (len(rows) + 3) + 12,
        axis=ROW * (len(rows) + 2),
        ticks=[
            {"x": round(LABELS + number * scale, 1), "name": f"{number:,.0f}"}
            for number in ticks(0, most)
            if number == int(number)
        ],
        bars=[
            {
                "name": row[0],
                "label": row[0] if len(row[0]) <= LETTERS else f"{row[0][: LETTERS - 1]}…",
                "y": ROW * (number + 2),
                "total": f"{row[-1]:,}",
                "end": round(LABELS + row[-1] * scale + 6, 1),
                "parts": list(_parts(row[1:-1], series, scale)),
            }
            for number, row in enumerate(rows)
        ],
        labels=LABELS,
        legend=[{"name": name, "x": LABELS + 80 * i, "colour": _colour(i)} for i, name in enumerate(series)],
    )


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _parts(counts: tuple[int, ...], series: tuple[str, ...], scale: float) -> Iterator[dict]:
    left = 0
    for i, (name, count) in enumerate(zip(series, counts, strict=True)):
        if count:
            x, width = round(LABELS + left * scale, 2), round(count * scale, 2)
            yield {"x": x, "width": width, "colour": _colour(i), "name": name, "count": f"{count:,}"}
        left += count
