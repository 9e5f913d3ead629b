"""`vital data features` and `vital data grid`: region features beside finished records, and the search for their rule (VITAL A.5)."""

import argparse
import sys
from pathlib import Path

from vital_jax.commands import checks
from vital_jax.commands.values import DONE, EXITS, INCOMPLETE, RECORDS, shard, share, whole
from vital_jax.pipeline.families import TITLES

HOOKS = ("block", "post_layernorm")


def register(parts: argparse._SubParsersAction) -> None:
    """Adds its sub-commands to `vital data`."""
    features = parts.add_parser(
        "features", help="extract region features beside records", description=__doc__.splitlines()[0], epilog=EXITS
    )
    _common(features)
    features.add_argument("--threshold", type=share, default=0.2, metavar="T", help="default 0.2")
    features.add_argument("--margin", type=share, default=0.05, metavar="P", help="default 0.05")
    features.add_argument("--splits", nargs="+", metavar="SPLIT", help="by default all")
    features.add_argument(
        "--shard", type=shard, default=(0, 1), metavar="I/N", help="one of N ranges of the work, from 0/N to N-1/N"
    )
    features.set_defaults(run=_features)
    text = "search over T and P with three metrics"
    grid = parts.add_parser("grid", help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=EXITS)
    _common(grid)
    grid.add_argument("--samples", type=whole, default=1000, metavar="N", help="targets drawn at random; default 1000")
    grid.add_argument("--seed", type=int, default=0, help="of the draw")
    grid.add_argument("--split", default="train", help="default train")
    grid.add_argument(
        "-o", "--out", type=Path, metavar="FOLDER", help="for table and figure; default grid-ENCODER-HOOK in RECORDS"
    )
    grid.set_defaults(run=_grid)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("records", type=Path, metavar="RECORDS", help=RECORDS)
    parser.add_argument(
        "--encoder",
        type=Path,
        required=True,
        metavar="FOLDER",
        help=f"a SigLIP, a CLIP, or a {TITLES} for its own tower",
    )
    parser.add_argument("--hook", default="block", choices=HOOKS, help="of the tower; default block, its last")
    parser.add_argument("--batch", type=whole, metavar="N", help="images per call over all devices; default 8 a device")
    parser.add_argument("--max-pixels", type=whole, metavar="N", help="cap on the image area of a backbone's own tower")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _features(arguments: argparse.Namespace) -> int:
    from vital_jax.construct.pages import record_splits, records_folder

    checks.encoder(arguments.encoder)
    folder = records_folder(arguments.records)
    splits = record_splits(folder)
    if not splits:
        raise FileNotFoundError(f"{arguments.records}: not a record folder; make one with `vital data build`")
    if unknown := sorted({*(arguments.splits or ())} - {*splits}):
        raise ValueError(f"{folder}: no split {', '.join(unknown)}, only {', '.join(splits)}")
    from vital_jax.run.prepare import extract_features

    found = extract_features(
        folder,
        arguments.splits or splits,
        arguments.encoder,
        hook=arguments.hook,
        threshold=arguments.threshold,
        margin=arguments.margin,
        max_pixels=arguments.max_pixels,
        batch_size=arguments.batch,
        share=arguments.shard,
        say=_say,
    )
    if not found:
        _say("all features are there already")
    for split, made in found.items():
        for fault in made.faults:
            _say(f"{split}: {fault}")
        if made.folder:
            print(made.folder)
        else:
            way_out = "repair these records, then run again" if made.faults else "make them, then run without --shard"
            _say(f"{split}: {made.missing} parts are missing; {way_out}")
    return INCOMPLETE if any(made.faults for made in found.values()) else DONE


def _grid(arguments: argparse.Namespace) -> int:
    checks.encoder(arguments.encoder)
    source, name = checks.records(arguments.records, arguments.split), arguments.encoder.absolute().name
    if arguments.out:
        checks.free(arguments.out)  # what stands there is of a search that goes on
    import jax

    from vital_jax.construct import grid
    from vital_jax.construct.sidecar import RateLine, batch_for
    from vital_jax.hub.encoders import identity, load_encoder

    out = arguments.out or source.folder / f"grid-{name}-{arguments.hook}"
    settings = {
        "encoder": name,
        "hook": arguments.hook,
        "fingerprint": identity(arguments.encoder, arguments.max_pixels),
        "thresholds": list(grid.THRESHOLDS),
        "margins": list(grid.MARGINS),
    }
    notes = grid.Notes(out / "samples.jsonl", settings)
    targets = list(grid.pick(source, arguments.samples, arguments.seed))
    names = [target for target, _ in targets]
    missing = sum(target not in notes.held for target in names)
    if missing:
        encoder = load_encoder(
            arguments.encoder, arguments.hook, max_pixels=arguments.max_pixels, devices=jax.local_devices()
        )
        progress = RateLine("grid, targets", len(names), len(names) - missing, _say)
        batch = batch_for(missing * len(grid.MARGINS), encoder.devices, arguments.batch)
        encode = progress.watch(encoder.apply)
        for _ in grid.search(source, targets, encode, batch, encoder.grid, encoder.size, notes):
            progress.step()
        _say(progress.line())
    cells = grid.table([notes.held[target] for target in names])
    title = f"Region features of {name} ({arguments.hook}) over T and P, {len(names)} targets"
    for suffix, text in (
        ("md", grid.to_markdown(cells, title)),
        ("csv", grid.to_csv(cells)),
        ("svg", grid.to_svg(cells, title)),
    ):
        (out / f"grid.{suffix}").write_text(text, encoding="utf-8")
    print(grid.to_markdown(cells, title))
    _say(f"written: {out}/grid.md, grid.csv, grid.svg")
    return DONE
