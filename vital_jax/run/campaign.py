"""Several runs of one recipe, compared: the quickstart's two systems, the ablations' many.

A recipe lists `runs`, each a name and what it changes, and `seeds`. Every run is an ordinary one in a folder of its own, so a campaign that
is killed goes on where it was, and a finished run is not done again. What a run shows for itself is written beside it (`evidence.json`).
"""

import copy
import difflib
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from vital_jax.construct.pages import named, write_text
from vital_jax.evaluate import audit_table, audits, evidence, figure, score
from vital_jax.evaluate.preview import ask
from vital_jax.evaluate.text_floor import Reader
from vital_jax.methods.base import Method
from vital_jax.pipeline.feed import Feed
from vital_jax.run import plan, setup
from vital_jax.statistics import spread as evenly
from vital_jax.training.config import keys, resolved, steps_in_use
from vital_jax.training.sharding import make_mesh

EVIDENCE = "evidence.json"
UNTRAINED = "direct"  # how the frozen backbone is asked
CLOSING = """## How to read this

- A system that answers without looking is as good as `images exchanged`, `majority answer` (to this kind of question, or to the very same
  one) and `chance` (where it is known among how many): what lies above all their intervals was read from the images.
- A frozen backbone that has seen captions and never a question describes, and no description is an exact answer.
- `hit@1`, where regions are known: a latent, sent through the projector, is nearest to the feature of its own region. Where questions name
  their target, the row `of the same target` is the strict comparison, for the name alone tells many regions apart.
- A mean cosine near 1 between two steps says that they hold the same.
- The audit asks the same questions again with one thing changed. Its lines count only the questions that the change touches, each against
  the run's own answers to them; an interval of the difference that holds 0 shows no effect, and with few questions it excludes none.
- Drawn images and small models say nothing about medicine, and nothing here is fit for diagnosis or treatment.

## What to try next

- Ask it: `vital answer --model RUN --image FILE --question TEXT --steps`, RUN being a run's folder.
- Take a part away: `python train.py --config=configs/ablations.py:losses`.
- Train longer: the recipe's own line with `--config.phases[1].steps=2000 --config.workdir=runs/longer`; the first phase is 0.
- Your own images and masks: `configs/fixtures.py` shows the way; `configs/vital.py` is the recipe for published backbones."""


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.replace(path)


