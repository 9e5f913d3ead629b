"""A run of drawn weights with both windows, its encoder and records with region features: made once for all tests that explain it."""

import functools
import tempfile
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import trained
from PIL import Image

from vital_jax.hub import tiny
from vital_jax.hub.encoders import identity
from vital_jax.pipeline.features import FeatureSpec, write_features
from vital_jax.pipeline.records import Record, write_splits

QUESTIONS = ("What is shown in the upper left of this image, and where?", "Is it brighter than its surroundings?")
WIDTH, SIDE, GRID = trained.ROI, 56, 4  # of the encoder: E, pixels and patches
SIZE = (96, 64)  # of images
COUNTS = {"train": 6, "test": 5}
BATCH = 2  # one program for all tests


class Made(NamedTuple):
    """The folder with run/, bare/ (no scaffold), siglip/, base/, text/ and records/; and what the run's checkpoint holds."""

    folder: Path
    run: trained.Run


def png(array):
    """An encoded image."""
    file = BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def picture(seed):
    """Noise: every patch differs."""
    width, height = SIZE
    return png(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def region(place=0):
    """[H, W] bool, no edge of which is a patch's."""
    width, height = SIZE
    mask = np.zeros((height, width), bool)
    mask[5 : 30 + 3 * place, 31:70] = True
    return mask


def records(split):
    """The records of a split: 1, 2 or 4 steps in turn; the last has no region, and states its steps alone."""
    count, offset = COUNTS[split], 100 * (split == "train")
    for i in range(count):
        last = i == count - 1
        K = (1, 2, 4)[i % 3]
        metadata = {"modality": ("CT", "MRI")[i % 2], "target_name": "spleen", "group": f"{split}{i}", "form": "closed"}
        yield Record(
            f"{split}/{i}", (picture(offset + i),), QUESTIONS[i % 2], "Yes.",
            chain=() if last else tuple(f"Sentence {k} of {i}." for k in range(1, K + 1)),
            masks=() if last else (png(region(i).astype(np.uint8) * 255),),
            metadata={**metadata, "latent_steps": 2} if last else metadata,
        )  # fmt: skip


def features(split):
    """[n, E] unit rows, the last record's left out."""
    rows = np.random.default_rng(len(split)).normal(size=(COUNTS[split], WIDTH)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return [*((row, row, "crop", np.zeros(5)) for row in rows[:-1]), None]


_KEPT = []  # the folder goes with the process


@functools.cache
def made() -> Made:
    """Builds it."""
    _KEPT.append(tempfile.TemporaryDirectory(prefix="vital-looked-"))
    work = Path(_KEPT[0].name)
    tiny.write_siglip(work / "siglip", width=WIDTH, layers=1, image=SIDE)
    tiny.write_backbone(work / "base", QUESTIONS, width=64, layers=2, vocab=300)
    tiny.write_text_decoder(work / "text", work / "base", width=32, layers=1)
    write_splits(((split, record) for split in COUNTS for record in records(split)), work / "records")
    spec = FeatureSpec("siglip", "block", 0.2, 0.05, identity(work / "siglip"), GRID)
    for split in COUNTS:
        write_features(work / "records", spec, [one.id for one in records(split)], features(split), split)
    run = trained.write_run(work / "run", work / "base", work / "text", records=work / "records")
    trained.write_run(work / "bare", work / "base", records=work / "records")
    return Made(work, run)
