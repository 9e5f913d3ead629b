"""What a method is, and the only table of those there are: nothing that imports this package knows one by name.

A method says which columns stand behind a prompt (`layout`), what a latent's input is made from (`feed`), what is lost on them (`loss`),
which parameters it brings (`init`) and which switches a recipe may set. Everything else is the same for all: this file runs the columns,
weighs the losses and measures the latents. A method's file is short; where it grows, a mechanism is missing below it.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vital_jax.latent.decode import Feed as DecodeFeed
from vital_jax.latent.engine import OWN_K, Engine, latents_then_answer
from vital_jax.latent.interpret import Columns, Feed, Given, run
from vital_jax.latent.loop import embed, prefill, variables_of
from vital_jax.latent.loss import cross_entropy
from vital_jax.latent.scaffold import VisualProjector
from vital_jax.models.backbone import Backbone, Prefix
from vital_jax.models.decoder import Decoder
from vital_jax.pipeline.batch import Batch, Encoder, Layout
from vital_jax.pipeline.segments import Segment, Suffix, Tokens
from vital_jax.training.partition import merge

METHODS = {
    "vital": "vital_jax.methods.vital:Vital",
    "direct": "vital_jax.methods.direct:Direct",
    "text_cot": "vital_jax.methods.text_cot:TextCot",
    "coconut": "vital_jax.methods.coconut:Coconut",
}
MODES = ("recurrent", "parallel")
Params = Mapping[str, Any]
Losses = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Switch:
    """A choice that a recipe may make.

    Attributes:
      default: its value where a recipe says nothing. values: the ones there are; empty: any of the default's type.
      free: whether it may differ between a checkpoint and the run that goes on from it; the others change what trained weights mean.
    """

    default: Any
    values: tuple[Any, ...] = ()
    free: bool = False


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of a curriculum as a method sees it; hashable, a part of the compiled program.

    Attributes:
      latent_steps: K. max_steps: records have at most so many steps (0: any number). stage: of methods that are taught in stages.
      weights: (name, weight) of the method's losses; a loss with weight zero is not computed.
    """

    latent_steps: int = 0
    max_steps: int = 0
    stage: int = 0
    weights: tuple[tuple[str, float], ...] = ()

    def weight(self, loss: str) -> float:
        """Of a loss; 1 where none is named."""
        return dict(self.weights).get(loss, 1.0)


