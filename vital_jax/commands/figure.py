"""`vital figure progress|collapse|compare`: the paper's figures 12, 11 and 3 of one's own checkpoints, each one SVG file."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from vital_jax.commands import checks, explain, models
from vital_jax.commands.values import LIMIT, RECORDS, whole
from vital_jax.statistics import spread

_RESEARCH = "Research software, not a medical device."


def register(commands: argparse._SubParsersAction) -> None:
    """Adds `figure` and its parts to the parser of `vital`."""
    figure = commands.add_parser("figure", help="the paper's figures about latents, of one's own checkpoints")
    parts = figure.add_subparsers(dest="part", required=True)

    progress = _part(parts, "progress", _progress, "heat maps from step to step beside the region (figure 12)")
    models.add_flags(progress, "a training run's folder, or an export with explain/ in it, which needs --encoder")
    _records(progress)
    progress.add_argument("--id", action="append", metavar="ID", help="a record; give it again for several")
    progress.add_argument(
        "--limit",
        type=whole,
        default=8,
        metavar="N",
        help=f"without --id: of the records with most steps {LIMIT}; default 8",
    )
    progress.add_argument("--encoder", metavar="FOLDER", help="as of `vital explain`")

    collapse = _part(parts, "collapse", _collapse, "mean cosines of steps, several checkpoints side by side (figure 11)")  # fmt: skip
    _several(collapse)
    _records(collapse)
    collapse.add_argument("--limit", type=whole, metavar="N", help=f"of the records {LIMIT}; default all")
    collapse.add_argument("--batch", type=whole, default=32, metavar="B", help="rows of a program, default 32")

    compare = _part(parts, "compare", _compare, "one case as several checkpoints answer, say and show it (figure 3)")
    _several(compare)
    explain.add_flags(compare)
    compare.add_argument("--id", metavar="ID", help="of --data: the record")
    compare.add_argument("--latent-steps", type=whole, metavar="K", help="by default the most each was trained with")


def _part(parts: argparse._SubParsersAction, name: str, run: Any, about: str) -> argparse.ArgumentParser:
    parser = parts.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}. {_RESEARCH}")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the SVG file to write")
    parser.set_defaults(run=run)
    return parser


def _records(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="RECORDS", help=RECORDS)
    parser.add_argument("--split", default="test", metavar="S", help="default test")


def _several(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, action="append", metavar="[NAME=]FOLDER", help="a training run; give it again for several"
    )  # fmt: skip
    parser.add_argument("--base", metavar="FOLDER", help="the runs' base, where it is no longer at config.model.folder")
    parser.add_argument("--text-decoder", metavar="FOLDER", help="likewise of config.model.text_decoder")
    models.dtype_flag(parser)


def _named(arguments: argparse.Namespace) -> dict[str, argparse.Namespace]:
    """{name: the arguments of one model}. Raises: ValueError for two of one name; as `checks.model`."""
    from vital_jax.construct import pages

    found: dict[str, argparse.Namespace] = {}
    for given in arguments.model:
        name, equals, folder = given.partition("=")
        if not equals or Path(given).exists():
            name, folder = pages.named(given), given
        if name in found:
            raise ValueError(f"--model {given}: {name!r} comes twice; name them apart, as in one={folder}")
        found[name] = argparse.Namespace(**{**vars(arguments), "model": folder})
        checks.model(found[name])
    return found


def _free(path: Path) -> None:
    """Raises: as `checks.free`; ValueError for a name that is not of an SVG."""
    if path.suffix.lower() != ".svg":
        raise ValueError(f"--out {path}: the figure is an SVG; name a file that ends in .svg")
    checks.free(path.parent, path.name)


def _write(path: Path, text: str) -> int:
    from vital_jax.construct.pages import write_text

    print(write_text(path, text))
    print(_RESEARCH, file=sys.stderr)
    return 0


# --- the figures ----------------------------------------------------------------------------------


def _progress(arguments: argparse.Namespace) -> int:
    _free(arguments.out)
    checks.model(arguments, explain=True)
    source = checks.records(arguments.data, arguments.split)
    if arguments.id:
        requests = [source[_number(source, name)] for name in arguments.id]
    else:
        # Those with most steps show most; a record without a mask has no region to compare with.
        steps = [row["latent_steps"] or 0 for row in source.index]
        most = max(steps)
        longest = [number for number, taken in enumerate(steps) if taken == most]
        marked = [number for number in longest if source[number].masks or source[number].step_masks]
        requests = [source[number] for number in spread(marked or longest, arguments.limit)]
    from vital_jax.explain import figures

    model = models.load(arguments, explain=True)
    cases = model.explain_requests(requests, batch=min(8, len(requests))).cases
    return _write(arguments.out, figures.progress(cases))


def _collapse(arguments: argparse.Namespace) -> int:
    _free(arguments.out)
    named, source = _named(arguments), checks.records(arguments.data, arguments.split)
    requests = [source[number] for number in spread(range(len(source)), arguments.limit)]
    from vital_jax.evaluate import evidence
    from vital_jax.evaluate.score import markdown
    from vital_jax.explain import figures
    from vital_jax.latent.engine import in_order
    from vital_jax.latent.loop import variables_of

    found = {}
    for name, own in named.items():
        model = models.load(own)
        if not (K := model.max_steps):
            raise ValueError(
                f"{own.model}: trained without latent steps, so there are no steps to compare; leave it out"
            )
        # The answers do not matter: one token ends them.
        decoding = model.engine.decoding(1)
        asked = model.engine.ask(variables_of(model.params), requests, K, decoding, batch=arguments.batch)
        found[name] = evidence.collapse(*evidence.latents(in_order(asked), K))
        print(f"{name}\n\n{markdown(*_cells(found[name]))}\n")
    return _write(arguments.out, figures.collapse(found, dict.fromkeys(found, len(requests))))


def _cells(values: Any) -> tuple[list[str], list[list[str]]]:
    names = [f"z_{k + 1}" for k in range(len(values))]
    return ["", *names], [
        [name, *("-" if math.isnan(value) else f"{value:.3f}" for value in row)]
        for name, row in zip(names, values, strict=True)
    ]


def _compare(arguments: argparse.Namespace) -> int:
    _free(arguments.out)
    named = _named(arguments)
    if arguments.data:
        if not arguments.id:
            raise ValueError("--data needs --id ID: a comparison is of one case")
        source = checks.records(arguments.data, arguments.split)
        request = source[_number(source, arguments.id)]
    else:
        (request,) = explain.asked(arguments).requests
    from vital_jax import api
    from vital_jax.explain import figures, windows
    from vital_jax.latent.engine import in_order
    from vital_jax.latent.loop import variables_of

    cases = {}
    for name, own in named.items():
        try:
            model = models.load(own, explain=True)
        except api.NoScaffoldError:
            model = models.load(own)
            K = model.max_steps if arguments.latent_steps is None else min(arguments.latent_steps, model.max_steps)
            replies = in_order(
                model.engine.ask(variables_of(model.params), [request], K, model.engine.decoding(model.answer_tokens))
            )
            cases[name] = windows.answered(request, replies[0])
        else:
            cases[name] = model.explain_requests([request], arguments.latent_steps, batch=1).cases[0]
    for name, case in cases.items():
        print(f"{name}: {case.answer}")
    return _write(arguments.out, figures.compare(cases))


def _number(source: Any, name: str) -> int:
    try:
        return source.ids.index(name)
    except ValueError:
        raise ValueError(
            f"--id {name}: no such record in split {source.split!r} of {source.folder}; the first is {source.ids[0]!r}"
        ) from None
