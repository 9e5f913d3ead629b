"""What `train.py` says: the plan before a run, a few answers during it, and why it stopped; and what a recipe leaves to be derived.

Where one of several processes is enough (answers, evidence), process 0 works alone with a copy of the parameters on its own devices.
"""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from vital_jax import __version__
from vital_jax.construct.pages import records_folder
from vital_jax.evaluate.preview import answers
from vital_jax.hub.load import check_weights
from vital_jax.methods import base
from vital_jax.methods.base import Method
from vital_jax.models.families import PUBLISHED
from vital_jax.pipeline.batch import Encoder, Layout
from vital_jax.pipeline.feed import Feed
from vital_jax.pipeline.prompts import Prompter
from vital_jax.run import lesson, setup
from vital_jax.run.prepare import features_name, has_features, prepare
from vital_jax.statistics import spread
from vital_jax.training import distributed
from vital_jax.training.config import resolved, steps_in_use
from vital_jax.training.metrics import Clock
from vital_jax.training.partition import flatten, parameter_table
from vital_jax.training.sharding import own_mesh, shardings

# Of a recipe's `rl`: what says which prompts a step asks.
_BLOCK = ("group", "mini_batches", "epochs", "waves")
# Orders of a recipe's phases (Table 3): which of them run, in which order. Steps of phases left out go to the next one that runs.
CURRICULA = {
    "as_listed": lambda count: range(count),
    "two_phase": lambda count: range(min(1, count - 1), count),
    "full_mix": lambda count: range(count - 1, count),
    "reverse": lambda count: range(count - 1, -1, -1),
}


def resolve(config: Any) -> None:
    """Fills in, in place, what a recipe leaves to be derived: the method's defaults, the phases of the curriculum with their K and loss
    weights, and the features' name, which is empty where nothing of the run reads them.

    Raises: ValueError naming an unknown method, switch or curriculum, a `compiler` that is not rows of two strings, or a loss on regions
      without region features; as `lesson.check`.
    """
    settings = base.settings_of(config.method.to_dict())
    kind = base.get(settings["name"])
    config.method = ConfigDict(settings)
    if config.curriculum not in CURRICULA:
        raise ValueError(f"unknown config.curriculum={config.curriculum!r}: use one of {', '.join(CURRICULA)}")
    for row in config.compiler:
        if not (isinstance(row, tuple) and [type(part) for part in row] == [str, str]):
            raise ValueError(f"config.compiler holds {row!r}: its rows are ('name of an XLA option', 'value')")
    order = list(CURRICULA[config.curriculum](len(config.phases)))
    left_out = [phase for i, phase in enumerate(config.phases) if i not in order]
    config.phases = tuple(config.phases[i] for i in order)
    for key in ("steps", "epochs"):
        config.phases[0][key] += sum(phase[key] for phase in left_out)
    for i, phase in enumerate(config.phases):
        if strange := sorted(
            name for name, weight in phase.weights.items() if weight is not None and name not in kind.losses
        ):
            raise ValueError(
                f"config.phases[{i}].weights.{strange[0]}: method {kind.name!r} has no such loss; it has {', '.join(kind.losses)}"
            )
        phase.latent_steps = kind.steps_of(settings, phase)
        phase.weights = ConfigDict(kind.weights_of(settings, phase.weights))
    regressed = "visual_projector" in setup.scaffold_of(config)
    # Evidence looks for the regions of a run's latents also where no loss regressed them. Nobody else reads features.
    used = regressed or (config.eval.evidence and any(phase.latent_steps for phase in config.phases))
    config.data.features = features_name(config) if used else ""
    if regressed and not config.data.features:
        raise ValueError(
            "config.data.features is empty, and a loss of this method needs region features: give auto, or set the loss's weight to 0"
        )
    if config.get("rl"):
        lesson.check(config)


def make_ready(config: Any) -> None:
    """All that comes before the records are opened: the recipe is resolved, processes agree, and what it says how to make is there.

    Raises: as `resolve`, `agree`, `distributed.check_shared`, `find_folders`, `check_models` and `prepare`.
    """
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(Path(config.workdir).resolve() / "compile_cache"))
    resolve(config)
    agree(config)
    distributed.check_shared(Path(config.workdir))
    find_folders(config)
    check_models(config)
    distributed.first("preparation", lambda: prepare(config))


