"""Twenty steps of the bench, ten with one latent step and ten with two, through the kernel and through XLA: losses within 1e-4."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from compiling import FAST

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]


def curve(folder, *script):
    """The metrics of the quickstart's VITAL on a few boards, step by step; and what was said."""
    settings = {
        "workdir": folder / script[0].replace("/", "_"),
        "runs": "()",
        "data.records": folder / "records",
        "data.build.count": 48,
        "data.build.val": 0.2,
        "phases[0].steps": 10,
        "phases[1].steps": 10,
        "log.every": 1,
        "eval.evidence": "",
        "eval.audit": 0,
        "model.attention": "splash" if "interpreted" in script[0] else "xla",
    }
    done = subprocess.run(
        [
            sys.executable,
            *script,
            "--config=configs/quickstart.py",
            *(f"--config.{k}={v}" for k, v in settings.items()),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "XLA_FLAGS": " ".join(FAST)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (settings["workdir"] / "metrics.jsonl").read_text().splitlines()], done.stderr


def test_losses_are_those_of_xla(tmp_path):
    found, said = curve(tmp_path, "tests/interpreted.py")
    assert int(re.search(r"kernel traced (\d+) times", said)[1]) > 2
    wanted, _ = curve(tmp_path, "train.py")
    assert [row["step"] for row in found] == [row["step"] for row in wanted] == list(range(1, 21))
    for one, other in zip(found, wanted, strict=True):
        for name in ("loss", "task", "text", "visual"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), (one["step"], name)
