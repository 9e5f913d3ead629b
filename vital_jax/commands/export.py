"""`vital export`: a training run as a folder for transformers and PEFT, with a model card; and, when told, to a hub."""

import argparse
import csv
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_RESEARCH = "Research only, not a medical device."


def register(commands: argparse._SubParsersAction) -> None:
    """Adds `export` to the parser of `vital`."""
    export = commands.add_parser(
        "export",
        help="write a run as a Hugging Face folder that runs the latent loop without JAX",
        description=f"Writes a training run's newest checkpoint as a Hugging Face folder. {_RESEARCH}",
    )
    export.add_argument("--checkpoint", type=Path, metavar="RUN", help="a training run's folder; not for pushing alone")
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the folder to make")
    export.add_argument(
        "--format",
        default="merged",
        choices=("merged", "peft", "both"),
        help="merged (default): the base with the adapters in it; peft: the adapter alone; or both",
    )
    export.add_argument(
        "--base", type=Path, metavar="FOLDER", help="the run's base, where it is no longer where it was"
    )
    export.add_argument("--text-decoder", type=Path, metavar="FOLDER", help="likewise of config.model.text_decoder")
    export.add_argument("--base-name", default="", metavar="NAME", help="the base's name on a hub, as others know it")
    export.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="of merged weights and of answering; by default as trained",
    )
    export.add_argument("--no-explain", action="store_true", help="leave out text decoder and projectors")
    export.add_argument(
        "--scores",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="what `vital evaluate score --out` wrote, for the card; give it again for several",
    )
    export.add_argument(
        "--licence", default="", metavar="SPDX", help="of the folder; by default as the base's card says"
    )
    export.add_argument("--overwrite", action="store_true", help="replace a folder that an export made before")
    export.add_argument(
        "--push", default="", metavar="OWNER/NAME", help="show what would be sent to this hub repository (private)"
    )
    export.add_argument("--yes", action="store_true", help="send it")
    export.set_defaults(run=_export)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _export(arguments: argparse.Namespace) -> int:
    from vital_jax.hub import folders
    from vital_jax.hub.writing import check_place

    if arguments.yes and not arguments.push:
        raise ValueError("--yes is for --push")
    if arguments.checkpoint is None and not arguments.push:
        raise ValueError("--checkpoint RUN is missing; only --push goes without, for a folder that is there")
    if arguments.push.count("/") != 1 and arguments.push:
        raise ValueError(f"repository {arguments.push!r}: give it as OWNER/NAME")
    if arguments.checkpoint is None and not (arguments.out / folders.FACTS).is_file():
        raise FileNotFoundError(
            f"{arguments.out} is no exported folder (it holds no {folders.FACTS}); export the run first"
        )
    if arguments.checkpoint is not None:
        if folders.check(arguments.checkpoint, arguments.base, arguments.text_decoder) != folders.RUN:
            raise ValueError(f"{arguments.checkpoint} is no training run's folder: name what train.py wrote")
        check_place(arguments.out, 0, folders.FACTS, arguments.overwrite, {arguments.checkpoint.resolve()})
    scores = [row for folder in arguments.scores for row in _scores(folder)]
    from vital_jax.hub import push
    from vital_jax.hub.export import export
    from vital_jax.run.open import open_run

    if arguments.checkpoint is not None:
        run = open_run(arguments.checkpoint, base=arguments.base, text_decoder=arguments.text_decoder)
        export(
            run,
            arguments.out,
            form=arguments.format,
            explain=not arguments.no_explain,
            dtype=arguments.dtype,
            base_name=arguments.base_name,
            about=_about(run, arguments, scores),
            overwrite=arguments.overwrite,
            say=_say,
        )
        print(arguments.out)
    if arguments.push:
        planned = push.plan(arguments.out, arguments.push)
        _say(planned.describe())
        if arguments.yes:
            print(planned.send())
        else:
            _say("nothing was sent; say --yes to send it")
    _say(_RESEARCH)
    return 0


# --- what the card says -----------------------------------------------------------------------------


def _about(run: Any, arguments: argparse.Namespace, scores: list):
    from vital_jax.hub.card import About, licence_of

    config = run.config
    licence, basis = arguments.licence, "given by who exported it"
    if not licence:
        licence, basis = licence_of(run.base), "the base's card states"
    return About(
        licence=licence,
        licence_basis=basis,
        encoder=Path(config.data.encoder).name if run.roi_width else "",
        data=_data(run),
        metrics=[*_evidence(run.folder, run.meta), *scores],
    )


