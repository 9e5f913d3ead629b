"""`vital evaluate score|compare|export|list`: answers that somebody has already decoded, in files, to numbers that can be compared.

No model is loaded and no image is opened by these parts, so a predictions file from any program can be scored on a laptop; the parts that
ask a model have files of their own. Whatever would change the
denominator in silence (an item without an answer, an answer without an item, an id twice) is an error with its count and first ids.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from vital_jax.commands import checks, evaluate_audit, evaluate_run
from vital_jax.commands.scoring import (
    FILES,
    RESEARCH,
    SHOWN,
    add_part,
    benchmark_flags,
    find_protocol,
    load_benchmark,
    noted,
    protocol_flags,
    report,
    write_scores,
)


def register(commands: argparse._SubParsersAction) -> None:
    """Adds `evaluate` and its sub-commands to the parser of `vital`."""
    evaluate = commands.add_parser("evaluate", help="ask a model and score answers under named protocols")
    parts = evaluate.add_subparsers(dest="part", required=True)
    evaluate_run.register(parts)
    evaluate_audit.register(parts)

    score = add_part(parts, "score", _score, "score a predictions file against a benchmark")
    _inputs(score)
    protocol_flags(score)
    score.add_argument("--judge", action="store_true", help='use the verdicts that came as "judge" with the answers')
    score.add_argument("--partial", action="store_true", help="score the items that are answered, and say so")
    score.add_argument(
        "--by",
        default="",
        metavar="KEY,KEY",
        help="also show the scores by modality, question_type, language, subject or task",
    )
    score.add_argument("--out", type=Path, metavar="FOLDER", help=f"also write {', '.join(FILES)}; overwrites nothing")

    compare = add_part(parts, "compare", _compare, "two systems on the same questions: McNemar's test and a bootstrap")
    for side in "AB":
        compare.add_argument(
            side.lower(), type=Path, metavar=side, help="what score wrote: the folder, or its predictions"
        )
    compare.add_argument(
        "--measure", default="correct", metavar="NAME", help="correct (default), or a measure of the protocol"
    )

    export = add_part(parts, "export", _export, "write answers as the files that another program's scorer reads")
    export.add_argument("harness", metavar="{lmms_eval,vlmevalkit,medevalkit}", help="the program")
    _inputs(export)
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="overwrites nothing in it")
    export.add_argument("--model", default="vital", metavar="NAME", help="what the file calls the model; default vital")
    export.add_argument("--task", default="", metavar="NAME", help="the program's name of the benchmark, if not known")
    export.add_argument("--indices", type=Path, metavar="FILE", help='JSON {"id": place in the program\'s own data}')

    listing = add_part(parts, "list", _list, "benchmarks and where to get them, protocols and their versions")
    listing.add_argument("--defects", action="store_true", help="also what is known to be wrong with other scorers")


def _inputs(parser: argparse.ArgumentParser) -> None:
    benchmark_flags(parser)
    parser.add_argument(
        "--predictions", type=Path, required=True, metavar="FILE", help='JSON lines with "id" and "prediction"'
    )


# --- the commands -----------------------------------------------------------------------------------


def _score(arguments: argparse.Namespace) -> int:
    from vital_jax.evaluate.protocols import apply, with_floors
    from vital_jax.evaluate.protocols.core import KEYS

    keys = [key.strip() for key in arguments.by.split(",") if key.strip()]
    if unknown := [key for key in keys if key not in KEYS]:
        raise ValueError(f"--by {', '.join(unknown)}: there are {', '.join(KEYS)}")
    if arguments.out:
        checks.free(arguments.out, *FILES)
    protocol = find_protocol(arguments, arguments.judge)
    rows, loaded = _read(arguments.predictions), load_benchmark(arguments)
    items, rows, notes = _matched(loaded, rows, arguments.predictions, arguments.partial)
    try:
        scored = with_floors(apply(protocol, items, rows), protocol, items)
    except ValueError as error:
        raise ValueError(f"{arguments.predictions}: {error}") from error
    if len(items) < len(loaded.items):
        scored = noted(scored, [f"partial: only the {len(items)} of {len(loaded.items)} items that are answered"])
    notes = [f"Partial: {note}." for note in notes]
    print(report(loaded, scored, keys, notes, SHOWN), end="")
    if arguments.out:
        write_scores(arguments.out, loaded, scored, keys, notes)
        _say(f"wrote {arguments.out}: {', '.join(FILES)}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from vital_jax.evaluate.paired import compare, comparison_table

    paths = [path / FILES[0] if path.is_dir() else path for path in (arguments.a, arguments.b)]
    sides, protocols = [_read(path) for path in paths], []
    for path, rows in zip(paths, sides, strict=True):
        if raw := [row["id"] for row in rows if not row.get("protocol") or not isinstance(row.get("correct"), bool)]:
            raise ValueError(
                f"{path}: {len(raw)} of {len(rows)} rows are not scored: {_some(raw)}; "
                "give what `vital evaluate score --out` wrote"
            )
        protocols.append(", ".join(sorted({str(row["protocol"]) for row in rows})))
    if protocols[0] != protocols[1]:
        raise ValueError(
            f"{paths[0]} is scored under {protocols[0]} and {paths[1]} under {protocols[1]}; score both under one protocol"
        )
    found = compare(*sides, measure=arguments.measure)
    names = [path.parent.absolute().name if path.name == FILES[0] else path.stem for path in paths]
    names = list(map(str, paths)) if names[0] == names[1] else names
    print(f"{protocols[0]}, measure: {arguments.measure}\n\n{comparison_table(found, *names)}")
    _say(RESEARCH)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    import shutil
    from tempfile import TemporaryDirectory

    from vital_jax.evaluate.exports import EXPORTS

    if arguments.harness not in EXPORTS:
        raise ValueError(f"no format {arguments.harness!r}; there are {', '.join(EXPORTS)}")
    checks.free(arguments.out)
    indices = _indices(arguments.indices) if arguments.indices else None
    if arguments.harness == "medevalkit":
        if arguments.task or indices:
            raise ValueError("medevalkit takes neither --task nor --indices: its file carries the questions themselves")
        more: tuple[Any, ...] = ()
    else:
        more = (arguments.model, arguments.task, indices)
    rows, loaded = _read(arguments.predictions), load_benchmark(arguments)
    items, rows, _ = _matched(loaded, rows, arguments.predictions)
    # The format names its file; only when that is known can it be seen whether one is there.
    with TemporaryDirectory() as folder:
        made = EXPORTS[arguments.harness](items, rows, folder, *more)
        checks.free(arguments.out, made.name)
        arguments.out.mkdir(parents=True, exist_ok=True)
        part = shutil.copyfile(made, arguments.out / f".{made.name}.part")
        print(part.replace(arguments.out / made.name))
    _say(f"{len(items)} answers. {RESEARCH}")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from vital_jax.evaluate.benchmarks import BENCHMARKS
    from vital_jax.evaluate.protocols import OFFICIAL, defects_table, family, protocols_table

    lines = ["Benchmarks (nothing is downloaded)", ""]
    for name, benchmark in BENCHMARKS.items():
        own = OFFICIAL.get(family(name))
        lines += [
            f"{name} (splits: {', '.join(benchmark.splits) or 'any'}; official protocol: {own or 'none'})",
            f"  {benchmark.where or 'your own data'}; licence: {benchmark.licence}",
        ]
    lines += ["", "Protocols (name/version)", "", protocols_table()]
    if arguments.defects:
        lines += ["", "Known defects of scorers", "", defects_table()]
    print("\n".join(lines))
    _say(RESEARCH)
    return 0


# --- what goes in -----------------------------------------------------------------------------------


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of a predictions file. Raises: FileNotFoundError, ValueError; both name the file."""
    from vital_jax.evaluate.protocols import read_predictions

    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'a folder, not' if path.is_dir() else 'there is no such'} predictions file")
    try:
        return read_predictions(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8; save it as UTF-8") from error
    except ValueError as error:
        # The reader stops at the first line; whether it is one stray line or a file appended to itself is worth knowing.
        if twice := _twice(path):
            raise ValueError(f"{error} ({len(twice)} ids are answered more than once: {_some(twice)})") from error
        raise


def _twice(path: Path) -> list[str]:
    import json
    from collections import Counter

    keys = Counter()
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError):
                continue
            if isinstance(row, dict) and "id" in row:
                keys[str(row.get("benchmark") or ""), str(row["id"])] += 1
    return [name for (_, name), count in keys.items() if count > 1]


