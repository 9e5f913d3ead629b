"""`report.md` of a built set: what is in it, what is not and why, and how fast it was made."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vital_jax.construct.licences import benchmark_of
from vital_jax.construct.progress import Stage
from vital_jax.construct.settings import Settings
from vital_jax.construct.source import NOTES
from vital_jax.construct.splits import SPLITS
from vital_jax.construct.targets import load_targets

EXPECTED = ("small-mask",)  # what a rule of the paper leaves out (A.1: under 100 pixels); no fault of the data


@dataclass
class HeldOut:
    """Official test sets: what of them is held out, and what of them training has seen. Works on metadata and names of images alone.

    Attributes:
      asked: (benchmark, split) -> its test questions. images: (benchmark, split) -> the images of those.
      seen: benchmark -> questions for training about its test images or near-duplicates; pictures: the images of those.
    """

    asked: Counter = field(default_factory=Counter)
    images: dict[tuple[str, str], set] = field(default_factory=lambda: defaultdict(set))
    seen: Counter = field(default_factory=Counter)
    pictures: dict[str, set] = field(default_factory=lambda: defaultdict(set))

    def add(self, metadata: Mapping[str, Any], split: str, images: Iterable[Hashable]) -> None:
        """Counts a record; `images` are anything that equal images have in common."""
        if metadata.get("source_split") == "test":
            key = benchmark_of(metadata.get("source", "not stated")), split
            self.asked[key] += 1
            self.images[key].update(images)
        for name in metadata.get("overlaps", ()) if split == "train" else ():
            self.seen[name] += 1
            self.pictures[name].update(images)

    def names(self) -> list[str]:
        """Benchmarks of which anything was met."""
        return sorted({name for name, _ in self.asked} | self.seen.keys())

    def test_images(self, name: str) -> set:
        """The images of a benchmark's test questions, wherever these are."""
        return set().union(*(images for (other, _), images in self.images.items() if other == name))

    def lines(self, trained: set = frozenset()) -> list[tuple[bool, str]]:
        """Per benchmark whether training has seen of it, and what is to be said.

        Args:
          trained: images for training, where records may be older than the rule that names what they overlap.
        """
        return [self._line(name, trained) for name in self.names()]

    def _line(self, name: str, trained: set) -> tuple[bool, str]:
        sides = {split: number for (other, split), number in self.asked.items() if other == name}
        images = self.test_images(name)
        where = ", ".join(f"{number} in {split}" for split, number in sorted(sides.items()))
        line = f"{name}: {sum(sides.values())} official test questions about {len(images)} images ({where})"
        faults = [f"{sides['train']} of these questions are in training"] if sides.get("train") else []
        if self.seen[name]:
            faults.append(
                f"{self.seen[name]} questions of training are about {len(self.pictures[name])} images that are test images of it, or "
                "near-duplicates or of the same patients"
            )
        elif equal := len(images & trained):
            faults.append(f"{equal} of these images are in training")
        if not faults:
            return False, f"{line}; no test image of it, and no near-duplicate, is in training"
        return True, f"{line}; {' and '.join(faults)}: a score on it is no score on unseen images"


@dataclass
class Report:
    """Counts of one run.

    Attributes:
      sources: (source, split) -> records. modalities: (modality, K). steps: (split, K); divided: the same without closed questions, which
        only some splits have. forms: (split, form). splits: records per split.
      rejects: (stage, code). united: groups that were united with others for their pictures.
      groups: split -> what is kept whole there: patients, volumes, near-duplicates united.
      failed: source -> why nothing of it could be listed. held_out: official test sets.
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
    failed: dict[str, str] = field(default_factory=dict)
    held_out: HeldOut = field(default_factory=HeldOut)

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
        self.held_out.add(metadata, split, line["images"])

    def benchmarks(self) -> list[str]:
        """A line for each official test set among the sources."""
        return [line for _, line in self.held_out.lines()]

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
        told = [f"{name} was not read: {reason}" for name, reason in self.failed.items()]
        told += self.empty(settings, not waiting)
        lines += [line for each in told for line in (f"**{each}.**", "")]
        if official := self.held_out.lines():
            lines += ["## Official test sets", ""]
            lines += [f"- **{line}**" if seen else f"- {line}" for seen, line in official] + [""]
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
