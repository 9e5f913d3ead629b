"""The grid over T and P: every metric against a plain second version, as few encodings as can be, and a search that goes on."""

import csv
import io
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image
from test_roi import box_mask, encode, picture, png, record

from vital_jax.construct import grid
from vital_jax.construct.build import build_records
from vital_jax.construct.grid import MARGINS, THRESHOLDS, Notes, Sample, View, plan_views, search, table
from vital_jax.construct.roi import area_resize, crop_box, siglip_pixels, square_crop
from vital_jax.demo.phantoms import phantoms

GRID, SIZE = 8, 32


@pytest.fixture(scope="module")
def records():
    return list(build_records(phantoms(12, seed=2, size=96), 3, seed=0))


def searched(records, path, count=12, how=encode, **settings):
    notes = Notes(path, {"encoder": "toy", **settings})
    targets = list(grid.pick(records, count))
    list(search(records, targets, how, 3, GRID, SIZE, notes))
    return [notes.held[name] for name, _ in targets]


def plainly(image, mask, threshold, margin):
    """(coverage, intensity, ratio or None, path) of one target and one pair, straight from the definitions."""
    if mask.sum() / mask.size >= threshold:
        pixels, region, real, path = image, mask, np.ones_like(mask), "full"
    else:
        y0, y1, x0, x1 = crop_box(mask, margin, GRID)
        pixels, real = square_crop(image, (y0, y1, x0, x1))
        region, path = np.zeros_like(real), "crop"
        side, height, width = len(real), y1 - y0, x1 - x0
        top, left = (side - height) // 2, (side - width) // 2
        region[top : top + height, left : left + width] = mask[y0:y1, x0:x1]
    norms = np.linalg.norm(encode(siglip_pixels(pixels, SIZE)[None])[0], axis=-1).reshape(GRID, GRID)
    inside = area_resize(region, GRID) >= 0.3
    outside = ~inside & (area_resize(real, GRID) >= 0.5)
    ratio = norms[inside].mean() / norms[outside].mean() if outside.any() else None
    return inside.mean(), norms[inside].mean(), ratio, path


def test_the_table_is_that_of_a_plain_version_pair_by_pair(records, tmp_path):
    cells = table(searched(records, tmp_path / "samples.jsonl"))
    assert [(cell.threshold, cell.margin) for cell in cells] == [(t, p) for t in THRESHOLDS for p in MARGINS]
    opened = [records[number] for _, number in grid.pick(records, 12)]
    pictures = [
        (Image.open(io.BytesIO(r.images[0])).convert("RGB"), np.asarray(Image.open(io.BytesIO(r.masks[0]))) > 0)
        for r in opened
    ]
    assert len(pictures) == 12
    for cell in cells:
        found = [plainly(image, mask, cell.threshold, cell.margin) for image, mask in pictures]
        ratios = [ratio for _, _, ratio, _ in found if ratio is not None]
        assert cell.n == 12 and cell.full == sum(path == "full" for *_, path in found)
        assert cell.contrasted == len(ratios)
        assert cell.coverage == pytest.approx(np.mean([f[0] for f in found]), rel=1e-6)
        assert cell.intensity == pytest.approx(np.mean([f[1] for f in found]), rel=1e-5)
        assert cell.snr == pytest.approx(np.mean(ratios), rel=1e-5)
    assert 0 < cells[0].full < 12


def test_views_are_the_fewest_that_the_grid_needs():
    image = picture(100, 100)

    def planned(mask):
        pictures, views = plan_views(image, mask, GRID, SIZE)
        return len(pictures), list(views)

    crops = ["0", "0.03", "0.05", "0.1"]
    assert planned(box_mask(100, 100, 0, 50, 0, 40)) == (1, ["full"])  # 20 %
    assert planned(box_mask(100, 100, 30, 60, 30, 60)) == (5, ["full", *crops])  # 9 %
    assert planned(box_mask(100, 100, 30, 50, 30, 54)) == (4, crops)  # 4.8 %
    # A thin cross from border to border has one box, whatever the margin: its crop is the image, but not that of "full".
    cross = box_mask(100, 100, 50, 53, 0, 100) | box_mask(100, 100, 0, 100, 50, 53)
    assert planned(cross) == (2, ["full", *crops])
    # 20 x 20 pixels: 3 % and 5 % both grow it by one.
    assert planned(box_mask(100, 100, 40, 60, 40, 60)) == (3, crops)


def test_a_target_that_fills_its_crop_has_no_background():
    mask = box_mask(100, 100, 30, 50, 30, 50)
    (pixels, *_), views = plan_views(picture(100, 100), mask, GRID, SIZE)
    _, cells, background = views["0"]
    assert cells.all() and not background.any()
    states = encode(pixels[None])[0]
    view = grid.measure(states, cells, background)
    assert view.coverage == 1 and view.background is None
    assert view.intensity == pytest.approx(np.linalg.norm(states, axis=1).mean())
    # Twice as wide as high: half of the square is padding, which is neither target nor background.
    _, cells, background = plan_views(picture(100, 100), box_mask(100, 100, 30, 50, 30, 70), GRID, SIZE).views["0"]
    assert cells.mean() == 0.5 and not background.any()