def _matched(loaded, rows: list[dict[str, Any]], path: Path, partial: bool | None = None):
    """(items, their rows, notes): all of them, or with `partial` those that are on both sides; None where that is no way out.

    Raises: ValueError, one line with how many items and predictions have no counterpart, and the first ids of each.
    """
    by_key = {(row.get("benchmark") or "", row["id"]): row for row in rows}
    items, kept, lacking = [], [], []
    for item in loaded.items:
        # As `protocols.core.pair`: a prediction that names its benchmark goes before one that does not.
        keys = [key for key in ((item.benchmark, item.id), ("", item.id)) if key in by_key]
        if keys:
            items.append(item)
            kept.append(by_key.pop(keys[0]))
        else:
            lacking.append(item.id)
    strangers = ["/".join(filter(None, key)) for key in by_key]
    if not items:
        raise ValueError(
            f"{path}: no prediction belongs to an item; ids there are like {_some(strangers)}, "
            f"of {loaded.benchmark} {loaded.split} like {_some(lacking)}"
        )
    faults = []
    if lacking:
        faults.append(f"{len(lacking)} of {len(loaded.items)} items have no prediction: {_some(lacking)}")
    if strangers:
        faults.append(f"{len(strangers)} of {len(rows)} predictions belong to no item: {_some(strangers)}")
    if faults and not partial:
        way_out = "the format needs the whole split" if partial is None else "mend the file, or give --partial"
        raise ValueError(f"{path} against {loaded}: {'; '.join(faults)}; {way_out}")
    return items, kept, faults


def _indices(path: Path) -> dict[str, int | str]:
    import json

    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(place, int | str) for place in found.values()):
        raise ValueError(f'{path}: needs one object {{"id": place}}')
    return found


# --- what comes out ---------------------------------------------------------------------------------


def _some(ids: list[str]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(ids[:SHOWN]) + more


def _say(line: str) -> None:
    print(line, file=sys.stderr)
