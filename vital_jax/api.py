"""The Python face: `vital_jax.load(folder).answer(images, questions)`. The command line calls the same.

A trained model is two folders: the run's checkpoint (adapters and whatever else trained) and the base it stands on. Loading checks both and
reads no weights; the first answer does. So a mistyped image or a wrong base costs a second, not the minutes that 16 GB take.

Everything lies on the first device. Research output, not a medical device.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from vital_jax.evaluate.engine import Engine, Question
from vital_jax.hub.load import fingerprint, load_qwen3_vl
from vital_jax.latent.loop import variables_of
from vital_jax.latent.read import decode_steps
from vital_jax.methods import setup
from vital_jax.methods.vital import Vital
from vital_jax.models.config import qwen3_vl_config
from vital_jax.models.qwen3_vl import Qwen3VL
from vital_jax.pipeline.batch import Encoder
from vital_jax.pipeline.images import decode
from vital_jax.pipeline.prompts import Prompter
from vital_jax.training.checkpoint import Checkpoints, check_compatible

ImageLike = str | Path | bytes | Image.Image
ImagesOfOne = ImageLike | Sequence[ImageLike]

_PLAIN_ANSWER = 256  # tokens; a base model that was not taught short answers


class RequestError(ValueError):
    """What was asked cannot be answered by any model, or not by this one: no question, or a number of steps out of range."""


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
      text: without special tokens. tokens: its ids, the end token included where it came.
      latent_steps: K, the steps taken before it; 0 is an answer without latents.
      log_prob: natural logarithm of the probability of all these tokens, each at temperature 1.
      steps: what the text decoder reads from each latent step, or None where it was not asked; a reading, no proof of what the model did.
      complete: whether the answer ended by itself; otherwise it was cut at `max_new_tokens`.
    """

    text: str
    tokens: tuple[int, ...]
    latent_steps: int
    log_prob: float
    steps: list[str] | None
    complete: bool


@dataclass(frozen=True)
class _Reader:
    """What turns latents into words: the text decoder's tokens and C, the most tokens of a step."""

    prompter: Prompter
    length: int


_read_steps = jax.jit(decode_steps, static_argnums=(0, 3, 4))


def _encoded(image: Image.Image, name: str) -> bytes:
    """A Pillow image as a lossless file; its orientation tag goes with it, so that it is turned as its file would be."""
    buffer = BytesIO()
    try:
        # PNG has no form for float or CMYK pixels; TIFF has.
        kind = "TIFF" if image.mode in ("F", "CMYK", "YCbCr", "LAB") else "PNG"
        image.save(buffer, kind, exif=image.getexif())
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{name} is damaged or has no lossless form ({error}); save it as PNG") from error
    return buffer.getvalue()


def _file(image: ImageLike, name: str) -> bytes:
    """The encoded file of an image, known to decode. Raises: FileNotFoundError, ValueError, TypeError naming it."""
    if isinstance(image, (str, Path)):
        path = Path(image)
        if not path.is_file():
            raise FileNotFoundError(f"image {path}: {'is a folder' if path.is_dir() else 'no such file'}")
        name, data = f"image {path}", path.read_bytes()
    elif isinstance(image, Image.Image):
        data = _encoded(image, name)
    elif isinstance(image, (bytes, bytearray, memoryview)):
        data = bytes(image)
    else:
        raise TypeError(f"{name} is a {type(image).__name__}: give a path, the bytes of a file or a Pillow image")
    decode(data, name)
    return data


def _one_or_many(images: ImagesOfOne) -> list[ImageLike]:
    return list(images) if isinstance(images, (list, tuple)) else [images]


