"""What all tests share: the compiler's settings and its cache, real data (or a skip that says why), and a count of skips at the end.

Eight host devices are asked for before jax starts, so that sharding is tested in every run; single-device tests use the first. Programs
here are tiny and most of a test's time is compilation. So the compiler is told not to polish them, and what it made is kept in `.cache/`
for the next run of this checkout. A folder there belongs to one jax, one set of flags and one kind of processor; workers and the
processes that tests start may share it, for an entry that is not whole is compiled again. What no run has read for two weeks goes.
"""

import gc
import hashlib
import os
import platform
import re
import sys
import time
from importlib import metadata
from pathlib import Path

from compiling import FAST

FLAGS = ("--xla_force_host_platform_device_count=8", *FAST)
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *FLAGS))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent
KEPT = REPOSITORY / ".cache" / "compiled"
TWO_WEEKS = 14 * 86400  # seconds
MOST_MAPS = 20_000
# With `--dist=loadfile` a file is one worker's: those that take longest start first, and the other worker runs the rest beside them.
LONGEST = (
    "test_train.py",
    "test_distributed.py",
    "test_loop.py",
    "test_vital.py",
    "test_parity.py",
    "test_quickstart.py",
)
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


@pytest.fixture(scope="module")
def uncached():
    """No compile cache, for tests that read what the compiler wrote: of a program that it hands out there is no report and less text."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    kept = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", kept)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs():
    """Lets compiled programs go before they fill the process's table of memory maps, at which it would end in a segmentation fault.

    A program takes seven maps or more, Linux allows 65,530, and a worker that runs half of the tests compiles thousands of programs.
    """
    yield
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        sys.modules["jax"].clear_caches()
        gc.collect()


def processor() -> str:
    """What this machine's programs are compiled for: code made for another processor may not run here."""
    try:
        return re.search(r"^(?:flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE).group()
    except (OSError, AttributeError):
        return platform.processor()


def pytest_configure(config):
    """Names the cache of compiled programs, unless the environment names one, and clears it once a run."""
    made_for = hashlib.sha256("\n".join((os.environ["XLA_FLAGS"], platform.machine(), processor())).encode())
    folder = KEPT / f"jax-{metadata.version('jax')}-{made_for.hexdigest()[:12]}"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    if not hasattr(config, "workerinput"):
        for path in KEPT.glob("*/*"):
            if time.time() - path.stat().st_atime > TWO_WEEKS:
                path.unlink(missing_ok=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """`LONGEST` first."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


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
