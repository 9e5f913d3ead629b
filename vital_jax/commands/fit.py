"""`vital fit`: compiles a recipe's programs for a slice that need not be there, and says what they need of its chips."""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from vital_jax.commands.values import DONE, EXITS, INCOMPLETE, whole

PROGRAMS = ("train", "sample")

_EPILOG = """\
Needs the models' config.json and nothing else of them: no weights, no records, no accelerator. Every other part of the configuration is
overridden as for train.py: --config.mesh.base=fsdp --config.mesh.fsdp=16 --config.micro_batches=2.

GiB are of one chip; "sent" is what one chip sends to others in one step, in the latent loop and in all, as a ring sends it (10^9 bytes);
FLOPs are the model's, by arithmetic, all chips together, with every budget full.

TPU slices need: pip install "vital_jax[fit]". GPUs need "vital_jax[cuda]" (5 GB) and no driver.

"""


def register(commands: argparse._SubParsersAction) -> None:
    """Adds `fit` to the parser of `vital`."""
    about = "does a recipe fit a slice: compile its programs without the chips"
    fit = commands.add_parser(
        "fit",
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=_EPILOG + EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fit.set_defaults(run=_fit, overridable=True)
    fit.add_argument(
        "--config", required=True, metavar="FILE[:ARG]", help="the recipe; --config.KEY=VALUE overrides a part of it"
    )
    fit.add_argument(
        "--topology", required=True, metavar="NAME", help="v5e:4x4, v5p:2x2x1, v6e:4x4, ...; cpu:N is this machine"
    )
    fit.add_argument(
        "--per_chip_batch",
        "--per-chip-batch",
        type=whole,
        metavar="N",
        help="rows of a step per chip, in place of config.batch",
    )
    fit.add_argument(
        "--bucket",
        type=_pair,
        metavar="S,P",
        help="prefix tokens and patches; default the largest of config.data.buckets",
    )
    fit.add_argument(
        "--phase",
        type=whole,
        metavar="I",
        help="of the curriculum, from 1; default the last of those with most latent steps",
    )
    fit.add_argument(
        "--program",
        choices=PROGRAMS,
        action="append",
        help="compile this one alone (the samplers take as long as the training step); default all",
    )
    fit.add_argument("--json", action="store_true", help="print one JSON object a program")


def _pair(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not S,P: for instance 1024,3584")
    return whole(parts[0]), whole(parts[1])


def _fit(arguments: argparse.Namespace) -> int:
    # Recipes import each other from where they are started, as with `python train.py`.
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    if not Path(recipe := arguments.config.partition(":")[0]).is_file():
        raise FileNotFoundError(f"--config {recipe}: no such file; the recipes lie in configs/")
    from vital_jax.hub import encoders
    from vital_jax.run import fit, plan, setup
    from vital_jax.training import config as configuration
    from vital_jax.training import topology
    from vital_jax.training.sharding import make_mesh

    config = configuration.read([f"--config={arguments.config}", *arguments.overrides])
    plan.resolve(config)
    devices = topology.devices(arguments.topology)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    if arguments.per_chip_batch:
        config.batch = arguments.per_chip_batch * len(devices)
    index, (S, P) = _phase(config, arguments.phase), arguments.bucket or max(config.data.buckets)
    for phase in config.phases:
        phase.steps = phase.steps or 1000  # the schedule's length; epochs count records, which are not looked at
    told = dict(mesh.shape) | {
        "base": config.mesh.base,
        "remat": config.model.remat,
        "micro_batches": config.micro_batches,
    }
    _say(f"{config.model.folder} on {arguments.topology}, {len(devices)} x {devices[0].device_kind}: {_words(told)}")
    width, found = encoders.width(config.data.encoder) if "visual_projector" in setup.scaffold_of(config) else 0, []
    for made in fit.programs(config, mesh, index, S, P, width, arguments.program or PROGRAMS):
        print(json.dumps(dataclasses.asdict(made) | {"fits": made.fits}) if arguments.json else _line(made), flush=True)
        found.append(made)
    return INCOMPLETE if any(made.fits is False for made in found) else DONE


def _phase(config: Any, asked: int | None) -> int:
    """The index of the phase to compile. Raises: ValueError for one that the curriculum lacks."""
    if asked is None:
        return max(range(len(config.phases)), key=lambda i: (config.phases[i].latent_steps, i))
    if asked > len(config.phases):
        raise ValueError(f"--phase {asked}: the curriculum has {len(config.phases)}")
    return asked - 1


def _line(made: Any) -> str:
    verdict = {None: "limit not known", True: "fits", False: "DOES NOT FIT"}[made.fits]
    against = "" if made.limit is None else f" of {made.limit:.2f}"
    over = f" by {made.peak - made.limit:.2f} GiB" if made.fits is False else ""
    sent = f", traffic not counted ({made.unread})" if made.unread else ""
    if made.total is not None:
        sent = f", sent {made.loop / 1e9:.3f} GB in the loop, {made.total / 1e9:.2f} GB in all"
    work = "" if made.flops is None else f", {made.flops / 1e12:,.0f} TFLOP"
    shape = f"{made.rows} rows, S={made.S} P={made.P} K={made.K}"
    return f"{made.name:<6} {shape}: {made.peak:.2f}{against} GiB a chip, {verdict}{over}{sent}{work}; compiled in {made.seconds:.0f} s"


def _words(told: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in told.items())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
