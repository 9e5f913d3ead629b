"""How much memory does the factory take, and does it grow with the corpus? Peak resident memory for sets of drawn samples.

    python benchmarks/factory_memory.py [--counts 1000 10000] [--jobs 1]

Every set is built by a process of its own, so that one's peak is not another's. An image of 64 x 64 has one target; what is measured is
what does not depend on images: the interpreter with its libraries, and what is held per unit, picture, sample and record.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from vital_jax.construct import factory
from vital_jax.construct.sample import Sample
from vital_jax.construct.source import Unit

SIZE = 64


@dataclass
class Discs:
    """A `Source` of one disc on a noisy ground per image."""

    root: Path
    count: int
    name: str = "discs"
    kind: str = "drawn"
    licence: str = "CC0-1.0"

    def units(self) -> list[Unit]:
        """One per image."""
        return [
            Unit(f"{number:07d}", (f"images/{number:07d}.png", f"masks/{number:07d}.png"))
            for number in range(self.count)
        ]

    def read(self, unit: Unit) -> Iterator[Sample]:
        """Draws it."""
        rng = np.random.default_rng(int(unit.id))
        y, x = np.mgrid[:SIZE, :SIZE] - rng.integers(16, 48, 2)[:, None, None]
        mask = x**2 + y**2 < rng.integers(40, 140)
        image = np.clip(rng.normal(90, 25, (SIZE, SIZE)) + 60 * mask, 0, 255).astype(np.uint8)
        files = []
        for pixels in (image, mask.astype(np.uint8) * 255):
            file = BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            files.append(file.getvalue())
        group = f"discs/{unit.id}"
        yield Sample(f"{group}/liver", *files, "liver", "organ", "CT", "abdomen", group, "discs", present=("liver",))


def measure(count: int, jobs: int, folder: str) -> None:
    """Builds a set and prints a row."""
    source = Discs(Path(folder) / "drawn", count)
    begin = time.monotonic()
    result = factory.build(Path(folder) / "out", [source], jobs=jobs, shown=False, questions=2)
    seconds = time.monotonic() - begin
    own, workers = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(f"| {count} | {sum(result.counts.values())} | {own:.0f} | {workers:.0f} | {seconds:.0f} |", flush=True)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000], help="samples per set")
    parser.add_argument("--jobs", type=int, default=1, help="processes that read")
    arguments = parser.parse_args()
    print("| samples | records | peak MiB | largest worker MiB | seconds |\n|---|---|---|---|---|", flush=True)
    context = multiprocessing.get_context("spawn")
    for count in arguments.counts:
        with tempfile.TemporaryDirectory() as folder:
            process = context.Process(target=measure, args=(count, arguments.jobs, folder))
            process.start()
            process.join()


if __name__ == "__main__":
    main()
