"""Opening a model from the command line: its flags, its compiled programs on disk, and what tells it from others."""

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vital_jax.pipeline.families import TITLES

ANY = f"a training run's folder, an export, an adapter or a Hugging Face folder ({TITLES})"


def add_flags(parser: argparse.ArgumentParser, takes: str = ANY) -> None:
    """--model, --base and --text-decoder, as `load` takes them. takes: what the command can use as a model."""
    parser.add_argument("--model", required=True, metavar="FOLDER", help=takes)
    parser.add_argument(
        "--base", metavar="FOLDER", help="the base of the run or the adapter, where it is no longer where that says"
    )
    parser.add_argument("--text-decoder", metavar="FOLDER", help="likewise of config.model.text_decoder, for --steps")
    dtype_flag(parser)


def dtype_flag(parser: argparse.ArgumentParser) -> None:
    """--dtype, which `load` needs."""
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="to compute in; by default as the run or the export was trained, another folder as it is stored",
    )


def steps_flags(parser: argparse.ArgumentParser, number: Callable[[str], int], of: str = "") -> None:
    """--latent-steps, or --eval-k. number: reads K. of: which questions may take their own number of steps."""
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument(
        "--latent-steps",
        type=number,
        metavar="K",
        help="the same for all questions; by default as the run is evaluated, the most it was trained with",
    )
    steps.add_argument(
        "--eval-k",
        choices=("fixed", "per_sample"),
        default="fixed",
        help=f"per_sample{of}: each record's own number of steps, which nobody knows in use; whatever is shown says so",
    )


def load(arguments: argparse.Namespace, steps: bool = False, explain: bool = False):
    """`api.load` of the flags (of --encoder too, to explain), with the compile cache that training left beside the run. Raises: as that."""
    import jax

    from vital_jax import api

    # Made by train.py beside the run, or beside the runs it is one of; a second question starts sooner.
    folder = Path(arguments.model).resolve()
    caches = [path / "compile_cache" for path in (folder, *folder.parents[:2])]
    if (cache := next(filter(Path.is_dir, caches), None)) and not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache))
    encoder = arguments.encoder if explain else None
    return api.load(arguments.model, arguments.base, arguments.text_decoder, steps, explain, encoder, arguments.dtype)


def identity(arguments: argparse.Namespace, model: Any) -> dict[str, Any]:
    """What tells this model from every other: of a run its step, base and configuration (the seed is in it), else the weights' fingerprint;
    of an adapter the hash of its files, which name the base. And what it computes in, unless a run's configuration says so.

    Args: arguments: of `add_flags`. model: as `load` gives it.
    Raises: as `api.load`.
    """
    from vital_jax.hub import folders, peft
    from vital_jax.hub.load import fingerprint

    folder, run = Path(arguments.model), model.run
    if run is not None:
        config = hashlib.sha256(json.dumps(run.meta["config"], sort_keys=True).encode()).hexdigest()[:16]
        asked = {"dtype": arguments.dtype} if arguments.dtype else {}
        return {"step": run.step, "base_fingerprint": run.meta["base_fingerprint"], "config": config, **asked}
    if folders.is_adapter(folder):
        files = b"".join((folder / name).read_bytes() for name in (peft.CONFIG, peft.WEIGHTS))
        return {"adapter": hashlib.sha256(files).hexdigest()[:16], "dtype": model.dtype}
    return {"fingerprint": fingerprint(folder), "dtype": model.dtype}
