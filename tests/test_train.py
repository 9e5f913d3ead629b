"""`train.py` as its user runs it: three phases on drawn images, killed at any moment and started again, and mistakes on the command line.

Runs are processes of their own. They share one folder of records and small models, and one compile cache, so only the first compiles.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compiling import FAST

from vital_jax.hub import encoders
from vital_jax.pipeline.prompts import Prompter
from vital_jax.run import fit, plan, setup
from vital_jax.training import config as configuration
from vital_jax.training.checkpoint import Checkpoints
from vital_jax.training.sharding import make_mesh

REPOSITORY = Path(__file__).resolve().parent.parent
PHASES = [f"--config.phases[{i}].steps={n}" for i, n in enumerate((3, 3, 4))]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The folder that all runs of this file share: records, models, compiled programs."""
    return tmp_path_factory.mktemp("shared")


def command(shared, workdir, *overrides):
    small = {
        "workdir": workdir,
        "model.folder": shared / "backbone",
        "model.text_decoder": shared / "text_decoder",
        "model.tiny.width": 64,
        "model.tiny.layers": 2,
        "data.records": shared / "records",
        "data.encoder": shared / "siglip",
        "data.max_pixels": 64 * 64,
        "data.buckets": "((96, 16),)",
        "batch": 8,
        "checkpoint.every": 2,
        "log.every": 2,
        "log.diagnose": 10,
        "eval.every": 100,
        "eval.answers": 2,
    }
    arguments = [f"--config.{key}={value}" for key, value in small.items()]
    return [sys.executable, "train.py", "--config=tests/recipe.py", *arguments, *PHASES, *overrides]


