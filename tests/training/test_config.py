"""The command line refuses in one line what does not fit; configurations resolve to plain JSON; phases are a function of the step."""

import json
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict, config_dict
from ml_collections.config_flags import config_path

from vital_jax.training.config import keys, phase_at, phase_start, read, resolved, total_steps, unknown_key

RECIPE = """
from ml_collections import ConfigDict

def get_config(arg="tiny"):
    if arg not in ("tiny", "large"):
        raise ValueError(f"unknown model {arg!r}: use tiny or large")
    phase = lambda steps: ConfigDict({"steps": steps})
    optim = {"lr": 1e-3, "schedule": "cosine", "restart": True, "betas": (0.9, 0.999)}
    return ConfigDict({"model": arg, "optim": optim, "phases": (phase(5), phase(7)), "seed": 3})
"""

MAIN = """
import json
from vital_jax.training.config import resolved, run
run(lambda config: print(json.dumps(resolved(config))))
"""


@pytest.fixture
def command(tmp_path):
    """Runs a script with a command line, as a person would; `RECIPE` stands for the recipe file."""
    (tmp_path / "recipe.py").write_text(RECIPE)
    (tmp_path / "broken.py").write_text("def get_config():\n    return {}['learning_rate']\n")
    (tmp_path / "opens.py").write_text("def get_config():\n    open('absent.json')\n")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-c", MAIN, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return run


def test_overrides_reach_the_main_function(command):
    done = command(
        "--config=recipe.py:large", "--config.optim.lr=2", "--config.phases[1].steps", "9", "--noconfig.optim.restart"
    )
    assert done.returncode == 0, done.stderr
    config = json.loads(done.stdout)
    assert config["model"] == "large" and config["phases"] == [{"steps": 5}, {"steps": 9}]
    assert config["optim"] == {"lr": 2.0, "schedule": "cosine", "restart": False, "betas": [0.9, 0.999]}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config=recipe.py", "--config.optim.lrr=1"], "unknown key config.optim.lrr; did you mean config.optim.lr?"),
        (
            ["--config", "recipe.py", "--config.optm.lr", "1"],
            "unknown key config.optm.lr; did you mean config.optim.lr?",
        ),
        (
            ["--config=recipe.py", "--noconfig.optim.restrat"],
            "unknown key config.optim.restrat; did you mean config.optim.restart?",
        ),
        (
            ["--config=recipe.py", "--config.phases[2].steps=1"],
            "unknown key config.phases[2].steps; did you mean config.phases[1].steps?",
        ),
        (["--config=recipe.py", "--config.optim.lr=fast"], "could not convert string to float: 'fast'"),
        (["--config=recipe.py", "--config.seed=1.5"], "--config.seed=1.5"),
        (["--config=recipe.py:huge"], "unknown model 'huge': use tiny or large"),
        (["--config=absent.py", "--config.seed=1"], "--config=absent.py: there is no such file"),
        (["--config=absent.py"], "--config=absent.py: there is no such file"),
        (["--config=opens.py"], "absent.json"),
        (["--config=recipe.py", "--sed=1"], "Unknown command line flag 'sed'"),
        (["recipe.py"], "no configuration given: use --config=FILE"),
        ([], "no configuration given: use --config=FILE"),
        (["--config=recipe.py", "more"], "unexpected argument 'more'"),
    ],
)
def test_what_does_not_fit_is_one_line_and_status_two(command, arguments, message):
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "override, value",
    [
        ("data.system=None", None),
        ("distributed.processes=None", None),
        ("phases[0].weights.text=None", None),
        ("data.build=None", None),
        ("data.system=Be brief.", "Be brief."),
        ("data.buckets=((96, 64),)", ((96, 64),)),
        ("data.buckets=[[96, 64], [120, 64]]", ((96, 64), (120, 64))),
        ("seeds=1,2", (1, 2)),
        ("optim.rates=(('lora/.*', 2),)", (("lora/.*", 2),)),
        ("compiler=()", ()),
    ],
)
def test_none_and_tuples_are_what_they_say(override, value):
    """The quickstart has a part of its own in data.build, an optional key in each of the others."""
    config = read(["--config=configs/quickstart.py", "--config.data.system=before", f"--config.{override}"])
    path = override.partition("=")[0]
    holder = config.phases[0].weights if path.startswith("phases") else config
    assert config_path.get_value(path.removeprefix("phases[0].weights."), holder) == value


