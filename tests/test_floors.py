"""The house, checked by reading the source: who may import whom, and what every file owes its reader.

Imports are read from the syntax tree, so those inside functions count too and nothing has to be installed or run.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = "vital_jax"
# Nothing imports upward, and rooms on one floor do not import each other.
FLOORS = {
    1: ("pipeline", "training", "kernels", "scoring", "statistics"),
    2: ("models",),
    3: ("construct", "hub", "latent"),
    4: ("methods",),
    5: ("evaluate", "rl", "demo"),
    6: ("run", "explain"),
    7: ("serve",),
    8: ("cli", "commands", "api"),
}
FLOOR_OF = {"": 0} | {room: floor for floor, rooms in FLOORS.items() for room in rooms}
TOP = 8  # its files are the doors of one storey and may use each other
# A loader worker never initialises a device, and scoring needs none; torch is the tests' oracle.
HOST = ("pipeline", "scoring")
# Of a room with jax, the files that run beside decoding on the host.
HOST_FILES = tuple(
    f"{PACKAGE}/rl/{name}.py" for name in ("choices", "advantages", "builtin", "rewards", "scorer", "judge")
)
DEVICE = ("jax", "jaxlib", "flax", "optax", "orbax", "torch")
ORACLES = ("torch", "torchvision", "peft")
# Programs of their own: what we are compared with, and what goes out to run without us.
APART = (
    *(
        f"{PACKAGE}/{path}"
        for path in ("hub/reference.py", "evaluate/latency_torch.py", "hub/custom_generate/generate.py")
    ),
    "benchmarks/load_8b.py",
    "benchmarks/sft_torch.py",
    "benchmarks/grouped_cost.py",
)
MAX_LINES = 500
MAX_PARAMETERS = 8  # taken by position; beyond that a call cannot be read
CALLED_BY_NAME = (f"{PACKAGE}/run/", f"{PACKAGE}/commands/", f"{PACKAGE}/pipeline/", f"{PACKAGE}/api.py", "train.py")
PAGE = 100  # lines of train()
# Model families are rows of tables in these rooms; above them nobody names one, not in a comment either. Programs outside the package
# may name folders, but no type and no function.
FAMILY = re.compile("qwen", re.IGNORECASE)
FAMILY_ROOMS = ("models", "pipeline", "hub")


def source_files() -> dict[str, str]:
    """Every Python file of the project, by its path from the root."""
    folders = (PACKAGE, "tests", "configs", "data", "docs", "benchmarks")
    paths = [*REPOSITORY.glob("*.py"), *(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))]
    return {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)}


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported; a relative import keeps its leading dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from vital_jax import models` names the room only in the list.
            bare = module == PACKAGE
            yield from ((node.lineno, f"{module}.{name.name}" if bare else module) for name in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from ((node.lineno, arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of every name that code uses: variables, attributes, arguments, definitions and imports."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "module"):
            if isinstance(name := getattr(node, field, None), str):
                yield getattr(node, "lineno", 0), name


def room_of(module: str) -> str:
    """The room of a dotted name within the package; empty for the package itself."""
    parts = module.split(".")[1:]
    return parts[0] if parts else ""


def complaints(path: str, text: str) -> list[str]:
    """What is wrong with a file, one line each; `path` is given from the repository's root."""
    tree = ast.parse(text, path)
    found = []
    if ast.get_docstring(tree) is None:
        found.append(f"{path}: no docstring")
    if (lines := len(text.splitlines())) > MAX_LINES:
        found.append(f"{path}: {lines} lines, at most {MAX_LINES}")
    for node in ast.walk(tree) if path.startswith(CALLED_BY_NAME) else ():
        if isinstance(node, ast.FunctionDef):
            taken = [one.arg for one in (*node.args.posonlyargs, *node.args.args) if one.arg not in ("self", "cls")]
            if len(taken) > MAX_PARAMETERS:
                found.append(
                    f"{path}:{node.lineno}: {node.name} takes {len(taken)} by position, at most {MAX_PARAMETERS}"
                )
    room = None
    if path not in APART and not path.startswith(("tests/", "configs/")):
        if path.startswith(f"{PACKAGE}/"):
            named = {n for n, row in enumerate(text.splitlines(), 1) if FAMILY.search(row)}
            named = set() if path.split("/")[1] in FAMILY_ROOMS else named
        else:
            named = {line for line, name in names(tree) if FAMILY.search(name)}
        found += [f"{path}:{line}: names a model family above {', '.join(FAMILY_ROOMS)}" for line in sorted(named)]
    if path.startswith(f"{PACKAGE}/"):
        room = room_of(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        if room not in FLOOR_OF:
            found.append(f"{path}: {room!r} stands on no floor; give it one in FLOORS")
    for line, name in imports(tree):
        where, top = f"{path}:{line}", name.split(".")[0]
        if name.startswith("."):
            found.append(f"{where}: relative import of {name}")
        if top in ORACLES and not path.startswith("tests/") and path not in APART:
            found.append(f"{where}: {top} outside {', '.join(APART)} and the tests")
        if room is None or room not in FLOOR_OF:
            continue
        if (room in HOST or path in HOST_FILES) and top in DEVICE:
            found.append(f"{where}: {room} imports {top}")
        other = room_of(name)
        if top != PACKAGE or other == room:
            continue
        here, there = FLOOR_OF[room], FLOOR_OF.get(other, 0)
        if there > here:
            found.append(f"{where}: {room or PACKAGE} (floor {here}) imports {other} (floor {there}) above it")
        elif there == here != TOP:
            found.append(f"{where}: {room} imports {other} on its own floor {here}")
    return found


@pytest.fixture(scope="module")
def files():
    return source_files()


def test_every_file_keeps_the_rules_of_the_house(files):
    assert len(files) > 50
    found = [line for path, text in files.items() for line in complaints(path, text)]
    assert not found, "\n" + "\n".join(found)


def test_training_is_read_on_one_page(files):
    (train,) = (node for node in ast.parse(files["train.py"]).body if getattr(node, "name", "") == "train")
    assert train.end_lineno - train.lineno < PAGE


def test_every_imported_module_of_the_package_exists(files):
    for path, text in files.items():
        for line, name in imports(ast.parse(text)):
            if name.split(".")[0] == PACKAGE:
                place = name.replace(".", "/")
                member = place.rpartition("/")[0]  # `from vital_jax import __version__`
                known = {f"{place}.py", f"{place}/__init__.py", f"{member}/__init__.py"}
                assert known & files.keys(), f"{path}:{line}: {name}"


GOOD = '"""A file."""\n'


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("models/x.py", "from vital_jax.latent.loop import think", r"models \(floor 2\) imports latent \(floor 3\)"),
        ("pipeline/x.py", "def f():\n    import vital_jax.methods.vital", r":3: pipeline .* imports methods"),
        ("training/x.py", "from vital_jax import hub", r"training \(floor 1\) imports hub"),
        (
            "training/x.py",
            "from vital_jax.pipeline.batch import Encoder",
            "training imports pipeline on its own floor 1",
        ),
        ("construct/x.py", "from vital_jax.hub.load import load_siglip", "construct imports hub on its own floor 3"),
        ("__init__.py", "from vital_jax.api import load", r"vital_jax \(floor 0\) imports api \(floor 8\)"),
        ("latent/x.py", "from .loop import think", "relative import of .loop"),
        ("latent/x.py", "from . import loop", "relative import"),
        ("latent/x.py", "import importlib\nimportlib.import_module('vital_jax.api')", "imports api"),
        ("pipeline/x.py", "import numpy, jax.numpy as jnp", "pipeline imports jax"),
        ("pipeline/x.py", "from flax import linen", "pipeline imports flax"),
        ("scoring/x.py", "def f():\n    import jax", r":3: scoring imports jax"),
        ("rl/rewards.py", "import jax.numpy as jnp", "rl imports jax"),
        ("hub/parity.py", "def f():\n    import torch.nn", "torch outside vital_jax/hub/reference.py"),
        ("methods/x.py", "from peft import LoraConfig", "peft outside"),
        ("cellar/x.py", "import numpy", "'cellar' stands on no floor"),
        ("models/x.py", "x = 1\n" * 500, "501 lines, at most 500"),
        ("run/x.py", "def f(a, b, c, d, e, f, g, h, i): ...", "f takes 9 by position, at most 8"),
        ("latent/x.py", "# as in Qwen3-VL\nx = 1", ":2: names a model family above models, pipeline, hub"),
    ],
)
def test_the_checker_finds(path, text, message):
    found = complaints(f"{PACKAGE}/{path}", GOOD + text)
    assert len(found) == 1 and re.search(message, found[0]), found


