"""`vital explain`: what each latent step of a run says, where it looks and what it is like, as a page, with numbers beside the pictures."""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

from vital_jax.commands import checks, models
from vital_jax.commands.values import LIMIT, RECORDS, whole
from vital_jax.statistics import spread

FILES = ("page.html", "cases.json", "numbers.md", "numbers.csv")
SHOWN = 50  # cases on a page by default: 2 to 3 MB


def register(commands: argparse._SubParsersAction) -> None:
    """Adds `explain` to the parser of `vital`."""
    text = "what each latent step says, where it looks and what it is like: a page, and numbers against baselines"
    explain = commands.add_parser(
        "explain",
        help=text,
        description=f"{text[0].upper()}{text[1:]}. Research software, not a medical device.",
        epilog="Give --image and --question, or --data. Nothing in FOLDER is overwritten.",
    )
    add_flags(explain)
    models.add_flags(explain, "a training run's folder, or an export with explain/ in it")
    explain.add_argument("--limit", type=whole, metavar="N", help=f"of --data {LIMIT}; default all")
    models.steps_flags(explain, whole, ", of --data")
    explain.add_argument(
        "--bank", type=Path, metavar="RECORDS", help="search these records' training regions for similar ones; they need region features"
    )  # fmt: skip
    explain.add_argument("--show", type=whole, default=SHOWN, metavar="N", help=f"cases on the page; default {SHOWN}")
    explain.add_argument("--batch", type=whole, default=32, metavar="B", help="rows of a program, default 32")
    explain.add_argument("--seed", type=int, default=0, metavar="S", help="of the baselines' draws, default 0")
    explain.add_argument("--out", type=Path, required=True, metavar="FOLDER", help=f"for {', '.join(FILES)}")
    explain.set_defaults(run=_explain)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What is asked, and the encoder: --image, --question, --data, --split and --encoder."""
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--image", action="append", metavar="FILE", help="an image; give it again for several")
    asked.add_argument("--data", type=Path, metavar="RECORDS", help=f"{RECORDS}")
    parser.add_argument("--question", metavar="TEXT", help="about the images")
    parser.add_argument("--split", default="test", metavar="S", help="of --data, default test")
    parser.add_argument(
        "--encoder",
        metavar="FOLDER",
        help="the encoder of the run's region features, where it is no longer at config.data.encoder; an export brings none along",
    )


class Asked(NamedTuple):
    """Records, their numbers in `source` (None of a user's own image) and the latent steps they are asked with, in the engine's words."""

    requests: list[Any]
    source: Any
    numbers: list[int]


def asked(arguments: argparse.Namespace, limit: int | None = None) -> Asked:
    """What the flags of `add_flags` ask, so many records at most.

    Raises: ValueError for an image without a question, or flags of the other kind; FileNotFoundError or ValueError naming an image or a
      record folder that cannot be used.
    """
    if arguments.image:
        checks.question(arguments.question)
        files = checks.images(arguments.image)
        from vital_jax.latent.engine import Question

        return Asked([Question(Path(arguments.image[0]).name, tuple(files), arguments.question)], None, [])
    if arguments.question:
        raise ValueError("--question is for --image; records bring their own")
    source = checks.records(arguments.data, arguments.split)
    numbers = spread(range(len(source)), limit)
    return Asked([source[number] for number in numbers], source, numbers)


def targets_of(viewer: Any, found: Asked) -> list[Any] | None:
    """Each record's region features of the run's encoder, of its steps where it has those; None where the records have none."""
    if viewer is None or found.source is None:
        return None
    try:
        features = viewer.bank(found.source.folder, found.source.split).features
    except (FileNotFoundError, ValueError):
        return None
    targets = []
    for number in found.numbers:
        (roi, valid), steps = features[number], features.of_steps(number)
        targets.append(steps if len(steps) else roi if valid else None)
    return targets


def _explain(arguments: argparse.Namespace) -> int:
    from vital_jax.construct.pages import named, records_folder, write_text

    checks.free(arguments.out, *FILES)
    if arguments.image and arguments.eval_k == "per_sample":
        raise ValueError("--eval-k per_sample is for --data; say --latent-steps")
    checks.model(arguments, explain=True)
    if arguments.bank:
        records_folder(arguments.bank)
    found = asked(arguments, arguments.limit)
    from vital_jax.explain import numbers
    from vital_jax.explain.page import page

    model = models.load(arguments, explain=True)
    print(f"{len(found.requests)} questions", file=sys.stderr)
    seed = None if found.source is None else arguments.seed
    cases, pointed = model.explain_requests(
        found.requests, arguments.latent_steps, arguments.eval_k, batch=arguments.batch, bank=arguments.bank, seed=seed,
        targets=targets_of(model.viewer, found),
    )  # fmt: skip
    summary = numbers.summary(named(arguments.model), cases, pointed, _notes(arguments, model, found))
    shown = [cases[i] for i in spread(range(len(cases)), arguments.show)]
    texts = {"page.html": page(shown, summary, len(shown)), "cases.json": numbers.to_json(cases, summary)}
    if summary["table"]:
        texts |= {"numbers.md": numbers.to_markdown(summary), "numbers.csv": numbers.to_csv(summary)}
    for file, content in texts.items():
        write_text(arguments.out / file, content)
    print(numbers.to_markdown(summary, steps=False), end="")
    print(f"wrote {arguments.out}: {', '.join(texts)}", file=sys.stderr)
    return 0


def _notes(arguments: argparse.Namespace, model: Any, found: Asked) -> list[str]:
    K = model.max_steps if arguments.latent_steps is None else arguments.latent_steps
    said = model.otherwise(K, arguments.eval_k)
    notes = [f"{said[0].upper()}{said[1:]}."] if said else []
    if found.source is not None:
        notes.append(
            f"{found.source.folder.name}, split {found.source.split}: {len(found.numbers)} of {len(found.source)} records."
        )
    if arguments.bank:
        notes.append(
            f"Similar regions are the training split's of {arguments.bank.resolve().name}, by cosine in the space of {model.viewer.name}; "
            "a record's own patient or image does not count."
        )
    return notes
