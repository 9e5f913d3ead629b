"""Folders of drawn images with masks, as a lab would bring them, and all that a source gives, for tests."""

import json
from pathlib import Path

import numpy as np
from scipy import ndimage

from vital_jax.construct.sample import Sample
from vital_jax.construct.source import Rejected
from vital_jax.demo.phantoms import phantoms


def draw_folder(root: Path, count: int, seed: int = 0, size: int = 64, patients: int = 0) -> Path:
    """Writes `count` images with their masks and a manifest; with `patients`, image i is of patient i modulo patients."""
    rows = {}
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for sample in phantoms(count, seed, size):
        number, target = sample.id.split("/")[1:]
        image, mask = f"images/{number}.png", f"masks/{number}_{target}.png"
        (root / image).write_bytes(sample.image)
        (root / mask).write_bytes(sample.mask)
        row = rows.setdefault(
            number, {"id": number, "modality": sample.modality, "site": sample.site, "image": image, "masks": []}
        )
        row["masks"].append({"target": target, "file": mask})
        if patients:
            row["group"] = f"patient-{int(number) % patients}"
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    return root


def read_all(source):
    """A source's samples, and (unit, code, file) of each rejection."""
    samples, rejected = [], []
    for unit in source.units():
        try:
            for item in source.read(unit):
                samples.append(item) if isinstance(item, Sample) else rejected.append((unit.id, item.code, item.file))
        except Rejected as reason:
            rejected.append((unit.id, reason.code, reason.file))
    return samples, rejected


def area_without_specks(drawn):
    """Pixels of [H, W] bool in pieces of at least 100 pixels or a fiftieth of the largest."""
    pieces, _ = ndimage.label(drawn, np.ones((3, 3)))
    sizes = np.bincount(pieces.ravel())[1:].tolist()
    return sum(size for size in sizes if size >= 100 or 50 * size >= max(sizes))
