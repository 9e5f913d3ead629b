"""What region features cost: seconds per image of the paper's encoder, and of the grid search over T and P.

    python benchmarks/roi_speed.py so400m FOLDER [FOLDER ...] [--count 10]
    python benchmarks/roi_speed.py grid [--count 50]

The first draws random weights in MedSigLIP's shape (SO400M/14 at 448; time does not depend on what weights hold) and extracts targets of
these folders of images with masks, taken in turn. The second searches over phantoms with the small SigLIP of this package. Both print
wall seconds and the processor seconds of this process, which stay the same when other programs take turns with it, and what 61,411
samples (the paper's set) and 1,000 (its grid) would take.
"""

import argparse
import os
import tempfile
import time
from itertools import chain, islice, zip_longest
from pathlib import Path

import jax
import numpy as np

from vital_jax.construct import grid
from vital_jax.construct.build import build_records
from vital_jax.construct.folders import MaskFolder
from vital_jax.construct.roi import extract_many
from vital_jax.construct.sidecar import RateLine, duration
from vital_jax.demo.phantoms import phantoms
from vital_jax.hub.encoders import load_encoder, siglip_encoder
from vital_jax.models.config import SiglipVisionConfig
from vital_jax.models.siglip import SiglipVision, init_siglip

SO400M = SiglipVisionConfig(width=1152, layers=27, heads=16, ffn=4304, image=448, patch=14)
SAMPLES, TARGETS = 61_411, 1_000
SMALL = Path("vital_jax/demo/weights/siglip")


def clocks() -> np.ndarray:
    """Wall and processor seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def report(what: str, images: int, items: int, spent: np.ndarray, total: int) -> None:
    """One line a clock, per image and per item, and for `total` items."""
    print(
        f"{what}: {images} images encoded for {items} targets on {os.cpu_count()} cores, {jax.devices()[0].device_kind}"
    )
    for name, seconds in zip(("wall", "processor"), spent, strict=True):
        each = seconds / items
        print(
            f"  {name:<9} {seconds / images:7.3f} s/image {each:7.3f} s/target; {total:,} targets: {duration(each * total)}"
        )


def so400m(folders: list[str], count: int, batch: int) -> None:
    """The paper's encoder on real targets."""
    in_turn = zip_longest(*(MaskFolder(folder) for folder in folders))
    samples = list(islice((sample for sample in chain.from_iterable(in_turn) if sample), count))
    model = SiglipVision(SO400M, attention="xla")
    encoder = siglip_encoder(model, jax.jit(lambda key: init_siglip(model, key))(jax.random.key(0)), "block")
    np.asarray(encoder.apply(np.zeros((batch, encoder.size, encoder.size, 3), np.float32)))  # compiles
    progress = RateLine("so400m", len(samples), 0, lambda line: print(line, flush=True))
    start, paths = clocks(), []
    for feature in extract_many(
        ((s.picture, s.region) for s in samples), progress.watch(encoder.apply), batch, encoder.grid, encoder.size
    ):
        paths.append(feature.path)
        progress.step()
    report(
        f"SO400M/14 at 448 (float32, {paths.count('crop')} crops)",
        progress.images,
        len(paths),
        clocks() - start,
        SAMPLES,
    )


def search(count: int, batch: int) -> None:
    """The grid with the small encoder."""
    encoder = load_encoder(SMALL, "block")
    records = [record for record in build_records(phantoms(2 * count, 5), 1, 0) if record.masks]
    np.asarray(encoder.apply(np.zeros((batch, encoder.size, encoder.size, 3), np.float32)))
    progress = RateLine("grid", count, 0, print)
    with tempfile.TemporaryDirectory() as folder:
        start = clocks()
        targets = list(grid.pick(records, count))
        notes = grid.Notes(Path(folder) / "samples.jsonl", {})
        encode = progress.watch(encoder.apply)
        samples = list(grid.search(records, targets, encode, batch, encoder.grid, encoder.size, notes))
        cells = grid.table(samples)
        spent = clocks() - start
    report(f"grid with {SMALL.name}", progress.images, len(samples), spent, TARGETS)
    print(grid.to_markdown(cells, f"T and P on {len(samples)} phantoms"))


def main() -> None:
    """Runs one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    large = kinds.add_parser("so400m")
    large.add_argument("folders", nargs="+", help="folders of images with masks")
    small = kinds.add_parser("grid")
    for kind, count, batch in ((large, 10, 2), (small, 50, 8)):
        kind.add_argument("--count", type=int, default=count, help=f"targets; default {count}")
        kind.add_argument("--batch", type=int, default=batch, help=f"images per call; default {batch}")
    arguments = parser.parse_args()
    if arguments.kind == "so400m":
        so400m(arguments.folders, arguments.count, arguments.batch)
    else:
        search(arguments.count, arguments.batch)


if __name__ == "__main__":
    main()