@pytest.mark.parametrize(
    "override, message",
    [
        ("data.buckets=((96,64))", 'buckets cannot be (96, 64): give a tuple such as --config.data.buckets="((56, 64),)", with a comma'),
        ("data.buckets=((96,64)", "config.data.buckets cannot be ((96,64): give a tuple such as"),
        ("data.buckets=((96,64,2),)", "config.data.buckets cannot be ((96, 64, 2),): give a tuple such as"),
        ("data.buckets=large", "config.data.buckets cannot be ('large',): give a tuple such as"),
        ("data.buckets=()", "config.data.buckets cannot be (): give a tuple such as"),
        ("data.buckets=None", "config.data.buckets cannot be (None,): give a tuple such as"),
        ("seeds=1.5", 'config.seeds cannot be (1.5,): give a tuple such as --config.seeds="(0,)"'),
        ("optim.rates=2", "config.optim.rates cannot be (2,): give a tuple such as --config.optim.rates=\"(('.*', 1.0),)"),
        ("phases[0].table=3", "config.phases[0].table cannot be (3,): give a tuple such as --config.phases[0].table=\"(('base"),
        ("phases[0]=None", "config.phases[0] is one of several: override its parts one by one, such as --config.phases[0].epochs="),
        ("phases=({'steps': 3},)", "override its parts one by one, such as --config.phases[0].epochs=VALUE"),
        ("runs=VITAL", "config.runs cannot be ('VITAL',): give a tuple such as"),
        ("workdir=None", "config.workdir cannot be None: give a value such as 'runs/quickstart'"),
        ("batch=None", "config.batch cannot be None: give a value such as 16"),
        ("data=None", "config.data cannot be None: override its parts one by one, such as --config.data.answer=VALUE"),
        ("data.build=phantoms", "it is a part of the configuration: give {'key': value, ...}, or override its keys"),
    ],
)  # fmt: skip
def test_a_value_of_another_shape_is_one_line_that_says_what_the_key_takes(capsys, override, message):
    with pytest.raises(SystemExit) as end:
        read(["--config=configs/quickstart.py", f"--config.{override}"])
    told = capsys.readouterr().err
    assert end.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1
    assert message in told


def test_a_fault_in_a_recipe_keeps_its_traceback(command):
    done = command("--config=broken.py")
    assert done.returncode == 1 and "learning_rate" in done.stderr and "Traceback" in done.stderr


def test_far_keys_get_the_list_instead_of_a_guess():
    config = ConfigDict({"optim": {"lr": 1.0}, "seed": 3})
    assert keys(config) == ["config.optim", "config.optim.lr", "config.seed"]
    assert unknown_key(config, "--config.seed=4") is None
    assert unknown_key(config, "--config.zzz=4") == "unknown key config.zzz; config has optim, seed"
    assert unknown_key(config, "--config.optim.decay=4") == "unknown key config.optim.decay; config.optim has lr"
    assert unknown_key(config, "--config.x.y.z=4") == "unknown key config.x.y.z; config has optim, seed"


def test_resolved_is_plain_json():
    config = ConfigDict(
        {
            "a": (1, 2.5, None, True, "x"),
            "phases": [ConfigDict({"steps": np.int64(3)})],
            "rate": np.float32(0.5),
            "later": config_dict.placeholder(int),
        }
    )
    config.b = config.get_ref("rate")
    plain = resolved(config)
    expected = {"a": [1, 2.5, None, True, "x"], "phases": [{"steps": 3}], "rate": 0.5, "later": None, "b": 0.5}
    assert plain == json.loads(json.dumps(plain)) == expected


def test_what_json_cannot_hold_is_named():
    with pytest.raises(TypeError, match=r"config.model.init is a builtin_function_or_method"):
        resolved(ConfigDict({"model": {"init": len}}))


def test_phases_are_a_function_of_the_step():
    phases = tuple(ConfigDict({"steps": steps}) for steps in (2, 1, 3))
    assert total_steps(phases) == 6
    assert [phase_at(phases, step) for step in range(7)] == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert [phase_start(phases, index) for index in range(4)] == [0, 2, 3, 6]
    for step in (-1, 7):
        with pytest.raises(ValueError, match=f"step {step} is outside the run of 6 steps"):
            phase_at(phases, step)


@pytest.mark.parametrize("steps, message", [((), "config.phases is empty"), ((3, 0), r"config.phases\[1\].steps is 0")])
def test_phases_without_steps_are_refused(steps, message):
    with pytest.raises(ValueError, match=message):
        total_steps([ConfigDict({"steps": n}) for n in steps])
