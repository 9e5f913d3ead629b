"""`vital data ...`: from segmentations to training data. The doors stand in the files named here, one for each part of the factory."""

import argparse

from vital_jax.commands import data_build, data_distill, data_features, data_pages
from vital_jax.commands.values import EXITS

PARTS = (data_build, data_distill, data_pages, data_features)


def register(commands: argparse._SubParsersAction) -> None:
    """Adds `data` and its sub-commands to the parser of `vital`."""
    text = "build, check and look at training data"
    data = commands.add_parser("data", help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=EXITS)
    parts = data.add_subparsers(dest="part", required=True)
    for part in PARTS:
        part.register(parts)
