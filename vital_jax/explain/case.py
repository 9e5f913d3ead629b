"""What one explained question holds: the numbers on one side, whatever shows them (page, figures, JSON) on the other.

Nothing here proves how an answer came about. The sentence is what the text decoder reads from a latent, the heat map where the visual
projector's output is most like the image (paper sections 3.3 and C.7): readings by two modules that were trained beside the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Similar:
    """A stored region near to a step.

    Attributes:
      id: of its record. step: which sentence of that record's chain stands beside it, from 1.
      cosine: of the region's feature and the projected latent.
      text: that sentence, "" where unknown. label: target name and modality, "" where unknown.
      picture: a small encoded JPEG or PNG, b"" where the images are not at hand.
    """

    id: str
    step: int
    cosine: float
    text: str
    label: str
    picture: bytes


@dataclass(frozen=True, eq=False)
class Step:
    """One latent step.

    Attributes:
      text: what the text decoder reads, "" where there is none. gold: the record's own sentence, "" where none.
      heat: per image [h, w] float32, the cosine of every encoder patch with the projected latent, in -1..1; () where there is no projector.
        Patch (r, c) covers the r-th of h rows and the c-th of w columns of the image.
      norm: |z_k|.
      scores: see `pointing.score`; None without a mask.
      similar: the nearest stored regions, best first; () without a bank.
      region: [H, W] bool, what this step is about in the first image, of a record whose steps have regions; None: the image's mask.
    """

    text: str
    gold: str
    heat: tuple[np.ndarray, ...]
    norm: float
    scores: dict[str, float | bool] | None
    similar: tuple[Similar, ...]
    region: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """One question, its answer, and what was looked at on the way.

    Attributes:
      id, question, answer: text. gold: the right answer, "" where unknown. correct: whether they match, None where unknown.
      log_prob: nats, of all answer tokens together. tokens: their number, the end token included. complete: the answer ended by itself.
      images: encoded files. masks: per image [H, W] bool of the upright image's size, None where it has none.
      steps: z_1..z_K. similarity: [K, K] cosine of z_i and z_j (equation 9, of one row).
      metadata: as the record has it; {} for a user's own image.
    """

    id: str
    question: str
    answer: str
    log_prob: float
    tokens: int
    complete: bool
    gold: str
    correct: bool | None
    images: tuple[bytes, ...]
    masks: tuple[np.ndarray | None, ...]
    steps: tuple[Step, ...]
    similarity: np.ndarray
    metadata: Mapping[str, Any]
