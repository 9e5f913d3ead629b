"""Where the folders are that a trained model stands on, and whether they are those it was trained with.

A run and an adapter name their base by a path; neither path nor folder need be what it was. Both readers ask here.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vital_jax.hub.load import fingerprint


def located(places: Iterable[Path], check: Callable[[Path], Any], absent: str) -> Path:
    """The first of these folders that is there and that `check` lets pass.

    Raises: FileNotFoundError(absent) where none is there; else what `check` raised for the first, where it lets none pass.
    """
    faults = []
    for place in filter(Path.is_dir, places):
        try:
            check(place)
            return place
        except (OSError, ValueError) as error:
            faults.append(error)
    raise faults[0] if faults else FileNotFoundError(absent)


def check_base(folder: Path, base: Path, recorded: str) -> None:
    """Refuses a base whose weights are not those that what lies in `folder` was trained on.

    Args: recorded: their fingerprint.
    Raises: ValueError naming both folders and fingerprints; as `fingerprint` where `base` is no model folder.
    """
    if (found := fingerprint(base)) != recorded:
        raise ValueError(
            f"{folder} was trained on another base: it records the fingerprint {recorded}, {base} has {found}; "
            "name the folder it was trained on as base (--base)"
        )
