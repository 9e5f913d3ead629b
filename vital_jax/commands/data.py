"""`vital data ...`: from segmentations to training data. The doors stand in the files named here, one for each part of the factory."""

import argparse

from vital_jax.commands import data_build, data_distill, data_features, data_pages

PARTS = (data_build, data_distill, data_pages, data_features)


def register(commands: argparse._SubParsersAction) -> None:
    """Adds `data` and its sub-commands to the parser of `vital`."""
    data = commands.add_parser("data", help="build, check and look at training data")
    parts = data.add_subparsers(dest="part", required=True, metavar="PART")
    for part in PARTS:
        part.register(parts)
