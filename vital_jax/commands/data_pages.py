"""`vital data audit|stats|inspect|export`: looking at what was built, and handing it on."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from vital_jax.commands import checks
from vital_jax.commands.values import DONE, EXITS, LIMIT, RECORDS, whole


def register(parts: argparse._SubParsersAction) -> None:
    """Adds its sub-commands to `vital data`."""
    add_audit(parts)
    stats = _door(parts, "stats", _stats, "counts by source, modality and K, lengths, wording, splits, licences")
    stats.add_argument("-o", "--out", metavar="FOLDER", help="also write stats.md, a CSV per table and SVG pictures")

    inspect = _door(parts, "inspect", _inspect, "records as a page to browse")
    inspect.add_argument("--limit", type=whole, default=200, metavar="N", help=f"of the records {LIMIT}; default 200")
    inspect.add_argument("-o", "--out", metavar="FILE", default="records.html", help="the page; default records.html")

    export = _door(parts, "export", _export, "finished records as JSON lines and image files")
    export.add_argument("out", metavar="FOLDER", help="a folder to make")


def add_audit(parts: argparse._SubParsersAction) -> None:
    """Adds `audit` to `vital data`, and to `vital data distill`, whose lessons it judges too."""
    audit = _door(parts, "audit", _audit, "judge a random share of the records in a browser, and what it says of all")
    audit.add_argument("--share", type=float, default=0.05, help="of each modality and question type; default 0.05")
    audit.add_argument("--seed", type=int, default=0, help="of the draw; default 0")
    audit.add_argument(
        "--limit",
        type=whole,
        default=4000,
        metavar="N",
        help=f"of those drawn {LIMIT}, in the random order; default 4000",
    )
    audit.add_argument("-o", "--out", metavar="FILE", help="the page; default audit.html in RECORDS")
    audit.add_argument(
        "--verdicts", metavar="FILE", help="read the file downloaded from the page; writes audit.json in RECORDS"
    )
    audit.add_argument("--apply", action="store_true", help="also list rejected ids in RECORDS/audit_rejects.jsonl")


def _door(parts: argparse._SubParsersAction, name: str, run: Callable, text: str) -> argparse.ArgumentParser:
    door = parts.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=EXITS)
    door.add_argument("folder", metavar="RECORDS", help=RECORDS)
    door.set_defaults(run=run)
    return door


def _audit(arguments: argparse.Namespace) -> int:
    from vital_jax.construct import audit
    from vital_jax.construct.pages import write_text

    if arguments.apply and not arguments.verdicts:
        raise ValueError("--apply needs --verdicts FILE, the file downloaded from the page")
    arguments.folder = _home(arguments.folder)
    if arguments.verdicts:
        return _judged(arguments)
    out = Path(arguments.out or Path(arguments.folder) / "audit.html")
    checks.writable(out.parent)
    drawn = audit.draw(arguments.folder, arguments.share, arguments.seed, arguments.limit)
    write_text(out, audit.audit_page(arguments.folder, drawn))
    _say(
        f"{out}: {len(drawn.rows)} of {drawn.count} records, {_megabytes(out)}. Open it in a browser, judge, download the"
    )
    _say(f"verdicts, then: vital data audit {arguments.folder} --verdicts FILE. For research use only.")
    return DONE


def _home(folder: str) -> str:
    """The set, where its own `records` are named: they are written anew in time, and the factory looks for rejected ids beside them."""
    path = Path(folder).absolute()
    return str(path.parent) if path.name == "records" and (path.parent / "plan.json").is_file() else folder


def _judged(arguments: argparse.Namespace) -> int:
    from vital_jax.construct import audit
    from vital_jax.evaluate.score import markdown, percent

    drawn, verdicts = audit.read_verdicts(arguments.verdicts, arguments.folder)
    found = audit.summary(drawn, verdicts)
    header = ["modality", "judged", "accepted %", "95 % interval", "leaks %", "95 % interval", *audit.REASONS]
    rows = []
    for name, rate in found["rates"].items():
        cells = [name, str(rate["judged"])]
        for share in (rate["accept"], rate["leak"]):
            cells += [percent(share["share"]), f"{percent(share['low'])} to {percent(share['high'])}"]
        rows.append([*cells, *map(str, rate["rejected"].values())])
    print(markdown(header, rows))
    if found["judged"] < found["shown"]:
        _say(f"{found['judged']} of {found['shown']} shown records are judged.")
    _say(f"wrote {audit.write_summary(arguments.folder, found)}")
    if arguments.apply:
        file, count = audit.write_rejects(arguments.folder, verdicts)
        _say(f"wrote {file}: {count} ids to leave out; build again to drop them")
    return DONE


def _stats(arguments: argparse.Namespace) -> int:
    from vital_jax.construct.pages import write_text
    from vital_jax.construct.stats import collect, pictures, tables, to_csv
    from vital_jax.evaluate.score import markdown

    if arguments.out:
        checks.writable(Path(arguments.out))
    stats = collect(arguments.folder)
    found, warnings = tables(stats), stats.warnings()
    parts = [f"# {Path(arguments.folder).resolve().name}", *(f"**{each}.**" for each in warnings)]
    parts += [f"## {each.title}\n\n{markdown(each.header, each.cells())}" for each in found]
    text = "\n\n".join(parts) + "\n"
    print(text, end="")
    if arguments.out:
        out = Path(arguments.out)
        write_text(out / "stats.md", text)
        for each in found:
            write_text(out / f"{each.name}.csv", to_csv(each))
        for name, svg in pictures(found).items():
            write_text(out / f"{name}.svg", svg)
        _say(f"wrote {out}")
    for each in warnings:
        _say(f"note: {each}")
    return DONE


def _inspect(arguments: argparse.Namespace) -> int:
    from vital_jax.construct.pages import inspect_page, write_text

    checks.writable(Path(arguments.out).parent)
    text, shown, count = inspect_page(arguments.folder, arguments.limit)
    out = write_text(arguments.out, text)
    _say(f"{out}: {shown} of {count} records, {_megabytes(out)}. For research use only.")
    return DONE


def _export(arguments: argparse.Namespace) -> int:
    from vital_jax.construct.exchange import write_jsonl
    from vital_jax.construct.pages import records_folder

    counts = write_jsonl(records_folder(arguments.folder), arguments.out)
    _say(f"wrote {arguments.out}: " + ", ".join(f"{split}: {count} records" for split, count in counts.items()))
    return DONE


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"


def _say(line: str) -> None:
    print(line, file=sys.stderr)
