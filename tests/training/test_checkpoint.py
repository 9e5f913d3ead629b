"""Checkpoints: bit for bit, refused by name, and never half-written, damaged or killed ones."""

import json
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vital_jax.training.checkpoint import FORMAT_VERSION, Checkpoints, abstract, check_compatible, init_from, make_meta
from vital_jax.training.optimizer import make_optimizer
from vital_jax.training.sharding import make_mesh
from vital_jax.training.step import init_state, make_train_step

OPTIMIZER = make_optimizer(0.05, 100, warmup=0.0)


def state_of(seed=0, mesh=None, axis="fsdp"):
    key = jax.random.split(jax.random.key(seed), 2)
    trainable = {"lora": {"a": jax.random.normal(key[0], (8, 3)), "b": jax.random.normal(key[1], (3,))}}
    if mesh is not None:
        place = {"lora": {"a": NamedSharding(mesh, P(axis)), "b": NamedSharding(mesh, P())}}
        trainable = jax.tree.map(jax.device_put, trainable, place)
    return init_state(trainable, OPTIMIZER)


def meta_of(step, **changes):
    return {**make_meta({"optim": {"lr": 0.05}}, "base-1", "vital", {"latent_norm": "post"}, 0, step), **changes}


def train_step():
    def loss(trainable, frozen, batch, rng, norms):
        return jnp.sum((batch["x"] @ trainable["lora"]["a"] + trainable["lora"]["b"]) ** 2) / norms["rows"], {}

    return make_train_step(loss, lambda batch: {"rows": jnp.float32(batch["x"].size)}, OPTIMIZER)


BATCH = {"x": np.ones((2, 4, 8), np.float32)}


def assert_same_bits(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_restore_is_bit_for_bit_and_resume_goes_on_as_if_nothing_happened(tmp_path):
    step = train_step()
    state = state_of()
    for _ in range(3):
        state, _ = step(state, {}, BATCH)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, meta_of(3))
        saved = jax.tree.map(np.array, state)
        for _ in range(3):  # donates the arrays that may still be on their way to disk
            state, _ = step(state, {}, BATCH)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 3
        restored, meta = checkpoints.restore(state_of(seed=1))
    assert_same_bits(restored, saved)
    assert meta == meta_of(3)
    for _ in range(3):
        restored, _ = step(restored, {}, BATCH)
    assert_same_bits(restored, state)


def test_opening_for_reading_says_nothing(tmp_path, caplog):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(), meta_of(1))
    caplog.clear()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.read_meta() == meta_of(1)
    assert not caplog.records


def test_what_is_saved_is_the_state_even_if_the_next_step_donates_it(tmp_path):
    """A large leaf, so that the write is certainly still running when its buffer is donated."""
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    array = jnp.arange(2**22, dtype=jnp.float32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"trainable": {"a": array}}, meta_of(1))
        array = overwrite(array).block_until_ready()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        restored, _ = checkpoints.restore({"trainable": {"a": array}})
    np.testing.assert_array_equal(restored["trainable"]["a"], np.arange(2**22, dtype=np.float32))


def test_restore_takes_the_current_shardings(tmp_path):
    saved = state_of(mesh=make_mesh(data=2, fsdp=4))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved, meta_of(1))
    for target in (state_of(1, make_mesh(fsdp=8)), state_of(1, make_mesh(data=4, fsdp=2), None), state_of(1)):
        with Checkpoints(tmp_path, read_only=True) as checkpoints:
            restored, _ = checkpoints.restore(abstract(target))
        assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, target)
        assert_same_bits(restored, saved)


def test_only_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (5, 10, 15):
            checkpoints.save(step, state_of(step), meta_of(step))
        checkpoints.wait()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "15"]
        assert checkpoints.read_meta(10)["step"] == 10
        with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 5 .* it holds \[10, 15\]"):
            checkpoints.restore(state_of(), 5)
        assert_same_bits(checkpoints.restore(state_of(), 10)[0], state_of(10))


