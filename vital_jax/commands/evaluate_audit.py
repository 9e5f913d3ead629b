"""`vital evaluate audit`: do the latents of a trained run matter? One table, one page."""

import argparse
import sys
from pathlib import Path
from typing import Any

from vital_jax.commands import checks, models, scoring
from vital_jax.commands.values import LIMIT, count, whole
from vital_jax.statistics import spread

_FILES = ("audit.json", "audit.md", "audit.csv", "audit.html")


def register(parts: argparse._SubParsersAction) -> None:
    """Adds `audit` to the parts of `vital evaluate`."""
    audit = scoring.add_part(
        parts, "audit", _audit, "do a run's latents matter? other vectors, steps and images; goes on where it stopped"
    )
    models.add_flags(audit, "a training run's folder")
    audit.add_argument("--data", type=Path, metavar="RECORDS", help="a record folder; by default the run's own")
    audit.add_argument("--split", metavar="S", help="default: the one the run was probed on, else test")
    audit.add_argument(
        "--limit",
        type=whole,
        metavar="N",
        help=f"of the closed-ended questions, or of all where none says its form, {LIMIT}; default all",
    )
    models.steps_flags(audit, count)
    audit.add_argument("--batch", type=whole, default=32, metavar="B", help="rows of a program, default 32")
    audit.add_argument("--seed", type=int, default=0, metavar="S", help="of what is exchanged and drawn, default 0")
    audit.add_argument(
        "--by",
        default="",
        metavar="KEY",
        help="accuracies also by a key of the records' metadata, such as question_type; asks nothing more",
    )
    audit.add_argument("--out", type=Path, required=True, metavar="FOLDER", help=f"for {', '.join(_FILES)}")


def _audit(arguments: argparse.Namespace) -> int:
    from vital_jax.construct.pages import named, records_folder, write_text
    from vital_jax.hub import folders

    out, errors = arguments.out, sys.stderr
    checks.free(out)  # what stands there is of an audit that goes on
    if checks.model(arguments) != folders.RUN:
        raise ValueError(f"{arguments.model} is no training run's folder: the audit is of a run")
    if arguments.data:
        records_folder(arguments.data)
    from vital_jax.evaluate import audit_table as table
    from vital_jax.evaluate import audits, figure
    from vital_jax.evaluate.score import markdown

    model = _model(arguments)
    subject = _subject(arguments, model)
    settings = {"model": models.identity(arguments, model), **subject.settings()}
    store = audits.Store(out / _FILES[0], settings)
    print(f"{len(subject.numbers)} questions about {len(set(subject.images))} images", file=errors)
    found = audits.audit(subject, store, lambda line: print(f"  {line}", file=errors, flush=True))
    lines = [table.Line(**line) for line in found["lines"]]
    said, left_out = ("\n".join(f"- {line}" for line in each) for each in (found["sentences"], _left_out(found)))
    title = f"Audit of {named(arguments.model)}"
    about = _under(settings, subject, model)
    parts = [f"# {title}", about, table.to_markdown(lines), "## What this says", said]
    parts += [part for name, head, rows in figure.more(found) for part in (f"## {name}", markdown(head, rows))]
    text = "\n\n".join([*parts, "## Left out", left_out, scoring.RESEARCH])
    write_text(out / _FILES[1], f"{text}\n")
    write_text(out / _FILES[2], table.to_csv(lines, found.get("by", {}).get("lines", ())))
    write_text(out / _FILES[3], figure.page(title, about, found))
    print(text)
    print(f"wrote {out}: {', '.join(_FILES)}", file=errors)
    return 0


def _left_out(found: dict[str, Any]) -> list[str]:
    return [f"{name}: {why}" for name, why in found["left_out"]]


def _under(settings: dict[str, Any], subject: Any, model: Any) -> str:
    """What was asked under, in a line, and where that is not how the run is evaluated."""
    from vital_jax.construct.pages import named

    said = model.otherwise(subject.latent_steps, subject.eval_k)
    flat = settings["model"] | {name: value for name, value in settings.items() if name not in ("model", "ids")}
    flat["records"] = named(flat["records"])
    return "; ".join(filter(None, [*(f"{name} {value}" for name, value in flat.items()), said])) + "."


def _model(arguments: argparse.Namespace):
    """The run's model, with its text decoder where it has one."""
    model = models.load(arguments)
    model.run.need_latents("audit")
    return models.load(arguments, steps=True) if "scaffold/text_decoder" in model.run.parts else model


def _subject(arguments: argparse.Namespace, model):
    """What is audited: the model with all parts of its scaffold that the checkpoint holds, and the records."""
    from vital_jax.evaluate import audits, evidence
    from vital_jax.evaluate.text_floor import Reader
    from vital_jax.pipeline.feed import Feed
    from vital_jax.pipeline.records import RecordSource
    from vital_jax.run.open import VISUAL

    run, config = model.run, model.run.config
    K = model.max_steps if arguments.latent_steps is None else arguments.latent_steps
    if not 0 <= K <= model.max_steps:
        raise ValueError(f"--latent-steps {K}: this model was trained with up to {model.max_steps}; use 0 to that")

    source = RecordSource(_records(arguments, run), arguments.split or config.eval.evidence or "test")
    feed = Feed(source, model.encoder, _features(source, config), model.buckets, model.answer_tokens, config.data.chain)
    numbers = evidence.questions(feed)
    reader = visual = None
    if model.reader:
        reader = Reader(model.method.decoder, model.params["scaffold"], model.reader.prompter, model.method.model.dtype)
    if run.roi_width:
        visual = (run.method(["visual_projector"]).visual, run.read_trained(VISUAL)["scaffold"]["visual_projector"])
    return audits.Subject(
        model.engine, model.params, feed, spread(numbers, arguments.limit), model.max_steps, K,
        arguments.eval_k, model.answer_tokens, arguments.batch, arguments.seed, arguments.by,
        reader, visual,
    )  # fmt: skip


def _records(arguments: argparse.Namespace, run: Any) -> Path:
    from vital_jax.construct.pages import records_folder

    return records_folder(arguments.data) if arguments.data else run.place("data.records")


def _features(source: Any, config: Any):
    """The sidecar that the run's configuration names, if the records have it."""
    from vital_jax.pipeline.features import RoiFeatures

    folder = source.folder / config.data.features / source.split
    return RoiFeatures(folder, source.ids) if folder.is_dir() else None
