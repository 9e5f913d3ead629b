"""A configuration's models: which folders, which switches, which parameters. One place for training, evaluation and export.

The tree is {base, lora, tokens, feedback, scaffold}, each part where the run has it. What trains is a table over its paths; trained leaves
are float32 masters, the rest keeps `param_dtype`.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from vital_jax.hub.load import check_weights, load_backbone, load_text_decoder
from vital_jax.methods import base
from vital_jax.models.backbone import LATENT_STATES, Backbone, abstract_backbone
from vital_jax.models.config import LoraConfig
from vital_jax.models.decoder import Decoder
from vital_jax.models.families import read_config, read_text_config
from vital_jax.models.lora import init_lora
from vital_jax.models.quantize import is_scale
from vital_jax.models.tokens import init_tokens
from vital_jax.pipeline.batch import Layout
from vital_jax.pipeline.prompts import Prompter
from vital_jax.pipeline.segments import Tokens
from vital_jax.training.checkpoint import make_meta
from vital_jax.training.config import resolved
from vital_jax.training.partition import TRAINABLE, flatten, match, unflatten
from vital_jax.training.sharding import ROWS, base_rows, fsdp_rows, shardings

# Adapters, rows of added tokens and modules inside the loop are small and used everywhere: a copy each. The text decoder and its moments
# are the largest thing that trains: always sharded.
_ROWS = (("(lora|tokens|feedback)/.*", PartitionSpec()), *fsdp_rows("scaffold", (ROWS, "fsdp", "data")))


def phases_of(config: Any) -> list[base.Phase]:
    """The phases of a resolved configuration as its method sees them."""
    return [
        base.Phase(phase.latent_steps, phase.max_steps, phase.stage, tuple(sorted(phase.weights.items())))
        for phase in config.phases
    ]


def scaffold_of(config: Any) -> frozenset[str]:
    """The parts of the scaffold that this run trains: those whose losses a phase weighs."""
    return base.get(config.method.name).parts(config.method, phases_of(config))


def make_method(config: Any, roi_width: int | None, scaffold: Collection[str] | None = None) -> base.Method:
    """The method of a configuration, models without parameters.

    Args:
      config: see configs/. roi_width: E of the feature sidecar, or None.
      scaffold: which parts of it to build, of `text_decoder` and `visual_projector`; None builds those of `scaffold_of`.
    Raises: FileNotFoundError or ValueError naming the folder or switch.
    """
    m, settings = config.model, config.method
    scaffold = scaffold_of(config) if scaffold is None else scaffold
    model = Backbone(
        read_config(m.folder),
        LoraConfig(**config.lora) if config.lora.rank else None,
        remat=m.remat,
        attention=m.attention,
        dtype=jnp.dtype(m.dtype),
        latent_state=settings.get("latent_state", LATENT_STATES[0]),
        quantize=m.get("quantize", ""),
        stationary=config.mesh.base == "fsdp",
        added=tuple(sorted(added_tokens(config))),
    )
    decoder = None
    if "text_decoder" in scaffold:
        decoder = Decoder(read_text_config(m.text_decoder), remat=m.remat, attention=m.attention)
    return base.make(settings, model, decoder, roi_width if "visual_projector" in scaffold else None)


def token_texts(config: Any) -> tuple[str, ...]:
    """The tokens that the method adds to the vocabulary."""
    return tuple(base.get(config.method.name).added)


def added_tokens(config: Any) -> dict[int, tuple[int, ...]]:
    """The row of each added token, and the rows that it starts as the mean of. Raises: FileNotFoundError or ValueError as `Prompter`."""
    if not (added := base.get(config.method.name).added):
        return {}
    prompter = Prompter(config.model.folder, tuple(added))
    return {prompter.added[text]: tuple(map(int, prompter.literal(start or text))) for text, start in added.items()}


def budgets_of(config: Any, roi_width: int | None) -> base.Budgets:
    """How much room a configuration gives texts and features."""
    return base.Budgets(config.data.answer, config.data.chain, config.data.written, roi_width or 0)


def layouts_of(config: Any, method: base.Method, roi_width: int | None, tokens: Tokens) -> list[Layout]:
    """The layout of each phase, its literal texts bound to tokens; the prompts' budgets are the buckets'.

    Where the run learns from answers of its own, its records are prompts alone.
    """
    if config.get("rl"):
        return [Layout() for _ in config.phases]
    layouts = [method.layout(phase, budgets_of(config, roi_width)) for phase in phases_of(config)]
    return [dataclasses.replace(layout, suffix=layout.suffix.bound(tokens)) for layout in layouts]


def switches(config: Any) -> dict[str, Any]:
    """What changes the meaning of the trained weights: a checkpoint made under other values is refused."""
    return {**base.meaning(config.method.to_dict()), "lora_rank": config.lora.rank, "lora_alpha": config.lora.alpha}


def whole_meta(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's record with the switches that its method got since: they had their defaults."""
    defaults = base.meaning(base.settings_of({"name": saved["method"]}))
    return {**saved, "switches": defaults | saved["switches"]}