@pytest.mark.parametrize(
    "rotation, kept",
    [
        ({"keep": 2, "best": "min task"}, [2, 5, 6]),
        ({"keep": 1, "best": "max task", "keep_best": 2}, [1, 4, 6]),
        ({"keep": 1, "keep_every": 2}, [2, 4, 6]),
        ({"keep": 1, "keep_every": 3, "best": "min task"}, [2, 3, 6]),
    ],
)
def test_the_best_and_every_mth_stay_beside_the_newest(tmp_path, rotation, kept):
    with Checkpoints(tmp_path, **rotation) as checkpoints:
        for step, task in enumerate((9.0, 1.0, None, 8.0, 7.0, 6.0), 1):  # step 3 was not measured
            checkpoints.save(step, state_of(), meta_of(step), {"loss": 0.0, "task": task})
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == kept
    with Checkpoints(tmp_path, **rotation) as checkpoints:  # a restart knows which were the best
        checkpoints.save(7, state_of(), meta_of(7), {"task": 5.0})
    left = sorted(int(path.name) for path in tmp_path.iterdir())
    best = [step for step in kept if step in (1, 2, 4)] if "best" in rotation else []
    assert set(best) <= set(left) and 7 in left and len(left) <= len(kept) + 1


def test_another_word_for_best_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint\.best='lowest task': write"):
        Checkpoints(tmp_path, best="lowest task")


FULL = """
import resource, signal, sys
import jax.numpy as jnp
from vital_jax.training.checkpoint import Checkpoints, make_meta

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing past the limit then fails as it does on a full disk
with Checkpoints(sys.argv[1], keep=1) as checkpoints:
    for step in (1, 2):
        state = {"trainable": {"a": jnp.arange(step, step + 200_000, dtype=jnp.float32) ** 1.5}}
        checkpoints.save(step, state, make_meta({}, "base", "vital", {}, 0, step))
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
"""


def test_a_full_disk_is_an_error_that_names_the_folder_and_leaves_the_step_before(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr[-2000:]
    assert f"OSError: saving to {tmp_path} failed" in done.stderr and "complete there: [1]" in done.stderr
    target = {"trainable": {"a": jnp.zeros(200_000, jnp.float32)}}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1
        restored, _ = checkpoints.restore(target)
        np.testing.assert_array_equal(restored["trainable"]["a"], jnp.arange(1, 200_001, dtype=jnp.float32) ** 1.5)
        checkpoints.save(2, target, meta_of(2))  # with room again, the same step is saved


def test_a_writer_that_fails_behind_our_back_is_named_at_the_next_save(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(), meta_of(1))
        checkpoints.wait()

        def broken():
            raise RuntimeError("Stale file handle")

        monkeypatch.setattr(checkpoints._manager, "check_for_errors", broken)
        with pytest.raises(OSError, match=r"saving to .* failed \(Stale file handle\); complete there: \[1\]"):
            checkpoints.save(2, state_of(), meta_of(2))


def test_the_clock_is_part_of_the_record_and_may_be_absent(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(), meta_of(1))
        checkpoints.save(2, state_of(), {**meta_of(2), "clock": {"seen": 64, "seconds": 1.5}})
        assert "clock" not in checkpoints.read_meta(1)
        assert checkpoints.read_meta(2)["clock"] == {"seen": 64, "seconds": 1.5}


def test_an_empty_or_absent_folder_says_so(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
            checkpoints.restore(state_of())
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        Checkpoints(tmp_path / "absent", read_only=True)


@pytest.mark.parametrize(
    "meta, message",
    [
        ({**meta_of(2), "step": 3}, "record of step 2"),
        ({key: value for key, value in meta_of(2).items() if key != "method"}, "must hold exactly"),
        (meta_of(2, config={"mesh": object()}), "not plain JSON"),
    ],
)
def test_records_that_do_not_fit_are_refused(tmp_path, meta, message):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match=message):
            checkpoints.save(2, state_of(), meta)
        assert checkpoints.latest_step() is None


def test_a_step_that_would_not_be_saved_is_an_error(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, state_of(), meta_of(10))
        for step in (10, 7):
            with pytest.raises(ValueError, match=rf"step {step} was not saved.*already holds step 10"):
                checkpoints.save(step, state_of(), meta_of(step))
    with Checkpoints(tmp_path, read_only=True) as checkpoints, pytest.raises(ValueError, match="read-only"):
        checkpoints.save(11, state_of(), meta_of(11))


def test_states_that_do_not_fit_name_every_leaf(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"trainable": {"a": jnp.zeros(4), "b": jnp.zeros(2), "c": jnp.zeros(1)}}, meta_of(1))
        target = {"trainable": {"a": jnp.zeros(5), "b": jnp.zeros(2, jnp.bfloat16), "d": jnp.zeros(1)}}
        with pytest.raises(ValueError) as caught:
            checkpoints.restore(target)
    for line in (
        "trainable/a: the checkpoint has float32[4], this run has float32[5]",
        "trainable/b: the checkpoint has float32[2], this run has bfloat16[2]",
        "trainable/c: only in the checkpoint",
        "trainable/d: not in the checkpoint",
    ):
        assert line in str(caught.value)