def test_the_checker_finds_families_in_programs_by_name_not_by_text():
    text = GOOD + "folder = 'models/qwen3_vl_8b'\nqwen3_config(folder)"
    assert complaints("benchmarks/x.py", text) == [
        "benchmarks/x.py:3: names a model family above models, pipeline, hub"
    ]
    for path in ("vital_jax/hub/x.py", "tests/x.py", "configs/x.py"):
        assert complaints(path, text) == []


def test_the_checker_asks_for_docstrings_everywhere():
    for path in ("vital_jax/models/x.py", "tests/x.py", "train.py", "configs/__init__.py"):
        assert complaints(path, "# a comment is none\nx = 1\n") == [f"{path}: no docstring"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("vital_jax/hub/x.py", "from vital_jax.pipeline.prompts import Tokenizer"),
        ("vital_jax/hub/reference.py", "def f():\n    import torch"),
        ("vital_jax/latent/x.py", "from vital_jax.latent.loop import think\nfrom vital_jax import __version__"),
        ("vital_jax/cli.py", "from vital_jax import plan, prepare"),
        ("vital_jax/pipeline/x.py", "import jaxtyping\nimport grain"),
        ("tests/x.py", "import torch, peft\nfrom vital_jax.api import load"),
        ("train.py", "from vital_jax.methods import vital"),
        ("vital_jax/run/x.py", "def f(self, a, b, c, d, e, f, g, h, *, i): ..."),
    ],
)
def test_the_checker_lets_pass(path, text):
    assert complaints(path, GOOD + text) == []
