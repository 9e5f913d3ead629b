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
from vital_jax.demo.boards import GRID, NAMES, SHOWN, draw_board
from vital_jax.demo.flow import LOOKS, caption_records, flow_records

PARTS = {"whole": (0.0, 0.67, 0.36, (0.20, 0.23, 0.26, 0.29)), "badge": (0.67, 1.0, 0.82, (0.15,))}
TIMES = ["once", "twice", "three times", "four times", "five times"]


@cache
def _templates(cell, part):
    """Names, and each form at these places and half-widths as a vector of mean 0 and length 1, [n, pixels]."""
    low, high, place, radii = PARTS[part]
    line = np.arange(round(low * cell), round(high * cell)) + 0.5
    names, forms = [], []
    for name, radius, dy, dx in itertools.product(NAMES, radii, (-1, 0, 1), (-1, 0, 1)):
        x, y = ((line - place * cell - shift) / (radius * cell) for shift in (dx, dy))
        form = NAMES[name](*np.meshgrid(x, y)).astype(float).ravel()
        names.append(name)
        forms.append((form - form.mean()) / np.linalg.norm(form - form.mean()))
    return names, np.stack(forms)


def _named(here, cell, part):
    """The form that a part of a cell resembles most, how much, and whether it is bright."""
    low, high, _, _ = PARTS[part]
    square = slice(round(low * cell), round(high * cell))
    pixels = here[square, square].astype(float).ravel()
    names, forms = _templates(cell, part)
    alike = forms @ (pixels - pixels.mean())
    best = int(np.abs(alike).argmax())
    return names[best], abs(alike[best]) / np.sqrt(pixels.size), alike[best] > 0


