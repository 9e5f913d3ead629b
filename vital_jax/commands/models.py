"""Opening a model from the command line: its flags, its compiled programs on disk, its steps, and what tells it from others."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--model, --base and --text-decoder, as `load` takes them."""
    parser.add_argument(
        "--model", required=True, metavar="FOLDER", help="a training run's folder, or a Hugging Face Qwen3-VL folder"
    )
    parser.add_argument("--base", metavar="FOLDER", help="the run's base, where it is no longer at config.model.folder")
    parser.add_argument("--text-decoder", metavar="FOLDER", help="likewise of config.model.text_decoder, for --steps")


def load(arguments: argparse.Namespace, steps: bool = False):
    """`api.load` of the flags, with the compile cache that training left beside the run. Raises: as `api.load`."""
    import jax
    from absl import logging

    from vital_jax import api

    logging.set_verbosity(logging.ERROR)  # the checkpoint library warns that what is opened for reading is read-only
    # Made by train.py beside the run, or beside the runs it is one of; a second question starts sooner.
    folder = Path(arguments.model).resolve()
    caches = [path / "compile_cache" for path in (folder, *folder.parents[:2])]
    if (cache := next(filter(Path.is_dir, caches), None)) and not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache))
    return api.load(arguments.model, arguments.base, arguments.text_decoder, steps)


def steps_of(model: Any, asked: int | None) -> int:
    """K: as asked, by default the most that the model was trained with. Raises: ValueError for one it was not trained with."""
    if asked is None or asked in range(model.max_steps + 1):
        return model.max_steps if asked is None else asked
    if not model.max_steps:
        raise ValueError(f"--latent-steps {asked}: this model has no latent steps; use 0")
    raise ValueError(f"--latent-steps {asked}: this model was trained with up to {model.max_steps}; use 0 to that")


def identity(folder: str | Path) -> dict[str, Any]:
    """What tells this model from every other: of a run its step, base and configuration (the seed is in it), else the weights' fingerprint.

    Raises: as `api.load`.
    """
    from vital_jax.hub.load import fingerprint
    from vital_jax.training.checkpoint import Checkpoints

    path = Path(folder) / "checkpoints"
    if not path.is_dir():
        return {"fingerprint": fingerprint(folder)}
    with Checkpoints(path, read_only=True) as checkpoints:
        meta = checkpoints.read_meta()
    config = hashlib.sha256(json.dumps(meta["config"], sort_keys=True).encode()).hexdigest()[:16]
    return {"step": meta["step"], "base_fingerprint": meta["base_fingerprint"], "config": config}
