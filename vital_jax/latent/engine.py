"""Asks a model: any number of questions about images, packed into few programs. Everything that answers goes through here.

The Python face, evaluation during training, benchmarks and audits differ in where questions come from and what is done with the replies;
how a question becomes a row, which rows share a program and how tokens become text is the same for all. On an accelerator a program costs
minutes to compile and a batch milliseconds to run, so shapes come in few sizes: the budgets that training used, then sizes that grow by
an eighth, and rows in powers of two.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import jax
import numpy as np

from vital_jax.latent.loop import Variables
from vital_jax.latent.sample import Decoding, Sample, respond, row_keys
from vital_jax.models.backbone import Backbone
from vital_jax.pipeline.batch import Encoder, Layout, collate

EVAL_K = {"fixed": "phase_max", "per_sample": "per_sample"}  # how rows choose their steps, in the layout's words
_TILE = 64


class Request(Protocol):
    """What is asked: a record, or anything that looks like one. Its answer is not read, its chain only for its number of steps."""

    id: str
    images: Sequence[bytes]
    question: str
    chain: Sequence[str]
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """A `Request` of which nothing is known but its images, encoded, and its text."""

    id: str
    images: tuple[bytes, ...]
    question: str
    chain: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Reply:
    """One answer and the thoughts before it.

    Attributes:
      text: without special tokens. tokens, log_probs: its ids and their natural log-probabilities at temperature 1, the end token included
        where it came. complete: whether it came; otherwise the answer was cut.
      latent_steps: K_i, the steps taken. u, z: [K_i, D] float32, inputs and outputs of the steps. z0: [D], the state after the prompt.
    """

    text: str
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    complete: bool
    latent_steps: int
    u: np.ndarray
    z: np.ndarray
    z0: np.ndarray

    @property
    def log_prob(self) -> float:
        """Of all tokens together."""
        return float(sum(self.log_probs))


def rounded(number: int) -> int:
    """The smallest size not below `number`: multiples of 64, from 1024 on of an eighth of the power of two below it."""
    tile = max(_TILE, 1 << max(0, (number - 1).bit_length() - 4))
    return -(-number // tile) * tile


@dataclass(frozen=True, eq=False)
class Engine:
    """A backbone and what turns questions into its rows.

    Attributes:
      model: the backbone. encoder: questions to rows.
      buckets: (S, P) budgets that training used; a question that fits none takes rounded sizes.
    """

    model: Backbone
    encoder: Encoder
    buckets: tuple[tuple[int, int], ...] = ()

    @functools.cached_property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return self.encoder.prompter.end_token_ids

    def decoding(self, length: int, temperature: float = 0.0, top_p: float = 1.0) -> Decoding:
        """How this model writes answers of up to `length` tokens. Raises: ValueError as `Decoding`."""
        return Decoding(length, self.ends, temperature, top_p)

    def shape(self, request: Request) -> tuple[int, int]:
        """(S, P) of the program that answers this question. Reads image headers. Raises: ValueError naming the question."""
        S, P = self.encoder.measure(request)
        fitting = [bucket for bucket in self.buckets if bucket[0] >= S and bucket[1] >= P]
        if fitting:
            return min(fitting, key=lambda bucket: (bucket[0] + bucket[1], bucket))
        # Patches have their own budgets: training with other texts met images of the same sizes.
        return rounded(S), min((p for _, p in self.buckets if p >= P), default=rounded(P))

    def batches(
        self, requests: Sequence[Request], latent_steps: int, eval_k: str = "fixed", batch: int = 8
    ) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
        """(places in `requests`, their rows as arrays), questions of one shape together, large shapes first so that memory fails early.

        Groups are filled up with copies of their last row: to `batch` where a full group of the shape came before, else to a power of two.

        Args:
          latent_steps: K. eval_k: `fixed` (every row takes K steps) or `per_sample` (each its record's own number, at most K).
        Raises: ValueError for another `eval_k`, or naming a question that cannot become a row.
        """
        if eval_k not in EVAL_K:
            raise ValueError(f"unknown eval_k={eval_k!r}: use {' or '.join(EVAL_K)}")
        places: dict[tuple[int, int], list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(self.shape(request), []).append(place)
        for (S, P), chosen in sorted(places.items(), reverse=True):
            layout = Layout(S, P, 0, latent_steps, train_k=EVAL_K[eval_k], cap=True)
            for start in range(0, len(chosen), batch):
                group = chosen[start : start + batch]
                rows = [self.encoder.encode(requests[place], layout, place) for place in group]
                full = batch if start else min(batch, 1 << (len(rows) - 1).bit_length())
                rows += rows[-1:] * (full - len(rows))
                yield group, {name: x for name, x in collate(rows).items() if name not in ("roi", "roi_mask", "index")}

    def ask(
        self,
        variables: Variables,
        requests: Sequence[Request],
        latent_steps: int,
        decoding: Decoding,
        eval_k: str = "fixed",
        batch: int = 8,
        groups: int = 1,
        seed: int = 0,
        given: np.ndarray | None = None,
    ) -> Iterator[tuple[list[int], list[list[Reply]]]]:
        """Answers, batch after batch: places in `requests`, and for each its G = `groups` replies.

        Args:
          variables: as `variables_of` makes them. latent_steps, eval_k, batch: as `batches`.
          seed: of the draws, where the temperature is not 0; a question's draws depend on it and on the question's place alone.
          given: [len(requests), K, D] what stands in the latent slots in place of what the loop feeds back.
        Raises: ValueError as `batches`.
        """
        for places, rows in self.batches(requests, latent_steps, eval_k, batch):
            filled = np.asarray(places + places[-1:] * (len(rows["lengths"]) - len(places)))
            keys = row_keys(seed, filled, groups) if decoding.temperature else None
            vectors = None if given is None else np.repeat(given[filled][:, None], groups, axis=1)
            found = respond(self.model, variables, rows, latent_steps, decoding, groups, keys, vectors)
            yield places, self.replies(found, rows["latent_steps"], len(places))

    def replies(self, found: Sample, latent_steps: np.ndarray, rows: int) -> list[list[Reply]]:
        """The first `rows` rows of a sample as text; latent_steps: [B] K_i of each."""
        tokens, log_probs, *vectors = jax.device_get(found)
        vectors = [np.asarray(x, np.float32) for x in vectors]
        return [
            [self._reply(tokens[b, g], log_probs[b, g], int(latent_steps[b]), *(x[b, g] for x in vectors)) for g in range(tokens.shape[1])]
            for b in range(rows)
        ]  # fmt: skip

    def _reply(
        self, tokens: np.ndarray, log_probs: np.ndarray, K: int, u: np.ndarray, z: np.ndarray, z0: np.ndarray
    ) -> Reply:
        ends = np.flatnonzero(np.isin(tokens, self.ends))
        n = int(ends[0]) + 1 if len(ends) else len(tokens)
        text = self.encoder.prompter.decode(tokens[:n])
        return Reply(text, tuple(tokens[:n].tolist()), tuple(log_probs[:n].tolist()), len(ends) > 0, K, u[:K], z[:K], z0)  # fmt: skip


def in_order(found: Iterator[tuple[list[int], list[list[Reply]]]]) -> list[Reply]:
    """The first reply to each question, in the questions' order."""
    replies = {place: group[0] for places, groups in found for place, group in zip(places, groups, strict=True)}
    return [replies[place] for place in sorted(replies)]


def with_images(request: Any, other: Any) -> Any:
    """The question of one record about the images of another, with the grey window that belongs to those images."""
    metadata = {name: value for name, value in request.metadata.items() if name != "window"}
    if "window" in other.metadata:
        metadata["window"] = other.metadata["window"]
    return replace(request, images=other.images, masks=(), boxes=(), metadata=metadata)
