"""Fixtures of grouped learning: the toy's records, and processes that learn from them."""

import numpy as np
import pytest
import toyfeed
from learning import Trainer


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """The toy's records for training: 64 questions."""
    feed = toyfeed.feeds(tmp_path_factory.mktemp("records"))[0]
    feed.__dict__["sizes"] = np.tile(
        [toyfeed.S, toyfeed.P, 4, toyfeed.C, 0], (len(feed.source), 1)
    )  # there is nothing to measure
    return feed


@pytest.fixture
def trainer(records, tmp_path):
    return lambda **options: Trainer(records, **{"folder": tmp_path / "rollouts", **options})