def test_leftovers_of_a_killed_save_are_not_picked_up(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, state_of(10), meta_of(10))
    shutil.copytree(tmp_path / "10", tmp_path / "20.orbax-checkpoint-tmp-7")
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 10
    assert (tmp_path / "20.orbax-checkpoint-tmp-7").exists(), "a reader removes nothing"
    with Checkpoints(tmp_path) as checkpoints:
        assert not (tmp_path / "20.orbax-checkpoint-tmp-7").exists(), (
            "removed at once, not in a thread that may outlive the run"
        )
        assert checkpoints.latest_step() == 10
        checkpoints.save(20, state_of(20), meta_of(20))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20"]


@pytest.mark.parametrize("part", ["state", "meta", "state/_METADATA", "state/manifest.ocdbt", "_CHECKPOINT_METADATA"])
def test_a_partly_deleted_step_is_passed_over_with_a_word(tmp_path, capfd, part):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, state_of(step), meta_of(step))
    broken = tmp_path / "20" / part
    shutil.rmtree(broken) if broken.is_dir() else broken.unlink()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 10
        assert_same_bits(checkpoints.restore(state_of())[0], state_of(10))
        with pytest.raises(FileNotFoundError, match=f"20 lacks {part}"):
            checkpoints.restore(state_of(), 20)
    assert f"20 lacks {part}" in capfd.readouterr().err
    with Checkpoints(tmp_path) as checkpoints:
        assert "moved to 20.incomplete-0" in capfd.readouterr().err
        assert checkpoints.latest_step() == 10
        checkpoints.save(20, state_of(21), meta_of(20))
        assert_same_bits(checkpoints.restore(state_of())[0], state_of(21))


# Orbax abandons the other reads when the first one fails, and they complain to a closed event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_data_is_an_error_that_says_what_to_delete(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, state_of(step), meta_of(step))
    for file in (tmp_path / "20" / "state").rglob("d/*"):
        file.unlink()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        with pytest.raises(ValueError, match=r"20 cannot be read .*delete that folder"):
            checkpoints.restore(state_of())
        assert_same_bits(checkpoints.restore(state_of(), 10)[0], state_of(10))


KILLED = """
import os, signal, sys
import jax.numpy as jnp
from vital_jax.training.checkpoint import Checkpoints, make_meta

folder = sys.argv[1]

def die_at_the_commit(event, arguments):
    if event == "os.rename" and str(arguments[1]) == os.path.join(folder, "20"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die_at_the_commit)
with Checkpoints(folder) as checkpoints:
    for step in (10, 20):
        checkpoints.save(step, {"trainable": {"a": jnp.full(1000, float(step))}}, make_meta({}, "base", "vital", {}, 0, step))
"""


def test_a_kill_in_the_middle_of_a_save_leaves_the_step_before(tmp_path):
    """The process dies at the worst moment: everything is written, and the rename that commits it is next."""
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left[0] == "10" and len(left) == 2 and left[1].startswith("20.") and "tmp" in left[1]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 10
        restored, meta = checkpoints.restore({"trainable": {"a": jnp.zeros(1000)}})
        assert meta["step"] == 10 and np.unique(restored["trainable"]["a"]).tolist() == [10.0]
        checkpoints.save(20, restored, meta_of(20))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20"]


def test_the_learning_rate_may_change_between_runs():
    check_compatible(meta_of(5), meta_of(9, config={"optim": {"lr": 1.0}}, phase=2))


