"""Whether a model knows when it is right: calibration error, Brier score, and what is gained by not answering where it is unsure.

The confidence of a written answer is the probability of its tokens. Longer answers have less of it, so the length-normalised one (the
geometric mean over tokens) is scored too. Bins hold equal numbers of answers (Nixon et al. 2019), as equal widths leave most of them empty
where a model is sure. The calibration error of a finite sample is above zero for a perfect model as well; `floor` says how much.

Risk-coverage (Geifman and El-Yaniv 2017): answer the surest share c of the questions and err on a share r(c) of those; AURC is the mean of
r over c.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

BINS = 10
LEAST = 5  # answers in a bin, at least
DRAWS = 1000


class Bin(NamedTuple):
    """Answers of similar confidence: their number, mean confidence and share of right ones."""

    n: int
    confidence: float
    accuracy: float


def bins_for(n: int) -> int:
    """How many bins n answers fill."""
    return max(1, min(BINS, n // LEAST))


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int) -> list[Bin]:
    """Bins of equal mass, from the least sure. Raises: ValueError for fewer answers than bins, or confidences outside [0, 1]."""
    confidence, correct = _checked(confidence, correct)
    if not 1 <= bins <= len(confidence):
        raise ValueError(f"{len(confidence)} answers do not fill {bins} bins")
    order = np.argsort(confidence, kind="stable")
    return [
        Bin(len(part), float(confidence[part].mean()), float(correct[part].mean()))
        for part in np.array_split(order, bins)
    ]


def ece(confidence: np.ndarray, correct: np.ndarray, bins: int) -> float:
    """Expected calibration error: the mean over bins of |accuracy - confidence|, each weighed by its answers. Raises: as `reliability`."""
    found = reliability(confidence, correct, bins)
    return sum(b.n * abs(b.accuracy - b.confidence) for b in found) / len(confidence)


def floor(confidence: np.ndarray, bins: int, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """The mean and the 95 % quantile of the calibration error if answers were right exactly as often as these confidences say."""
    rng = np.random.default_rng(seed)
    drawn = [ece(confidence, rng.random(len(confidence)) < confidence, bins) for _ in range(draws)]
    return float(np.mean(drawn)), float(np.quantile(drawn, 0.95))


def brier(confidence: np.ndarray, correct: np.ndarray) -> float:
    """The mean of (confidence - right)^2; always saying 0.5 has 0.25."""
    confidence, correct = _checked(confidence, correct)
    return float(np.mean((confidence - correct) ** 2))


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """[n] the share of wrong answers among the 1, 2, .. n surest; equally sure ones count as in the mean over their orders."""
    confidence, correct = _checked(confidence, correct)
    _, group, count = np.unique(-confidence, return_inverse=True, return_counts=True)
    wrong = np.bincount(group, 1 - correct) / count
    return np.cumsum(np.repeat(wrong, count)) / np.arange(1, len(correct) + 1)


def aurc(confidence: np.ndarray, correct: np.ndarray) -> float:
    """The area under the risk-coverage curve: between that of `best_aurc` and, for confidences that say nothing, the error rate."""
    return float(risk_coverage(confidence, correct).mean())


def best_aurc(correct: np.ndarray) -> float:
    """The area if every right answer were surer than every wrong one."""
    return aurc(np.asarray(correct, np.float64), correct)


def bootstrap(
    measure: Callable[[np.ndarray, np.ndarray], float],
    confidence: np.ndarray,
    correct: np.ndarray,
    groups: Sequence[Hashable],
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[float, float] | None:
    """The 95 % interval of a measure by drawing groups (images) with all their questions; None for fewer than two groups.

    Drawing some questions twice makes an answerer look worse calibrated than it is, so the draws are moved by the difference between the
    measure and their mean before the percentiles are read off; the ends stay at 0 or above.
    """
    names = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    if len(names) < 2:
        return None
    members = [[] for _ in names]
    for place, name in enumerate(groups):
        members[names[name]].append(place)
    members, rng = [np.array(places) for places in members], np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        drawn = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        values.append(measure(confidence[drawn], correct[drawn]))
    moved = np.array(values) + measure(confidence, correct) - np.mean(values)
    low, high = np.quantile(moved, [0.025, 0.975])
    return max(0.0, float(low)), float(high)


def calibration(
    confidence: Sequence[float], correct: Sequence[bool], groups: Sequence[Hashable], seed: int = 0
) -> dict[str, Any]:
    """Everything above as JSON values.

    Returns: {"n", "bins", "reliability" [[n, confidence, accuracy]], "risk" [n], and "ece", "brier", "aurc", each {"value", "low", "high"};
      "ece_floor" {"value", "high"}, "aurc_best", "error"}; low and high are None where all questions share one image.
    Raises: ValueError for no answers, or confidences outside [0, 1].
    """
    p, right = _checked(confidence, correct)
    bins = bins_for(len(p))

    def with_ends(measure: Callable[[np.ndarray, np.ndarray], float]) -> dict[str, Any]:
        # A draw of images may hold fewer answers than the sample.
        low, high = bootstrap(measure, p, right, groups, seed=seed) or (None, None)
        return {"value": measure(p, right), "low": low, "high": high}

    value, high = floor(p, bins, seed=seed)
    return {
        "n": len(p),
        "bins": bins,
        "reliability": [list(b) for b in reliability(p, right, bins)],
        "risk": risk_coverage(p, right).tolist(),
        "ece": with_ends(lambda p, right: ece(p, right, min(bins, len(p)))),
        "ece_floor": {"value": value, "high": high},
        "brier": with_ends(brier),
        "aurc": with_ends(aurc),
        "aurc_best": best_aurc(right),
        "error": float(1 - right.mean()),
    }


def _checked(confidence: Sequence[float], correct: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if not len(confidence) or confidence.shape != correct.shape:
        raise ValueError(f"{len(confidence)} confidences of {len(correct)} answers")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("a confidence is a probability: between 0 and 1")
    return confidence, correct