def _held(path: Path, setting: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was written there for this configuration, if anything."""
    found = json.loads(path.read_text()) if path.exists() else {}
    return found if found.get("config") == setting else None


def probe(config: Any, method: Method, params: Mapping[str, Any]) -> None:
    """Writes what the trained run shows on the split `eval.evidence`, unless that stands there already for this configuration."""
    path, setting = Path(config.workdir) / EVIDENCE, resolved(config)
    if _held(path, setting):
        return
    train, held_out = (plan.open_feed(config, split, regions=True) for split in ("train", config.eval.evidence))
    K = steps_in_use(config.phases)
    gap = method.gap(K)
    asked = f"answering the questions of split {config.eval.evidence!r} with and without their images, K = {K}"
    print("; ".join(filter(None, [asked, gap])), file=sys.stderr)
    found = {**evidence.evidence(method, params, train, held_out, K, config.seed), "gap": gap}
    if config.eval.audit and K:
        found = {**found, "audit": audit(config, method, params, held_out, K)}
    _write(path, {"config": setting, **found})


def audit(config: Any, method: Method, params: Mapping[str, Any], feed: Feed, K: int) -> dict[str, Any]:
    """Whether the latents of a run matter, on `eval.audit` held-out questions: see `audits.audit`. Leaves audit.json and audit.html."""
    scaffold, folder = params.get("scaffold", {}), Path(config.workdir)
    numbers = evenly(evidence.questions(feed), config.eval.audit)
    print(f"audit of the latents on {len(numbers)} questions", file=sys.stderr)
    reader = visual = None
    if method.decoder is not None:
        prompter = feed.encoder.chain_prompter or feed.encoder.prompter
        reader = Reader(method.decoder, scaffold, prompter, method.model.dtype)
    if "visual_projector" in scaffold and (projector := method.visual) is not None:
        visual = (projector, scaffold["visual_projector"])
    engine = method.engine(feed.encoder, feed.buckets, setup.budgets_of(config, None))
    subject = audits.Subject(
        engine,
        params,
        feed,
        numbers,
        K,
        K,
        "fixed",
        feed.answer,
        seed=config.seed,
        by=config.eval.audit_by,
        reader=reader,
        visual=visual,
    )
    settings = {"config": resolved(config), **subject.settings()}
    found = audits.audit(subject, audits.Store(folder / "audit.json", settings, fresh=True))
    asked = f"{len(numbers)} questions of split {config.eval.evidence!r}, K = {K}"
    about = "; ".join(filter(None, [asked, method.gap(K)])) + "."
    write_text(folder / "audit.html", figure.page(f"Audit of {named(config.workdir)}", about, found))
    return {name: found[name] for name in ("lines", "sentences", "left_out", "by", "steps") if name in found}


def baselines(config: Any) -> dict[str, Any]:
    """Answers of what was not trained, made once for a campaign: the frozen backbone, the most frequent training answer, and chance."""
    plan.resolve(config)
    path, setting = Path(config.workdir) / "baselines.json", resolved(config)
    if found := _held(path, setting):
        return found
    train, held_out = (plan.open_feed(config, split) for split in ("train", config.eval.evidence))
    numbers = evidence.questions(held_out)
    asked = [held_out.source[i] for i in numbers]
    method = setup.make_method(config, None)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    with jax.set_mesh(mesh):
        base = {"base": setup.load_params(config, method, mesh)["base"]}
        frozen = evidence.judged(held_out, numbers, ask(method, base, held_out, numbers, 0, evidence.BATCH))
    best = score.frequent(train.source[i] for i in evidence.questions(train))
    found = {"config": setting, "frozen backbone": frozen, "majority answer": score.majority(best, asked)}
    found |= {"majority answer to the same question": score.majority(best, asked, worded=True)}
    found |= {score.CHANCE: drawn} if (drawn := score.chance(asked)) else {}
    _write(path, found)
    return found


def child(config: Any, name: str, changes: Mapping[str, Any], seed: int) -> Any:
    """The configuration of one run. Raises: ValueError naming a key that the recipe does not have."""
    made = copy.deepcopy(config)
    made.runs, made.seed = (), seed
    made.workdir = str(Path(config.workdir) / re.sub(r"\W+", "_", name).strip("_").lower() / f"seed{seed}")
    known = [key.removeprefix("config.") for key in keys(config)]
    for key in changes:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise ValueError(f"run {name!r} changes {key!r}, which is no key{f'; is it {near[0]!r}?' if near else ''}")
    for key, value in changes.items():
        if isinstance(value, Mapping):  # a whole part is exchanged, such as the method with all of its switches
            made[key] = ConfigDict(dict(value))
        else:
            made.update_from_flattened_dict({key: value})
    return made


def children(config: Any) -> Iterator[tuple[str, int, Any]]:
    """(name, seed, configuration) of every run, seed after seed."""
    for seed in config.seeds:
        for name, changes in config.runs:
            yield name, seed, child(config, name, changes, seed)


def run(config: Any, train: Callable[[Any], None]) -> None:
    """Trains every run with `train` and prints what they show together.

    Raises: ValueError naming the run, before any is trained, as `plan.resolve`.
    """
    for name, _, one in children(config):
        try:
            plan.resolve(one)
        except ValueError as error:
            raise ValueError(f"run {name!r}: {error}") from error
    made = list(children(config))
    # One cache for all: seeds, and runs that differ in numbers only, are the same programs.
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(Path(config.workdir).resolve() / "compile_cache"))
    for number, (name, seed, one) in enumerate(made, 1):
        print(f"\n== run {number} of {len(made)}: {name}, seed {seed} ({one.workdir})", file=sys.stderr)
        train(one)
    if config.dry_run or not config.eval.evidence:
        return
    untrained = baselines(child(config, "untrained", {"method": {"name": UNTRAINED}}, config.seed))
    found = [(name, seed, json.loads((Path(one.workdir) / EVIDENCE).read_text())) for name, seed, one in made]
    text = report(untrained, found)
    path = Path(config.workdir) / "report.md"
    path.write_text(text)
    print(f"\n{text}\n(written to {path})")


def report(untrained: Mapping[str, Any], found: Sequence[tuple[str, int, Mapping[str, Any]]]) -> str:
    """All runs as Markdown: per seed a table of systems, over seeds mean and spread, and what the last run's latents hold.

    Args:
      untrained: of `baselines`. found: (name, seed, evidence) of every run.
    """
    seeds = sorted({seed for _, seed, _ in found})
    idle = [score.Score.of(name, rows) for name, rows in untrained.items() if name != "config"]
    parts = ["# Held-out questions: exact answers in percent", _asked(found)]
    for seed in seeds:
        runs = [(name, one) for name, other, one in found if other == seed]
        name, last = runs[-1]
        blind = score.Score.of(f"{name}, images exchanged", last["blind"])
        trained = [score.Score.of(name, one["answers"]) for name, one in runs]
        parts += [f"Seed {seed}:" if len(seeds) > 1 else "", score.table([*idle, blind, *trained])]
    if len(seeds) > 1:
        parts += [f"Mean and standard deviation over {len(seeds)} seeds:", spread(found)]
        parts += ["The same of the accuracy by kind of question:", spread_by_kind(found)]
    if with_latents := [one for one in found if one[2]["max_steps"]]:
        name, seed, one = with_latents[-1]
        parts += [f"## What the latents of {name!r} hold (seed {seed})", evidence.show(one)]
        if "audit" in one:
            parts += [f"## Whether the latents of {name!r} matter (seed {seed})", audit_table.show(one["audit"])]
            tables = figure.more(one["audit"], brief=True)
            parts += [f"{title}:\n\n{score.markdown(header, rows)}" for title, header, rows in tables]
    return "\n\n".join([*filter(None, parts), CLOSING])


def _asked(found: Sequence[tuple[str, int, Mapping[str, Any]]]) -> str:
    """At how many steps each run is asked, and where it was taught otherwise."""
    last = {name: one for name, _, one in found}
    said = [f"{name} with K = {one['max_steps']}" + f" ({one['gap']})" * bool(one["gap"]) for name, one in last.items()]
    return f"Every question is asked with the same number of latent steps, as every command asks: {', '.join(said)}."


def spread(found: Sequence[tuple[str, int, Mapping[str, Any]]]) -> str:
    """Runs as rows: mean and sample standard deviation over seeds, in percent, of what each shows; blank where a run has no such number."""
    columns: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
        "accuracy": lambda one: _share(one["answers"]),
        "images exchanged": lambda one: _share(one["blind"]),
        "hit@1": lambda one: one["retrieval"]["last"]["own"]["hit@1"]["share"],
        "hit@1, same target": lambda one: one["retrieval"]["last"]["same_class"]["hit@1"]["share"],
        "cosine z_1 z_K": lambda one: one["collapse"][0][-1] if one["max_steps"] > 1 else None,
    }
    rows = []
    for name in dict.fromkeys(name for name, _, _ in found):
        cells = []
        for value in columns.values():
            try:
                values = [value(one) for other, _, one in found if other == name]
            except KeyError:  # no latents, or no features to look for
                values = [None]
            known = [one for one in values if one is not None]
            # Blank: no two steps to compare, or no record that takes both.
            cells.append(_mean(known) if len(known) == len(values) else "")
        rows.append([name, *cells])
    return score.markdown(["run", *columns], rows)


def spread_by_kind(found: Sequence[tuple[str, int, Mapping[str, Any]]]) -> str:
    """Runs as rows, question types as columns with the number of their questions: mean and sample standard deviation of the accuracy."""
    scores = [(name, score.Score.of(name, one["answers"])) for name, _, one in found]
    asked = {kind: n for kind, (_, n) in scores[0][1].by_type.items()}
    rows = []
    for name in dict.fromkeys(name for name, _ in scores):
        mine = [one.by_type for other, one in scores if other == name]
        rows.append([name, *(_mean([one[kind][0] / one[kind][1] for one in mine]) for kind in asked)])
    return score.markdown(["run", *(f"{kind} ({n})" for kind, n in asked.items())], rows)


def _mean(values: Sequence[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"


def _share(rows: Sequence[score.Row]) -> float:
    return sum(row["exact"] for row in rows) / len(rows)
