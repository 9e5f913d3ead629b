"""How the rule of extraction was chosen: the grid search over T and P (VITAL A.5.3, Figure 9), for any encoder and any records.

T is the mask's share of the image from which the whole image is encoded, P the growth of the crop of a smaller target. The paper names
three metrics in a sentence each; what they leave open is settled here so that its reported numbers make sense:

- Coverage: the share of the patch grid's cells that belong to the target's mask, in the view that is read (the whole image, or the crop
  padded to a square), a cell belonging to it from 30 % on. It is the mask and not all of the crop that counts: only then does coverage
  fall as P grows, as it does in the paper (45.1 % at P = 0, 39.4 % at P = 0.05).
- Intensity: the mean length of the patches' features over those cells.
- SNR: Intensity over the mean length of the features of the background: the view's other cells, without padding. Samples whose target
  leaves no background have none and are left out of its mean, which is over samples like the others.

The text says that a higher T takes the whole image more often; by the rule itself it takes it less often, and coverage rises with T because
crops are fuller than images.

An image is encoded as rarely as can be: once as a whole and once for each different crop, and neither where no T asks for it. What a sample
gave lies in one line of a file, so that a search that was stopped goes on.
"""

import csv
import io
import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vital_jax.construct.drawing import colour_bar, fill, ink, mixed
from vital_jax.construct.roi import (
    CELL_SHARE,
    VALID_SHARE,
    Encode,
    ahead,
    area_resize,
    chosen_cells,
    crop_box,
    encode_all,
    named_masks,
    open_regions,
    patches_of,
    siglip_pixels,
    square_crop,
)
from vital_jax.pipeline.records import Record

THRESHOLDS = (0.05, 0.10, 0.20)
MARGINS = (0.0, 0.03, 0.05, 0.10)
CHOSEN = (0.20, 0.05)  # the paper's
WHOLE = "full"


class View(NamedTuple):
    """What one view of a target shows: coverage 0..1, the mean feature length in the target and, where there is any, the background."""

    coverage: float
    intensity: float
    background: float | None


class Sample(NamedTuple):
    """One target: the record it was found in, its mask's share of the image, and its views by name ("full", or the margin of a crop)."""

    id: str
    share: float
    views: dict[str, View]


class Cell(NamedTuple):
    """One pair of T and P: means over n samples, of which `full` were read off the whole image and `contrasted` have an SNR."""

    threshold: float
    margin: float
    n: int
    full: int
    coverage: float
    intensity: float
    snr: float
    contrasted: int


class Plan(NamedTuple):
    """The pictures [size, size, 3] of a target's views, and for each view (picture's number, target's cells, background's cells)."""

    pictures: list[np.ndarray]
    views: dict[str, tuple[int, np.ndarray, np.ndarray]]


def _name(margin: float) -> str:
    return f"{margin:g}"


def plan_views(
    image: Image.Image,
    mask: np.ndarray,
    grid: int,
    size: int,
    thresholds: Sequence[float] = THRESHOLDS,
    margins: Sequence[float] = MARGINS,
) -> Plan:
    """The views of a target that some pair of T and P reads. mask [H, W] bool, not empty."""
    pictures, views, boxes, share = [], {}, {}, mask.mean()
    if share >= min(thresholds):
        cells = chosen_cells(area_resize(mask, grid), CELL_SHARE)
        views[WHOLE] = (0, cells, ~cells)
        pictures.append(siglip_pixels(image, size))
    for margin in margins if share < max(thresholds) else ():
        box = y0, y1, x0, x1 = crop_box(mask, margin, grid)
        if box not in boxes:
            square, valid = square_crop(image, box)
            target = np.zeros_like(valid)
            target[valid] = mask[y0:y1, x0:x1].ravel()
            cells = chosen_cells(area_resize(target, grid), CELL_SHARE)
            seen = chosen_cells(area_resize(valid, grid), VALID_SHARE)
            boxes[box] = (len(pictures), cells, seen & ~cells)
            pictures.append(siglip_pixels(square, size))
        views[_name(margin)] = boxes[box]
    return Plan(pictures, views)


def measure(states: np.ndarray, cells: np.ndarray, background: np.ndarray) -> View:
    """States [P, E], cells and background [P] bool."""
    length = np.linalg.norm(states.astype(np.float64), axis=1)
    behind = float(length[background].mean()) if background.any() else None
    return View(float(cells.mean()), float(length[cells].mean()), behind)


