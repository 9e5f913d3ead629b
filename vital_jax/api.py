"""The Python face: `vital_jax.load(folder).answer(images, questions)`. The command line calls the same.

A trained model is two folders: the run's checkpoint (adapters and whatever else trained) and the base it stands on. Loading checks both and
reads no weights; the first answer does. So a mistyped image or a wrong base costs a second, not the minutes that 16 GB take.

Everything lies on the first device. Research output, not a medical device.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from vital_jax.explain import windows
from vital_jax.explain.case import Case
from vital_jax.hub import folders
from vital_jax.hub.exported import open_exported
from vital_jax.hub.folders import NoScaffoldError
from vital_jax.hub.load import load_backbone, types_of
from vital_jax.latent.engine import OWN_K, Engine, Question, Request, in_order
from vital_jax.latent.loop import KEPT, variables_of
from vital_jax.latent.read import decode_steps
from vital_jax.methods.base import Budgets, Method, make
from vital_jax.models.backbone import Backbone
from vital_jax.models.decoder import Decoder
from vital_jax.models.families import read_config, read_text_config
from vital_jax.pipeline.batch import Encoder
from vital_jax.pipeline.images import MAX_PIXELS, decode, read_file
from vital_jax.pipeline.prompts import Prompter
from vital_jax.run.open import TEXT, VISUAL, Run, open_run
from vital_jax.training.partition import flatten

ImageLike = str | Path | bytes | Image.Image
ImagesOfOne = ImageLike | Sequence[ImageLike]

TYPES = ("float32", "bfloat16")  # to compute in
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
      chain: what was written before the answer, where the model reasons in text.
    """

    text: str
    tokens: tuple[int, ...]
    latent_steps: int
    log_prob: float
    steps: list[str] | None
    complete: bool
    chain: str = ""


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
        return read_file(image)
    if isinstance(image, Image.Image):
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
      max_steps: the largest K it was trained with, which it is evaluated with, and K where none is asked.
      buckets: (S, P) budgets that training used. answer_tokens: T where none is asked.
      reader: see `load(steps=True)`. viewer: the visual window, see `load(explain=True)`.
      run: the training run that it is of; None for an export, an adapter and a base.
    """

    method: Method
    encoder: Encoder
    read_params: Callable[[], dict[str, Any]]
    max_steps: int = 0
    buckets: tuple[tuple[int, int], ...] = ()
    answer_tokens: int = _PLAIN_ANSWER
    written: int = 0
    reader: _Reader | None = None
    viewer: windows.Viewer | None = None
    run: Run | None = None

    @property
    def dtype(self) -> str:
        """What it computes in."""
        return np.dtype(self.method.model.dtype).name

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
          latent_steps: K for all of them. None takes what it is evaluated with, the largest it was trained with; 0 answers without
            latents, from the prompt alone; any other K is allowed with a warning, see `otherwise`.
          max_new_tokens: T, the end token included; None takes the room training had for an answer.
        Returns: an `Answer`, or a list of them in order.
        Raises: RequestError for an empty question, one with control tokens, numbers of images and questions that differ, or a K below 0;
          FileNotFoundError or ValueError naming an image that is absent, damaged or no image; as `load` where
          weights cannot be read.
        """
        several = not isinstance(questions, str)
        length = self.answer_tokens if max_new_tokens is None else max_new_tokens
        for name, value in (("max_new_tokens", length), ("batch", batch)):
            if value < 1:
                raise RequestError(f"{name}={value}: give at least 1")
        asked = self._asked(images if several else [images], list(questions) if several else [questions])
        K = self.steps(latent_steps)
        found = dict(self._replies(asked, K, length, batch))
        answers = [found[place] for place in range(len(asked))]
        return answers if several else answers[0]

    def steps(self, asked: int | None, eval_k: str = "fixed") -> int:
        """K as asked; None takes the largest it was trained with. Warns of what `otherwise` says. Raises: RequestError below 0."""
        K = self.max_steps if asked is None else asked
        if K < 0:
            raise RequestError(f"latent_steps={K}: give 0 (no latents) or more")
        if said := self.otherwise(K, eval_k):
            warnings.warn(said, stacklevel=3)
        return K

    def otherwise(self, K: int, eval_k: str = "fixed") -> str:
        """What is to be said where questions are not asked as this model was taught and is evaluated; empty where they are."""
        if eval_k == "per_sample":
            return f"asked with {OWN_K}"
        if self.max_steps == K:
            return (said := self.method.gap(K)) and f"this model was {said}"
        trained = f"with up to {self.max_steps} latent steps" if self.max_steps else "without latent steps"
        rest = "nothing taught the rest" if self.max_steps < K else f"it is evaluated with {self.max_steps}"
        return f"latent_steps={K}: this model was trained {trained}; {rest}"

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
        return self.method.engine(self.encoder, self.buckets, Budgets(self.answer_tokens, written=self.written))

    def _replies(self, asked: Sequence[Question], K: int, length: int, batch: int) -> Iterator[tuple[int, Answer]]:
        """(place in `asked`, its answer)."""
        variables = variables_of(self.params)
        for places, groups in self.engine.ask(variables, asked, K, self.engine.decoding(length), batch=batch):
            replies = [group[0] for group in groups]
            said = self.read(np.stack([reply.z for reply in replies])) if self.reader else [None] * len(replies)
            for place, reply, steps in zip(places, replies, said, strict=True):
                yield place, Answer(reply.text, reply.tokens, K, reply.log_prob, steps, reply.complete, reply.chain)

    def read(self, z: np.ndarray) -> list[list[str]]:
        """What the run's text decoder reads from each latent of z [B, K, D]; needs `load(steps=True)` (paper section 3.5)."""
        if not z.shape[1]:
            return [[] for _ in range(len(z))]
        text = self.reader.prompter
        ids = _read_steps(self.method.decoder, self.params["scaffold"], z, self.reader.length, text.end_token_id)
        return [[text.decode(step) for step in row] for row in jax.device_get(ids)]

    def explain(
        self,
        images: ImagesOfOne | Sequence[ImagesOfOne],
        questions: str | Sequence[str],
        latent_steps: int | None = None,
        max_new_tokens: int | None = None,
        batch: int = 8,
        bank: str | Path | None = None,
        similar: int = windows.SIMILAR,
    ) -> Case | list[Case]:
        """Greedy answers with what every latent step says, where it looks and which training regions it is like (paper section 3.3).

        Args:
          images, questions, latent_steps, max_new_tokens, batch: as `answer`, at least one latent step.
          bank: a record folder with region features of the run's encoder, whose training split is searched. similar: regions of each step.
        Returns: a `Case`, or a list of them in order.
        Raises: as `answer`; RequestError for a model not loaded with `explain`, or no latent steps; as `Viewer.bank`.
        """
        several = not isinstance(questions, str)
        asked = self._asked(images if several else [images], list(questions) if several else [questions])
        found = self.explain_requests(
            asked, latent_steps, "fixed", max_new_tokens, batch, bank=bank, similar=similar
        ).cases
        return found if several else found[0]

    def explain_requests(
        self,
        requests: Sequence[Request],
        latent_steps: int | None = None,
        eval_k: str = "fixed",
        max_new_tokens: int | None = None,
        batch: int = 8,
        bank: str | Path | None = None,
        **options: Any,
    ) -> windows.Explained:
        """`explain` for records, whose gold, masks and chains stand beside; options: similar, seed and targets of `windows.explain`.

        Args: eval_k: `fixed`, or `per_sample`, where each takes its own number of steps, at most `latent_steps`: a number that nobody
          knows in use, so whatever is shown of it says so.
        """
        if self.reader is None and self.viewer is None:
            raise RequestError("this model was loaded without its scaffold: load it with explain=True")
        if not (K := self.steps(latent_steps, eval_k)):
            raise RequestError("latent_steps=0: an answer without latents has no steps to explain; give at least 1")
        if bank is not None:
            if self.viewer is None:
                raise RequestError(f"bank {bank}: this run has no visual projector to search it with; leave bank out")
            bank = self.viewer.bank(bank)
        decoding = self.engine.decoding(self.answer_tokens if max_new_tokens is None else max_new_tokens)
        replies = in_order(self.engine.ask(variables_of(self.params), requests, K, decoding, eval_k, batch))
        projector = self.params["scaffold"].get("visual_projector")
        read = self.read if self.reader else None
        return windows.explain(requests, replies, read, self.viewer, projector, bank, batch=batch, **options)


