"""Boards and their questions, answered by a solver that knows the forms and sees the picture alone."""

import itertools
import re
from collections import Counter
from functools import cache
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from vital_jax.construct.build import assign_splits
from vital_jax.demo.flow import GRID, NAMES, draw_board, flow_records
from vital_jax.demo.phantoms import FORMS

PARTS = {"whole": (0.0, 0.67, 0.36, (0.22, 0.25, 0.28)), "badge": (0.67, 1.0, 0.82, (0.15,))}


@cache
def _templates(cell, part):
    """Names, and each form at these places and half-widths as a vector of mean 0 and length 1, [n, pixels]."""
    low, high, place, radii = PARTS[part]
    line = np.arange(round(low * cell), round(high * cell)) + 0.5
    names, forms = [], []
    for name, radius, dy, dx in itertools.product(NAMES, radii, (-1, 0, 1), (-1, 0, 1)):
        x, y = ((line - place * cell - shift) / (radius * cell) for shift in (dx, dy))
        form = FORMS[NAMES[name]](*np.meshgrid(x, y)).astype(float).ravel()
        names.append(name)
        forms.append((form - form.mean()) / np.linalg.norm(form - form.mean()))
    return names, np.stack(forms)


def _named(here, cell, part):
    """The form that a part of a cell resembles most, bright or dark, and how much."""
    low, high, _, _ = PARTS[part]
    square = slice(round(low * cell), round(high * cell))
    pixels = here[square, square].astype(float).ravel()
    names, forms = _templates(cell, part)
    alike = np.abs(forms @ (pixels - pixels.mean()))
    return names[int(alike.argmax())], alike.max() / np.sqrt(pixels.size)


def _read(grey):
    """{structure: (what its badge shows, its cell)} from a picture [size, size]."""
    cell, found = len(grey) // GRID, {}
    for row, column in itertools.product(range(GRID), repeat=2):
        here = grey[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
        name, alike = _named(here, cell, "whole")
        if alike > 10:  # grey levels: the ground alone resembles nothing
            found[name] = _named(here, cell, "badge")[0], (row, column)
    return found


@pytest.mark.parametrize("cell", [28, 32])
def test_the_picture_alone_gives_every_answer(cell):
    boards = 0
    for record in flow_records(60, 3, per_board=4, cell=cell):
        grey = np.asarray(Image.open(BytesIO(record.images[0])))
        boards, read = boards + 1, _read(grey)
        assert set(read) == set(NAMES), record.id
        start, times = re.fullmatch(
            r"Start at the (\w+) and follow the flow (.+)\. Which structure is reached\?", record.question
        ).groups()
        names = [start]
        for _ in range(["once", "twice", "three times", "four times"].index(times) + 1):
            names.append(read[names[-1]][0])
        assert record.answer == f"The {names[-1]}."
        assert list(record.chain) == [f"The {a} flows to the {b}." for a, b in itertools.pairwise(names)]
        mask = np.asarray(Image.open(BytesIO(record.masks[0]))) > 0
        row, column = read[names[-1]][1]
        assert mask[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell].sum() == mask.sum() > 0
    assert boards == 240


def test_the_order_is_one_cycle_and_every_answer_is_as_likely():
    records = list(flow_records(500, 1))
    for hops in (1, 2, 3, 4):
        answers = Counter(r.answer for r in records if r.latent_steps == hops)
        expected = sum(answers.values()) / 9
        assert len(answers) == 9 and all(abs(n - expected) < 5 * expected**0.5 for n in answers.values())
    # No hop is guessed from the start alone, nor from a shorter path: in 500 boards no name has a usual successor.
    following = Counter(tuple(re.findall(r"the (\w+)", r.chain[0].lower())) for r in records)
    assert max(following.values()) < 3 * len(records) / 72


def test_an_order_is_on_one_side_of_the_split_and_boards_are_drawn_again_alike():
    records = list(flow_records(200, 2))
    sides = {}
    for split, record in assign_splits(iter(records), 0.2, 0.2):
        assert sides.setdefault(record.metadata["group"], split) == split
    assert set(sides.values()) == {"train", "val", "test"}
    assert [r.id for r in flow_records(5, 2)] == [r.id for r in records[:20]]
    assert np.array_equal(draw_board(2, 4).rgb, draw_board(2, 4).rgb)
    assert not np.array_equal(draw_board(2, 4).rgb, draw_board(2, 5).rgb)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(hops=(0, 1)), r"hops=\(0, 1\): give numbers from 1 to 5"),
        (dict(hops=(6,)), "hops"),
        (dict(per_board=10), "10 questions about a board: give 1 to 9"),
        (dict(cell=16), "a cell of 16 pixels"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        next(flow_records(1, 0, **options))