@dataclasses.dataclass(frozen=True)
class Budgets:
    """How much room texts and features have.

    Attributes: answer: T, tokens of an answer. chain: C, tokens of one chain step. written: W, tokens of a whole chain that is written out.
      roi: E, the width of region features.
    """

    answer: int
    chain: int = 0
    written: int = 0
    roi: int = 0


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of reasoning: models without parameters, and what its switches say. By itself, a model that no method trained.

    Attributes:
      model: the backbone. decoder: the text decoder of a scaffold that reads latents, or None.
      roi_width: E of the region features that a scaffold regresses, or None.

    A subclass states: `losses`, the first of which is the task's; `switches`; `mode`, `recurrent` (the training path makes the latents that
    decoding makes) or `parallel` (it does not, and the gap is measured); `added`, the tokens it adds to the vocabulary, each with the text
    whose rows it starts as (the mean, where that is several tokens; empty: as the base has it); `feedback`, whether `init` brings a tree of
    modules inside the loop, which answering needs too; `exports`, whether the loop that goes out with an export (hub/custom_generate) can
    run it: latents right behind the prompt, then text.
    """

    model: Backbone
    decoder: Decoder | None = None
    roi_width: int | None = None

    name: ClassVar[str] = ""
    losses: ClassVar[tuple[str, ...]] = ("task",)
    switches: ClassVar[Mapping[str, Switch]] = {}
    mode: ClassVar[str] = "recurrent"
    added: ClassVar[Mapping[str, str]] = {}
    feedback: ClassVar[bool] = False
    exports: ClassVar[bool] = True

    # --- what a recipe says ------------------------------------------------------------------------------------------

    @classmethod
    def steps_of(cls, settings: Mapping[str, Any], phase: Mapping[str, Any]) -> int:
        """K of a phase of a recipe. settings: `config.method`."""
        return 0

    @classmethod
    def weights_of(cls, settings: Mapping[str, Any], phase: Mapping[str, Any]) -> dict[str, float]:
        """The weights of the losses beside the task's in a phase of a recipe."""
        return {}

    @classmethod
    def parts(cls, settings: Mapping[str, Any], phases: Sequence[Phase]) -> frozenset[str]:
        """What of a scaffold these phases need: `text_decoder`, `visual_projector`."""
        return frozenset()

    # --- columns -----------------------------------------------------------------------------------------------------

    def layout(self, phase: Phase, budgets: Budgets) -> Layout:
        """The columns behind a prompt in training, and what its rows are supervised with; the prompt's own budgets are left at zero."""
        raise NotImplementedError

    def asking(self, latent_steps: int, budgets: Budgets, eval_k: str = "fixed") -> Suffix:
        """The columns in use, as the script of decoding: literal text is forced, tokens with a source are written by the model.

        Here: K latents right behind the prompt, then the answer, which is also how a model is asked that no method trained.

        Args: latent_steps: K. eval_k: `fixed`, the same K for all, or `per_sample`, each record's own number, at most K.
        Raises: ValueError for latent steps that the method does not take.
        """
        return latents_then_answer(latent_steps, eval_k, budgets.answer)

    @property
    def own_steps(self) -> bool:
        """Whether training takes each record's own number of steps. Nobody knows that number in use, so all questions take one K there."""
        return False

    def gap(self, latent_steps: int) -> str:
        """What is to be said where questions are asked at another number of steps than they were taught with; empty where they are not.

        Args: latent_steps: K of use, the most that training took.
        """
        if not self.own_steps or latent_steps < 2:
            return ""
        return f"taught with {OWN_K}: from 1 to {latent_steps}; asked with K = {latent_steps} for every question"

    def without_latents(self, latent_steps: int) -> None:
        """What a method that has no latents says of K. Raises: ValueError for any but 0."""
        if latent_steps:
            raise ValueError(
                f"latent_steps={latent_steps}: this model is {self.name!r}, it takes no latent steps; ask with 0"
            )

    def asker(self, budgets: Budgets, tokens: Tokens) -> Callable[[int, str, int], Suffix]:
        """(K, eval_k, T) -> the columns in use, bound to tokens; what asks the model takes this function and knows no method."""
        return lambda K, eval_k, T: self.asking(K, dataclasses.replace(budgets, answer=T), eval_k).bound(tokens)

    def engine(self, encoder: Encoder, buckets: Sequence[tuple[int, int]], budgets: Budgets) -> Engine:
        """What asks a model of this method."""
        return Engine(
            self.model, encoder, tuple((S, P) for S, P in buckets), self.asker(budgets, encoder.prompter), self.feed
        )

    @property
    def feed(self) -> DecodeFeed | None:
        """(variables, z, k, key) -> u, the input of a row's k-th latent; None feeds the state back as it is. A function of the module, so
        that equal methods share a compiled program."""
        return None

    def given(self, params: Params, prefix: Prefix, batch: Batch) -> Mapping[str, jax.Array]:
        """Vectors of given columns that the batch does not hold, [B, G, U, D] by segment."""
        return {}

    # --- parameters --------------------------------------------------------------------------------------------------

    def init(self, key: jax.Array, loaded: Mapping[str, Any]) -> dict[str, Any]:
        """The trees that the method brings (`scaffold`, `feedback`), float32. loaded: weights of parts that were read, by name."""
        return {}

    def abstract(self) -> dict[str, Any]:
        """Shapes of `init`; nothing is allocated."""
        return {}

    @property
    def visual(self) -> VisualProjector | None:
        """The scaffold's visual projector, where it has one."""
        return None

    # --- losses ------------------------------------------------------------------------------------------------------

    def normalizers(self, batch: Batch, phase: Phase, suffix: Suffix) -> Losses:
        """What each loss is divided by, over a whole step of any leading axes; never zero."""
        return tokens_of(batch, suffix)

    def loss(
        self, params: Params, columns: Columns, batch: Batch, norms: Losses, phase: Phase, suffix: Suffix, key: Any
    ) -> tuple[Losses, Losses]:
        """Losses by name, unweighted, and metrics by name: sums divided by `norms`. key: turns dropout on."""
        return task_loss(self.model, params, columns, batch, norms, suffix)


def make(
    settings: Mapping[str, Any], model: Backbone, decoder: Decoder | None = None, roi_width: int | None = None
) -> Method:
    """The method that settings describe, over these models. Raises: ValueError as `get`, or naming a switch."""
    kind = get(settings["name"])
    options = {field.name: settings[field.name] for field in dataclasses.fields(kind) if field.name in settings}
    return kind(model, decoder, roi_width, **options)


