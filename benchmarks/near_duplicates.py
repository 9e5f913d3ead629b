"""What does finding near-duplicates cost, and how many does it find? CPU seconds and peak memory for a corpus of made-up thumbnails.

    PYTHONPATH=. python benchmarks/near_duplicates.py [--counts 6000 60000] [--copies 0.01]

Thumbnails are made as `near.describe` would leave them: of `KINDS` body parts, each with its own coarse structure, so that every picture
has all the candidates that it may have, as in corpora of one body part; that is the dearest case. One in a hundred is a copy of another:
mirrored, with another contrast and its border cut off. Every count is a process of its own, so that one's peak is not another's.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from vital_jax.construct import near
from vital_jax.construct.splits import Pictures

KINDS = 60
_FADING = 1 / (1 + np.hypot(*np.mgrid[:12, :12])) ** 1.5
_WAVES = np.cos(np.pi * (np.arange(near.SIDE) + 0.5) * np.arange(12)[:, None] / near.SIDE)


def coarse(seed: int) -> np.ndarray:
    """[SIDE, SIDE] smooth structure of deviation 1."""
    found = _WAVES.T @ (np.random.default_rng(seed).normal(size=(12, 12)) * _FADING) @ _WAVES
    return (found - found.mean()) / found.std()


def thumb(number: int) -> np.ndarray:
    """[SIDE, SIDE] uint8: the picture of a patient."""
    fine = gaussian_filter(np.random.default_rng([1, number]).normal(size=(near.SIDE, near.SIDE)), 0.8)
    picture = coarse(number % KINDS) + 0.5 * coarse(KINDS + number) + 0.35 * fine / fine.std()
    return np.clip(128 + 45 * picture, 0, 255).astype(np.uint8)


def copy(picture: np.ndarray) -> np.ndarray:
    """The same picture mirrored, cropped by 4 percent and with gamma 1.6."""
    cut = zoom(picture[1:-1, 1:-1].astype(float), near.SIDE / (near.SIDE - 2), order=1)[:, ::-1]
    return (255 * (np.clip(cut, 0, 255) / 255) ** 1.6).astype(np.uint8)


def measure(count: int, copies: float) -> None:
    """Unites a corpus and prints a row."""
    with tempfile.TemporaryDirectory() as folder:
        held, made = Pictures(folder), int(count * copies)
        for number in range(count):
            picture = copy(thumb(number - made)) if number >= count - made else thumb(number)
            held.add(str(number), f"{number:016x}", picture.tobytes())
        before, begin = time.process_time(), time.monotonic()
        held.unite()
        cpu, wall, united = time.process_time() - before, time.monotonic() - begin, held.components()
        right = sum(united[str(number)] == united[str(number - made)] for number in range(count - made, count))
        wrong = count - len(set(united.values())) - right
        held.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {count} | {right} of {made} | {wrong} | {cpu:.0f} | {wall:.0f} | {peak:.0f} |", flush=True)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[6000, 60_000], help="pictures")
    parser.add_argument("--copies", type=float, default=0.01, help="share of them that are copies")
    arguments = parser.parse_args()
    print(
        "| pictures | copies found | others united | CPU s | wall s | peak MiB |\n|---|---|---|---|---|---|", flush=True
    )
    context = multiprocessing.get_context("spawn")
    for count in arguments.counts:
        process = context.Process(target=measure, args=(count, arguments.copies))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