def _data(run: Any) -> list:
    """The data sets of the training records with their licences; none where the records are not at hand."""
    from vital_jax.construct.licences import UNKNOWN, dataset_of
    from vital_jax.hub.card import Data
    from vital_jax.pipeline.records import RecordSource

    try:
        index = RecordSource(run.place("data.records"), "train").index
    except (FileNotFoundError, ValueError) as error:
        _say(f"the card names no data sets: {error}")
        return []
    counts = Counter((row["metadata"].get("source", ""), row["metadata"].get("licence", "")) for row in index)
    rows: dict[tuple[str, str], Data] = {}
    for (source, stated), count in counts.items():
        known = dataset_of(source)
        name = known.name if known else source or "not named by its records"
        licence = stated or (known.licence if known else UNKNOWN)
        basis = "its records" if stated else known.basis if known else UNKNOWN
        before = rows[name, licence].records if (name, licence) in rows else 0
        rows[name, licence] = Data(
            name, before + count, licence, basis, known.note if known else "", known.url if known else ""
        )
    return sorted(rows.values(), key=lambda row: (-row.records, row.name))


def _evidence(run: Path, meta: Mapping[str, Any]) -> list:
    """What the run measured after its last step, where this checkpoint is of that step."""
    from vital_jax.evaluate.score import Score, percent
    from vital_jax.hub.card import Metric
    from vital_jax.latent.engine import OWN_K

    path, steps = run / "evidence.json", sum(phase["steps"] for phase in meta["config"]["phases"])
    if not path.is_file():
        return []
    if meta["step"] != steps:
        _say(f"{path} is of step {steps}, the checkpoint of step {meta['step']}: the card leaves it out")
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    if found.get("eval_k", "fixed") != "fixed":  # of a version that evaluated so
        _say(f"{path} is of {OWN_K}: the card leaves it out; the same training command measures it anew")
        return []
    split = found.get("config", {}).get("eval", {}).get("evidence", meta["config"]["eval"]["evidence"])
    asked = f"held-out questions of split {split}, greedy, K = {found['max_steps']} for all"
    how = "exact match after lower-casing and single spaces"
    rows = []
    for name, key in (("exact answers, %", "answers"), ("the same with images exchanged, %", "blind")):
        score = Score.of(name, found[key])
        interval = " to ".join(map(percent, score.interval))
        rows.append(Metric(name, score.n, percent(score.correct / score.n), interval, f"{how}; {asked}"))
    if retrieval := found.get("retrieval"):
        chance, gallery = percent(retrieval["chance"]["hit@1"]), retrieval["gallery"]
        held = f"among {gallery} held-out regions (chance {chance}), last latent, projector {retrieval['projector']}"
        for name, key in (
            ("own region found first, %", "own"),
            ("the same with latents exchanged within a class, %", "same_class"),
        ):
            hit = retrieval["last"][key]["hit@1"]
            interval = " to ".join(map(percent, (hit["low"], hit["high"])))
            rows.append(Metric(name, retrieval["last"][key]["n"], percent(hit["share"]), interval, held))
    return rows


def _scores(folder: Path) -> list:
    """Whole-benchmark scores of a table.csv that `vital evaluate score` wrote."""
    from vital_jax.evaluate.protocols.floors import FLOORS
    from vital_jax.evaluate.score import percent
    from vital_jax.hub.card import Metric

    path = folder / "table.csv"
    if not path.is_file():
        raise FileNotFoundError(f"--scores {folder}: no table.csv in it; give what `vital evaluate score --out` wrote")
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row.get("group") not in ("all", *FLOORS):
                continue
            try:
                low, high = (percent(float(row[key])) if row[key] else "" for key in ("low", "high"))
                name = f"{row['benchmark']} {row['split']}: {row['measure']}, %"
                name += f" ({row['group']})" if row["group"] in FLOORS else ""
                shown = percent(float(row["value"])), f"{low} to {high}" if low else ""
                rows.append(Metric(name, int(row["n"]), *shown, f"{row['protocol']}: {row['rule']}"))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}: not a table of `vital evaluate score` ({error!r})") from error
    if not rows:
        raise ValueError(f"{path} holds no score of a whole benchmark")
    return rows
