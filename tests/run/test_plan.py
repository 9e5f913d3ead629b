"""What a recipe leaves to be derived: the order of its phases, their K and loss weights, the features' name. Every recipe resolves."""

from types import SimpleNamespace

import numpy as np
import pytest

from configs import ablations, bench, coconut, direct, fixtures, one_gpu, pretrain, quickstart, text_cot, vital
from vital_jax.methods import base
from vital_jax.pipeline.batch import Layout
from vital_jax.pipeline.records import Record, write_records
from vital_jax.run import plan, prepare, setup
from vital_jax.training.checkpoint import check_compatible
from vital_jax.training.config import resolved, total_steps
from vital_jax.training.metrics import Clock

# Of the bench's phases (one, two, all steps: 100, 100, 200): what runs, in which order, for how long; Table 3.
ORDERS = {
    "as_listed": [("one step", 1, 100), ("two steps", 2, 100), ("all steps", 4, 200)],
    "two_phase": [("two steps", 2, 200), ("all steps", 4, 200)],
    "full_mix": [("all steps", 4, 400)],
    "reverse": [("all steps", 4, 200), ("two steps", 2, 100), ("one step", 1, 100)],
}


def recipe(**changes):
    """The bench's configuration, whose phases take 100, 100 and 200 steps here, resolved."""
    config = bench.get_config()
    config.runs = ()
    for phase, steps in zip(config.phases, (100, 100, 200), strict=True):
        phase.steps = steps
    config.update_from_flattened_dict(changes)
    plan.resolve(config)
    return config


@pytest.mark.parametrize("name", plan.CURRICULA)
def test_a_curriculum_keeps_the_total_and_the_order_it_promises(name):
    config = recipe(curriculum=name)
    assert [(phase.name, phase.max_steps, phase.steps) for phase in config.phases] == ORDERS[name]
    assert total_steps(config.phases) == 400


@pytest.mark.parametrize("name", plan.CURRICULA)
def test_epochs_go_where_steps_go(name):
    config = vital.get_config()
    config.curriculum = name
    plan.resolve(config)
    assert sum(phase.epochs for phase in config.phases) == 20
    assert config.phases[0].epochs == {"as_listed": 5, "two_phase": 10, "full_mix": 20, "reverse": 10}[name]


@pytest.mark.parametrize("name", plan.CURRICULA)
def test_a_single_phase_is_every_curriculum(name):
    config = quickstart.get_config()
    config.phases, config.curriculum = (vital.phase("alone", 4, 0, steps=7),), name
    plan.resolve(config)
    assert [(phase.name, phase.steps, phase.latent_steps) for phase in config.phases] == [("alone", 7, 4)]


def test_an_unknown_curriculum_is_named_with_those_there_are():
    with pytest.raises(
        ValueError, match=r"config\.curriculum='backwards': use one of as_listed, two_phase, full_mix, reverse"
    ):
        recipe(curriculum="backwards")


def test_a_visual_loss_needs_features():
    with pytest.raises(ValueError, match=r"config\.data\.features is empty, .* or set the loss's weight to 0"):
        recipe(**{"data.features": ""})
    assert recipe(**{"data.features": "", "method.visual": 0.0}).data.features == ""


@pytest.mark.parametrize(
    "module, changes, used",
    [
        (direct, {"eval.evidence": "val"}, False),
        (text_cot, {"eval.evidence": "val"}, False),
        (vital, {"eval.evidence": "val", "method.max_steps": 0}, False),
        (vital, {"method.visual": 0.0}, False),
        (coconut, {}, False),
        (coconut, {"eval.evidence": "val"}, True),  # which looks for the regions of its latents
        (vital, {}, True),
    ],
)
def test_a_region_encoder_is_asked_for_by_who_uses_it(module, changes, used):
    config = module.get_config()
    config.update_from_flattened_dict(changes)
    config.data.encoder = "absent"
    plan.resolve(config)
    assert bool(config.data.features) == used
    if not used:
        prepare.prepare(config)


@pytest.mark.parametrize("rows", [("xla_name=1",), (("xla_name", 1),), (("xla_name",),)])
def test_options_of_the_compiler_are_rows_of_two_strings(rows):
    with pytest.raises(ValueError, match=r"config\.compiler holds .*xla_name.*: its rows are"):
        recipe(compiler=rows)


@pytest.mark.parametrize(
    "most, steps", [(0, [0, 0, 0]), (1, [1, 1, 1]), (2, [1, 2, 2]), (3, [1, 2, 3]), (9, [1, 2, 4])]
)
def test_K_is_the_phases_at_most_the_methods(most, steps):
    config = recipe(**{"method.max_steps": most})
    assert [phase.latent_steps for phase in config.phases] == steps
    # Which records a phase takes does not follow K: a run without latents sees the same ones.
    assert [phase.max_steps for phase in config.phases] == [1, 2, 4]