def meta(
    config: Any, fingerprint: str, phase: int, step: int, clock: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The record of a checkpoint of this run (see `make_meta`). fingerprint: of its base."""
    return make_meta(resolved(config), fingerprint, config.method.name, switches(config), phase, step, clock)


def abstract_params(method: base.Method) -> dict[str, Any]:
    """The whole tree's shapes; nothing is read or allocated."""
    tree = {"base": abstract_backbone(method.model), **method.abstract()}
    if method.model.lora is not None:
        decoder, lora = method.model.config.decoder, method.model.lora
        tree["lora"] = jax.eval_shape(lambda key: init_lora(decoder, lora, key), jax.random.key(0))
    if method.model.added:
        draw = partial(init_tokens, config=method.model.config.decoder, added=method.model.added)
        tree["tokens"] = jax.eval_shape(draw, tree["base"])
    return {name: part for name, part in tree.items() if part}


def kept_params(config: Any, method: base.Method) -> dict[str, Any]:
    """The whole tree's shapes in the types in which this run keeps it: float32 what any phase trains, int8 a quantised base with its
    scales in `param_dtype`, and so the rest.

    Raises: ValueError as `match`, for an unknown `quantize`, or naming a quantised leaf that a phase would train.
    """
    shapes = abstract_params(method)
    wide = trained(tables(config), shapes)
    if lost := sorted(path for path in wide if flatten(shapes)[path].dtype == jnp.int8 or is_scale(path)):
        raise ValueError(
            f"config.model.quantize={config.model.quantize!r} freezes the base's decoder, and {len(lost)} of its leaves are to train "
            f"({lost[0]}): leave them to the adapters, or leave quantize empty"
        )

    def kept(path: str, leaf: Any) -> Any:
        frozen = jnp.int8 if leaf.dtype == jnp.int8 else jnp.dtype(config.model.param_dtype)
        return jax.ShapeDtypeStruct(leaf.shape, jnp.float32 if path in wide else frozen)

    return unflatten({path: kept(path, leaf) for path, leaf in flatten(shapes).items()})


def trained(tables: Sequence[Sequence[tuple[str, str]]], tree: Mapping[str, Any]) -> set[str]:
    """Paths of the leaves that any of these tables trains. Raises: ValueError as `match`."""
    marks = [match(table, flatten(tree)) for table in tables]
    return {path for mark in marks for path, value in mark.items() if value == TRAINABLE}


def tables(config: Any) -> list[Sequence[tuple[str, str]]]:
    """Each phase's table of what trains: its own, or the run's, without the rows of parts this run leaves out (rank 0, no scaffold)."""
    kind = base.get(config.method.name)
    there = {"lora": config.lora.rank, "tokens": kind.added, "feedback": kind.feedback, "scaffold": scaffold_of(config)}
    absent = {name for name, part in there.items() if not part}
    chosen = [phase.table or config.table for phase in config.phases]
    return [[tuple(row) for row in table if row[0].split("/")[0] not in absent] for table in chosen]


def sharding_rows(base_lies: str) -> list[tuple[str, Any]]:
    """The sharding table, `base_lies` replicated or fsdp (see `training.sharding.base_rows`); a run may lack some of its parts."""
    return [*base_rows(base_lies), *_ROWS]


def load_params(config: Any, method: base.Method, mesh: Mesh) -> dict[str, Any]:
    """Reads the base and the text decoder onto the mesh and draws the rest from the seed.

    Returns: the tree, in the types of `kept_params`.
    Raises: as `load_backbone` and `kept_params`; ValueError where a leaf has no row in the table of what trains or of what is sharded.
    """
    shapes = kept_params(config, method)
    check_weights(config.model.folder, config.model.text_decoder if method.decoder is not None else None)
    placed = flatten(shardings(shapes, mesh, sharding_rows(config.mesh.base), allow_unused=True))
    # Far from the keys of the steps, which are the seed folded with small numbers.
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1))

    def at(prefix: str) -> Callable[[str, Any], Any]:
        return lambda path, shape: placed[f"{prefix}/{path}"]

    m = config.model
    _, weights = load_backbone(m.folder, at("base"), m.param_dtype, quantize=method.model.quantize)
    tree: dict[str, Any] = {"base": weights}
    if (lora := method.model.lora) is not None:
        tree["lora"] = init_lora(method.model.config.decoder, lora, keys[0])
    if "tokens" in shapes:
        decoder, added = method.model.config.decoder, method.model.added
        draw = partial(init_tokens, config=decoder, added=added, start=added_tokens(config))
        where = {side: placed[f"tokens/{side}"] for side in shapes["tokens"]}
        tree["tokens"] = jax.jit(draw, out_shardings=where)(weights)
    loaded = {}
    if method.decoder is not None:
        _, loaded["text_decoder"] = load_text_decoder(m.text_decoder, at("scaffold/text_decoder"))
    tree |= method.init(keys[1], loaded)
    kept = flatten(shapes)
    return unflatten(
        {path: jax.device_put(leaf.astype(kept[path].dtype), placed[path]) for path, leaf in flatten(tree).items()}
    )


def of_other_phases(frozen: Mapping[str, Any], ever: set[str]) -> dict[str, Any]:
    """Leaves frozen in this phase that another phase trains: a checkpoint has to hold them too."""
    return unflatten({path: leaf for path, leaf in flatten(frozen).items() if path in ever})


def overlay(frozen: Mapping[str, Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The frozen tree with these leaves put in."""
    return unflatten({**flatten(frozen), **flatten(leaves)})