def find_folders(config: Any) -> None:
    """Refuses, all at once, folders that are neither there nor made by this recipe; an OUT of `vital data build` becomes its `records`.

    Raises: FileNotFoundError naming each key, and how to get what is missing.
    """
    data, absent = config.data, {}
    if not data.build:
        try:
            data.records = str(records_folder(data.records))
        except FileNotFoundError:
            absent["data.records"] = "`vital data build OUT --source FOLDER` makes one"
    reads = "text_decoder" in setup.scaffold_of(config)
    needed = ["model.folder", *(["model.text_decoder"] if reads else []), *(["data.encoder"] if data.features else [])]
    for key in () if config.model.tiny else needed:
        folder = Path(config[key.split(".")[0]][key.split(".")[1]])
        if not folder.is_dir() and not (key == "data.encoder" and has_features(config)):
            name = PUBLISHED.get(folder.name)
            absent[key] = (
                f"`hf download {name} --local-dir {folder}` gets it" if name else "it is a Hugging Face folder"
            )
    if absent:
        values = {key: config[key.split(".")[0]][key.split(".")[1]] for key in absent}
        faults = [f"config.{key}={values[key]!r} ({way}; say --config.{key}=FOLDER)" for key, way in absent.items()]
        raise FileNotFoundError(f"not there from {Path.cwd()}: {', '.join(faults)}")


def check_models(config: Any) -> None:
    """Refuses models whose weights are not whole, before records and features are made for them. Raises: as `check_weights`."""
    if not (config.model.tiny or config.dry_run):
        reads = "text_decoder" in setup.scaffold_of(config)
        check_weights(config.model.folder, config.model.text_decoder if reads else None)


def check_best(config: Any, metrics: Iterable[str]) -> None:
    """Refuses a `checkpoint.best` that names nothing a step reports. metrics: names, of any step. Raises: ValueError with what there is."""
    name, known = config.checkpoint.best.partition(" ")[2], {*metrics, *(("exact",) if config.eval.answers else ())}
    if name and name not in known:
        raise ValueError(
            f"config.checkpoint.best={config.checkpoint.best!r}: no metric {name!r}; there are {', '.join(sorted(known))}"
        )


def open_feed(config: Any, split: str, regions: bool = False) -> Feed:
    """One split of the configured records; with region features where a loss needs them, or where `regions` asks for them."""
    d = config.data
    scaffold = setup.scaffold_of(config)
    text = Prompter(config.model.text_decoder) if "text_decoder" in scaffold else None
    encoder = Encoder.from_folder(
        config.model.folder, d.max_pixels, setup.token_texts(config), system=d.system, chain_prompter=text
    )
    features = d.features if regions or "visual_projector" in scaffold else None
    limit = d.limit if split == "train" else 0
    return Feed.open(
        d.records,
        split,
        encoder,
        features,
        d.buckets,
        answer=d.answer,
        chain=d.chain,
        written=d.written,
        workers=d.workers,
        limit=limit,
    )


def open_feeds(config: Any) -> tuple[Feed, Feed]:
    """The records to train on and those of the preview. Phases that are told in epochs learn how many steps these are."""
    feed, preview = open_feed(config, "train"), open_feed(config, config.eval.split)
    for phase in config.phases:
        if not phase.steps:
            prompts, updates = lesson.pace(config)
            phase.steps = updates * math.ceil(phase.epochs * len(feed.select(phase.max_steps)) / prompts)
    return feed, preview