def pick(records: Sequence[Record], count: int, seed: int = 0) -> Iterator[tuple[str, int]]:
    """`count` targets at random, or all: (the target's own name, the number of the record it was found in).

    A sample has several questions; its image and mask count once. The name is a hash of both, so it outlives a shuffle.
    """
    numbers = list(range(len(records)))
    random.Random(seed).shuffle(numbers)
    seen = set()
    for number in numbers:
        record = records[number]
        if not record.masks:
            continue
        name = sha256(record.images[0] + b"\0" + record.masks[0]).hexdigest()[:32]
        if name not in seen:
            seen.add(name)
            yield name, number
            if len(seen) == count:
                return


class Notes:
    """The file of samples: a first line with the settings, then one line for each. Raises: ValueError for other settings."""

    def __init__(self, path: Path, settings: dict):
        self.path, self.held = path, {}
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        # Only a line with an end is whole: a kill may have cut the last.
        kept = [json.loads(line) for line in lines[:-1]]
        if kept and kept[0] != settings:
            changed = sorted(key for key in {*kept[0], *settings} if kept[0].get(key) != settings.get(key))
            raise ValueError(
                f"{path} was made with another {', '.join(changed)}; remove it, or name another folder (--out)"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in kept or [settings])
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
        for line in kept[1:]:
            views = {name: View(*values) for name, values in line["views"].items()}
            self.held[line["target"]] = Sample(line["id"], line["share"], views)

    def add(self, target: str, sample: Sample) -> None:
        line = {"target": target, "id": sample.id, "share": sample.share, "views": sample.views}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.held[target] = sample


def search(
    records: Sequence[Record],
    targets: Iterable[tuple[str, int]],
    encode: Encode,
    batch_size: int,
    grid: int,
    size: int,
    notes: Notes,
) -> Iterator[Sample]:
    """Encodes and measures the targets that the notes lack; yields every sample that is added.

    Args:
      records, targets: what `pick` took and gave. encode and what follows: as for `construct.roi.extract_many`.
    Raises: ValueError naming a record whose image or mask cannot be used.
    """

    def prepare(named: tuple[str, Record]) -> tuple[tuple, list[np.ndarray]]:
        target, record = named
        image, (mask,) = open_regions(record, named_masks(record)[:1])
        pictures, views = plan_views(image, mask, grid, size)
        return (target, record.id, float(mask.mean()), views), pictures

    missing = ((name, records[number]) for name, number in targets if name not in notes.held)
    for (target, record_id, share, views), states in encode_all(
        ahead(prepare, missing, 2 * batch_size), encode, batch_size, grid
    ):
        measured = {
            name: measure(patches_of(states[picture], grid), cells, background)
            for name, (picture, cells, background) in views.items()
        }
        sample = Sample(record_id, share, measured)
        notes.add(target, sample)
        yield sample


def table(
    samples: Sequence[Sample], thresholds: Sequence[float] = THRESHOLDS, margins: Sequence[float] = MARGINS
) -> list[Cell]:
    """The metrics of every pair, T by T. Raises: ValueError where there is no sample."""
    if not samples:
        raise ValueError("no record has a mask; there is nothing to search over")
    made = []
    for threshold in thresholds:
        for margin in margins:
            names = [WHOLE if sample.share >= threshold else _name(margin) for sample in samples]
            views = [sample.views[name] for sample, name in zip(samples, names, strict=True)]
            ratios = [view.intensity / view.background for view in views if view.background]
            made.append(
                Cell(
                    threshold,
                    margin,
                    len(views),
                    names.count(WHOLE),
                    float(np.mean([view.coverage for view in views])),
                    float(np.mean([view.intensity for view in views])),
                    float(np.mean(ratios)) if ratios else math.nan,
                    len(ratios),
                )
            )
    return made


# --- what is shown -----------------------------------------------------------------------------------------------

_PANELS = (
    ("Coverage (%)", lambda cell: 100 * cell.coverage, "{:.1f}"),
    ("Intensity", lambda cell: cell.intensity, "{:,.5g}"),
    ("SNR", lambda cell: cell.snr, "{:.3f}"),
)


