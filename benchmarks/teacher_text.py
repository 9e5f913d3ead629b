"""Is the constructed text true, readable and varied? Counts over drawn phantoms and over folders of real masks, as Markdown tables.

    python benchmarks/teacher_text.py --phantoms 1000 --fixtures ../shared/fixtures

Every sentence is read back by `construct.claims` and tested against the masks by `construct.checker`. A low share of distinct sentences
says that a slot repeats itself; a closed question whose answers are out of balance can be answered without looking at the image.
"""

import argparse
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import partial
from itertools import chain
from pathlib import Path

from vital_jax.construct.build import build_records
from vital_jax.construct.checker import by_sample, check_records
from vital_jax.construct.folders import MaskFolder
from vital_jax.construct.sample import Sample
from vital_jax.demo.phantoms import phantoms

SHOWN = 20


class Tally:
    """Counts over the records of one source: sentences per slot, contradictions, closed answers per ask."""

    def __init__(self, samples: Iterable[Sample], questions: int, seed: int):
        self.samples, self.records, self.problems = 0, 0, []
        self.sentences, self.unread = defaultdict(Counter), defaultdict(list)
        self.closed = defaultdict(Counter)
        build = partial(build_records, questions_per_sample=questions, seed=seed, form="both")
        for sample, records in by_sample(samples, build):
            self.samples, self.records = self.samples + 1, self.records + len(records)
            problems, seen = check_records(records, sample)
            self.problems += problems
            for _, sentence, slot, read in seen:
                self.sentences[slot][sentence] += 1
                if not read:
                    self.unread[slot].append(sentence)
            for record in records:
                if record.options:
                    ask = record.metadata["ask"]
                    # Names are as many as there are targets: only their place among the options can be out of balance.
                    named = ask in ("name", "larger", "brighter_of_two")
                    self.closed[ask][f"option {record.gold}" if named else record.answer] += 1

    def table(self) -> list[str]:
        """Markdown lines."""
        total, unread = sum(map(Counter.total, self.sentences.values())), sum(map(len, self.unread.values()))
        lines = [
            f"{self.samples} samples, {self.records} records, {total} sentences: {share(total - unread, total)} read, "
            f"{len(self.problems)} contradictions.",
            "",
            "| slot | sentences | read | distinct | the commonest |",
            "|---|---|---|---|---|",
        ]
        for slot, counts in sorted(self.sentences.items()):
            n = counts.total()
            read, distinct = share(n - len(self.unread[slot]), n), share(len(counts), n)
            lines.append(f"| {slot} | {n} | {read} | {distinct} | {share(max(counts.values()), n)} |")
        lines += ["", "| closed question | records | answers |", "|---|---|---|"]
        for ask, counts in sorted(self.closed.items()):
            answers = ", ".join(f"{text} {share(n, counts.total())}" for text, n in sorted(counts.items()))
            lines.append(f"| {ask} | {counts.total()} | {answers} |")
        for title, texts in (("contradiction", self.problems), ("not read", list(chain(*self.unread.values())))):
            lines += [""] * bool(texts) + [f"- {title}: {text}" for text in texts[:SHOWN]]
        return lines


def share(part: int, whole: int) -> str:
    """Percent with one digit."""
    return f"{100 * part / max(whole, 1):.1f} %"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phantoms", type=int, default=300, help="images to draw")
    parser.add_argument(
        "--fixtures", type=Path, default=os.environ.get("VITAL_FIXTURES"), help="folder of mask folders"
    )
    parser.add_argument("--questions", type=int, default=6, help="questions per sample")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sources = {"Phantoms": phantoms(arguments.phantoms, arguments.seed)} if arguments.phantoms else {}
    if arguments.fixtures:
        manifests = sorted(Path(arguments.fixtures).glob("*/manifest.jsonl"))
        sources["Real masks"] = (sample for path in manifests for sample in MaskFolder(path.parent))
    for name, samples in sources.items():
        print(f"## {name}\n", *Tally(samples, arguments.questions, arguments.seed).table(), "", sep="\n")


if __name__ == "__main__":
    main()