def describe(config: Any, method: Method, feed: Feed) -> str:
    """The plan of a run as text: parameters by module, phases, tokens and images per step, memory. Reads no weights."""
    tree, tables = setup.abstract_params(method), setup.tables(config)
    ever = setup.trained(tables, tree)
    leaves = flatten(tree)
    numbers = {path: math.prod(leaf.shape) for path, leaf in leaves.items()}
    trains = sum(numbers[path] for path in ever)
    rest = [leaf for path, leaf in flatten(setup.kept_params(config, method)).items() if path not in ever]
    types = " and ".join(sorted({leaf.dtype.name for leaf in rest}))

    def gib(count: int, width: int) -> float:
        return count * width / 2**30

    lines = [parameter_table(tree, tables[0]), ""]
    for phase in config.phases:
        chosen = feed.select(phase.max_steps)
        need = feed.sizes[chosen]
        counts = f"K = {phase.latent_steps}, {len(chosen)} records, {phase.steps} steps"
        epochs = phase.steps * config.batch / len(chosen)
        tokens, patches = (config.batch * need.mean(0)).astype(int)[:2]
        images = sum(len(feed.source[int(i)].images) for i in chosen[:64]) / min(len(chosen), 64)
        lines.append(
            f"phase {phase.name!r}: {counts} ({epochs:.1f} epochs); per step about {tokens:,} prompt tokens, "
            f"{patches:,} patches, {config.batch * images:.0f} images, at most {config.batch * feed.answer:,} answer tokens"
        )
    lines += filter(None, [method.gap(steps_in_use(config.phases))])
    lines += lesson.describe(config, method, feed)
    lines += [
        "",
        f"memory of the state on one device, nothing sharded: "
        f"frozen {sum(gib(leaf.size, leaf.dtype.itemsize) for leaf in rest):.2f} GiB in {types}, "
        f"trained {gib(trains, 4):.2f} GiB in float32, gradients {gib(trains, 4):.2f} GiB, "
        f"Adam {gib(trains, 8):.2f} GiB; activations come on top",
    ]
    return "\n".join(lines)


def check_data(config: Any, layouts: Sequence[Layout], feed: Feed, preview: Feed, parts: int = 1) -> None:
    """Everything that would otherwise stop a run hours in: records over a budget, a phase or its preview without records, uneven rows.

    Args:
      layouts: of the phases. parts: how many processes make rows of their own.
    Raises: ValueError naming the record or key.
    """
    if config.batch % (config.micro_batches * parts):
        over = f" over {parts} processes" if parts > 1 else ""
        raise ValueError(
            f"config.batch={config.batch} is not a multiple of config.micro_batches={config.micro_batches}{over}"
        )
    for phase, layout in zip(config.phases, layouts, strict=True):
        if layout.step_regions and feed.features is not None and not feed.features.steps.shape[1]:
            raise ValueError(
                f"config.method regresses each step's own region, and {feed.features.folder} has none: give records with `step_masks` "
                "(and extract their features again), or set config.method.visual_target=shared"
            )
        feed.check(feed.select(phase.max_steps), layout)
        if config.eval.answers:
            preview.check(preview.select(phase.max_steps), layout)


def check_resume(saved: Mapping[str, Any], config: Any, index: int) -> None:
    """Refuses to resume where the steps so far would have meant something else: other phases before this step, or another batch.

    Args:
      saved: the checkpoint's record. index: the phase that this run says the checkpoint is in.
    Raises: ValueError that names what changed.
    """
    kept = ("steps", "max_steps", "latent_steps", "stage")
    before = [[phase[key] for key in kept] for phase in saved["config"]["phases"]]
    now = [[phase[key] for key in kept] for phase in config.phases]
    for key, old, new in (
        ("the phase of the last step", saved["phase"], index),
        (f"({', '.join(kept)}) of the phases before it", before[:index], now[:index]),
        ("(max_steps, latent_steps, stage) of its phase", before[index][1:], now[index][1:]),
        ("batch", saved["config"]["batch"], config.batch),
        ("seed", saved["config"]["seed"], config.seed),
        *((f"rl.{key}", saved["config"].get("rl", {}).get(key), config.rl[key]) for key in _BLOCK if config.get("rl")),
    ):
        if old != new:
            raise ValueError(
                f"{key}: the checkpoint has {old}, this run has {new}; set it back, or start in another folder"
            )


def agree(config: Any) -> None:
    """Refuses, before any work, processes with different configurations or versions. Raises: ValueError naming the key."""

    def leaves(value: Any, path: str) -> dict[str, Any]:
        if isinstance(value, dict):
            items = [(f"{path}.{key}", inner) for key, inner in value.items()]
        elif isinstance(value, list) and value:
            items = [(f"{path}[{i}]", inner) for i, inner in enumerate(value)]
        else:
            return {path: value}
        return {key: leaf for name, inner in items for key, leaf in leaves(inner, name).items()}

    found = leaves(resolved(config), "config") | {"jax": jax.__version__, "vital_jax": __version__}
    own = ("config.distributed.index", "config.distributed.coordinator")
    distributed.agree("configuration", {key: value for key, value in found.items() if key not in own})


