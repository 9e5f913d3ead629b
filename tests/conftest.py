"""Shared fixtures: real data (or a skip that says why), tiny random Hugging Face folders, and a count of skips at the end.

Eight host devices are asked for before jax starts, so that sharding is tested in every run; single-device tests use the first. Programs
here are tiny and compiled once, so the compiler is told not to polish them: most of a test's time is compilation.
"""

import os
from pathlib import Path

FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *FLAGS))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent
FIXTURES = Path(os.environ.get("VITAL_FIXTURES", REPOSITORY.parent / "shared" / "fixtures"))
REAL_DATA_REASON = "real data absent"


@pytest.fixture(scope="session")
def real():
    """Returns `get(name) -> Path` of a folder of real data; skips with a reason where it is absent."""

    def get(name: str) -> Path:
        path = FIXTURES / name
        if not path.exists():
            pytest.skip(f"{REAL_DATA_REASON}: {name} not found; set VITAL_FIXTURES to the folder that holds it")
        return path

    return get


def pytest_collection_modifyitems(items):
    """The file that trains takes longest: it starts first, and the other worker runs the rest beside it."""
    items.sort(key=lambda item: item.path.name != "test_train.py")


def pytest_terminal_summary(terminalreporter):
    found = {}
    for report in terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", []):
        for kind, line in report.user_properties:
            found.setdefault(kind, []).append(line)
    titles = {
        "parity": "Qwen3-VL against transformers",
        "mistake": "deliberate mistakes, and by how much each breaks parity",
    }
    for kind, title in titles.items():
        if kind in found:
            terminalreporter.write_sep("-", title)
            terminalreporter.write_line("\n".join(found[kind]))
    skipped = [
        report for report in terminalreporter.stats.get("skipped", []) if REAL_DATA_REASON in str(report.longrepr)
    ]
    where = f"VITAL_FIXTURES={FIXTURES.name} {'found' if FIXTURES.exists() else 'not found'}"
    terminalreporter.write_line(f"real-data tests skipped: {len(skipped)} ({where})")
    for reason in sorted({str(report.longrepr[2]) for report in skipped if isinstance(report.longrepr, tuple)}):
        terminalreporter.write_line(f"  {reason}")
