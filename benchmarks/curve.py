"""A run's metrics as a Markdown table: means over blocks of steps, for docs/RESULTS.md.

python benchmarks/curve.py runs/fixtures/full/metrics.jsonl --block 50
"""

import argparse
import json
from pathlib import Path

COLUMNS = ("loss", "task", "text", "visual", "answer_accuracy", "chain_accuracy", "roi_cosine")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("metrics", type=Path, help="a run's metrics.jsonl")
    parser.add_argument("--block", type=int, default=50, help="steps averaged in one row")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.metrics.read_text().splitlines()]
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    print("| steps | phase | " + " | ".join(columns) + " |")
    print("|" + "---|" * (len(columns) + 2))
    for start in range(0, len(rows), arguments.block):
        block = rows[start : start + arguments.block]
        means = [sum(row[name] for row in block if name in row) / len(block) for name in columns]
        phases = sorted({row["phase"] for row in block})
        where = f"{block[0]['step']}-{block[-1]['step']}"
        print(f"| {where} | {', '.join(map(str, phases))} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")


if __name__ == "__main__":
    main()