def agree_on_data(base: str, feed: Feed) -> None:
    """Refuses processes that see other weights or records under the same names. base: fingerprint of the weights. Raises: ValueError."""
    digest = hashlib.sha256("\n".join(feed.source.ids).encode() + feed.sizes.tobytes())
    distributed.agree("data", {"model.folder": base, "data.records": digest.hexdigest()[:16]})


def stop_if_not_finite(last: Mapping[str, Any] | None, records: dict[int, list[int]], feed: Feed) -> None:
    """Raises FloatingPointError naming the step and its records, of all processes, when the last written step was not finite.

    `records` maps steps to the record numbers of this process; steps behind the last written one are forgotten.
    """
    if last is None:
        return
    if not last["finite"]:
        mine = [feed.source.ids[number] for number in records.get(last["step"], ())]
        names = [name for part in distributed.gather("records of a step that is not finite", mine) for name in part]
        raise FloatingPointError(
            f"step {last['step']}: the loss or its gradient is not finite; its records were {', '.join(names)}. "
            "Nothing after the last checkpoint was saved; look at these records, or lower optim.learning_rate"
        )
    for step in [step for step in records if step <= last["step"]]:
        del records[step]


def pace(clock: Clock) -> dict[str, float]:
    """How fast the run went, over all its restarts: samples seen and per second, and MFU where the chips are known."""
    found = {"samples": clock.state()["seen"], "samples/s": clock.samples_per_second, "mfu": clock.mfu}
    return {name: value for name, value in found.items() if value is not None}


def on_first(config: Any, name: str, params: Mapping[str, Any], work: Callable[[Any], Any]) -> Any:
    """`work(params)` on process 0, with the parameters on its own devices; its result (plain JSON) on all. Every process must call it.

    Decoding and probing fetch what they make, and an array that lies on several hosts cannot be fetched by one. Replicated parameters are
    there already; split ones are gathered leaf by leaf, which needs room for a second copy on the devices of process 0.
    """
    if jax.process_count() == 1:
        return work(params)
    mesh = own_mesh(config.mesh.base)
    place = shardings(params, mesh, setup.sharding_rows(config.mesh.base), allow_unused=True)
    here = distributed.to_first(params, place)
    with jax.set_mesh(mesh):
        return distributed.first(name, lambda: work(here))


def preview_answers(
    config: Any,
    method: Method,
    params: Mapping[str, Any],
    preview: Feed,
    phases: Sequence[Any],
    step: int,
    **more: Any,
) -> dict[str, float]:
    """Asks some records of the preview, shows the answers and logs them. phases: those begun. more: `worth`, as for `preview.answers`.

    Returns: {"exact": share of exact ones}, and means of what else they are worth.
    """
    numbers, K = spread(preview.select(phases[-1].max_steps).tolist(), config.eval.answers), steps_in_use(phases)
    log = Path(config.workdir) / "answers.jsonl"

    def work(here: Mapping[str, Any]) -> dict[str, float]:
        found = answers(method, here, preview, numbers, K, **more)
        show_answers(found, step, K, log)
        worth = [name for name in found[0] if name.startswith("val_")]
        return {name: sum(row[name] for row in found) / len(found) for name in ("exact", *worth)}

    asked = {name: part for name, part in params.items() if name != "scaffold"}
    return on_first(config, "preview", asked, work)


def show_answers(found: Sequence[Mapping[str, Any]], step: int, K: int, log: Path, shown: int = 4) -> None:
    """Prints some decoded answers and appends all of them to the log."""
    exact = sum(row["exact"] for row in found)
    worth = sum(row.get("val_reward", 0.0) for row in found) / len(found)
    said = f"; mean reward {worth:.4g}" if "val_reward" in found[0] else ""
    print(f"\nstep {step}: {exact} of {len(found)} decoded answers exact at K = {K}{said}", file=sys.stderr)
    for row in found[:shown]:
        print(f"  {row['question']}\n    gold   {row['gold']}\n    answer {row['answer']}", file=sys.stderr)
    with log.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"step": step, "K": K, **row}) + "\n" for row in found)