def _read(grey):
    """{structure: (what its badge shows, its cell, whether it is bright)} from a picture [size, size]."""
    cell, found = len(grey) // GRID, {}
    for row, column in itertools.product(range(GRID), repeat=2):
        here = grey[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
        name, alike, bright = _named(here, cell, "whole")
        if alike > 10:  # grey levels: the ground alone resembles nothing
            found[name] = _named(here, cell, "badge")[0], (row, column), bright
    return found


def _picture(data):
    return np.asarray(Image.open(BytesIO(data)))


def _cell_of(mask, cell):
    rows, columns = np.nonzero(_picture(mask))
    assert len({*(rows // cell)}) == len({*(columns // cell)}) == 1
    return rows[0] // cell, columns[0] // cell


@pytest.mark.parametrize("cell", [28, 32])
def test_the_picture_alone_answers_every_question_about_the_flow(cell):
    boards = Counter()
    for record in flow_records(60, 3, hops=(1, 2, 3, 4, 5), per_board=4, cell=cell):
        read = _read(_picture(record.images[0]))
        assert len(read) == SHOWN, record.id
        start, times = re.fullmatch(
            r"Start at the (\w+) and follow the flow (.+)\. Which structure is reached\?", record.question
        ).groups()
        names = [start]
        for _ in range(TIMES.index(times) + 1):
            names.append(read[names[-1]][0])
        assert record.answer == names[-1]
        assert list(record.chain) == [f"The {a} flows to the {b}." for a, b in itertools.pairwise(names)]
        assert record.metadata["steps"] == names[1:] and record.metadata["choices"] == len(NAMES) - 1
        assert [_cell_of(mask, cell) for mask in record.step_masks] == [read[name][1] for name in names[1:]]
        assert record.masks == record.step_masks[-1:]
        boards[len(names) - 1] += 1
    assert set(boards) == {1, 2, 3, 4, 5} and sum(boards.values()) == 240


def test_the_picture_alone_answers_every_question_of_one_look():
    answers = Counter()
    for record in flow_records(150, 5, hops=(), per_board=0, looks=6):
        read, asked = _read(_picture(record.images[0])), record.question
        names = re.findall(rf"\b({'|'.join(NAMES)})\b", asked)
        row, column = read[names[0]][1] if names and names[0] in read else (None, None)
        match record.metadata["question_type"]:
            case "name":
                place = tuple(int(number) - 1 for number in re.findall(r"\d", asked))
                right = next(name for name, (_, where, _) in read.items() if where == place)
            case "presence":
                right = "yes" if names[0] in read else "no"
            case "side":
                right = "left" if column < 2 else "right"
            case "quarter":
                right = f"{'upper' if row < 2 else 'lower'} {'left' if column < 2 else 'right'}"
            case "brighter":
                right = "brighter" if read[names[0]][2] else "darker"
            case "larger":
                areas = {name: _areas(record)[name] for name in names}
                right = max(areas, key=areas.get)
                assert max(areas.values()) >= 1.2 * min(areas.values())
        assert record.answer == right, (record.id, asked)
        assert len(record.chain) == 1 and len(record.step_masks) == len(record.masks) == (record.answer != "no")
        answers[record.metadata["question_type"], record.answer] += 1
    assert {kind for kind, _ in answers} == set(LOOKS)
    for kind, share in (("presence", 1 / 2), ("side", 1 / 2), ("quarter", 1 / 4), ("brighter", 1 / 2)):
        counts = [count for (asked, _), count in answers.items() if asked == kind]
        assert len(counts) == round(1 / share) and max(counts) < 150 * share + 4 * (150 * share * (1 - share)) ** 0.5


def _areas(record):
    """Of each structure of a record's board, which its id names."""
    seed, index, _ = record.id.removeprefix("flow-").split("/")
    return {name: mask.sum() for name, mask in draw_board(int(seed), int(index)).masks.items()}


def test_captions_say_only_what_the_picture_shows():
    told = Counter()
    for record in caption_records(40, 7, per_board=3):
        read = _read(_picture(record.images[0]))
        right = {
            name: (successor, side(place), quarter(place), light(bright))
            for name, (successor, place, bright) in read.items()
        }
        text = record.answer.removesuffix(".")
        if traced := re.fullmatch(r"Trace the flow from the (\w+)\.", record.question):
            text = f"Flow: {traced[1]} {text}"
        assert "?" not in text
        for sentence in text.split(". "):
            kind, _, rest = sentence.partition(": ")
            told[re.sub(rf"\b({'|'.join(NAMES)}|\d)\b", "_", kind)] += 1
            names = re.findall(rf"\b({'|'.join(NAMES)})\b", sentence)
            if kind == "Flow":
                assert len(names) == SHOWN and all(right[a][0] == b for a, b in itertools.pairwise(names))
            elif kind in ("Sides", "Quarters", "Light"):
                fact = ("Sides", "Quarters", "Light").index(kind) + 1
                assert dict(part.split(" ", 1) for part in rest.split(", ")) == {
                    name: right[name][fact] for name in names
                }
                assert len(names) == 5
            elif kind == "Shown":
                assert names == sorted(read)
            elif kind == "Not shown":
                assert names == sorted({*NAMES} - {*read})
            elif kind == "Rows":
                cells = [row.split() for row in rest.split(", ")]
                assert all(len(row) == GRID for row in cells)
                assert {
                    (y, x): name for y, row in enumerate(cells) for x, name in enumerate(row) if name != "none"
                } == {place: name for name, (_, place, _) in read.items()}
            elif "flows" in sentence:
                assert right[names[0]][0] == names[1]
            elif "not shown" in sentence:
                assert names[0] not in read
            elif "on the" in sentence:
                assert sentence.endswith(right[names[0]][1])
            elif "quarter" in sentence:
                assert right[names[0]][2] in sentence
            elif "ground" in sentence:
                assert right[names[0]][3] in sentence
            elif "column" in sentence:
                assert read[names[0]][1] == tuple(int(number) - 1 for number in re.findall(r"\d", sentence))
            else:
                assert set(names) <= set(read)
    assert told["Flow"] > 30 and told["The _ flows to the _"] > 30 and len(told) >= 16


def side(place):
    return ("left", "right")[int(place[1] >= 2)]


def quarter(place):
    return f"{('upper', 'lower')[place[0] >= 2]} {side(place)}"


def light(bright):
    return ("darker", "brighter")[int(bright)]


def test_the_order_is_one_cycle_and_every_answer_is_as_likely():
    records = list(flow_records(500, 1))
    for hops in (1, 2, 3, 4):
        answers = Counter(r.answer for r in records if r.latent_steps == hops)
        expected = sum(answers.values()) / len(NAMES)
        assert len(answers) == len(NAMES) and all(abs(n - expected) < 5 * expected**0.5 for n in answers.values())
    # No hop is guessed from the start alone: in 500 boards no name has a usual successor.
    following = Counter(tuple(re.findall(r"the (\w+)", r.chain[0].lower())) for r in records)
    assert max(following.values()) < 3 * len(records) / (len(NAMES) * (len(NAMES) - 1))


def test_an_order_is_on_one_side_of_the_split_and_boards_are_drawn_again_alike():
    records = list(flow_records(200, 2))
    sides = {}
    for split, record in assign_splits(iter(records), 0.2, 0.2):
        assert sides.setdefault(record.metadata["group"], split) == split
    assert set(sides.values()) == {"train", "val", "test"}
    assert [r.id for r in flow_records(5, 2)] == [r.id for r in records[:20]]
    assert np.array_equal(draw_board(2, 4).grey, draw_board(2, 4).grey)
    assert not np.array_equal(draw_board(2, 4).grey, draw_board(2, 5).grey)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(hops=(0, 1)), r"hops=\(0, 1\): give numbers from 1 to 5"),
        (dict(hops=(6,)), "hops"),
        (dict(hops=()), "none for no such questions"),
        (dict(per_board=10), "10 questions about the flow of a board: give 0 to 9"),
        (dict(cell=16), "a cell of 16 pixels"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        next(flow_records(1, 0, **options))
