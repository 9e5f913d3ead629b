"""`vital evaluate audit`: do the latents of a trained run matter? One table, one page."""

import argparse
import sys
from pathlib import Path
from typing import Any

from vital_jax.commands import models, scoring
from vital_jax.commands.values import whole

_FILES = ("audit.json", "audit.md", "audit.csv", "audit.html")


def register(parts: argparse._SubParsersAction) -> None:
    """Adds `audit` to the parts of `vital evaluate`."""
    audit = scoring.add_part(
        parts, "audit", _audit, "do a run's latents matter? other vectors, steps and images; goes on where it stopped"
    )
    models.add_flags(audit)
    audit.add_argument("--data", type=Path, metavar="RECORDS", help="a record folder; by default the run's own")
    audit.add_argument("--split", metavar="S", help="default: the one the run was probed on, else test")
    audit.add_argument(
        "--limit", type=whole, metavar="N", help="ask so many questions, evenly spaced; default all closed-ended ones"
    )
    steps = audit.add_mutually_exclusive_group()
    steps.add_argument("--latent-steps", type=int, metavar="K", help="of the unchanged run, the same for all")
    steps.add_argument(
        "--eval-k", choices=("fixed", "per_sample"), help="or each record's own; default as the run evaluates"
    )
    audit.add_argument("--batch", type=whole, default=32, metavar="B", help="rows of a program, default 32")
    audit.add_argument("--seed", type=int, default=0, metavar="S", help="of what is exchanged and drawn, default 0")
    audit.add_argument("--out", type=Path, required=True, metavar="FOLDER", help=f"for {', '.join(_FILES)}")


def _audit(arguments: argparse.Namespace) -> int:
    from vital_jax.construct.pages import write_text
    from vital_jax.evaluate import audit_table as table
    from vital_jax.evaluate import audits, figure

    out, errors = arguments.out, sys.stderr
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out}: is a file; name a folder")
    subject = _subject(arguments)
    settings = {"model": models.identity(arguments.model), **subject.settings()}
    store = audits.Store(out / _FILES[0], settings)
    print(f"{len(subject.numbers)} questions about {len(set(subject.images))} images", file=errors)
    found = audits.audit(subject, store, lambda line: print(f"  {line}", file=errors, flush=True))
    lines = [table.Line(**line) for line in found["lines"]]
    said, left_out = ("\n".join(f"- {line}" for line in each) for each in (found["sentences"], _left_out(found)))
    title = f"Audit of {arguments.model}"
    parts = [f"# {title}", _under(settings), table.to_markdown(lines), "## What this says", said]
    text = "\n\n".join([*parts, "## Left out", left_out, scoring.RESEARCH])
    write_text(out / _FILES[1], f"{text}\n")
    write_text(out / _FILES[2], table.to_csv(lines))
    write_text(out / _FILES[3], figure.page(title, _under(settings), found))
    print(text)
    print(f"wrote {out}: {', '.join(_FILES)}", file=errors)
    return 0


def _left_out(found: dict[str, Any]) -> list[str]:
    return [f"{name}: {why}" for name, why in found["left_out"]]


def _under(settings: dict[str, Any]) -> str:
    """What was asked under, in a line."""
    flat = settings["model"] | {name: value for name, value in settings.items() if name not in ("model", "ids")}
    return "; ".join(f"{name} {value}" for name, value in flat.items()) + "."


def _subject(arguments: argparse.Namespace):
    """What is audited: the model with all parts of its scaffold that the checkpoint holds, and the records."""
    from dataclasses import replace

    import jax
    from ml_collections import ConfigDict

    from vital_jax.evaluate import audits, evidence
    from vital_jax.evaluate.text_floor import Reader
    from vital_jax.pipeline.feed import Feed
    from vital_jax.pipeline.records import RecordSource
    from vital_jax.run.plan import spread
    from vital_jax.training.checkpoint import Checkpoints

    model, checkpoint = models.load(arguments), Path(arguments.model) / "checkpoints"
    if not checkpoint.is_dir():
        raise ValueError(f"{arguments.model} is a base model: the audit is of a training run's folder")
    with Checkpoints(checkpoint, read_only=True) as checkpoints:
        meta = checkpoints.read_meta()
        reads = any(path.startswith("scaffold/text_decoder/") for path in checkpoints.parameters(meta["step"]))
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        scaffold = checkpoints.read_parameters(("scaffold/visual_projector/",), device, meta["step"])
    config, eval_k = ConfigDict(meta["config"]), arguments.eval_k or meta["config"]["method"]["eval_k"]
    if reads:
        model = models.load(arguments, steps=True)
    K = model.max_steps if arguments.latent_steps is None else arguments.latent_steps
    if not 0 <= K <= model.max_steps:
        raise ValueError(f"--latent-steps {K}: this model was trained with up to {model.max_steps}; use 0 to that")

    source = RecordSource(_records(arguments, config), arguments.split or config.eval.evidence or "test")
    feed = Feed(source, model.encoder, _features(source, config), model.buckets, model.answer_tokens, config.data.chain)
    try:
        numbers = evidence.closed(feed)
    except ValueError:
        # Records of other makers do not say which are closed-ended; exact match is then asked of all.
        numbers = range(len(source))
    reader = visual = None
    if reads:
        reader = Reader(model.method.decoder, model.params["scaffold"], model.reader.prompter, model.method.model.dtype)
    if scaffold:
        projector = scaffold["scaffold"]["visual_projector"]
        width = projector["w2"]["kernel"].shape[0]
        visual = (replace(model.method, roi_width=width).visual, projector)
    return audits.Subject(
        model.engine, model.params, feed, spread(numbers, arguments.limit or len(numbers)), model.max_steps, K,
        "fixed" if arguments.latent_steps is not None else eval_k, model.answer_tokens, arguments.batch, arguments.seed,
        reader, visual,
    )  # fmt: skip


def _records(arguments: argparse.Namespace, config: Any) -> Path:
    from vital_jax.construct.pages import records_folder

    if arguments.data:
        return records_folder(arguments.data)
    if not Path(config.data.records).is_dir():
        raise FileNotFoundError(
            f"{arguments.model} was trained on {config.data.records}, which is not there from {Path.cwd()}: "
            "go where the run was started, or name a record folder (--data)"
        )
    return Path(config.data.records)


def _features(source: Any, config: Any):
    """The sidecar that the run's configuration names, if the records have it."""
    from vital_jax.pipeline.features import RoiFeatures

    folder = source.folder / config.data.features / source.split
    return RoiFeatures(folder, source.ids) if folder.is_dir() else None
