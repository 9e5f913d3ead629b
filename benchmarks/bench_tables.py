"""The tables and drawings of docs/results/bench.md, from the runs of configs/bench.py that are finished; nothing is asked anew.

    python benchmarks/bench_tables.py runs/bench --figures docs/results

Accuracy by number of hops for every row and seed; what changed latents cost, by number of hops; what each latent holds. Counts of several
seeds are added: their questions are the same, the trained parameters are not, so an interval is over questions and says nothing of seeds,
which the spread beside it does. Pointing is of `vital explain`: give its cases.json files with --cases.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vital_jax.evaluate import figure
from vital_jax.evaluate.audit_groups import natural
from vital_jax.evaluate.audit_table import IMAGES, SWEEP, TOKENS
from vital_jax.evaluate.score import CHANCE, markdown
from vital_jax.statistics import wilson

Counts = tuple[int, int]  # right, asked


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


def accuracy(runs: dict[str, dict[int, Any]], idle: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """(title, header, rows): means over seeds, then every seed."""
    kinds = list(by_kind(next(iter(next(iter(runs.values())).values()))["answers"]))
    untrained = [
        [name, *(f"{100 * a / b:.1f}" for a, b in by_kind(rows).values())]
        for name, rows in idle.items()
        if name not in ("config", CHANCE)
    ]
    rows = []
    for name, seeds in runs.items():
        found = [by_kind(one["answers"]) for one in seeds.values()]
        cells = []
        for kind in kinds:
            shares = [100 * a / b for a, b in (each[kind] for each in found)]
            spread = f" ± {statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
            cells.append(f"{statistics.mean(shares):.1f}{spread}")
        rows.append([name, str(len(seeds)), *cells])
    asked = by_kind(next(iter(next(iter(runs.values())).values()))["answers"])
    header = [f"{kind} ({asked[kind][1]})" for kind in kinds]
    yield "Exact answers, %, mean and standard deviation over seeds", ["run", "seeds", *header], rows
    yield "Without training, exact answers, %", ["system", *header], untrained
    every = [
        [name, str(seed), *(percent(by_kind(one["answers"])[kind]) for kind in kinds)]
        for name, seeds in runs.items()
        for seed, one in seeds.items()
    ]
    yield "Every seed, with 95 % intervals over questions", ["run", "seed", *header], every


def audits(runs: dict[str, dict[int, Any]]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """What a change costs by number of hops, the seeds' questions added, for every run with an audit."""
    for name, seeds in runs.items():
        found: dict[tuple[str, str], dict[str, list[tuple[Counts, Counts]]]] = defaultdict(lambda: defaultdict(list))
        for one in seeds.values():
            for line in one.get("audit", {}).get("by", {}).get("lines", ()):
                if (
                    line["audit"] in (TOKENS, SWEEP, IMAGES)
                    and line["difference"] is not None
                    and "hop" in line["group"]
                ):
                    n = line["n"]
                    sides = (round(n * line["value"]), n), (round(n * line["run"]), n)
                    found[line["audit"], line["what"]][line["group"]].append(sides)
        groups = sorted({group for each in found.values() for group in each}, key=natural)
        rows = []
        for (audit, what), each in found.items():
            cells = []
            for group in groups:
                after, before = (
                    (added([pair[side] for pair in each[group]]) for side in (0, 1)) if each[group] else ((0, 0),) * 2
                )
                drop = 100 * (after[0] - before[0]) / after[1] if after[1] else 0.0
                cells.append(f"{100 * after[0] / after[1]:.1f} ({drop:+.1f}), N {after[1]}" if after[1] else "")
            rows.append([audit, what, *cells])
        if rows:
            yield (
                f"{name}: accuracy with one thing changed, %, and the difference from the same questions unchanged",
                ["audit", "what", *groups],
                rows,
            )