def test_what_a_phase_says_itself_stands():
    config = bench.get_config()
    config.phases[1].latent_steps = 4
    config.phases[1].weights.update(text=0.5, visual=0.0)
    config.method.update(text=2.0, visual=0.3, max_steps=3)
    plan.resolve(config)
    assert [phase.latent_steps for phase in config.phases] == [1, 4, 3]
    assert [phase.weights.text for phase in config.phases] == [2.0, 0.5, 2.0]
    assert [phase.weights.visual for phase in config.phases] == [0.3, 0.0, 0.3]


def test_a_weight_of_a_loss_that_the_method_lacks_is_refused():
    config = quickstart.get_config()
    config.phases[1].weights = {"words": 1.0}
    with pytest.raises(
        ValueError, match=r"config\.phases\[1\]\.weights\.words: method 'vital' has no such loss; it has task"
    ):
        plan.resolve(config)


def test_a_method_is_chosen_by_name_and_brings_its_defaults():
    config = quickstart.get_config()
    config.method = {"name": "coconut", "c": 2}
    plan.resolve(config)
    assert (config.method.c, config.method.max_stage, config.method.lead_in) == (2, 4, "### ")
    config = quickstart.get_config()
    config.method.name = "nothing"
    with pytest.raises(ValueError, match=r"config\.method\.name='nothing': no such method; there are vital, direct"):
        plan.resolve(config)


def test_features_are_named_by_what_makes_them():
    assert recipe().data.features == "roi-siglip-block-T0.00-P0.05"
    assert (
        recipe(**{"data.encoder": "models/other", "data.roi_margin": 0.1}).data.features
        == "roi-other-block-T0.00-P0.10"
    )
    with pytest.raises(ValueError, match=r"'roi-siglip-block-T0\.00-P0\.05'; name it so"):
        recipe(**{"data.features": "mine"})


@pytest.mark.parametrize(
    "module, argument, latent_steps",
    [
        *((vital, name, [1, 2, 4]) for name in vital.BASES),
        *((one_gpu, card, [1, 2, 4]) for card in ("24gb", "48gb")),
        (one_gpu, "cost", [1, 2]),
        (quickstart, "", [1, 2]),
        *((bench, name, [1, 2, 4]) for name in ("all", "vital_no_regions", *bench.RUNS)),
        (fixtures, "", [1, 2, 4]),
        (fixtures, "overfit", [4]),
        (pretrain, "", [0, 0, 0]),
        *((direct, name, [0]) for name in vital.BASES),
        *((text_cot, name, [0]) for name in (*vital.BASES, "quickstart")),
        *((coconut, name, [0, 1, 2, 3, 4, 4]) for name in vital.BASES),
        *((ablations, name, [1, 2, 4]) for name in ("all", *ablations.RUNS)),
    ],
)
def test_every_recipe_resolves_once_and_for_all(module, argument, latent_steps):
    config = module.get_config(argument)
    plan.resolve(config)
    assert [phase.latent_steps for phase in config.phases] == latent_steps
    losses = set(base.get(config.method.name).losses) - {"task"}
    assert all(set(phase.weights) == losses for phase in config.phases)
    assert all(isinstance(weight, float) for phase in config.phases for weight in phase.weights.values())
    assert all(phase.steps or phase.epochs for phase in config.phases)
    once = resolved(config)
    plan.resolve(config)
    assert resolved(config) == once


@pytest.mark.parametrize("module, K", [(quickstart, 2), (bench, 4)])
def test_a_bench_is_taught_as_every_command_asks(module, K):
    config = module.get_config()
    plan.resolve(config)
    assert config.method.train_k == "phase_max" and "eval_k" not in config.method
    assert max(phase.latent_steps for phase in config.phases) == config.phases[-1].latent_steps == K


@pytest.mark.parametrize("module", [vital, one_gpu, quickstart, bench, fixtures, pretrain, ablations])
def test_a_recipe_refuses_an_argument_it_does_not_know(module):
    with pytest.raises(ValueError, match="'mine'"):
        module.get_config("mine")


def test_a_step_that_is_not_finite_stops_with_the_ids_of_its_records():
    feed = SimpleNamespace(source=SimpleNamespace(ids=["a/1", "a/2", "b/1", "b/2"]))
    records = {4: [0, 1], 5: [2, 3]}
    plan.stop_if_not_finite(None, records, feed)
    plan.stop_if_not_finite({"step": 4, "finite": 1.0}, records, feed)
    assert records == {5: [2, 3]}, "finite steps are forgotten"
    with pytest.raises(FloatingPointError, match=r"step 5: .* its records were b/1, b/2\. Nothing after the last"):
        plan.stop_if_not_finite({"step": 5, "finite": 0.0}, records, feed)


def test_rows_divide_by_micro_batches_and_processes():
    config = recipe(batch=24, micro_batches=2)
    nothing = SimpleNamespace(select=lambda steps: [], check=lambda numbers, layout: None)
    layouts = [Layout()] * len(config.phases)
    plan.check_data(config, layouts, nothing, nothing, 4)
    with pytest.raises(
        ValueError, match=r"config\.batch=24 is not a multiple of config\.micro_batches=2 over 5 processes"
    ):
        plan.check_data(config, layouts, nothing, nothing, 5)