# --- loading ------------------------------------------------------------------------------------------------------


def load(
    folder: str | Path,
    base: str | Path | None = None,
    text_decoder: str | Path | None = None,
    steps: bool = False,
    explain: bool = False,
    encoder: str | Path | None = None,
    dtype: str | None = None,
) -> Model:
    """Opens a model for answering. Checks everything; weights are read with the first answer.

    Args:
      folder: a training run's folder (it holds `checkpoints`; the newest complete one is taken), what `vital export` wrote, an adapter that
        PEFT trained elsewhere, or the Hugging Face folder of a backbone, which answers without latents.
      base: the Hugging Face folder of the run's or the adapter's base, where it no longer is where that says.
      text_decoder: likewise of `config.model.text_decoder`; only its configuration and tokenizer are read.
      steps: also read the text decoder of the run or the export, so that answers carry what each latent step says.
      explain: also read whatever the run or the export has of its scaffold, text decoder and visual projector, for `Model.explain`.
      encoder: the folder of the encoder that made the run's region features, where it no longer is at `config.data.encoder`; of an export
        always, for the visual window.
      dtype: to compute in, float32 or bfloat16. By default a run or an export computes as it was trained, any other folder in the type that
        its base's weights are stored in (float32 for float16); answers differ between types.
    Raises: FileNotFoundError for an absent folder or checkpoint; ValueError for a folder of neither kind, a base other than the one trained
      on, `steps` where there is no text decoder, or `explain` where there is no scaffold. Each names the folder and the way out.
    """
    if dtype not in (None, *TYPES):
        raise ValueError(f"dtype={dtype!r}: use {' or '.join(TYPES)}")
    folder, kind = Path(folder), folders.check(folder, base, text_decoder, encoder, steps, explain)
    if kind == folders.RUN:
        run = open_run(folder, base=base, text_decoder=text_decoder, encoder=encoder)
        run.config.model.dtype = dtype or run.config.model.dtype
        return _load_run(run, steps=steps, explain=explain)
    if kind == folders.EXPORT:
        return _load_exported(folder, base, steps, encoder, explain, dtype=dtype)
    computed, kept = types_of(folder, dtype)
    method = Method(Backbone(read_config(folder), dtype=computed))
    return Model(method, Encoder.from_folder(folder), lambda: {"base": load_backbone(folder, None, kept)[1]})