def held(runs: dict[str, dict[int, Any]]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """What each latent holds, means over seeds: the k-th name for a linear probe, the sentence decoded, how alike steps are."""
    for name, seeds in runs.items():
        steps = [one["audit"]["steps"] for one in seeds.values() if one.get("audit", {}).get("steps")]
        if not steps:
            continue
        kinds = [one["kind"] for one in steps[0] if "hop" in one["kind"]]
        rows: dict[str, list[list[str]]] = defaultdict(list)
        for kind in kinds:
            each = [next(one for one in found if one["kind"] == kind) for found in steps]
            n = sum(one["n"] for one in each)
            for latent in each[0].get("probe", {}):
                shares = [[share["share"] for share in one["probe"][latent]] for one in each]
                rows["probe"].append(
                    [kind, latent, *(f"{100 * statistics.mean(step):.0f}" for step in zip(*shares, strict=True))]
                )
            if "read" in each[0]:
                cells = []
                for latent, read in each[0]["read"].items():
                    exact = added(
                        [
                            (
                                round(o["read"][latent]["n"] * o["read"][latent]["exact"]["share"]),
                                o["read"][latent]["n"],
                            )
                            for o in each
                        ]
                    )
                    cells.append(percent(exact) + "+" * read["beyond"])
                rows["read"].append([kind, str(n), *cells])
            pairs = each[0]["cosine"]
            cells = [f"{statistics.mean(one['cosine'][pair]['value'] for one in each):.2f}" for pair in pairs]
            ranks = [f"{statistics.mean(one['rank'][k]['value'] for one in each):.2f} of {k}" for k in each[0]["rank"]]
            rows["alike"].append([kind, str(n), " ".join(ranks), *cells])
            names = list(pairs)
        longest = max(len(row) for row in rows["probe"]) - 2
        probe = [[*row, *[""] * (longest + 2 - len(row))] for row in rows["probe"]]
        yield (
            f"{name}: what a linear probe names from each latent, % right of what step j is about",
            ["chains", "latent", *(f"step {j + 1}" for j in range(longest))],
            probe,
        )
        if rows["read"]:
            width = len(rows["read"][0]) - 2
            yield (
                f"{name}: sentence of the step decoded word for word, %; +: beyond the chain, against its last sentence",
                ["chains", "N", *(f"z_{k + 1}" for k in range(width))],
                rows["read"],
            )
        yield (
            f"{name}: effective rank, and mean cosine of two steps (equation 9)",
            ["chains", "N", "rank", *names],
            rows["alike"],
        )


def drawn(runs: dict[str, dict[int, Any]]) -> dict[str, str]:
    """File names and SVG texts: accuracy by hops, and what the latents of another image cost by hops."""
    curves, costs = {}, {}
    for name, seeds in runs.items():
        found = [by_kind(one["answers"]) for one in seeds.values()]
        kinds = [kind for kind in found[0] if "hop" in kind]
        counts = {int(kind.split()[0]): added([each[kind] for each in found]) for kind in kinds}
        curves[name] = [(hops, a / b, *wilson(a, b)) for hops, (a, b) in counts.items()]
        taken: dict[int, list[Counts]] = defaultdict(list)
        for one in seeds.values():
            for line in one.get("audit", {}).get("by", {}).get("lines", ()):
                if (
                    line["what"].startswith("latents of another")
                    and "same question" in line["what"]
                    and "hop" in line["group"]
                ):
                    taken[int(line["group"].split()[0])].append((round(line["n"] * line["value"]), line["n"]))
        if taken:
            costs[f"{name}, another image's latents"] = [
                (hops, a / b, *wilson(a, b)) for hops, (a, b) in ((h, added(c)) for h, c in sorted(taken.items()))
            ]
            costs[name] = curves[name]
    out = {"bench_hops.svg": figure.lines("Right answers by number of hops", curves, "hops", "share of right answers")}
    if costs:
        out["bench_exchange.svg"] = figure.lines(
            "With the latents of another image, same question", costs, "hops", "share of right answers"
        )
    return out


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
    idle = arguments.folder / "baselines.json"
    for title, header, rows in (
        *accuracy(runs, json.loads(idle.read_text()) if idle.exists() else {}),
        *audits(runs),
        *held(runs),
    ):
        if rows:
            print(f"{title}:\n\n{markdown(header, rows)}\n")
    if arguments.figures:
        arguments.figures.mkdir(parents=True, exist_ok=True)
        for name, text in drawn(runs).items():
            (arguments.figures / name).write_text(text + "\n")


if __name__ == "__main__":
    main()
