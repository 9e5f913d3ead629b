"""Made-up explanations for the tests of their page: a block in a dark field, and heat maps whose every number is known."""

import dataclasses

import numpy as np
from sheets import png, record

from vital_jax.explain.case import Case, Similar, Step

GRID = (4, 6)  # of patches


def heat(low=0.1, high=0.4, at=(1, 3)):
    """[4, 6] cosines of `low`, but for one of `high`."""
    made = np.full(GRID, low, np.float32)
    made[at] = high
    return made


def near(number, place=0):
    """A similar case with a picture of its own."""
    picture = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
    return Similar(f"near/{number}", 2, 0.9 - 0.1 * place, "A bright block.", "block, CT", png(picture))


def case(number=0, steps=2, **fields):
    """A case about an image of its own; `fields` replace what is said of it."""
    _, told = record(number)
    mask = np.zeros((40, 60), bool)
    mask[8:20, 30:42] = True
    made = tuple(
        Step(f"It lies {i}.", f"Gold {i}.", (heat(0.1, 0.4 + 0.1 * i),), 3.0 + i,
             {"pointing": i > 0, "iou_best": 0.5, "iou_area": 0.25, "share": 0.125}, (near(10 * number + i),))
        for i in range(steps)
    )  # fmt: skip
    given = {
        "id": f"case/{number}", "question": f"What of {number}?", "answer": "A block.", "log_prob": -0.5, "tokens": 2, "complete": True,
        "gold": "Block.", "correct": True, "images": told.images, "masks": (mask,), "steps": made,
        "similarity": np.full((steps, steps), 0.25) + 0.75 * np.eye(steps), "metadata": {"modality": "CT", "question_type": "describe"},
    }  # fmt: skip
    return Case(**given | fields)


def with_steps(one, **fields):
    """The case with every step changed."""
    return dataclasses.replace(one, steps=tuple(dataclasses.replace(step, **fields) for step in one.steps))


def row(modality="CT", measure="pointing", **fields):
    """A line of the table: ahead of every baseline."""
    over = {name: {"n": 50, "value": 0.2, "low": 0.1, "high": 0.3} for name in ("shuffled", "other", "random")}
    return {"modality": modality, "measure": measure, "own": 0.6, "low": 0.5, "high": 0.7, "n": 50, "shuffled": 0.4, "other": 0.4,
            "random": 0.1, "target": 0.9, "over": over} | fields  # fmt: skip


SUMMARY = {"model": "toy", "cases": 3, "notes": ["Random vectors of the same length."], "table": [row()]}
