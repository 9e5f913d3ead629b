"""Asks a model: any number of questions about images, packed into few programs. Everything that answers goes through here.

The Python face, evaluation during training, benchmarks and audits differ in where questions come from and what is done with the replies;
how a question becomes a row, which rows share a program and how tokens become text is the same for all. On an accelerator a program costs
minutes to compile and a batch milliseconds to run, so shapes come in few sizes: the budgets that training used, then sizes that grow by
an eighth, and rows in powers of two.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import jax
import numpy as np

from vital_jax.latent.choose import Decoding, row_keys
from vital_jax.latent.decode import Decoded, Feed, Plan, Span, respond
from vital_jax.latent.loop import Variables
from vital_jax.models.backbone import Backbone
from vital_jax.pipeline.batch import Encoder, Layout, collate
from vital_jax.pipeline.segments import FORCED, LATENT, TOKEN, Segment, Suffix

EVAL_K = {"fixed": "all", "per_sample": "own"}  # how rows choose their steps, in a segment's words
# How every number of `per_sample` is named.
OWN_K = "each record's own number of latent steps, which nobody knows in use"
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
        where it came. complete: whether it came, or a stop sequence; otherwise the answer was cut.
      latent_steps: K_i, the steps taken. u, z: [K_i, D] float32, inputs and outputs of the steps. z0: [D], the state after the prompt.
      chain: what was written before the answer, without forced text; empty where nothing was.
      written: ids of all that the model wrote itself.
    """

    text: str
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    complete: bool
    latent_steps: int
    u: np.ndarray
    z: np.ndarray
    z0: np.ndarray
    chain: str = ""
    written: tuple[int, ...] = ()

    @property
    def log_prob(self) -> float:
        """Of all tokens together."""
        return float(sum(self.log_probs))