def environment(shared):
    return {
        **os.environ,
        # One device, as on a laptop; eight are for the tests of sharding.
        "XLA_FLAGS": " ".join(FAST),
        "JAX_COMPILATION_CACHE_DIR": str(shared / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def run(shared, workdir, *overrides, **variables):
    return subprocess.run(
        command(shared, workdir, *overrides),
        cwd=REPOSITORY,
        env=environment(shared) | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def lines(workdir, name="metrics"):
    return (Path(workdir) / f"{name}.jsonl").read_text().splitlines()


def saved(workdir):
    """Steps of the checkpoints there."""
    return [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()]


def final_state(workdir):
    """Every array of the newest checkpoint, by path."""
    import jax

    with Checkpoints(Path(workdir) / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.latest_step()
        leaves = checkpoints._saved_leaves(step)
        target = jax.tree_util.tree_map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), leaves)
        assert target
        return step, checkpoints._manager.restore(step).state


@pytest.fixture(scope="module")
def finished(shared):
    """An uninterrupted run."""
    workdir = shared / "whole"
    # jax writes down what it lowers.
    lowered = {"JAX_DUMP_IR_TO": str(shared / "lowered"), "JAX_INCLUDE_DEBUG_INFO_IN_DUMPS": "0"}
    done = run(shared, workdir, **lowered)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir, done


def test_three_phases_train_and_report(finished):
    workdir, done = finished
    metrics = [json.loads(line) for line in lines(workdir)]
    assert [row["step"] for row in metrics] == list(range(1, 11))
    assert [row["phase"] for row in metrics] == [1] * 3 + [2] * 3 + [3] * 4
    assert all(row["finite"] == 1 and row["loss"] > 0 for row in metrics)
    row = metrics[0]
    assert row["loss"] == pytest.approx(row["task"] + row["text"] + 0.1 * row["visual"], rel=1e-5)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert {"grad_z/task", "grad_z/text", "grad_z/visual", "z_norm/4", "z_cosine/1_4"} <= set(metrics[9])
    decoded = [json.loads(line) for line in lines(workdir, "answers")]
    assert {row["step"] for row in decoded} == {3, 6, 10}
    assert set(decoded[0]) == {"step", "id", "K", "question", "gold", "answer", "exact"}
    assert "samples/s" in done.stderr and "left" in done.stderr and "decoded answers exact" in done.stderr


def started(shared, workdir, ready, *overrides):
    """A run in the background, once `ready()` says so; generous, for a machine may be slow and this waits for a start and many programs."""
    process = subprocess.Popen(
        command(shared, workdir, *overrides),
        cwd=REPOSITORY,
        env=environment(shared),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline and process.poll() is None and not ready():
        time.sleep(0.02)
    return process


@pytest.mark.slow
def test_stopped_and_killed_and_started_again_it_is_the_same_run(shared, finished, tmp_path):
    """SIGTERM in the first phase between two checkpoints, SIGKILL in the third wherever the run is then; the log and the last checkpoint
    agree to the bit with those of the run that nothing happened to.
    """
    whole, _ = finished
    workdir = tmp_path / "run"
    process = started(shared, workdir, lambda: saved(workdir), "--config.checkpoint.every=100")
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=900)[1]
    assert process.returncode == 75, text[-3000:]
    step = max(saved(workdir))
    assert f"stopped after step {step}, which is saved" in text and len(lines(workdir)) == step < 7
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        clock = checkpoints.read_meta()["clock"]
    assert clock["seen"] == 8 * step and clock["flops"] == 0, "a CPU has no peak in the table"

    process = started(shared, workdir, lambda: len(lines(workdir)) >= 7)
    assert process.poll() is None, "the run ended before it could be killed"
    process.kill()
    assert f"resuming {workdir} after step {step}" in process.communicate()[1]
    assert 7 <= len(lines(workdir)) < 10

    again = run(shared, workdir)
    assert again.returncode == 0 and '"samples": 80' in again.stderr, again.stderr[-3000:]
    assert lines(workdir) == lines(whole)
    assert lines(workdir, "answers") == lines(whole, "answers")
    (step, state), (whole_step, whole_state) = final_state(workdir), final_state(whole)
    assert step == whole_step == 10
    import jax

    jax.tree_util.tree_map(np.testing.assert_array_equal, state, whole_state)


@pytest.mark.slow
def test_a_finished_run_started_again_changes_nothing(shared, finished):
    workdir, _ = finished
    before = lines(workdir)
    again = run(shared, workdir)
    assert again.returncode == 0, again.stderr[-3000:]
    assert lines(workdir) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "override, words",
    [
        ("--config.method.l1_reduction=mean", ("switches.l1_reduction", "'sum'", "'mean'")),
        ("--config.method.latent_state=pre_norm", ("switches.latent_state", "post_norm", "pre_norm")),
    ],
)
def test_another_switch_is_refused_by_name(shared, finished, override, words):
    done = run(shared, finished[0], override)
    assert done.returncode != 0
    assert all(word in done.stderr for word in words), done.stderr[-2000:]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_another_base_is_refused_by_name(shared, finished, tmp_path):
    moved = ["--config.model.tiny.seed=5"]
    moved += [f"--config.model.{key}={tmp_path / key}" for key in ("folder", "text_decoder")]
    moved += [f"--config.data.encoder={tmp_path / 'siglip'}"]
    moved += [f"--config.data.records={tmp_path / 'records'}"]
    done = run(shared, finished[0], *moved)
    assert done.returncode != 0 and "base_fingerprint" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_init_from_starts_with_the_other_runs_parameters(shared, finished, tmp_path):
    workdir = tmp_path / "next"
    done = run(shared, workdir, f"--config.init_from={finished[0] / 'checkpoints'}")
    assert done.returncode == 0, done.stderr[-3000:]
    first = json.loads(lines(workdir)[0])
    trained, fresh = json.loads(lines(finished[0])[-1]), json.loads(lines(finished[0])[0])
    assert abs(first["task"] - trained["task"]) < abs(first["task"] - fresh["task"])


@pytest.mark.slow
def test_dry_run_prints_the_plan_and_trains_nothing(shared, finished, tmp_path):
    done = run(shared, tmp_path / "dry", "--config.dry_run=True")
    assert done.returncode == 0, done.stderr[-3000:]
    for words in (
        "base/language_model",
        "scaffold/text_decoder",
        "phase 'all steps'",
        "4 steps",
        "prompt tokens",
        "images",
        "GiB",
    ):
        assert words in done.stdout
    assert not (tmp_path / "dry" / "checkpoints").exists()


@pytest.mark.parametrize(
    "override, words",
    [
        ("--config.optim.learning_rat=1", ("unknown key", "config.optim.learning_rate")),
        pytest.param("--config.method.projector=mpl", ("projector", "mpl", "residual_mlp_ln"), marks=pytest.mark.slow),
        pytest.param(
            "--config.data.features=roi-other", ("roi-other", "roi-siglip-block-T0.20-P0.05"), marks=pytest.mark.slow
        ),
        pytest.param("--config.curriculum=backwards", ("curriculum", "backwards", "reverse"), marks=pytest.mark.slow),
        pytest.param("--config.data.answer=3", ("record", "(S, P, T, C, W)", "data.answer"), marks=pytest.mark.slow),
    ],
)
def test_a_mistake_is_one_clear_line(shared, finished, tmp_path, override, words):
    done = run(shared, tmp_path / "run", override)
    assert done.returncode not in (0, None)
    assert all(word in done.stderr for word in words), done.stderr[-2000:]
    assert "Traceback" not in done.stderr


def test_what_vital_fit_compiles_is_what_was_trained(shared, finished):
    """The same text, from shapes alone: of the last phase, whose K is the largest."""
    import jax

    config = configuration.read(command(shared, shared / "whole")[2:])
    plan.resolve(config)
    mesh, width = make_mesh(devices=jax.devices()[:1]), encoders.width(config.data.encoder)
    method, _ = fit.prepared(config, mesh, width)
    layout = setup.layouts_of(config, method, width, Prompter(config.model.folder))[2]
    compiled, _ = fit.lower_training(config, method, mesh, 2, replace(layout, prefix=96, patches=16))
    trained = [path.read_text() for path in (shared / "lowered").glob("*jit_train_step*.mlir")]
    assert len(trained) == 3, "one program a phase"
    assert sum(text.strip() == compiled.as_text().strip() for text in trained) == 1