def get(name: str) -> type[Method]:
    """The class of a method. Raises: ValueError that lists the methods there are, the nearest first."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1, 0.4)
        hint = f"did you mean {near[0]!r}? There are" if near else "there are"
        raise ValueError(f"config.method.name={name!r}: no such method; {hint} {', '.join(METHODS)}")
    module, _, kind = METHODS[name].partition(":")
    return getattr(importlib.import_module(module), kind)


def settings_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `config.method`, whole: the method's defaults under what is given.

    Raises: ValueError naming an unknown method, a switch that it does not have, or a value that the switch does not take.
    """
    kind = get(given["name"])
    for switch, value in given.items():
        if switch == "name":
            continue
        if switch not in kind.switches:
            near = difflib.get_close_matches(switch, kind.switches, 1)
            known = ", ".join(kind.switches) or "none"
            hint = f"did you mean {near[0]!r}? It has {known}" if near else f"it has {known}"
            raise ValueError(
                f"config.method.{switch}: method {kind.name!r} has no such switch; {hint} (another method has a recipe of its own)"
            )
        row = kind.switches[switch]
        if row.values and value not in row.values:
            raise ValueError(f"config.method.{switch}={value!r}: use one of {', '.join(map(repr, row.values))}")
    return {"name": kind.name, **{name: row.default for name, row in kind.switches.items()}, **given}


