"""The door `vital fit`: a whole small recipe on this machine, a TPU slice where its compiler is, and one line for each mistake."""

import importlib.util
import json
from pathlib import Path

import pytest
import shapes

from vital_jax import cli
from vital_jax.training import topology

pytestmark = pytest.mark.usefixtures("uncached")
RECIPE = Path(__file__).resolve().parents[2] / "configs" / "vital.py"
TPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='libtpu is not installed: pip install "vital_jax[fit]"'
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shapes.write(tmp_path_factory.mktemp("shapes"))


def vital_fit(folder, slice_, *more, **changes):
    settings = [f"--config.{key}={value}" for key, value in shapes.overrides(folder, **changes).items()]
    return cli.main(["fit", f"--config={RECIPE}", f"--topology={slice_}", *settings, *more])


def test_a_recipe_on_this_machine(folder, capsys):
    """K = 0 in all phases: one program of training and one of answering, the smallest there are."""
    assert (
        vital_fit(
            folder,
            "cpu:2",
            "--per_chip_batch=2",
            "--json",
            **{"method.max_steps": 0, "mesh.base": "fsdp", "mesh.data": 1, "mesh.fsdp": 2},
        )
        == 0
    )
    out, told = capsys.readouterr()
    made = [json.loads(line) for line in out.splitlines()]
    assert [(m["name"], m["rows"], m["S"], m["P"], m["K"]) for m in made] == [
        ("train", 4, 14, 16, 0),
        ("sample", 8, 14, 16, 0),
    ]
    assert all(m["peak"] > 0 and m["limit"] is None for m in made)
    assert made[0]["loop"] == 0 < made[0]["total"]
    # An answer ends when its data says so: what its loop sends cannot be counted, and that is said.
    assert made[1]["total"] is None and "trip count" in made[1]["unread"]
    assert made[0]["flops"] > 0 and made[0]["fits"] is None
    assert "2 x cpu: data=1 fsdp=2 tensor=1 base=fsdp remat=full micro_batches=1" in told


@TPU
def test_a_recipe_on_a_slice(folder, capsys):
    assert (
        vital_fit(
            folder,
            "v5e:2x2",
            "--per_chip_batch=1",
            **{"method.max_steps": 2, "mesh.base": "fsdp", "mesh.data": 1, "mesh.fsdp": 4},
        )
        == 0
    )
    out = capsys.readouterr().out
    assert out.startswith("train  4 rows, S=14 P=16 K=2: ") and " of 15.75 GiB a chip, fits, sent " in out


@pytest.mark.parametrize(
    "slice_, more, changes, words",
    [
        ("v5e", [], {}, r"unknown topology 'v5e': a TPU slice is for instance v5e:4x4"),
        ("cpu:0", [], {}, r"unknown topology 'cpu:0'"),
        ("h200:9", [], {}, r"unknown topology 'h200:9': .* h100:8 and h200:1 are cards of one node"),
        ("cpu:99", [], {}, r"cpu:99: this process has 8 CPU devices"),
        ("cpu:8", [], {"mesh.fsdp": 3}, r"mesh data=-1, fsdp=3, tensor=1 does not cover the 8 devices"),
        ("cpu:8", [], {"mesh.data": 16}, r"mesh data=16, fsdp=1, tensor=1 does not cover the 8 devices"),
        ("cpu:8", [], {"batch": 12}, r"config.batch=12: .*data\*fsdp = 8"),
        ("cpu:8", [], {"mesh.base": "split"}, r"unknown base placement 'split'"),
        ("cpu:8", ["--phase=4"], {}, r"--phase 4: the curriculum has 3"),
        ("cpu:8", ["--bucket=14,18"], {}, r"18 patches are not a multiple of 4"),
        ("cpu:8", [], {"model.folder": "nowhere"}, r"nowhere/config.json not found"),
        ("cpu:8", [], {"data.encoder": "nowhere"}, r"nowhere/config.json not found"),
    ],
)
def test_a_mistake_is_one_clear_line_before_any_work(folder, capsys, monkeypatch, slice_, more, changes, words):
    from vital_jax.run import fit

    monkeypatch.setattr(fit, "_compile", lambda *_, **__: pytest.fail("compiled something"))
    assert vital_fit(folder, slice_, *more, **changes) == 2
    import re

    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("vital fit: ") and re.search(words, last), last


@pytest.mark.parametrize(
    "slice_, words",
    [
        ("v5e:4x4", 'libtpu, is not installed: pip install "vital_jax[fit]"'),
        ("h200:8", "h200:8: the CUDA plugin is not installed"),
    ],
)
def test_no_compiler_says_what_to_install(folder, capsys, monkeypatch, slice_, words):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    assert vital_fit(folder, slice_) == 2
    assert words in capsys.readouterr().err


def test_another_libtpu_than_jax_was_built_against_is_refused(folder, capsys, monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(topology.importlib.metadata, "version", lambda name: "0.0.1")
    assert vital_fit(folder, "v5e:4x4") == 2
    assert "and 0.0.1 is installed" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--config.optim.rate=1"], ["--batch=4"]])
def test_an_unknown_key_or_flag_is_named(folder, capsys, words):
    with pytest.raises(SystemExit) as ended:
        vital_fit(folder, "cpu:8", *words)
    assert ended.value.code == 2
    assert words[0].removeprefix("--").partition("=")[0] in capsys.readouterr().err
