"""The tables and drawings of docs/results/bench.md, from the runs of configs/bench.py that are finished; nothing is asked anew.

    python benchmarks/bench_tables.py runs/bench --figures docs/results

Accuracy by number of hops for every row and seed; what changed latents cost, by number of hops; what each latent holds. Counts of several
seeds are added: their questions are the same and the trained parameters are not, so an interval is over questions. The spread beside it is
over seeds.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vital_jax.evaluate import figure
from vital_jax.evaluate.audit_groups import Table, natural
from vital_jax.evaluate.audit_table import IMAGES, SWEEP, TOKENS
from vital_jax.evaluate.replacements import SAME
from vital_jax.evaluate.score import CHANCE, markdown
from vital_jax.statistics import wilson

Counts = tuple[int, int]  # right, asked
Runs = dict[str, dict[int, Any]]  # the evidence of each run and seed


def percent(count: Counts) -> str:
    """A share with its interval."""
    low, high = wilson(*count)
    return f"{100 * count[0] / count[1]:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def by_kind(answers: Sequence[dict[str, Any]]) -> dict[str, Counts]:
    """Right answers and questions of each kind; kinds that one look answers together, as "one look"."""
    found: dict[str, list[bool]] = defaultdict(list)
    for row in answers:
        kind = row["question_type"]
        found[kind if "hop" in kind else "one look"].append(row["exact"])
    return {kind: (sum(marks), len(marks)) for kind, marks in sorted(found.items(), key=lambda item: natural(item[0]))}


def added(counts: Sequence[Counts]) -> Counts:
    """Counts of several runs as one."""
    return sum(a for a, _ in counts), sum(b for _, b in counts)


def accuracy(runs: Runs, idle: dict[str, Any]) -> Iterator[Table]:
    """Means over seeds, baselines, then every seed. idle: answers of systems that were not trained."""
    counted = {name: {seed: by_kind(one["answers"]) for seed, one in seeds.items()} for name, seeds in runs.items()}
    asked = {kind: n for kind, (_, n) in next(iter(next(iter(counted.values())).values())).items()}
    header = [f"{kind} ({n})" for kind, n in asked.items()]

    def spread(shares: Sequence[float]) -> str:
        return f"{statistics.mean(shares):.1f}" + (f" ± {statistics.stdev(shares):.1f}" if len(shares) > 1 else "")

    rows = [
        [
            name,
            str(len(seeds)),
            *(spread([100 * one[kind][0] / one[kind][1] for one in seeds.values()]) for kind in asked),
        ]
        for name, seeds in counted.items()
    ]
    yield "Exact answers, %, mean and standard deviation over seeds", ["run", "seeds", *header], rows
    # Chance is no draw, so it has no interval.
    rows = [
        [name, *(f"{100 * a / b:.1f}" if name == CHANCE else percent((a, b)) for a, b in by_kind(answers).values())]
        for name, answers in idle.items()
    ]
    for name, seeds in runs.items():
        blind = [by_kind(one["blind"]) for one in seeds.values()]
        rows.append([f"{name}, images exchanged", *(percent(added([one[kind] for one in blind])) for kind in asked)])
    yield "Baselines, exact answers, %, with 95 % intervals, seeds added", ["system", *header], rows
    rows = [
        [name, str(seed), *map(percent, one.values())] for name, seeds in counted.items() for seed, one in seeds.items()
    ]
    yield "Every seed, %, with 95 % intervals over questions", ["run", "seed", *header], rows


def changed(seeds: dict[int, Any]) -> dict[tuple[str, str], dict[str, tuple[Counts, Counts]]]:
    """{(audit, what): {group of hops: (changed, unchanged), the seeds' counts added}}."""
    found: dict[tuple[str, str], dict[str, list[tuple[Counts, Counts]]]] = defaultdict(lambda: defaultdict(list))
    for one in seeds.values():
        for line in one.get("audit", {}).get("by", {}).get("lines", ()):
            if line["audit"] in (TOKENS, SWEEP, IMAGES) and line["difference"] is not None and "hop" in line["group"]:
                n = line["n"]
                sides = (round(n * line["value"]), n), (round(n * line["run"]), n)
                found[line["audit"], line["what"]][line["group"]].append(sides)
    return {
        key: {group: tuple(map(added, zip(*pairs, strict=True))) for group, pairs in groups.items()}
        for key, groups in found.items()
    }


def audits(runs: Runs) -> Iterator[Table]:
    """What a change costs by number of hops, for every run with an audit."""

    def cell(pair: tuple[Counts, Counts] | None) -> str:
        if pair is None:
            return ""
        (after, n), (before, _) = pair
        return f"{100 * after / n:.1f} ({100 * (after - before) / n:+.1f}), N {n}"

    for name, seeds in runs.items():
        found = changed(seeds)
        groups = sorted({group for each in found.values() for group in each}, key=natural)
        rows = [[*key, *(cell(each.get(group)) for group in groups)] for key, each in found.items()]
        title = f"{name}: accuracy with one thing changed, %, and the difference from the same questions unchanged"
        yield title, ["audit", "what", *groups], rows


def held(runs: Runs) -> Iterator[Table]:
    """What each latent holds: names for a linear probe, means over seeds; sentences, counts added; how alike steps are, means."""
    mean = statistics.mean
    for name, seeds in runs.items():
        found = [one["audit"]["steps"] for one in seeds.values() if one.get("audit", {}).get("steps")]
        # One list of seeds for each kind of chain.
        chains = [each for each in zip(*found, strict=True) if "hop" in each[0]["kind"]]
        if not chains:
            continue
        longest = max(each[0]["length"] for each in chains)
        rows = []
        for each in chains:
            for latent in each[0]["probe"]:
                shares = zip(*([one["share"] for one in seed["probe"][latent]] for seed in each), strict=True)
                cells = [f"{100 * mean(step):.0f}" for step in shares]
                rows.append([each[0]["kind"], latent, *cells, *[""] * (longest - len(cells))])
        title = f"{name}: what a linear probe names from each latent, % right of what step j is about"
        yield title, ["chains", "latent", *(f"step {j + 1}" for j in range(longest))], rows
        rows = []
        for each in chains:
            if "read" in each[0]:
                cells = []
                for latent, read in each[0]["read"].items():
                    own = [seed["read"][latent] for seed in each]
                    exact = added([(round(one["n"] * one["exact"]["share"]), one["n"]) for one in own])
                    cells.append(percent(exact) + "+" * read["beyond"])
                rows.append([each[0]["kind"], str(sum(seed["n"] for seed in each)), *cells])
        title = f"{name}: sentence of the step decoded word for word, %; +: beyond the chain, against its last sentence"
        yield title, ["chains", "N", *(f"z_{k + 1}" for k in range(len(rows[0]) - 2 if rows else 0))], rows
        rows = []
        for each in chains:
            ranks = [f"{mean(seed['rank'][k]['value'] for seed in each):.2f} of {k}" for k in each[0]["rank"]]
            cosines = [f"{mean(seed['cosine'][pair]['value'] for seed in each):.2f}" for pair in each[0]["cosine"]]
            rows.append([each[0]["kind"], str(sum(seed["n"] for seed in each)), " ".join(ranks), *cosines])
        title = f"{name}: effective rank, and mean cosine of two steps (equation 9)"
        yield title, ["chains", "N", "rank", *chains[0][0]["cosine"]], rows


def drawn(runs: Runs) -> dict[str, str]:
    """File names and SVG texts: accuracy by hops, and what the latents of another image cost by hops."""

    def curve(counts: dict[str, Counts]) -> list[figure.Point]:
        return [(int(kind.split()[0]), a / b, *wilson(a, b)) for kind, (a, b) in counts.items()]

    curves, costs = {}, {}
    for name, seeds in runs.items():
        found = [by_kind(one["answers"]) for one in seeds.values()]
        curves[name] = curve({kind: added([each[kind] for each in found]) for kind in found[0] if "hop" in kind})
        if other := changed(seeds).get((TOKENS, SAME)):
            costs[f"{name}, another image's latents"] = curve({kind: pair[0] for kind, pair in other.items()})
            costs[name] = curves[name]
    up = "share of right answers"
    return {
        "bench_hops.svg": figure.lines("Right answers by number of hops", curves, "hops", up),
        "bench_exchange.svg": figure.lines("With the latents of another image, same question", costs, "hops", up),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the workdir of configs/bench.py")
    parser.add_argument("--figures", type=Path, help="write the drawings here")
    arguments = parser.parse_args()
    runs: dict[str, dict[int, Any]] = defaultdict(dict)
    for path in sorted(arguments.folder.glob("*/seed*/evidence.json")):
        runs[path.parent.parent.name][int(path.parent.name[4:])] = json.loads(path.read_text())
    if not runs:
        parser.error(f"{arguments.folder}: no finished run (RUN/seedS/evidence.json)")
    found = json.loads((arguments.folder / "untrained/seed0/baselines.json").read_text())
    idle = {name: answers for name, answers in found.items() if name != "config"}
    for title, header, rows in (*accuracy(runs, idle), *audits(runs), *held(runs)):
        if rows:
            print(f"{title}:\n\n{markdown(header, rows)}\n")
    if arguments.figures:
        arguments.figures.mkdir(parents=True, exist_ok=True)
        for name, text in drawn(runs).items():
            (arguments.figures / name).write_text(text + "\n")


if __name__ == "__main__":
    main()
