"""`open_run`: what it says of a run's folder, from whichever directory, and every mistake in one line that names what to give.

The run is written from drawn parameters with relative folders, as a recipe names them; only its step 2 has the second phase.
"""

import contextlib
import json
import shutil

import jax
import looked
import numpy as np
import pytest
import trained

from vital_jax.hub import tiny
from vital_jax.run.open import TEXT, VISUAL, open_run
from vital_jax.training.checkpoint import FORMAT_VERSION, Checkpoints
from vital_jax.training.partition import flatten

FEATURES = "roi-siglip-block-T0.20-P0.05"


def write(home, **options):
    """A run started in `home` with relative folders."""
    with contextlib.chdir(home):
        names = {
            "text": "models/text",
            "records": "records",
            "encoder": "models/siglip",
            "features": FEATURES,
            **options,
        }
        return trained.write_run(home / "runs" / "one", "models/base", **names)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    home, made = tmp_path_factory.mktemp("project"), looked.made()
    for name in ("base", "text", "siglip"):
        shutil.copytree(made.folder / name, home / "models" / name)
    shutil.copytree(made.folder / "records", home / "records")
    return home, write(home)


@pytest.fixture
def home(written, tmp_path):
    """A copy of the project, so that a test may move its parts; the checkpoint names the place it was started in, which is gone."""
    home = tmp_path / "home"
    shutil.copytree(written[0], home)
    edit(home, started_in=str(tmp_path / "gone"))
    return home


def edit(home, **changes):
    """Changes the checkpoint's record."""
    path = home / "runs" / "one" / "checkpoints" / "2" / "meta" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_it_says_what_the_run_is(written):
    home, made = written
    run = open_run(home / "runs" / "one")
    assert (run.step, run.latent_steps, run.roi_width) == (2, 4, trained.ROI)
    assert [phase.name for phase in run.phases] == ["1 steps", "4 steps"]
    assert run.parts == {"base", "lora", *TEXT, *VISUAL}
    assert run.leaves.keys() == {path for path in flatten(made.params) if not path.startswith("base/")}
    plain = trained.write_run(home / "runs" / "bare", home / "models" / "base")
    assert open_run(plain.folder).parts == {"base", "lora"} and open_run(plain.folder).roi_width is None


def test_a_run_stopped_in_its_first_phase_knows_no_more(home):
    edit(home, phase=0)
    run = open_run(home / "runs" / "one")
    assert run.latent_steps == 1 and len(run.phases) == 1


def test_only_what_is_asked_for_is_built_and_the_configuration_stays_as_it_was(written):
    home, made = written
    run = open_run(home / "runs" / "one")
    before = run.config.to_json()
    bare, text, visual = (run.method(parts) for parts in ((), ["text_decoder"], ["visual_projector"]))
    assert (bare.decoder, bare.roi_width) == (None, None)
    assert text.decoder.config == made.method.decoder.config and text.roi_width is None
    assert visual.visual == made.method.visual and visual.decoder is None
    assert (bare.model.remat, bare.model.attention) == ("none", "auto")
    assert run.config.to_json() == before and run.config.phases[1].weights.text == 1.0


def test_parameters_are_read_part_by_part(written, monkeypatch):
    home, made = written
    run = open_run(home / "runs" / "one")
    for parts in (("base", "lora"), ("lora", *TEXT), VISUAL):
        found, whole = flatten(run.read_params(parts)), flatten(made.params)
        assert found.keys() == {path for path in whole if path.startswith(tuple(f"{part}/" for part in parts))}
        for path, leaf in found.items():
            np.testing.assert_array_equal(leaf, whole[path], err_msg=path)
    assert run.read_params(("feedback",)) == {}


def test_nothing_heavy_is_read_until_asked(written, monkeypatch):
    def never(*_, **__):
        raise AssertionError("read too early")

    for name in ("load_backbone", "Encoder", "setup"):
        monkeypatch.setattr(f"vital_jax.run.open.{name}", never)
    monkeypatch.setattr(Checkpoints, "read_parameters", never)
    assert open_run(written[0] / "runs" / "one").latent_steps == 4


def test_a_step_can_be_chosen(home):
    assert open_run(home / "runs" / "one", step=2).step == 2
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 1 in .*one/checkpoints; it holds \[2\]"):
        open_run(home / "runs" / "one", step=1)


# --- from another working directory ----------------------------------------------------------------


def test_it_answers_from_where_it_was_started_and_from_anywhere_else(written, tmp_path):
    """From elsewhere the place where it was started serves, also for a run that was moved away on its own."""
    home = written[0]
    moved = shutil.copytree(home / "runs" / "one", tmp_path / "moved")
    for here, folder in (
        (home, "runs/one"),
        (home / "runs", "one"),
        (tmp_path, home / "runs" / "one"),
        (tmp_path, moved),
    ):
        with contextlib.chdir(here):
            run = open_run(folder)
            found = [run.base, run.text_decoder, run.region_encoder, run.place("data.records")]
            assert [path.resolve() for path in found] == [
                home / name for name in ("models/base", "models/text", "models/siglip", "records")
            ]
            assert run.encoder.prompter.folder == (home / "models" / "base")
            assert jax.tree.leaves(run.read_params(["lora"]))