def test_regions_of_steps_that_no_record_has_are_refused():
    """Else every step would regress the record's region: another target than the recipe names."""
    config = recipe(micro_batches=1)
    layouts = [Layout(roi=4, step_regions=True)] * len(config.phases)

    def feed(steps):
        features = SimpleNamespace(folder="records/roi/train", steps=np.zeros((2, steps, 4)))
        return SimpleNamespace(select=lambda steps: [], check=lambda numbers, layout: None, features=features)

    plan.check_data(config, layouts, feed(3), feed(0))
    with pytest.raises(
        ValueError,
        match=r"records/roi/train has none: give records with `step_masks` .*config\.method\.visual_target=shared",
    ):
        plan.check_data(config, layouts, feed(0), feed(3))


def test_a_switch_that_came_after_a_checkpoint_had_its_default():
    config = recipe(**{"method.beyond": "free"})
    plan.resolve(config)
    now = setup.meta(config, "base", 0, 1)
    before = {**now, "switches": {key: value for key, value in now["switches"].items() if key != "beyond"}}
    check_compatible(setup.whole_meta(before), now)
    config.method.beyond = "stay"
    with pytest.raises(ValueError, match=r"switches\.beyond: the checkpoint has 'free', this run has 'stay'"):
        check_compatible(setup.whole_meta(before), setup.meta(config, "base", 0, 1))


def test_the_pace_says_only_what_is_known():
    assert plan.pace(Clock()) == {"samples": 0}
    counted = {"seconds": 2.0, "samples": 8, "steps": 1, "seen": 24, "flops": 3.0, "possible_flops": 12.0}
    assert plan.pace(Clock(counted)) == {"samples": 24, "samples/s": 4.0, "mfu": 0.25}


def test_the_best_is_by_something_that_steps_report():
    config = vital.get_config()
    config.checkpoint.best = "min tsk"
    with pytest.raises(
        ValueError, match=r"config\.checkpoint\.best='min tsk': no metric 'tsk'; there are exact, loss, task"
    ):
        plan.check_best(config, {"loss": 1.0, "task": 1.0})
    for best in ("", "min task", "max exact"):
        config.checkpoint.best = best
        plan.check_best(config, {"loss": 1.0, "task": 1.0})
    config.eval.answers = 0
    with pytest.raises(ValueError, match="no metric 'exact'"):
        plan.check_best(config, {"loss": 1.0})


def test_every_folder_that_is_missing_is_named_at_once_with_key_and_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = vital.get_config()
    plan.resolve(config)
    with pytest.raises(FileNotFoundError) as caught:
        plan.find_folders(config)
    said = str(caught.value)
    assert said.startswith(f"not there from {tmp_path}: config.data.records='data/vital_61k' (`vital data build OUT ")
    for key, folder, name in (
        ("model.folder", "models/qwen3_vl_8b", "Qwen/Qwen3-VL-8B-Instruct"),
        ("model.text_decoder", "models/qwen3_1_7b", "Qwen/Qwen3-1.7B"),
        ("data.encoder", "models/medsiglip", "google/medsiglip-448"),
    ):
        way = f"`hf download {name} --local-dir {folder}` gets it; say --config.{key}=FOLDER"
        assert f"config.{key}={folder!r} ({way})" in said
    # What a method does not read is not asked for; a name that is none of the recipes' is a folder of somebody's.
    config = direct.get_config()
    config.model.folder = "mine"
    plan.resolve(config)
    with pytest.raises(FileNotFoundError, match=r"model\.folder='mine' \(it is a Hugging Face folder; say") as caught:
        plan.find_folders(config)
    assert "text_decoder" not in str(caught.value) and "encoder" not in str(caught.value)


def test_the_output_of_a_build_is_taken_for_its_records_and_features_for_their_encoder(tmp_path):
    folder = write_records([Record("a", (b"image",), "Is it?", "Yes.")], tmp_path / "OUT" / "records")
    config = vital.get_config()
    for name in ("folder", "text_decoder"):
        (tmp_path / name).mkdir()
        config.model[name] = str(tmp_path / name)
    config.data.update(records=str(tmp_path / "OUT"), encoder=str(tmp_path / "medsiglip"))
    plan.resolve(config)
    with pytest.raises(FileNotFoundError, match=r"from \S+: config\.data\.encoder"):
        plan.find_folders(config)
    assert config.data.records == str(folder)
    (folder / config.data.features / "train").mkdir(parents=True)
    plan.find_folders(config)


def test_models_are_looked_at_before_anything_is_made(tmp_path):
    config = vital.get_config()
    plan.resolve(config)
    config.model.folder = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        plan.check_models(config)
    config.dry_run = True
    plan.check_models(config)
