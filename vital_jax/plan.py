"""What `train.py` says: the plan before a run, a few answers during it, and why it stopped; and what a recipe leaves to be derived."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from vital_jax.methods import setup
from vital_jax.methods.vital import Vital
from vital_jax.pipeline.batch import Encoder
from vital_jax.pipeline.feed import Feed
from vital_jax.pipeline.prompts import Prompter
from vital_jax.prepare import features_name
from vital_jax.training.partition import flatten, parameter_table

SHOWN = ("loss", "task", "text", "visual", "answer_accuracy", "grad_norm")


# Orders of a recipe's phases (Table 3): which of them run, in which order. Steps of phases left out go to the next one that runs.
CURRICULA = {
    "as_listed": lambda count: range(count),
    "two_phase": lambda count: range(min(1, count - 1), count),
    "full_mix": lambda count: range(count - 1, count),
    "reverse": lambda count: range(count - 1, -1, -1),
}


def resolve(config: Any) -> None:
    """Fills in, in place, what a recipe leaves to be derived: the phases of its curriculum, their K and loss weights, the features' name.

    Raises: ValueError naming an unknown curriculum.
    """
    m = config.method
    if config.curriculum not in CURRICULA:
        raise ValueError(f"unknown config.curriculum={config.curriculum!r}: use one of {', '.join(CURRICULA)}")
    order = list(CURRICULA[config.curriculum](len(config.phases)))
    left_out = [phase for i, phase in enumerate(config.phases) if i not in order]
    config.phases = tuple(config.phases[i] for i in order)
    for key in ("steps", "epochs"):
        config.phases[0][key] += sum(phase[key] for phase in left_out)
    for phase in config.phases:
        phase.latent_steps = min(phase.max_steps, m.max_steps) if phase.latent_steps is None else phase.latent_steps
        for loss in ("text", "visual"):
            phase[loss] = float(m[loss] if phase[loss] is None else phase[loss]) if m.scaffold else 0.0
    if m.eval_k == "as_taught":
        m.eval_k = {"per_sample": "per_sample", "phase_max": "fixed"}.get(m.train_k, m.train_k)
    config.data.features = features_name(config)


def open_feed(config: Any, split: str, regions: bool = False) -> Feed:
    """One split of the configured records; with region features where a loss needs them, or where `regions` asks for them."""
    d = config.data
    text = Prompter(config.model.text_decoder) if setup.uses(config, "text") else None
    encoder = Encoder.from_folder(config.model.folder, d.max_pixels, system=d.system, chain_prompter=text)
    features = d.features if regions or setup.uses(config, "visual") else None
    limit = d.limit if split == "train" else 0
    return Feed.open(d.records, split, encoder, features, d.buckets, d.answer, d.chain, d.workers, limit)


def describe(config: Any, method: Vital, feed: Feed, tables: Sequence[Sequence[tuple[str, str]]]) -> str:
    """The plan of a run as text: parameters by module, phases, tokens and images per step, memory. Reads no weights."""
    tree = setup.abstract_params(method)
    ever = setup.trained(tables, tree)
    leaves = flatten(tree)
    frozen_type = jnp.dtype(config.model.param_dtype)
    numbers = {path: math.prod(leaf.shape) for path, leaf in leaves.items()}
    trains = sum(numbers[path] for path in ever)
    rest = sum(numbers.values()) - trains
    gib = lambda count, width: count * width / 2**30  # noqa: E731
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
    lines += [
        "",
        f"memory of the state on one device, nothing sharded: frozen {gib(rest, frozen_type.itemsize):.2f} GiB in {frozen_type.name}, "
        f"trained {gib(trains, 4):.2f} GiB in float32, gradients {gib(trains, 4):.2f} GiB, "
        f"Adam {gib(trains, 8):.2f} GiB; activations come on top",
    ]
    return "\n".join(lines)


def check_data(config: Any, feed: Feed, preview: Feed) -> None:
    """Everything that would otherwise stop a run hours in: records over a budget, a phase or its preview without records, uneven rows.

    Raises: ValueError naming the record or key.
    """
    if config.batch % config.micro_batches:
        raise ValueError(
            f"config.batch={config.batch} is not a multiple of config.micro_batches={config.micro_batches}"
        )
    for phase in config.phases:
        feed.check(feed.select(phase.max_steps))
        if config.eval.answers:
            preview.check(preview.select(phase.max_steps))


def check_resume(saved: Mapping[str, Any], config: Any, index: int) -> None:
    """Refuses to resume where the steps so far would have meant something else: other phases before this step, or another batch.

    Args:
      saved: the checkpoint's record. index: the phase that this run says the checkpoint is in.
    Raises: ValueError that names what changed.
    """
    kept = ("steps", "max_steps", "latent_steps")
    before = [[phase[key] for key in kept] for phase in saved["config"]["phases"]]
    now = [[phase[key] for key in kept] for phase in config.phases]
    for key, old, new in (
        ("the phase of the last step", saved["phase"], index),
        (f"({', '.join(kept)}) of the phases before it", before[:index], now[:index]),
        ("(max_steps, latent_steps) of its phase", before[index][1:], now[index][1:]),
        ("batch", saved["config"]["batch"], config.batch),
        ("seed", saved["config"]["seed"], config.seed),
    ):
        if old != new:
            raise ValueError(
                f"{key}: the checkpoint has {old}, this run has {new}; set it back, or start in another folder"
            )


def stop_if_not_finite(last: Mapping[str, Any] | None, records: dict[int, list[int]]) -> None:
    """Raises FloatingPointError naming the step and its records when the last written step was not finite.

    `records` maps steps to record numbers; steps behind the last written one are forgotten.
    """
    if last is None:
        return
    if not last["finite"]:
        raise FloatingPointError(
            f"step {last['step']}: the loss or its gradient is not finite; its records were {records.get(last['step'])}. "
            "Nothing after the last checkpoint was saved; look at these records, or lower optim.learning_rate"
        )
    for step in [step for step in records if step <= last["step"]]:
        del records[step]


def spread(numbers: Sequence[int], count: int) -> list[int]:
    """`count` of the numbers, evenly spaced, so that neighbours with the same image do not stand for all."""
    count = min(count, len(numbers))
    return [int(numbers[i * len(numbers) // count]) for i in range(count)]


def show_answers(found: Sequence[Mapping[str, Any]], step: int, log: Path | None, shown: int = 4) -> None:
    """Prints some decoded answers and appends all of them to the log."""
    exact = sum(row["exact"] for row in found)
    print(f"\nstep {step}: {exact} of {len(found)} decoded answers exact", file=sys.stderr)
    for row in found[:shown]:
        print(f"  {row['question']}\n    gold   {row['gold']}\n    answer {row['answer']}", file=sys.stderr)
    if log is not None:
        with log.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"step": step, **row}) + "\n" for row in found)