def _load_exported(
    folder: Path,
    base: str | Path | None,
    steps: bool,
    encoder: str | Path | None,
    explain: bool,
    *,
    dtype: str | None,
) -> Model:
    found = open_exported(folder, base, dtype)
    if explain:
        steps = found.text_decoder is not None
        if found.visual and not encoder:
            warnings.warn(
                f"{folder} explains in words alone, for no export holds an encoder; this one's is {found.visual['encoder']}: name its "
                "folder as encoder (--encoder) to see where the steps look",
                stacklevel=3,
            )
    if steps and not found.text_decoder:
        raise ValueError(
            f"{folder} holds no explain/text_decoder, so its latent steps cannot be read; ask without steps"
        )
    model = Backbone(
        read_config(found.base), found.lora, dtype=found.dtype, latent_state=found.latent_state, added=found.added
    )
    decoder = Decoder(read_text_config(found.text_decoder)) if steps else None
    reader = _Reader(Prompter(found.text_decoder), found.chain) if steps else None
    viewer, leaves = None, ()
    if explain and found.visual and encoder:
        viewed = make(found.method, model, roi_width=found.visual["width"])
        # As of a run, the projector is applied beside the model.
        viewer = windows.Viewer(viewed.visual, found.check_encoder(encoder), found.visual["hook"], found.max_pixels)
        leaves = tuple(flatten({"visual_projector": viewed.abstract()["scaffold"]["visual_projector"]}))
    return Model(
        make(found.method, model, decoder) if found.method else Method(model, decoder),
        Encoder.from_folder(found.base, found.max_pixels or MAX_PIXELS, found.tokens, system=found.system),
        functools.partial(found.read_params, steps, leaves),
        found.latent_steps,
        found.buckets,
        found.answer or _PLAIN_ANSWER,
        found.written,
        reader,
        viewer,
    )


def _load_run(run: Run, steps: bool, explain: bool) -> Model:
    reads = set(TEXT) <= run.parts
    if explain:
        steps = reads
        if not run.latent_steps:
            raise NoScaffoldError(f"{run.folder}: this run is {run.kind!r}: it has no latent steps to explain")
        if not (reads or run.roi_width):
            raise NoScaffoldError(
                f"{run.folder}: its checkpoint holds no scaffold, neither text decoder nor visual projector (it was trained without latent "
                "steps, or without their losses), so there is nothing to explain; explain a run with method.text or method.visual"
            )
    if steps and not reads:
        raise ValueError(
            f"{run.folder}: the checkpoint holds no text decoder, so its latent steps cannot be read; ask without steps"
        )
    viewer, data = None, run.config.data
    if explain and run.roi_width:
        # The projector is applied beside the model (`explain.windows`), never in the program that answers.
        viewer = windows.Viewer(run.method(["visual_projector"]).visual, run.region_encoder, data.hook, data.max_pixels)
    parts = ("base", *KEPT, *(TEXT if steps else ()), *(VISUAL if viewer else ()))
    return Model(
        run.method(["text_decoder"] if steps else ()),
        run.encoder,
        functools.partial(run.read_params, parts),
        run.latent_steps,
        tuple(map(tuple, data.buckets)),
        data.answer,
        data.written,
        _Reader(Prompter(run.text_decoder), data.chain) if steps else None,
        viewer,
        run,
    )
