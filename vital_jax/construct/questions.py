"""Questions about a sample: six types, from templates, with true negatives (VITAL A.1 and Table 4; methods.md §1.4).

Everything is drawn from (seed, sample id), so a data set can be rebuilt, grown or sharded without changing a question.
A question about an absent target asks only for what the image cannot show: a target whose body regions the image's
site never shows, or one whose absence the source guarantees. That a data set has no mask of a target proves nothing,
for most data sets mark one organ and leave the rest of the picture unmarked.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache

import numpy as np

from vital_jax.construct.folders import Sample
from vital_jax.construct.targets import DATA, Targets, load_targets

NEGATIVE_SHARE = 0.5  # of yes/no questions, where a true negative exists


@dataclass(frozen=True)
class Question:
    """A question with the facts its answer needs.

    Attributes:
      type: yesno, identify, location_choice, location, describe or reasoning.
      text: what the student reads.
      steps: K, the number of reasoning steps.
      target: what is asked about; another than the sample's where `visible` is false.
      visible: whether that target is in the image.
    """

    type: str
    text: str
    steps: int
    target: str
    visible: bool = True


@cache
def load_templates() -> dict[str, dict]:
    """The built-in templates: per question type "steps" {K: weight} and "templates" {target type or "any": texts}."""
    return json.loads((DATA / "questions.json").read_text(encoding="utf-8"))["types"]


def _rng(seed: int, *names: str) -> np.random.Generator:
    """A generator that depends on the seed and the names alone, the same in every process and on every machine."""
    digest = hashlib.sha256("\n".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def absent_targets(sample: Sample, targets: Targets | None = None) -> list[str]:
    """Targets that are certainly not in the sample's image; empty where none is certain."""
    targets = targets or load_targets()
    certain = dict.fromkeys([*sample.absent, *targets.never_at(sample.modality, sample.site)])
    return [name for name in certain if name != sample.target and name not in sample.present]


def questions(sample: Sample, count: int, seed: int, targets: Targets | None = None) -> list[Question]:
    """Draws `count` questions of different types.

    "What is shown?" is asked only where the image has one marked target, and one whose name says something.

    Args:
      sample: what is asked about.
      count: 1 to 6; a sample with fewer possible types gives fewer.
      seed: of the data set.
      targets: another table than the built-in one.

    Raises:
      ValueError: count out of range, or the target is not in the table.
    """
    targets, templates = targets or load_targets(), load_templates()
    if not 1 <= count <= len(templates):
        raise ValueError(f"questions per sample must be 1..{len(templates)}, not {count}")
    rng = _rng(seed, "questions", sample.id)
    nameable = len(sample.present) <= 1 and not targets.row(sample.target).get("generic")
    possible = [name for name in templates if name != "identify" or nameable]
    made = []
    for kind in rng.permutation(possible)[:count].tolist():
        absent = absent_targets(sample, targets) if kind == "yesno" else []
        visible = not absent or rng.random() >= NEGATIVE_SHARE
        target = sample.target if visible else absent[rng.integers(len(absent))]
        texts = templates[kind]["templates"]
        texts = texts.get(targets.row(target)["type"], texts["any"])
        steps, weights = zip(*templates[kind]["steps"].items(), strict=True)
        k = int(rng.choice(steps, p=np.array(weights) / sum(weights)))
        text = texts[rng.integers(len(texts))].format(**_words(target, sample.modality, targets))
        made.append(Question(kind, text, k, target, visible))
    return made


def _words(target: str, modality: str, targets: Targets) -> dict[str, str]:
    plural = targets.plural(target)
    return {
        "phrase": targets.phrase(target),
        "the": targets.definite(target),
        "noun": targets.noun(target),
        "modality": targets.modality_words(modality),
        "is": "are" if plural else "is",
        "Is": "Are" if plural else "Is",
        "does": "do" if plural else "does",
    }