def rounded(number: int) -> int:
    """The smallest size not below `number`: multiples of 64, from 1024 on of an eighth of the power of two below it."""
    tile = max(_TILE, 1 << max(0, (number - 1).bit_length() - 4))
    return -(-number // tile) * tile


def latents_then_answer(latent_steps: int, eval_k: str, length: int) -> Suffix:
    """The plain suffix: K latents, then an answer of up to `length` tokens."""
    latent = Segment("latent", "latent", latent_steps, count=EVAL_K[eval_k], cut=True)
    return Suffix((latent, Segment("tokens", "answer", length, source="answer")))


@dataclass(frozen=True, eq=False)
class Engine:
    """A backbone and what turns questions into its rows.

    Attributes:
      model: the backbone. encoder: questions to rows.
      buckets: (S, P) budgets that training used; a question that fits none takes rounded sizes.
      asking: (K, eval_k, T) -> the suffix in use, bound to tokens, where a method has another than the plain one.
      feed, span: as in `decode.Plan`.
    """

    model: Backbone
    encoder: Encoder
    buckets: tuple[tuple[int, int], ...] = ()
    asking: Callable[[int, str, int], Suffix] = latents_then_answer
    feed: Feed | None = None
    span: Span | None = None

    @functools.cached_property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return self.encoder.prompter.end_token_ids

    def decoding(self, length: int, temperature: float = 0.0, top_p: float = 1.0, **more: Any) -> Decoding:
        """How this model writes answers of up to `length` tokens; more: as `Decoding`. Raises: ValueError as `Decoding`."""
        return Decoding(length, self.ends, temperature, top_p, **more)

    def plan(self, latent_steps: int, length: int, eval_k: str = "fixed") -> Plan:
        """What a program writes. Raises: ValueError for another `eval_k`."""
        if eval_k not in EVAL_K:
            raise ValueError(f"unknown eval_k={eval_k!r}: use {' or '.join(EVAL_K)}")
        return Plan(self.asking(latent_steps, eval_k, length), self.feed, self.span)

    def banned(self, plan: Plan) -> np.ndarray:
        """[V] bool: control tokens and rows without a token, but for those that end an answer or are a part of the plan."""
        literal = [token for segment in plan.suffix.segments for token in segment.ids]
        allowed = [*self.ends, *literal, *(plan.span or ())[::2]]
        return self.encoder.prompter.banned(self.model.config.decoder.vocab, tuple(allowed))

    def shape(self, request: Request) -> tuple[int, int]:
        """(S, P) of the program that answers this question. Reads image headers. Raises: ValueError naming the question."""
        S, P = self.encoder.measure(request)  # type: ignore[arg-type]  # it reads no more of a record than a request has
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
        # Of what stands behind the prompts, only the numbers of latents are a part of the rows.
        latents = Suffix(self.plan(latent_steps, 1, eval_k).suffix.of_kind("latent"))
        places: dict[tuple[int, int], list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(self.shape(request), []).append(place)
        for (S, P), chosen in sorted(places.items(), reverse=True):
            layout = Layout(S, P, latents)
            for start in range(0, len(chosen), batch):
                group = chosen[start : start + batch]
                rows = [self.encoder.encode(requests[place], layout, place) for place in group]  # type: ignore[arg-type]  # as in `shape`
                full = batch if start else min(batch, 1 << (len(rows) - 1).bit_length())
                rows += rows[-1:] * (full - len(rows))
                yield group, {name: x for name, x in collate(rows).items() if name != "index"}

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
        plan = self.plan(latent_steps, decoding.length, eval_k)
        banned = self.banned(plan)
        for places, rows in self.batches(requests, latent_steps, eval_k, batch):
            filled = np.asarray(places + places[-1:] * (len(rows["lengths"]) - len(places)))
            sampling = decoding.rows(
                len(filled), groups, row_keys(seed, filled, groups) if decoding.temperature else None
            )
            vectors = None if given is None else np.repeat(given[filled][:, None], groups, axis=1)
            found = respond(self.model, variables, rows, plan, sampling, vectors, banned)
            yield places, self.replies(found, plan, decoding, len(places))

    def replies(self, found: Decoded, plan: Plan, decoding: Decoding, rows: int) -> list[list[Reply]]:
        """The first `rows` rows of what was decoded as text."""
        found = Decoded(*(np.asarray(x) for x in jax.device_get(found)))
        found = found._replace(**{name: getattr(found, name).astype(np.float32) for name in ("u", "z", "z0")})
        return [
            [self._reply(Decoded(*(x[b, g] for x in found)), plan, decoding) for g in range(found.tokens.shape[1])]
            for b in range(rows)
        ]

    def _reply(self, row: Decoded, plan: Plan, decoding: Decoding) -> Reply:
        decode, K = self.encoder.prompter.decode, int((row.modes == LATENT).sum())
        behind = np.arange(len(row.tokens)) >= row.answer
        own = np.flatnonzero(behind & np.isin(row.modes, (TOKEN, FORCED)))
        tokens = tuple(row.tokens[own].tolist())
        shown = next((tokens[: -len(stop)] for stop in decoding.stops if tokens[-len(stop) :] == stop), tokens)
        chain = decode(row.tokens[~behind & (row.modes == TOKEN)])
        for segment in plan.suffix.segments:  # the model may have written the text before the answer itself
            chain = chain.removesuffix(decode(segment.ids)) if segment.fixed else chain
        return Reply(
            decode(shown), tokens, tuple(row.log_probs[own].tolist()), bool(row.complete), K, row.u[:K], row.z[:K], row.z0, chain,
            tuple(row.tokens[row.modes == TOKEN].tolist()),
        )  # fmt: skip


def in_order(found: Iterator[tuple[list[int], list[list[Reply]]]]) -> list[Reply]:
    """The first reply to each question, in the questions' order."""
    replies = {place: group[0] for places, groups in found for place, group in zip(places, groups, strict=True)}
    return [replies[place] for place in sorted(replies)]


def with_images(request: Any, other: Any) -> Any:
    """The question of one record about the images of another, with the grey window that belongs to those images."""
    metadata = {name: value for name, value in request.metadata.items() if name != "window"}
    if "window" in other.metadata:
        metadata["window"] = other.metadata["window"]
    return replace(request, images=other.images, masks=(), step_masks=(), boxes=(), metadata=metadata)
