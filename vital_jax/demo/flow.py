"""Questions about boards that need one to five looks, each of which has to know what the look before found; and questions that need one.

"Start at the kidney and follow the flow three times" is three lookups in the image, and nothing else answers it. Its chain has a sentence
for each hop, and each sentence a region: the structure that the hop reaches. Beside these stand one-look questions: name, presence, side,
quarter, brighter, larger. Captions tell the same facts in the same sentences, single hops among them, and answer nothing.

Splits are by the order of the cycle, not only by image: the orders of the test split are never seen in training.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vital_jax.construct.sample import png
from vital_jax.demo.boards import GRID, NAMES, NOISE, SHOWN, Board, draw_board
from vital_jax.pipeline.records import Record

TIMES = ("", "once", "twice", "three times", "four times", "five times")
PROMPTS = ("Describe this image.", "What does this image show?", "Report on this image.")
LARGER = 1.2  # least ratio of two areas before they are compared
# Of captions: the share that trace a flow, structures in a list, sentences in a description, and the share of these that tell a flow.
_TRACES, _LISTED, _SENTENCES, _FLOW = 1 / 3, 5, 3, 0.5
# Answers that are as likely to who does not look; of a flow, every name but the first.
CHOICES = {"name": len(NAMES), "presence": 2, "side": 2, "quarter": 4, "brighter": 2, "larger": 2}
_Rng = np.random.Generator
_Fact = tuple[
    str, str, str, str | None
]  # question, answer, sentence, the structure to look at (None where there is none)


def _name(board: Board, rng: _Rng) -> _Fact:
    name = _one(board.order, rng)
    row, column = (number + 1 for number in board.cells[name])
    place = f"row {row}, column {column}"
    return f"Which structure lies in {place}?", name, f"{place.capitalize()} shows the {name}.", name


def _presence(board: Board, rng: _Rng) -> _Fact:
    shown = bool(rng.integers(2))
    name = _one(board.order if shown else board.absent, rng)
    sentence = f"The {name} is shown." if shown else f"The {name} is not shown."
    return f"Is the {name} shown?", "yes" if shown else "no", sentence, name if shown else None


def _side(board: Board, rng: _Rng) -> _Fact:
    name = _one(board.order, rng)
    side = _side_of(board, name)
    return f"Is the {name} on the left or on the right?", side, f"The {name} is on the {side}.", name


def _quarter(board: Board, rng: _Rng) -> _Fact:
    name = _one(board.order, rng)
    quarter = _quarter_of(board, name)
    question = f"In which quarter does the {name} lie?"
    return question, quarter, f"The {name} lies in the {quarter} quarter.", name


def _brighter(board: Board, rng: _Rng) -> _Fact:
    name = _one(board.order, rng)
    light = _light_of(board, name)
    question = f"Is the {name} brighter or darker than the ground?"
    return question, light, f"The {name} is {light} than the ground.", name


def _larger(board: Board, rng: _Rng) -> _Fact:
    areas = {name: mask.sum() for name, mask in board.masks.items()}
    pairs = [pair for pair in itertools.permutations(board.order, 2) if areas[pair[0]] >= LARGER * areas[pair[1]]]
    large, small = pairs[rng.integers(len(pairs))]
    first, second = (large, small) if rng.integers(2) else (small, large)
    question = f"Which is larger, the {first} or the {second}?"
    return question, large, f"The {large} is larger than the {small}.", large


LOOKS: dict[str, Callable[[Board, _Rng], _Fact]] = {
    "name": _name,
    "presence": _presence,
    "side": _side,
    "quarter": _quarter,
    "brighter": _brighter,
    "larger": _larger,
}


def _one(names: Sequence[str], rng: _Rng) -> str:
    return names[rng.integers(len(names))]


def _side_of(board: Board, name: str) -> str:
    return ("left", "right")[board.cells[name][1] >= GRID // 2]


def _quarter_of(board: Board, name: str) -> str:
    return f"{('upper', 'lower')[board.cells[name][0] >= GRID // 2]} {_side_of(board, name)}"


def _light_of(board: Board, name: str) -> str:
    return ("darker", "brighter")[board.bright[name]]


def _sentence(a: str, b: str) -> str:
    return f"The {a} flows to the {b}."


def flow_records(
    count: int,
    seed: int,
    hops: Sequence[int] = (1, 2, 3, 4),
    per_board: int = 4,
    looks: int = 0,
    cell: int = 32,
    noise: float = NOISE,
) -> Iterator[Record]:
    """Questions about boards 0 .. count - 1: `per_board` about the flow of each, and `looks` that one look answers.

    Numbers of hops and kinds of look come in turn; starts are drawn without repetition. A record's mask and box show the structure of its
    answer, its step masks that of each step; a structure that is not shown has none. Its group, by which splits are made, is the order of
    the cycle.

    Args: cell, noise: as for `draw_board`.
    Raises: ValueError for hops outside 1 to 5, more questions than starts, or as `draw_board`.
    """
    if not all(1 <= hop < len(TIMES) for hop in hops) or bool(hops) != bool(per_board):
        raise ValueError(f"hops={tuple(hops)}: give numbers from 1 to {len(TIMES) - 1}, and none for no such questions")
    if not 0 <= per_board <= SHOWN:
        raise ValueError(f"{per_board} questions about the flow of a board: give 0 to {SHOWN}, the starts there are")
    for index in range(count):
        board = draw_board(seed, index, cell, noise)
        rng = np.random.default_rng([seed, index, 1])
        image = png(board.grey)
        masks = {name: png(mask.astype(np.uint8) * 255) for name, mask in board.masks.items()}
        starts = rng.permutation(list(board.order))[:per_board].tolist()
        for number, start in enumerate(starts, index * per_board):
            k = hops[number % len(hops)]
            names = board.path(start, k)
            question = f"Start at the {start} and follow the flow {TIMES[k]}. Which structure is reached?"
            chain = tuple(_sentence(a, b) for a, b in itertools.pairwise(names))
            kind = f"{k} hop{'s' * (k > 1)}"
            yield _record(
                f"flow-{seed}/{index}/{start}/{k}",
                board,
                image,
                masks,
                question,
                names[-1],
                chain,
                names[1:],
                kind,
            )
        for number in range(index * looks, (index + 1) * looks):
            kind = tuple(LOOKS)[number % len(LOOKS)]
            question, answer, sentence, name = LOOKS[kind](board, rng)
            steps = [] if name is None else [name]
            yield _record(
                f"flow-{seed}/{index}/{kind}-{number}", board, image, masks, question, answer, (sentence,), steps, kind
            )


def _record(
    id: str,
    board: Board,
    image: bytes,
    masks: dict[str, bytes],
    question: str,
    answer: str,
    chain: tuple[str, ...],
    steps: Sequence[str],
    kind: str,
) -> Record:
    """One record; steps: the structure that each sentence of the chain is about, empty where none is shown."""
    return Record(
        id=id,
        images=(image,),
        question=question,
        answer=answer,
        chain=chain,
        masks=tuple(masks[name] for name in steps[-1:]),
        step_masks=tuple(masks[name] for name in steps),
        boxes=tuple(_box(board.masks[name]) for name in steps[-1:]),
        metadata={
            "source": "flow",
            "modality": "CT",
            "site": "phantom",
            **({"target_name": steps[-1]} if steps else {}),
            "question_type": kind,
            "latent_steps": len(chain),
            "steps": list(steps),
            "choices": CHOICES.get(kind, len(NAMES) - 1),
            "licence": "CC0-1.0",
            "group": f"flow/{'-'.join(board.cycle)}",
        },
    )


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    size = len(mask)
    return columns[0] / size, rows[0] / size, (columns[-1] + 1) / size, (rows[-1] + 1) / size


def caption_records(count: int, seed: int, per_board: int = 2) -> Iterator[Record]:
    """Captions of boards 0 .. count - 1, `per_board` of each: what a small backbone reads before it is ever asked anything.

    A third are a trace of the flow from a structure that the prompt names. The others are one or two lists and a few sentences. In a list
    what is told of a structure stands right behind its name, so one layer can look it up; a sentence has words between, and a small model
    learns it only after the list.
    """
    for index in range(count):
        board = draw_board(seed, index)
        rng = np.random.default_rng([seed, index, 2])
        image = png(board.grey)
        for turn in range(per_board):
            if traced := rng.random() < _TRACES:
                first, *following = board.path(_one(board.order, rng), SHOWN - 1)
                prompt, text = f"Trace the flow from the {first}.", f"{' '.join(following)}."
            else:
                prompt, text = _one(PROMPTS, rng), caption(board, rng)
            yield Record(
                id=f"caption-{seed}/{index}/{turn}",
                images=(image,),
                question=prompt,
                answer=text,
                metadata={
                    "source": "captions",
                    "question_type": "trace" if traced else "description",
                    "modality": "CT",
                    "licence": "CC0-1.0",
                    "group": f"caption-{seed}/{index}",
                },
            )


def caption(board: Board, rng: _Rng) -> str:
    """Every second time the flow once around, then a list of what one look tells, then sentences; no successor is told twice in them."""
    told = [f"Flow: {' '.join(board.path(_one(board.order, rng), SHOWN - 1))}."] if rng.random() < 0.5 else []
    told.append(_LISTS[rng.integers(len(_LISTS))](board, rng))
    starts = iter(rng.permutation(list(board.order)).tolist())
    for _ in range(_SENTENCES):
        flows = rng.random() < _FLOW
        told.append(_sentence(*board.path(next(starts), 1)) if flows else LOOKS[_one(tuple(LOOKS), rng)](board, rng)[2])
    return " ".join(told)


def _some(board: Board, rng: _Rng) -> list[str]:
    return rng.permutation(list(board.order))[:_LISTED].tolist()


def _sides(board: Board, rng: _Rng) -> str:
    return f"Sides: {', '.join(f'{name} {_side_of(board, name)}' for name in _some(board, rng))}."


def _quarters(board: Board, rng: _Rng) -> str:
    return f"Quarters: {', '.join(f'{name} {_quarter_of(board, name)}' for name in _some(board, rng))}."


def _lights(board: Board, rng: _Rng) -> str:
    return f"Light: {', '.join(f'{name} {_light_of(board, name)}' for name in _some(board, rng))}."


def _shown(board: Board, rng: _Rng) -> str:
    return f"Shown: {' '.join(sorted(board.order))}. Not shown: {' '.join(sorted(board.absent))}."


def _grid(board: Board, rng: _Rng) -> str:
    names = {place: name for name, place in board.cells.items()}
    rows = (" ".join(names.get((row, column), "none") for column in range(GRID)) for row in range(GRID))
    return f"Rows: {', '.join(rows)}."


_LISTS = (_sides, _quarters, _lights, _shown, _grid)
