"""What every command looks at first: folders, files, names and records, without jax and before a model is opened.

A mistake in what was typed then costs a second, not the time that a model takes to load.
"""

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def model(arguments: argparse.Namespace, steps: bool = False, explain: bool = False) -> str:
    """The kind of the model that the flags name. Raises: as `folders.check`."""
    from vital_jax.hub import folders

    encoder = arguments.encoder if explain else None
    return folders.check(arguments.model, arguments.base, arguments.text_decoder, encoder, steps, explain)


def encoder(folder: Path) -> None:
    """Raises: FileNotFoundError for a folder that holds no model's configuration."""
    from vital_jax.models.config import config_file, read_json

    read_json(folder, config_file(folder))


def images(paths: Iterable[str | Path]) -> list[bytes]:
    """The files of images, each known to decode. Raises: as `read_file`."""
    from vital_jax.pipeline.images import read_file

    return [read_file(path) for path in paths]


def question(text: str | None) -> None:
    """Raises: ValueError for no question."""
    if not (text or "").strip():
        raise ValueError("--question is empty or missing: ask something about the image")


def records(folder: Path, split: str) -> Any:
    """A split of a record folder, or of an OUT that holds one. Raises: FileNotFoundError, ValueError as `RecordSource`."""
    from vital_jax.construct.pages import records_folder
    from vital_jax.pipeline.records import RecordSource

    return RecordSource(records_folder(folder), split)


def free(folder: Path, *names: str) -> None:
    """Raises: FileExistsError where the folder is a file or holds one of these; PermissionError where nothing can be made there."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file; name a folder")
    if there := [name for name in names if (folder / name).exists()]:
        raise FileExistsError(f"{folder}: {', '.join(there)} would be overwritten; name another folder")
    writable(folder)


def writable(folder: Path) -> None:
    """Raises: FileExistsError where a file stands in the way of this folder; PermissionError where nothing can be made there."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise FileExistsError(f"{folder}: {nearest} is a file; name another folder")
    try:
        with tempfile.TemporaryFile(dir=nearest):  # permissions alone do not tell what a file system allows
            pass
    except OSError as error:
        why = error.strerror or error
        raise PermissionError(f"{folder}: nothing can be written in {nearest} ({why}); name another folder") from error
