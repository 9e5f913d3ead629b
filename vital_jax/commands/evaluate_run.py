"""`vital evaluate run`: a model through a benchmark under a protocol, to answers, a table and a page to look at.

The answers are kept batch by batch: stopped at any moment and started again with the same command, it goes on with the next batch. Whatever
decides an answer or a score stands in settings.json before the first question, and a run with other settings is refused.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from vital_jax.commands import checks, models, scoring
from vital_jax.commands.values import LIMIT, count, price, share, whole
from vital_jax.statistics import spread

PAGE, CURVES = "page.html", "tensorboard"


def register(parts: argparse._SubParsersAction) -> None:
    """Adds `run` to the parts of `vital evaluate`."""
    run = scoring.add_part(
        parts, "run", _run, "put a benchmark to a model and score its answers; goes on where it stopped"
    )
    models.add_flags(run)
    scoring.benchmark_flags(run)
    scoring.protocol_flags(run)
    run.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="answers, scores and page; the same one goes on"
    )
    models.steps_flags(run, count)
    run.add_argument("--max-new-tokens", type=whole, metavar="T", help="of an answer; by default what training had")
    run.add_argument("--batch", type=whole, default=8, metavar="B", help="rows of a program, default 8")
    run.add_argument("--temperature", type=price, default=0.0, metavar="t", help="draws; by default 0, which is greedy")
    run.add_argument("--top-p", type=share, default=1.0, metavar="p", help="draws among the likeliest of this share")
    run.add_argument("--seed", type=int, default=0, metavar="S", help="of the draws")
    run.add_argument(
        "--limit", type=whole, metavar="N", help=f"of the items {LIMIT}, which every table says; default all"
    )
    run.add_argument(
        "--skip-missing",
        action="store_true",
        help="leave out questions that cannot be asked (no readable image, control tokens in the text), which every table says",
    )
    run.add_argument("--steps", action="store_true", help="also keep what each latent step says")


def _run(arguments: argparse.Namespace) -> int:
    from vital_jax.evaluate import looking
    from vital_jax.evaluate.answers import Answers, refuse
    from vital_jax.hub import folders

    refuse(arguments.out)
    checks.writable(arguments.out)
    if arguments.top_p < 1 and not arguments.temperature:
        raise ValueError(f"--top-p {arguments.top_p:g} has no meaning at temperature 0: give a --temperature")
    kind = checks.model(arguments, steps=arguments.steps)
    if arguments.eval_k == "per_sample" and kind == folders.BASE:
        raise ValueError(f"--eval-k per_sample: {arguments.model} has no latent steps")
    protocol, loaded = scoring.find_protocol(arguments), scoring.load_benchmark(arguments)
    print(f"{loaded}", file=sys.stderr)
    items = spread(loaded.items, arguments.limit)
    looking.suits(items, protocol, arguments.eval_k)
    print(f"looking at {len(items)} questions and their images", file=sys.stderr)
    looked = looking.look(items)
    _refuse(arguments, loaded, looking.faults(looked), len(items))
    from vital_jax.evaluate import run
    from vital_jax.latent.loop import variables_of

    model = models.load(arguments, arguments.steps)
    engine = model.engine
    length = arguments.max_new_tokens or model.answer_tokens
    asking = run.Asking(
        protocol,
        model.steps(arguments.latent_steps, arguments.eval_k),
        engine.decoding(length, arguments.temperature, arguments.top_p),
        arguments.eval_k,
        arguments.batch,
        arguments.seed,
    )
    if asking.eval_k == "per_sample" and not asking.latent_steps:
        raise ValueError(f"--eval-k per_sample: {arguments.model} has no latent steps")
    plan = run.check(engine, items, asking, looked)
    _refuse(arguments, loaded, plan.faults, len(items))
    settings = {
        "model": models.identity(arguments, model),
        "benchmark": loaded.benchmark,
        "split": loaded.split,
        "limit": arguments.limit,
        "questions": len(plan.items),
        "data": plan.digest,
        **asking.settings(),
        "steps": arguments.steps,
    }
    with Answers(arguments.out, settings) as answers:
        read = model.read if arguments.steps else None
        run.answer(engine, lambda: variables_of(model.params), plan, asking, answers, read)
        said = model.otherwise(asking.latent_steps, asking.eval_k)
        return _finish(arguments, loaded, plan, asking, answers, len(items), said)


def _refuse(arguments: argparse.Namespace, loaded, faults, asked: int) -> None:
    """Raises: ValueError for questions that cannot be asked, unless they are to be left out and others stay."""
    from vital_jax.evaluate import looking
    from vital_jax.evaluate.benchmarks import BENCHMARKS

    if not faults or (arguments.skip_missing and len(faults) < asked):
        return
    way_out = "mend them" if arguments.skip_missing else "mend them, or leave them out with --skip-missing"
    where = BENCHMARKS[loaded.benchmark].where
    way_out += f"; {loaded.benchmark} with its images: {where}" if where else ""
    raise ValueError(f"{loaded.benchmark} {loaded.split}: {looking.named(faults, asked)}; {way_out}")


def _finish(arguments: argparse.Namespace, loaded, plan, asking, answers, asked: int, otherwise: str) -> int:
    """Scores what was answered and writes it. otherwise: how questions were not asked as the model is evaluated, of every score."""
    from vital_jax.construct.pages import write_text
    from vital_jax.evaluate import run
    from vital_jax.evaluate.page import page
    from vital_jax.evaluate.protocols import apply, with_floors

    kept = answers.folder / "answers.jsonl"
    try:
        scored = apply(asking.protocol, plan.items, [answers.rows[item.id] for item in plan.items])
    except ValueError as error:
        raise ValueError(
            f"{kept}: {error}; the answers are kept: `vital evaluate score` scores them otherwise"
        ) from error
    limits = [f"only {asked} of {len(loaded.items)} items, evenly spaced"] if asked < len(loaded.items) else []
    limits += [said] if (said := run.left_out(plan.faults, asked)) else []
    scored = scoring.noted(scored, [otherwise] if otherwise else [])
    scored = scoring.noted(with_floors(scored, asking.protocol, plan.items), limits)
    means = run.summary(answers.rows)
    notes = [f"Partial: {limit}." for limit in limits] + [_how(arguments, asking, means)]
    loaded = replace(loaded, details=(*loaded.details, *(f"{name}: {why} [{code}]" for code, name, why in plan.faults)))
    keys = sorted({key for metric in scored.metrics if "=" in metric.group for key in [metric.group.split("=")[0]]})
    keys = [key for key in keys if key != "benchmark"]
    scoring.write_scores(answers.folder, loaded, scored, keys, notes)
    write_text(answers.folder / PAGE, page(scored, plan.items, answers.rows, [f"{loaded}.", *notes]))
    written = [*scoring.FILES, PAGE, *_curves(answers, scored, means)]
    print(scoring.report(loaded, scored, [], notes, scoring.SHOWN), end="")
    print(f"wrote {answers.folder}: {', '.join(written)}", file=sys.stderr)
    return 0


def _how(arguments: argparse.Namespace, asking, means: dict[str, float]) -> str:
    """How it was asked and how long that took, in a sentence."""
    K = f"K = {'1 to ' * (asking.eval_k == 'per_sample')}{asking.latent_steps} latent steps"
    drawn = f"drawn at temperature {arguments.temperature:g} with seed {arguments.seed}"
    decoding = f"{drawn if arguments.temperature else 'greedy'}, at most {asking.decoding.length} tokens"
    return (
        f"Asked {Path(arguments.model).resolve().name} with {K}, {decoding}. Answers have {means['tokens']:.1f} tokens in the mean, "
        f"{100 * means['complete']:.1f} % ended by themselves, and took {1000 * means['latency']:.0f} ms in the median, "
        f"in batches of up to {asking.batch}."
    )


def _curves(answers, scored, means: dict[str, float]) -> list[str]:
    """Writes the scores for TensorBoard where tensorboardX is installed, in place of those of an earlier finish."""
    from vital_jax.training.board import Board, available

    if not available():
        return []
    folder = answers.folder / CURVES
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    settings = answers.settings
    whole = {metric.measure: metric.value for metric in scored.metrics if metric.group == "all"}
    name = f"{settings['benchmark']} {settings['split']} {scored.protocol}".replace("/", "_")
    with Board(folder) as board:
        board.write(
            settings["model"].get("step", 0), {f"{name}/{key}": value for key, value in (whole | means).items()}
        )
    return [CURVES]