def test_means_are_over_samples_and_ratios_over_those_with_a_background():
    views = {"0": View(1.0, 8.0, None), "0.05": View(0.5, 6.0, 3.0)}
    samples = [
        Sample("a", 0.01, views),
        Sample("b", 0.30, {"full": View(0.3, 4.0, 5.0)}),
        Sample("c", 0.10, {"full": View(0.1, 2.0, 4.0), **views}),
    ]
    exact, grown = table(samples, [0.2], [0.0, 0.05])
    assert exact == (0.2, 0.0, 3, 1, pytest.approx(2.3 / 3), pytest.approx(20 / 3), pytest.approx(0.8), 1)
    assert grown == (0.2, 0.05, 3, 1, pytest.approx(1.3 / 3), pytest.approx(16 / 3), pytest.approx(4.8 / 3), 3)
    (low,) = table(samples, [0.1], [0.05])  # the threshold itself is the whole image
    assert low.full == 2 and low.snr == pytest.approx((2 + 0.8 + 0.5) / 3)
    (none,) = table(samples[:1], [0.2], [0.0])
    assert math.isnan(none.snr) and none.contrasted == 0
    with pytest.raises(ValueError, match="no record has a mask"):
        table([])


def test_a_target_is_picked_once_however_many_questions_it_has(records):
    picked = list(grid.pick(records, 1000))
    targets = {(r.images[0], r.masks[0]) for r in records if r.masks}
    assert len(picked) == len(targets) < sum(bool(r.masks) for r in records)
    assert {(records[n].images[0], records[n].masks[0]) for _, n in picked} == targets
    assert list(grid.pick(records, 5)) == picked[:5] and list(grid.pick(records, 5, seed=1)) != picked[:5]


def test_a_stopped_search_goes_on(records, tmp_path):
    path, calls = tmp_path / "samples.jsonl", []

    def counted(images):
        calls.append(len(images))
        return encode(images)

    whole = searched(records, tmp_path / "whole" / "samples.jsonl", how=counted)
    all_calls, calls = len(calls), []

    def dying(images):
        if len(calls) == 4:
            raise KeyboardInterrupt
        return counted(images)

    with pytest.raises(KeyboardInterrupt):
        searched(records, path, how=dying)
    lines = path.read_text().splitlines()
    assert 2 <= len(lines) < 13
    path.write_text(path.read_text() + '{"target": "cut in the mid')
    calls = []
    assert table(searched(records, path, how=counted)) == table(whole)
    assert len(calls) < all_calls
    assert len(path.read_text().splitlines()) == 13
    calls = []
    searched(records, path, how=counted)
    assert calls == []
    with pytest.raises(ValueError, match=r"samples.jsonl was made with another fingerprint; remove it"):
        searched(records, path, fingerprint="other")


def test_a_bad_record_is_named(tmp_path):
    bad = record("r1", b"no picture", png(np.ones((4, 4), bool)))
    with pytest.raises(ValueError, match=r"^r1 is no image"):
        searched([bad], tmp_path / "samples.jsonl")


def test_what_is_written(records, tmp_path):
    cells = table(searched(records, tmp_path / "samples.jsonl"))
    title = "toys < 3 & more"
    text = grid.to_markdown(cells, title)
    (chosen,) = (line for line in text.splitlines() if line.startswith("| **"))
    (cell,) = (cell for cell in cells if (cell.threshold, cell.margin) == (0.2, 0.05))
    assert chosen.startswith("| **0.20** | **0.05** |") and f"**{100 * cell.coverage:.1f}**" in chosen
    assert text.count("\n| 0.") == 11 and "not a medical device" in text
    rows = list(csv.DictReader(io.StringIO(grid.to_csv(cells))))
    assert len(rows) == 12 and float(rows[5]["snr"]) == cells[5].snr
    figure = ElementTree.fromstring(grid.to_svg(cells, title))
    kind = "{http://www.w3.org/2000/svg}"
    shown = [element.text for element in figure.iter(f"{kind}text")]
    for cell in cells:
        assert {f"{100 * cell.coverage:.1f}", f"{cell.snr:.3f}"} <= set(shown)
    assert {title, "Coverage (%)", "Intensity", "SNR"} <= set(shown)
    # Three panels of twelve over their bars of sixteen colours, three frames, one ground; all inside the picture.
    boxes = list(figure.iter(f"{kind}rect"))
    assert len(boxes) == 3 * (12 + 16) + 3 + 1
    for name in ("coverage", "snr"):
        ends = [getattr(cell, name) * (100 if name == "coverage" else 1) for cell in cells]
        assert shown.count(("{:.1f}" if name == "coverage" else "{:.3f}").format(max(ends))) >= 2
    width, height = (float(figure.get(side)) for side in ("width", "height"))
    for box in boxes:
        assert float(box.get("x", 0)) + float(box.get("width")) <= width
        assert float(box.get("y", 0)) + float(box.get("height")) <= height
    assert "none" in grid.to_svg([cells[0]._replace(snr=math.nan)], "t")
