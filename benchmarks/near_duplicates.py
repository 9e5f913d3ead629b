"""What does finding near-duplicates cost, and how many does it find? CPU seconds and peak memory for a corpus of made-up thumbnails.

    PYTHONPATH=. python benchmarks/near_duplicates.py [--counts 6000 60000]
    PYTHONPATH=. python benchmarks/near_duplicates.py --records OUT/records       # changed copies of real pictures

Thumbnails are made as `near.describe` would leave them: of `KINDS` body parts, each with its own coarse structure, so that every picture
has all the candidates that it may have, as in corpora of one body part; that is the dearest case. One in a hundred is a copy of another:
mirrored, with another contrast and its border cut off. Every count is a process of its own, so that one's peak is not another's.

Of a build's records, every change is made to `COPIES` pictures drawn by chance, which are then looked for among all pictures.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, zoom

from vital_jax.construct import near
from vital_jax.construct.splits import SPLITS, Pictures
from vital_jax.pipeline.images import decode
from vital_jax.pipeline.records import RecordSource

KINDS, COPIES = 60, 240
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


def cut_off(left: float, top: float, right: float, bottom: float) -> Callable[[Image.Image], Image.Image]:
    """Cuts off shares of width and height."""
    return lambda image: image.crop(
        (
            round(image.width * left),
            round(image.height * top),
            image.width - round(image.width * right),
            image.height - round(image.height * bottom),
        )
    )


def padded(image: Image.Image) -> Image.Image:
    """With a black border, wider on one side."""
    wide = Image.new("RGB", (round(1.25 * image.width), round(1.08 * image.height)))
    wide.paste(image, (round(0.16 * image.width), round(0.03 * image.height)))
    return wide


def boxed(image: Image.Image) -> Image.Image:
    """With a filled box of 24 by 8.5 percent near a corner."""
    image, (width, height) = image.copy(), image.size
    ImageDraw.Draw(image).rectangle((0.05 * width, 0.04 * height, 0.29 * width, 0.125 * height), fill=(255, 255, 0))
    return image


CHANGES = {
    "2 % cut off all round": cut_off(0.02, 0.02, 0.02, 0.02),
    "5 % of one corner": cut_off(0.05, 0.05, 0, 0),
    "5 % all round": cut_off(0.05, 0.05, 0.05, 0.05),
    "padding": padded,
    "left to right": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down": lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "rotation by 3 degrees": lambda image: image.rotate(3, Image.Resampling.BICUBIC),
    "gamma 1.6": lambda image: image.point(lambda value: int(255 * (value / 255) ** 1.6)),
    "a filled box": boxed,
}


def look_for_copies(records: Path) -> None:
    """Prints how many copies of each change are found."""
    data = {}
    for split in SPLITS:
        if (records / f"index-{split}.jsonl").is_file():
            data |= {
                sha256(image).hexdigest(): image for record in RecordSource(records, split) for image in record.images
            }
    pictures = [decode(image, "a record's image")[0] for _, image in sorted(data.items())]
    thumbs, chosen = [near.describe(p) for p in pictures], np.random.default_rng(0).permutation(len(pictures))[:COPIES]
    print(f"{len(pictures)} pictures\n\n| change | found |\n|---|---|")
    for name, change in CHANGES.items():
        with tempfile.TemporaryDirectory() as folder:
            held = Pictures(folder)
            for number, described in enumerate([*thumbs, *(near.describe(change(pictures[i])) for i in chosen)]):
                held.add(str(number), f"{number:016x}", described)
            held.unite()
            united = held.components()
            held.close()
        right = sum(united[str(len(thumbs) + n)] == united[str(i)] for n, i in enumerate(chosen))
        print(f"| {name} | {100 * right / len(chosen):.1f} % |", flush=True)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[6000, 60_000], help="pictures")
    parser.add_argument("--copies", type=float, default=0.01, help="share of them that are copies")
    parser.add_argument("--records", type=Path, help="look for changed copies of these records' pictures instead")
    arguments = parser.parse_args()
    if arguments.records:
        look_for_copies(arguments.records)
        return
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
