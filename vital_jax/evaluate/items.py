"""One question of a benchmark, as every reader gives it and every protocol takes it.

An item is not yet a record of the pipeline: its images may still lie on disk, inside an archive, or be missing. Scoring published
predictions needs no image at all, so a missing one is an error only when somebody asks to look at it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vital_jax.pipeline.images import image_size
from vital_jax.pipeline.records import Record
from vital_jax.scoring.choice import letter


class Stored(Protocol):
    """An image that is read where it lies: a file, a member of an archive, a part of a record. `str` names it."""

    def read_bytes(self) -> bytes:
        """The encoded file. Raises: FileNotFoundError, it is not there; OSError or ValueError, it cannot be read."""
        ...


Picture = Path | bytes | Stored


def read_picture(picture: Picture, name: str = "") -> bytes:
    """An image as encoded bytes, of which the header has been read.

    Args:
      picture: where it is. name: what errors call it; by default the picture itself.
    Raises: FileNotFoundError, it is missing; ValueError, it is no single 2-D image that can be read.
    """
    name = name or ("the image" if isinstance(picture, bytes) else str(picture))
    try:
        data = picture if isinstance(picture, bytes) else picture.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{name}: not found") from error
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror or error})") from error
    image_size(data, name)
    return data


@dataclass(frozen=True)
class Item:
    """One question with the answer that its benchmark holds to be right.

    Attributes:
      id: unique within its benchmark and split.
      images: files, members of archives or encoded bytes, in the order of the `<image k>` markers where the text has some; perhaps none.
      question: without the options, even where the published text repeats them.
      answer: the right answer in words; with options the right option's text, several of them joined by "; ".
      options: the choices in their order, empty for questions without any.
      gold: the right option's letter; several letters in order ("AC") where several options are right; empty without options.
      answers: further answers that the benchmark accepts.
      benchmark, split: where the item belongs.
      closed: what the benchmark says of the question (closed-ended or open); None where it says nothing.
      metadata: JSON values: modality, question_type, language, subject, task, image_name, group (what shares an image), ...

    Raises:
      ValueError: a field is empty or contradicts another; the message names the item.
    """

    id: str
    images: tuple[Picture, ...]
    question: str
    answer: str
    options: tuple[str, ...] = ()
    gold: str = ""
    answers: tuple[str, ...] = ()
    benchmark: str = ""
    split: str = ""
    closed: bool | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("images", "options", "answers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        texts = {name: getattr(self, name) for name in ("id", "question", "answer")}
        texts |= {f"option {letter(place)}": option for place, option in enumerate(self.options)}
        texts |= {f"answers[{place}]": answer for place, answer in enumerate(self.answers)}
        for name, text in texts.items():
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"item {self.id!r}: {name} must be text that is not empty, got {text!r}")
        letters = [letter(place) for place in range(len(self.options))]
        if sorted(set(self.gold)) != list(self.gold) or not set(self.gold) <= set(letters):
            raise ValueError(f"item {self.id!r}: gold {self.gold!r} is none of the options' letters {letters}")
        if self.options and not self.gold:
            raise ValueError(f"item {self.id!r}: has {len(self.options)} options, and none is said to be right")

    def pictures(self) -> tuple[bytes, ...]:
        """The images as encoded bytes.

        Raises:
          FileNotFoundError: one is missing. ValueError: one cannot be read. Both name the item and the file.
        """
        found = []
        for number, image in enumerate(self.images, 1):
            try:
                found.append(read_picture(image, f"image {number}" if isinstance(image, bytes) else ""))
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"item {self.id!r}: {error}; add the images of {self.benchmark or 'its benchmark'}, "
                    "or load with need_images to leave out items without"
                ) from error
            except ValueError as error:
                raise ValueError(f"item {self.id!r}: {error}") from error
        return tuple(found)

    def record(self) -> Record:
        """The item as the pipeline takes it. Several right letters go to metadata["gold"], for a record knows one.

        Raises: as `pictures`; ValueError, the item has no image.
        """
        if not self.images:
            raise ValueError(f"item {self.id!r}: has no image, and a record needs one")
        metadata = {"source": self.benchmark, "split": self.split, **self.metadata}
        if len(self.gold) > 1:
            metadata["gold"] = self.gold
        return Record(
            id=self.id,
            images=self.pictures(),
            question=self.question,
            answer=self.answer,
            options=self.options,
            gold=self.gold if len(self.gold) == 1 else "",
            metadata={key: value for key, value in metadata.items() if value not in ("", None)},
        )
