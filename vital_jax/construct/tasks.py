"""What a teacher is asked: one question about one target of one image, with what only the teacher may know.

A task carries the image as the student gets it and the mask beside it, so that the teacher's view can be made when it is needed and never
has to be stored. `public` decides whether the image may leave the machine without a further word.
"""

import re
from dataclasses import dataclass

from vital_jax.construct.gate import steps_allowed
from vital_jax.construct.questions import Question
from vital_jax.construct.sample import Sample
from vital_jax.construct.targets import Targets, load_targets

_PUBLIC = re.compile(r"(cc0|cc[ -]by|creative commons|public domain|apache|mit\b|bsd|odbl|pddl|odc)", re.IGNORECASE)


@dataclass(frozen=True)
class Task:
    """One question to a teacher.

    Attributes:
      id: of the record that will be made of the answer.
      image, mask: encoded files, the mask on the image's stored pixel grid; an empty mask says that the target is not in the image.
      question, question_type, ask, options: as in `questions.Question`; `options` of a closed question.
      target, target_type, modality, site: what the teacher is told.
      steps: (fewest, most) reasoning steps.
      source, licence: of the image. public: whether it is known to be published.
      names: other targets that the question names.
    """

    id: str
    image: bytes
    mask: bytes
    question: str
    question_type: str
    ask: str
    target: str
    target_type: str
    modality: str
    site: str
    options: tuple[str, ...]
    steps: tuple[int, int]
    source: str
    licence: str
    public: bool
    names: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.id.strip() or not self.id.isprintable():
            raise ValueError(f"task id {self.id!r} must be printable text on one line")
        if not 1 <= self.steps[0] <= self.steps[1]:
            raise ValueError(f"task {self.id!r}: steps {self.steps} must be (fewest, most), from 1 up")


def task_of(sample: Sample, question: Question, targets: Targets | None = None) -> Task:
    """The task that asks a question about a sample; any number of steps that its type allows is right.

    Raises:
      ValueError: the question's target or type is not in the tables.
    """
    targets = targets or load_targets()
    closed = "/closed" if question.form == "closed" else ""
    return Task(
        id=f"{sample.id}/{question.type}{closed}",
        image=sample.image,
        mask=sample.mask if question.visible else b"",
        question=question.text,
        question_type=question.type,
        ask=question.ask,
        target=question.target,
        target_type=targets.row(question.target)["type"],
        modality=sample.modality,
        site=sample.site,
        options=question.options,
        steps=steps_allowed(question.type),
        source=sample.source,
        licence=sample.licence,
        public=public_licence(sample.licence),
        names=(targets.neutral(question.other),) if question.other else (),
    )


def public_licence(licence: str) -> bool:
    """Whether a licence is one under which data are published; an empty or unknown one is not."""
    return _PUBLIC.match(licence.strip()) is not None
