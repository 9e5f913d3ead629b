"""`report.md` of a built set: what is in it, what is not and why, and how fast it was made."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vital_jax.construct.progress import Stage
from vital_jax.construct.settings import Settings
from vital_jax.construct.source import NOTES
from vital_jax.construct.splits import SPLITS
from vital_jax.construct.targets import load_targets

EXPECTED = ("small-mask",)  # what a rule of the paper leaves out (A.1: under 100 pixels); no fault of the data


@dataclass
class Report:
    """Counts of one run.

    Attributes:
      sources: (source, split) -> records. modalities: (modality, K). steps: (split, K); divided: the same without closed questions, which
        only some splits have. forms: (split, form). splits: records per split.
      rejects: (stage, code). united: groups that were united with others for their pictures.
      groups: split -> what is kept whole there: patients, volumes, near-duplicates united.
    """

    sources: Counter = field(default_factory=Counter)
    modalities: Counter = field(default_factory=Counter)
    steps: Counter = field(default_factory=Counter)
    divided: Counter = field(default_factory=Counter)
    forms: Counter = field(default_factory=Counter)
    splits: Counter = field(default_factory=Counter)
    rejects: Counter = field(default_factory=Counter)
    united: int = 0
    groups: Counter = field(default_factory=Counter)

    def record(self, line: dict) -> None:
        """Counts a record's line."""
        metadata, split = line["fields"]["metadata"], line["split"]
        K = str(metadata.get("latent_steps") or "none")
        try:
            modality = load_targets().family(metadata.get("modality", ""))
        except ValueError:
            modality = metadata.get("modality", "") or "not stated"
        self.sources[metadata.get("source", "not stated"), split] += 1
        self.modalities[modality, K] += 1
        self.steps[split, K] += 1
        self.divided[split, K] += metadata.get("form") != "closed"
        self.forms[split, metadata.get("form", "finished")] += 1
        self.splits[split] += 1

    def reject(self, reject: dict) -> None:
        """Counts a reject."""
        self.rejects[reject["stage"], reject["code"]] += 1

    @property
    def set_aside(self) -> int:
        """Rejects that are no rule of the paper and no mere note."""
        return sum(number for (_, code), number in self.rejects.items() if code not in (*EXPECTED, *NOTES))

    def empty(self, settings: Settings, written: bool) -> list[str]:
        """A line per split that has a share and gets nothing, with the reason: too few groups, or (`written`) all of it set aside."""
        shares = {"train": 1 - settings.val - settings.test, "val": settings.val, "test": settings.test}
        total, lines = sum(self.groups.values()), []
        for split in SPLITS:
            groups = self.groups[split]
            if not total or round(shares[split], 9) <= 0:  # nothing at all is an error of its own
                continue
            if not groups:
                lines.append(
                    f"{split} is empty: its share of {shares[split]:.3g} is too little of {total} groups (a patient, a volume, images "
                    "that are alike: each stays whole); add data, or build into another folder with other --val and --test"
                )
            elif written and not self.splits[split]:
                lines.append(f"{split} is empty: all that its {groups} groups made was set aside; see rejects.jsonl")
        return lines

    def write(self, out: Path, settings: Settings, stages: Sequence[Stage], waiting: int = 0) -> None:
        """Writes OUT/report.md."""
        total = sum(self.splits.values())
        lines = ["# What was built", "", "Research only, not a medical device.", ""]
        if waiting:
            lines += [
                f"**Not finished: {waiting} questions wait for the teacher** (`vital data distill run {out}`).",
                "",
            ]
        lines += [line for each in self.empty(settings, not waiting) for line in (f"**{each}.**", "")]
        lines += [
            f"{total} records; {sum(self.rejects.values())} rejects; questions of form {settings.form}, at most {settings.questions} "
            f"per sample and form; teacher {settings.teacher}; seed {settings.seed}. {self.united} groups were united with others because "
            "their images are nearly the same.",
            "",
            *_table("Records per source", "source", self.sources, SPLITS),
            *_table("Records per modality and number of steps K", "modality", self.modalities),
            *_table("Records per split and number of steps K", "split", self.steps),
            *_shares(self.divided),
            *_table("Records per split and form", "split", self.forms),
            *_table("Set aside or noted, per stage and code", "stage", self.rejects),
            "## Throughput",
            "",
            "| stage | samples | seconds | samples/s |",
            "|---|---|---|---|",
            *(f"| {s.name} | {s.samples} | {s.seconds:.1f} | {s.rate:.1f} |" for s in stages),
        ]
        temporary = out / ".report.md.tmp"
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(out / "report.md")


def _table(title: str, corner: str, counts: Counter, columns: Sequence[str] = ()) -> list[str]:
    """A table of counts with sums."""
    rows = sorted({row for row, _ in counts}, key=lambda row: (SPLITS.index(row) if row in SPLITS else -1, row))
    columns = list(columns) or sorted({column for _, column in counts})
    lines = [f"## {title}", ""]
    if not rows:
        return [*lines, "None.", ""]
    lines += [f"| {corner} | {' | '.join(columns)} | all |", "|---" * (len(columns) + 2) + "|"]
    for row in rows:
        numbers = [counts[row, column] for column in columns]
        lines.append(f"| {row} | {' | '.join(map(str, numbers))} | {sum(numbers)} |")
    sums = [sum(counts[row, column] for row in rows) for column in columns]
    return [*lines, f"| all | {' | '.join(map(str, sums))} | {sum(sums)} |", ""]


def _shares(steps: Counter) -> list[str]:
    """How each K is divided over the splits."""
    totals = Counter()
    for (_, K), number in steps.items():
        totals[K] += number
    parts = [
        f"K = {K}: " + " / ".join(f"{100 * steps[split, K] / total:.1f}" for split in SPLITS)
        for K, total in sorted(totals.items())
        if total
    ]
    return [f"Shares train / val / test in percent, without closed questions: {'; '.join(parts)}.", ""] if parts else []