@dataclass(frozen=True, eq=False)
class Model:
    """A model that answers questions about images; made by `load`.

    Attributes:
      method: models without parameters. encoder: questions to rows. read_params: reads {base, lora?, scaffold?}, called once.
      max_steps: the largest K it was trained with, and K where none is asked.
      buckets: (S, P) budgets that training used. answer_tokens: T where none is asked.
      reader: see `load(steps=True)`.
    """

    method: Vital
    encoder: Encoder
    read_params: Callable[[], dict[str, Any]]
    max_steps: int = 0
    buckets: tuple[tuple[int, int], ...] = ()
    answer_tokens: int = _PLAIN_ANSWER
    reader: _Reader | None = None

    @functools.cached_property
    def params(self) -> dict[str, Any]:
        """The parameter tree, read when first used."""
        return self.read_params()

    def answer(
        self,
        images: ImagesOfOne | Sequence[ImagesOfOne],
        questions: str | Sequence[str],
        latent_steps: int | None = None,
        max_new_tokens: int | None = None,
        batch: int = 8,
    ) -> Answer | list[Answer]:
        """Greedy answers.

        Args:
          images: of one question: a path, the bytes of an image file or a Pillow image, or several of them in a list. For a list of
            questions: a list with these for each.
          questions: one, or a list; a list is answered in groups of `batch` rows.
          latent_steps: K for all of them. None takes the largest it was trained with; 0 answers without latents, from the prompt alone.
          max_new_tokens: T, the end token included; None takes the room training had for an answer.
        Returns: an `Answer`, or a list of them in order.
        Raises: RequestError for an empty question, one with control tokens, numbers of images and questions that differ, or a K this model
          was not trained with; FileNotFoundError or ValueError naming an image that is absent, damaged or no image; as `load` where
          weights cannot be read.
        """
        several = not isinstance(questions, str)
        length = self.answer_tokens if max_new_tokens is None else max_new_tokens
        K = self._steps(latent_steps)
        for name, value in (("max_new_tokens", length), ("batch", batch)):
            if value < 1:
                raise RequestError(f"{name}={value}: give at least 1")
        asked = self._asked(images if several else [images], list(questions) if several else [questions])
        found = dict(self._replies(asked, K, length, batch))
        answers = [found[place] for place in range(len(asked))]
        return answers if several else answers[0]

    def _steps(self, asked: int | None) -> int:
        if asked is None:
            return self.max_steps
        if asked not in range(self.max_steps + 1):
            trained = (
                f"was trained with up to {self.max_steps} latent steps" if self.max_steps else "has no latent steps"
            )
            allowed = f"0 (no latents) to {self.max_steps}" if self.max_steps else "0"
            raise RequestError(f"latent_steps={asked}: this model {trained}; use {allowed}")
        return asked

    def _asked(self, images: Sequence[ImagesOfOne], questions: Sequence[str]) -> list[Question]:
        """The questions, checked one by one before anything large is read."""
        if not isinstance(images, (list, tuple)) or len(images) != len(questions):
            raise RequestError(
                f"{len(questions)} questions need a list of {len(questions)} entries, the images of each"
            )
        asked = []
        for i, (own, question) in enumerate(zip(images, questions, strict=True)):
            name = f"question {i + 1}"
            if not isinstance(question, str) or not question.strip():
                raise RequestError(f"{name} is empty: ask something about the image")
            try:
                self.encoder.prompter.encode_text(question, name=name)
            except ValueError as error:
                raise RequestError(str(error)) from error
            files = tuple(_file(image, f"{name}, image {j + 1}") for j, image in enumerate(_one_or_many(own)))
            if not files:
                raise RequestError(f"{name} has no image: give at least one")
            asked.append(Question(name, files, question))
        return asked

    @property
    def engine(self) -> Engine:
        """What asks the model."""
        return Engine(self.method.model, self.encoder, self.buckets)

    def _replies(self, asked: Sequence[Question], K: int, length: int, batch: int) -> Iterator[tuple[int, Answer]]:
        """(place in `asked`, its answer)."""
        variables = variables_of(self.params)
        for places, groups in self.engine.ask(variables, asked, K, self.engine.decoding(length), batch=batch):
            replies = [group[0] for group in groups]
            said = self.read(np.stack([reply.z for reply in replies])) if self.reader else [None] * len(replies)
            for place, reply, steps in zip(places, replies, said, strict=True):
                yield place, Answer(reply.text, reply.tokens, K, reply.log_prob, steps, reply.complete)

    def read(self, z: np.ndarray) -> list[list[str]]:
        """What the run's text decoder reads from each latent of z [B, K, D]; needs `load(steps=True)` (paper section 3.5)."""
        if not z.shape[1]:
            return [[] for _ in range(len(z))]
        text = self.reader.prompter
        ids = _read_steps(self.method.decoder, self.params["scaffold"], z, self.reader.length, text.end_token_id)
        return [[text.decode(step) for step in row] for row in jax.device_get(ids)]


# --- loading ------------------------------------------------------------------------------------------------------