@pytest.mark.parametrize(
    "changes, lines",
    [
        (
            {"base_fingerprint": "base-2"},
            ["base_fingerprint: the checkpoint has 'base-1', this run has 'base-2'", "base weights"],
        ),
        ({"method": "codi"}, ["method: the checkpoint has 'vital', this run has 'codi'; set it to 'vital'"]),
        (
            {"switches": {"latent_norm": "pre", "fused": True}},
            [
                "switches.latent_norm: the checkpoint has 'post', this run has 'pre'; set it to 'post', or start in another",
                "switches.fused: the checkpoint has '(absent)', this run has True",
            ],
        ),
    ],
)
def test_another_base_method_or_switch_is_refused_by_name(changes, lines):
    with pytest.raises(ValueError) as caught:
        check_compatible(meta_of(5), meta_of(5, **changes))
    assert all(line in str(caught.value) for line in lines), caught.value


@pytest.mark.parametrize(
    "changes, lines",
    [
        (
            {"format_version": FORMAT_VERSION + 1, "written_by": "9.8.7"},
            [f"vital_jax 9.8.7 wrote it in format {FORMAT_VERSION + 1}", f"reads format {FORMAT_VERSION}: update"],
        ),
        (
            {"format_version": 1, "written_by": None},
            [
                "vital_jax 0.1.0 wrote it in format 1, and this is vital_jax",
                "use that version for it, or train it again",
            ],
        ),
        ({"method": None, "switches": None}, ["its record lacks method, switches: it was not written by this package"]),
        ({"format_version": None, "config": None}, ["its record lacks format_version, config"]),
    ],
)
def test_other_formats_and_foreign_records_are_refused_by_whoever_reads(tmp_path, changes, lines):
    """A reader and a run that starts from it alike; the message says who wrote it, and names the folder."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, state_of(), meta_of(4))
    meta = {key: value for key, value in {**meta_of(4), **changes}.items() if value is not None}
    (tmp_path / "4" / "meta" / "metadata").write_text(json.dumps(meta))
    with Checkpoints(tmp_path, read_only=True) as checkpoints, pytest.raises(ValueError) as caught:
        checkpoints.read_meta()
    assert all(line in str(caught.value) for line in [f"checkpoint {tmp_path / '4'}: ", *lines]), caught.value
    with pytest.raises(ValueError) as caught:
        init_from(tmp_path, state_of()["trainable"])
    assert all(line in str(caught.value) for line in lines), caught.value


def test_init_takes_the_trainable_part_of_another_run(tmp_path, capfd):
    mesh = make_mesh(fsdp=8)
    source, other = state_of(0), state_of(1, mesh)["trainable"]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, source, meta_of(4))
    taken, meta = init_from(tmp_path, other)
    assert_same_bits(taken, source["trainable"])
    assert meta["step"] == 4 and taken["lora"]["a"].sharding == NamedSharding(mesh, P("fsdp"))

    wider = {"lora": {"a": other["lora"]["a"]}, "feedback": {"gate": jnp.ones(2)}}
    with pytest.raises(ValueError) as caught:
        init_from(tmp_path, wider)
    assert "feedback/gate: not in the checkpoint" in str(caught.value) and "lora/b: only in" in str(caught.value)
    taken, _ = init_from(tmp_path, wider, strict=False)
    assert_same_bits(taken, {"lora": {"a": source["trainable"]["lora"]["a"]}, "feedback": {"gate": jnp.ones(2)}})
    said = capfd.readouterr().err
    assert "1 leaves are not in it and stay as they are: feedback/gate" in said and "ignored: lora/b" in said

    with pytest.raises(ValueError, match=r"lora/a: the checkpoint has float32\[8, 3\], this run has float32\[8, 4\]"):
        init_from(tmp_path, {"lora": {"a": jnp.zeros((8, 4))}}, strict=False)
    with pytest.raises(ValueError, match="no trainable leaf"):
        init_from(tmp_path, {"tokens": {"head": jnp.zeros(1)}}, strict=False)


def test_the_record_on_disk_is_plain_json(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, state_of(), meta_of(4))
    assert json.loads((tmp_path / "4" / "meta" / "metadata").read_text()) == meta_of(4)