def test_a_project_that_was_moved_whole_is_found_from_the_runs_folder_upwards(home, tmp_path):
    with contextlib.chdir(tmp_path):
        run = open_run("home/runs/one")
        assert (
            run.base.resolve() == home / "models" / "base"
            and run.region_encoder.resolve() == home / "models" / "siglip"
        )


def test_a_folder_of_that_name_with_another_base_is_passed_over(home, tmp_path):
    """The one in the working directory comes first, and is not the one that was trained on."""
    tiny.write_backbone(tmp_path / "models" / "base", ["other"], seed=5, width=64, layers=2, vocab=300)
    with contextlib.chdir(tmp_path):
        assert open_run(home / "runs" / "one").base.resolve() == home / "models" / "base"


def test_a_base_that_is_nowhere_is_asked_for_by_key_and_option(home, tmp_path):
    (home / "models").rename(tmp_path / "elsewhere")
    message = r"runs/one needs config\.model\.folder='models/base', .* started \(.*gone\).*: name the folder as base \(--base FOLDER\)"
    with pytest.raises(FileNotFoundError, match=message) as error:
        open_run(home / "runs" / "one")
    assert "\n" not in str(error.value)
    run = open_run(home / "runs" / "one", base=tmp_path / "elsewhere" / "base")
    with pytest.raises(
        FileNotFoundError, match=r"config\.model\.text_decoder='models/text', .*\(--text-decoder FOLDER\)"
    ):
        run.method(["text_decoder"])
    with pytest.raises(FileNotFoundError, match=r"config\.data\.encoder='models/siglip', .*\(--encoder FOLDER\)"):
        run.region_encoder  # noqa: B018
    given = {"text_decoder": tmp_path / "elsewhere" / "text", "encoder": tmp_path / "elsewhere" / "siglip"}
    run = open_run(home / "runs" / "one", base=tmp_path / "elsewhere" / "base", **given)
    assert (run.text_decoder, run.region_encoder) == tuple(given.values())


# --- mistakes --------------------------------------------------------------------------------------


def test_a_folder_that_is_no_run_is_named(home, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent: no such folder; name a training run's folder"):
        open_run(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="base holds no checkpoints: name a training run's folder"):
        open_run(home / "models" / "base")
    shutil.rmtree(home / "runs" / "one" / "checkpoints" / "2")
    with pytest.raises(FileNotFoundError, match=r"no complete checkpoint in .*runs/one/checkpoints"):
        open_run(home / "runs" / "one")


def test_another_base_is_refused_where_it_is_given_and_where_no_other_is_there(home, tmp_path):
    tiny.write_backbone(tmp_path / "other", ["other"], seed=5, width=64, layers=2, vocab=300)
    message = r"runs/one was trained on another base: it records the fingerprint \w+, .* has \w+; .*\(--base\)"
    with pytest.raises(ValueError, match=message):
        open_run(home / "runs" / "one", base=tmp_path / "other")
    shutil.rmtree(home / "models" / "base")
    (tmp_path / "other").rename(home / "models" / "base")
    with pytest.raises(ValueError, match=message):
        open_run(home / "runs" / "one")
    with pytest.raises(FileNotFoundError, match=r"base \(--base\): no folder .*nowhere"):
        open_run(home / "runs" / "one", base=tmp_path / "nowhere")


def test_another_encoder_than_that_of_the_features_is_refused(home, tmp_path):
    tiny.write_siglip(tmp_path / "other", width=looked.WIDTH, layers=2, image=looked.SIDE)
    run = open_run(home / "runs" / "one", encoder=tmp_path / "other")
    with pytest.raises(ValueError, match=r"trained on region features of encoder \w+, .*other is \w+; .*\(--encoder\)"):
        run.region_encoder  # noqa: B018
    shutil.rmtree(home / "records")  # without them nothing contradicts
    assert open_run(home / "runs" / "one", encoder=tmp_path / "other").region_encoder == tmp_path / "other"


def test_a_checkpoint_of_another_version_says_which_and_what_to_do(home):
    edit(home, format_version=FORMAT_VERSION - 1, written_by="0.1.7")
    message = rf"one/checkpoints/2: vital_jax 0\.1\.7 wrote it in format {FORMAT_VERSION - 1}, .*: use that version"
    with pytest.raises(ValueError, match=message):
        open_run(home / "runs" / "one")


def test_a_configuration_that_lacks_a_key_names_the_version_that_wrote_it(home):
    config = open_run(home / "runs" / "one").meta["config"]
    edit(home, written_by="0.1.7", config={**config, "lora": {"rnak": 4}})
    with pytest.raises(
        ValueError,
        match=r"one: vital_jax 0\.1\.7 wrote its checkpoint, whose configuration lacks .*rank.*; use that one",
    ):
        open_run(home / "runs" / "one").method()