def to_markdown(cells: Sequence[Cell], title: str) -> str:
    """A table with one line for each pair; the paper's choice is bold."""
    lines = [
        f"# {title}",
        "",
        "| T | P | whole image | coverage (%) | intensity | SNR |",
        "|---|---|---|---|---|---|",
    ]
    for cell in cells:
        values = [form.format(value(cell)) for _, value, form in _PANELS]
        row = [f"{cell.threshold:.2f}", f"{cell.margin:.2f}", f"{cell.full} of {cell.n}", *values]
        mark = "**" if (cell.threshold, cell.margin) == CHOSEN else ""
        lines.append("| " + " | ".join(f"{mark}{value}{mark}" for value in row) + " |")
    fewest = min(cell.contrasted for cell in cells)
    lines += [
        "",
        f"Means over {cells[0].n} targets (SNR over those with a background, {fewest} at least). Coverage is the share of patches under "
        "the target's mask in the view that is read, intensity their features' mean length, SNR that length over the background's. "
        "Bold: the paper's choice. Research only, not a medical device.",
        "",
    ]
    return "\n".join(lines)


def to_csv(cells: Sequence[Cell]) -> str:
    """One line for each pair, all digits."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Cell._fields)
    writer.writerows(cells)
    return file.getvalue()


def to_svg(cells: Sequence[Cell], title: str) -> str:
    """The paper's figure: three heat maps, T downwards and P across, the paper's choice framed."""
    thresholds = sorted({cell.threshold for cell in cells})
    margins = sorted({cell.margin for cell in cells})
    step_x, step_y, left, top, gap = 74, 46, 52, 62, 64
    panel = step_x * len(margins) + gap
    width, height = left + panel * len(_PANELS) - gap + 16, top + step_y * len(thresholds) + 84
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="13" text-anchor="middle">',
        f"<title>{_escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{width / 2:g}" y="20" font-size="14">{_escape(title)}</text>',
    ]
    for number, (name, value, form) in enumerate(_PANELS):
        start = left + number * panel
        values = [value(cell) for cell in cells]
        finite = [v for v in values if math.isfinite(v)] or [0.0]
        low, high = min(finite), max(finite)
        parts.append(f'<text x="{start + step_x * len(margins) / 2:g}" y="46" font-weight="bold">{name}</text>')
        for cell, shown in zip(cells, values, strict=True):
            x = start + margins.index(cell.margin) * step_x
            y = top + thresholds.index(cell.threshold) * step_y
            place = (shown - low) / (high - low) if high > low and math.isfinite(shown) else 0.0
            colour = mixed(place)
            text = form.format(shown) if math.isfinite(shown) else "none"
            parts.append(
                f'<rect x="{x}" y="{y}" width="{step_x}" height="{step_y}" fill="{fill(colour)}" stroke="white"/>'
                f'<text x="{x + step_x / 2:g}" y="{y + step_y / 2 + 5:g}" fill="{ink(colour)}">{text}</text>'
            )
        if CHOSEN[0] in thresholds and CHOSEN[1] in margins:
            x = start + margins.index(CHOSEN[1]) * step_x
            y = top + thresholds.index(CHOSEN[0]) * step_y
            place = f'x="{x + 1.5}" y="{y + 1.5}" width="{step_x - 3}" height="{step_y - 3}"'
            parts.append(f'<rect {place} fill="none" stroke="crimson" stroke-width="3"/>')
        for row, threshold in enumerate(thresholds):
            y = top + row * step_y + step_y / 2 + 5
            parts.append(f'<text x="{start - 8}" y="{y:g}" text-anchor="end">{threshold:.2f}</text>')
        for column, margin in enumerate(margins):
            x = start + column * step_x + step_x / 2
            parts.append(f'<text x="{x:g}" y="{top + step_y * len(thresholds) + 18}">{margin:.2f}</text>')
        parts.append(f'<text x="{start - 22}" y="{top - 8}">T</text>')
        parts.append(
            f'<text x="{start + step_x * len(margins) / 2:g}" y="{top + step_y * len(thresholds) + 36}">P</text>'
        )
        colours, ends = [mixed(i / 15) for i in range(16)], (form.format(low), "", form.format(high))
        parts += colour_bar(start, height - 34, step_x * len(margins), colours, *ends)
    return "\n".join([*parts, "</svg>", ""])


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