def load(
    folder: str | Path,
    base: str | Path | None = None,
    text_decoder: str | Path | None = None,
    steps: bool = False,
) -> Model:
    """Opens a model for answering. Checks everything; weights are read with the first answer.

    Args:
      folder: a training run's folder (it holds `checkpoints`; the newest complete one is taken), or a Hugging Face Qwen3-VL folder, which
        answers without latents.
      base: the Hugging Face folder of the run's base, where it no longer is at `config.model.folder` as seen from here.
      text_decoder: likewise of `config.model.text_decoder`; only its configuration and tokenizer are read.
      steps: also read the text decoder from the checkpoint, so that answers carry what each latent step says.
    Raises: FileNotFoundError for an absent folder or checkpoint; ValueError for a folder of neither kind, a base other than the one trained
      on, or `steps` where the checkpoint holds no text decoder. Each names the folder and the way out.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; give a training run's folder or a Hugging Face Qwen3-VL one"
        )
    if (folder / "checkpoints").is_dir():
        return _load_run(folder, base, text_decoder, steps)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} holds neither checkpoints (a training run's folder) nor config.json (a Hugging Face Qwen3-VL folder)"
        )
    if steps or base or text_decoder:
        raise ValueError(
            f"{folder} is a base model without latent steps: base, text_decoder and steps are for a run's folder"
        )
    method = Vital(Qwen3VL(qwen3_vl_config(folder)))
    return Model(method, Encoder.from_folder(folder), lambda: {"base": load_qwen3_vl(folder)[1]})


def _load_run(folder: Path, base: str | Path | None, text_decoder: str | Path | None, steps: bool) -> Model:
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        meta = checkpoints.read_meta()
        saved = checkpoints.parameters(meta["step"])
    check_compatible(meta, meta)  # a record that lacks something, or of a newer format
    config = ConfigDict(meta["config"])
    if steps and not any(path.startswith("scaffold/text_decoder/") for path in saved):
        raise ValueError(
            f"{folder}: the checkpoint holds no text decoder, so its latent steps cannot be read; ask without steps"
        )
    config.model.folder = str(_there(folder, config, "folder", base, "base", "--base"))
    if (found := fingerprint(config.model.folder)) != meta["base_fingerprint"]:
        raise ValueError(
            f"{folder} was trained on another base: it records the fingerprint {meta['base_fingerprint']}, "
            f"{config.model.folder} has {found}; name the folder it was trained on as base (--base)"
        )
    if steps:
        where = _there(folder, config, "text_decoder", text_decoder, "text_decoder", "--text-decoder")
        config.model.text_decoder = str(where)
    try:
        return _build(folder, config, meta, steps)
    except (AttributeError, KeyError) as error:  # a key that this package reads and that one did not write
        raise ValueError(
            f"{folder}: another version of vital_jax wrote its checkpoint ({error}); use that one"
        ) from error


def _build(folder: Path, config: ConfigDict, meta: Mapping[str, Any], steps: bool) -> Model:
    # Only the phases trained so far: a run stopped in its first phase has not learned the steps of its last.
    phases = [ConfigDict(phase) for phase in config.phases][: meta["phase"] + 1]
    for phase in phases:
        # A part of the scaffold whose loss has no weight is not built.
        phase.update(text=float(steps), visual=0.0)
    config.phases = phases
    # How training computes is not how one device answers.
    config.model.update(remat="none", attention="auto")
    data = config.data
    return Model(
        setup.make_method(config, None),
        Encoder.from_folder(config.model.folder, data.max_pixels, system=data.system),
        functools.partial(_read_run, folder, config, meta["step"], steps),
        max(phase.latent_steps for phase in phases),
        tuple(map(tuple, data.buckets)),
        data.answer,
        _Reader(Prompter(config.model.text_decoder), data.chain) if steps else None,
    )


def _there(folder: Path, config: ConfigDict, key: str, given: str | Path | None, argument: str, option: str) -> Path:
    """A folder the run names, or the one given in its place."""
    path = Path(given or config.model[key])
    if path.is_dir():
        return path
    if given:
        raise FileNotFoundError(f"{argument}: no folder {path}")
    raise FileNotFoundError(
        f"{folder} needs config.model.{key}={str(path)!r}, which is not there from {Path.cwd()}: "
        f"go where the run was started, or name the folder as {argument} ({option} FOLDER)"
    )


def _read_run(folder: Path, config: ConfigDict, step: int, steps: bool) -> dict[str, Any]:
    """{base, lora?, scaffold?}: the base as frozen, with what the run trained put in, in the precision it was trained in."""
    wanted = ("base/", "lora/", *(("scaffold/pj_in/", "scaffold/text_decoder/") if steps else ()))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        trained = checkpoints.read_parameters(wanted, device, step)
    _, base = load_qwen3_vl(config.model.folder, None, config.model.param_dtype)
    return setup.overlay({"base": base}, trained)
