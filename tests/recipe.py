"""A recipe small enough for tests of train.py: the one of the fixtures, on a few drawn images."""

from ml_collections import ConfigDict

from configs import fixtures


def get_config(arg: str = "") -> ConfigDict:
    """`configs/fixtures.py` with 24 phantoms."""
    config = fixtures.get_config(arg)
    build = dict(source="phantoms", path="", count=24, seed=0, questions=4, form="open", val=0.2, test=0.05)
    config.data.build = ConfigDict(build)
    return config