def meaning(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change what trained weights mean: a checkpoint made under others is refused."""
    free = {name for name, row in get(settings["name"]).switches.items() if row.free}
    return {name: value for name, value in settings.items() if name not in free}


# --- what is the same for all ---------------------------------------------------------------------------------------


def supervised(suffix: Suffix) -> list[Segment]:
    """The segments whose tokens the task loss reads."""
    return [segment for segment in suffix.segments if segment.supervised and segment.budget]


def _targets(segment: Segment, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """(tokens, mask) of a segment, [..., B, U] each."""
    if not segment.fixed:
        return batch[segment.name], batch[f"{segment.name}_mask"]
    shape = (*batch["lengths"].shape, segment.budget)
    return jnp.broadcast_to(jnp.asarray(segment.ids, jnp.int32), shape), jnp.ones(shape, bool)


def tokens_of(batch: Batch, suffix: Suffix) -> Losses:
    """How many tokens are supervised (`task`), and how many of them are the answer's (`answer`); never zero."""
    counts = {segment.name: jnp.sum(_targets(segment, batch)[1]) for segment in supervised(suffix)}
    whole = sum(counts.values(), start=jnp.zeros((), jnp.int32))
    return {
        "task": jnp.maximum(whole, 1).astype(jnp.float32),
        "answer": jnp.maximum(counts.get("answer", 0), 1).astype(jnp.float32),
    }


def task_loss(
    model: Backbone, params: Params, columns: Columns, batch: Batch, norms: Losses, suffix: Suffix
) -> tuple[Losses, Losses]:
    """({"task": token mean over the supervised columns}, {"answer_accuracy": share of the answer's tokens that are likeliest})."""
    variables, total, metrics = variables_of(params), jnp.zeros(()), {}
    head = model.apply(variables, method="head")
    for segment in supervised(suffix):
        tokens, mask = (x[:, None] for x in _targets(segment, batch))
        h = model.apply(variables, columns.reads[segment.name], method="head_input")
        lost, correct = cross_entropy(h, head, tokens, mask / norms["task"])
        total = total + lost
        if segment.name == "answer":
            metrics["answer_accuracy"] = correct * norms["task"] / norms["answer"]
    return {"task": total}, metrics


def read(
    method: Method,
    params: Params,
    batch: Batch,
    suffix: Suffix,
    key: jax.Array | None = None,
    probe: Mapping[str, jax.Array] | None = None,
    fused: bool = True,
    groups: int = 1,
) -> Columns:
    """The teacher-forced pass of a batch, with G = `groups` continuations of each prompt over one prefill.

    `params` holds base, and what else the method brings; `key` turns dropout on.
    """
    variables = variables_of(params)
    prefill_key, run_key = (None, None) if key is None else jax.random.split(key)
    prefix = embed(method.model, variables, batch)
    z0, prompt = prefill(method.model, variables, prefix, batch["next_position"], prefill_key)
    feed: Feed | None = None
    if (own := method.feed) is not None:
        feed = lambda z, k, key: own(variables, z, k, key)  # noqa: E731
    given = Given(method.given(params, prefix, batch), feed, probe or {})
    z0 = jnp.broadcast_to(z0[:, None], (z0.shape[0], groups, z0.shape[1]))
    return run(method.model, variables, prompt, z0, suffix, batch, given, fused=fused, key=run_key)


def losses(
    method: Method,
    params: Params,
    batch: Batch,
    norms: Losses,
    phase: Phase,
    suffix: Suffix,
    key: jax.Array | None = None,
    probe: Mapping[str, jax.Array] | None = None,
) -> tuple[Losses, Losses, Columns]:
    """Losses of a batch by name, unweighted; metrics by name; and the columns they were read from."""
    run_key, loss_key = (None, None) if key is None else jax.random.split(key)
    columns = read(method, params, batch, suffix, run_key, probe, getattr(method, "fused", True))
    return *method.loss(params, columns, batch, norms, phase, suffix, loss_key), columns


def make_loss(
    method: Method, phase: Phase, suffix: Suffix
) -> Callable[[Params, Params, Batch, jax.Array | None, Losses], tuple[jax.Array, Losses]]:
    """The loss of a phase as the trainer takes it: (trainable, frozen, batch, key, norms) -> (loss, metrics).

    The two trees are halves of one; every metric is a sum already divided by the whole step's counts.
    """

    def loss(
        trainable: Params, frozen: Params, batch: Batch, key: jax.Array | None, norms: Losses
    ) -> tuple[jax.Array, Losses]:
        values, metrics, _ = losses(method, merge(trainable, frozen), batch, norms, phase, suffix, key)
        return sum(phase.weight(name) * value for name, value in values.items()), {**values, **metrics}

    return loss


def diagnose(method: Method, params: Params, batch: Batch, phase: Phase, suffix: Suffix) -> Losses:
    """Numbers that tell whether the first latent segment carries anything (deterministic; costs a backward pass per loss).

    Returns: `grad_z/<loss>` the norm of each weighted loss's gradient at the latents; `z_norm/k` mean length of z_k; `u_over_embedding`
    length of the inputs u against the mean embedding row; `z_cosine/i_j` mean cosine of z_i and z_j over the rows that have both
    (VITAL equation 9, the collapse matrix). Empty without latents.
    """
    segment = next((s for s in suffix.of_kind("latent") if s.budget), None)
    if segment is None:
        return {}
    name, K = segment.name, segment.budget
    norms = method.normalizers(batch, phase, suffix)

    def at(probe: jax.Array) -> tuple[Losses, tuple[jax.Array, jax.Array, jax.Array]]:
        values, _, columns = losses(method, params, batch, norms, phase, suffix, probe={name: probe})
        return {loss: phase.weight(loss) * value for loss, value in values.items()}, columns.steps(name)

    def mean(x: jax.Array, own: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(own, x, 0.0)) / jnp.maximum(jnp.sum(own), 1)

    probe = jnp.zeros((batch["lengths"].shape[0], 1, K, method.model.config.decoder.width), method.model.dtype)
    values, pull, (u, z, own) = jax.vjp(at, probe, has_aux=True)
    # One loss after the other: a jacobian would hold all backward passes at once.
    grads = {loss: pull({other: jnp.float32(other == loss) for other in values})[0] for loss in values}
    out = {f"grad_z/{loss}": jnp.sqrt(jnp.sum(jnp.square(g.astype(jnp.float32)))) for loss, g in grads.items()}
    u, z, own = u[:, 0].astype(jnp.float32), z[:, 0].astype(jnp.float32), own[:, 0]
    length = jnp.linalg.norm(z, axis=-1)
    rows = params["base"]["language_model"]["embed_tokens"]["embedding"].astype(jnp.float32)
    row = jnp.mean(jnp.linalg.norm(rows, axis=-1))
    out["u_over_embedding"] = mean(jnp.linalg.norm(u, axis=-1), own) / row
    unit = z / jnp.maximum(length, 1e-6)[..., None]
    for i in range(K):
        out[f"z_norm/{i + 1}"] = mean(length[:, i], own[:, i])
        for j in range(i + 1, K):
            out[f"z_cosine/{i + 1}_{j + 1}"] = mean(jnp.sum(unit[:, i] * unit[:, j], axis=-1), own[:, j])
    return out
