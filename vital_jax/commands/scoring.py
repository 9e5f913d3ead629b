"""What `vital evaluate score` and `run` have in common: which benchmark and protocol, and the files that hold scores."""

import argparse
import csv
import io
from dataclasses import replace
from pathlib import Path

RESEARCH = "Research software, not a medical device."
FILES = ("predictions.jsonl", "table.md", "table.csv")
SHOWN = 5  # ids or dropped rows named in one line


def add_part(parts: argparse._SubParsersAction, name: str, run, about: str) -> argparse.ArgumentParser:
    """A sub-command of `vital evaluate`."""
    parser = parts.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}. {RESEARCH}")
    parser.set_defaults(run=run)
    return parser


def benchmark_flags(parser: argparse.ArgumentParser) -> None:
    """--benchmark, --data and --split."""
    parser.add_argument("--benchmark", required=True, metavar="NAME", help="of `vital evaluate list`")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PATH", help="the folder, zip archive or question file it lies in"
    )
    parser.add_argument("--split", default="test", metavar="S", help="default test")


def protocol_flags(parser: argparse.ArgumentParser) -> None:
    """--protocol and --compat."""
    parser.add_argument(
        "--protocol", required=True, metavar="NAME", help="of `vital evaluate list`, or official: the benchmark's own"
    )
    parser.add_argument(
        "--compat", action="store_true", help="the published scorer's own arithmetic, mistakes included"
    )


def load_benchmark(arguments: argparse.Namespace):
    """`benchmarks.load` of the flags. Raises: as it does; RuntimeError where a package is missing."""
    from vital_jax.evaluate.benchmarks import load

    try:
        return load(arguments.benchmark, arguments.data, arguments.split)
    except ImportError as error:
        raise RuntimeError(str(error)) from error


def find_protocol(arguments: argparse.Namespace, judge: bool = False):
    """The protocol of the flags. Raises: ValueError for an unknown one, or an option it does not have."""
    from vital_jax.evaluate.protocols import get, official

    name = official(arguments.benchmark).name if arguments.protocol == "official" else arguments.protocol
    return get(name, compat=arguments.compat, judge=judge)


def noted(scored, notes: list[str]):
    """The scores with notes beside every denominator."""
    metrics = [replace(metric, rule="; ".join([metric.rule, *notes])) for metric in scored.metrics]
    return replace(scored, metrics=metrics)


def report(loaded, scored, keys: list[str], notes: list[str], most: int | None) -> str:
    """The scores as Markdown: what was read, what was left out and why, the table, and the breakdown by `keys`.

    Args:
      loaded, scored: a `Loaded` and a `Scored`. notes: sentences under what was read. most: dropped rows named; None for all.
    """
    lines = [f"# {loaded.benchmark} {loaded.split} under {scored.protocol}", "", f"{loaded}."]
    lines += [f"- {detail}" for detail in loaded.details[:most]]
    if more := len(loaded.details[most:]) if most is not None else 0:
        lines.append(f"- and {more} more")
    lines += [*notes, "", scored.table()]
    for key in keys:
        chosen = [metric for metric in scored.metrics if metric.group.startswith(f"{key}=")]
        found = replace(scored, metrics=chosen).breakdown() or f"The items do not differ in {key}."
        lines += ["", f"## By {key}", "", found]
    return "\n".join([*lines, "", RESEARCH, ""])


def table_csv(loaded, scored) -> str:
    """Every score with all groups; value, low and high as they are, 0.5 for 50 %."""
    names = ("measure", "group", "n", "value", "low", "high", "interval", "rule", "unread")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["protocol", "benchmark", "split", *names])
    for metric in scored.metrics:
        values = [getattr(metric, name) for name in names]
        writer.writerow([scored.protocol, loaded.benchmark, loaded.split, *values])
    return text.getvalue()


def write_scores(folder: Path, loaded, scored, keys: list[str], notes: list[str]) -> None:
    """Writes `FILES` into the folder, which is made where it is absent."""
    from vital_jax.evaluate.protocols import write_predictions

    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / FILES[0], scored.rows)
    (folder / FILES[1]).write_text(report(loaded, scored, keys, notes, None), encoding="utf-8")
    (folder / FILES[2]).write_text(table_csv(loaded, scored), encoding="utf-8", newline="")
