"""Grouped learning as a recipe: what `config.rl` may say, the plan, and a run of `train.py` that dies in a reward and goes on."""

import json

import jax
import pytest
import recipe
from ml_collections import ConfigDict

import train
from configs import grpo, vital
from vital_jax.rl.rewards import RewardError
from vital_jax.run import lesson, plan
from vital_jax.run.open import open_run
from vital_jax.training.checkpoint import Checkpoints
from vital_jax.training.sharding import make_mesh

REWARD = '''
calls, last = 0, {last}


def odd(record, reply):
    """Half of all replies; ends the run at its last call."""
    global calls
    calls += 1
    if calls > last:
        raise OSError("no room")
    return float(sum(reply.tokens) % 2)
'''


def settled(arg="qwen3_vl_8b", method="", **overrides):
    """The recipe, resolved."""
    config = grpo.get_config(arg)
    config.phases[0].steps = 8
    if method:
        config.method.name = method
    for key, value in overrides.items():
        *parents, name = key.split("__")
        node = config
        for parent in parents:
            node = node[parent]
        node[name] = value
    plan.resolve(config)
    return config


@pytest.mark.parametrize("arg", [*vital.BASES, "quickstart"])
@pytest.mark.parametrize("method", ["direct", "text_cot"])
def test_the_recipe_states_every_choice(arg, method):
    own = lesson.settings(settled(arg, method))
    assert own.schedule.batch == (16 if arg == "quickstart" else 32) and own.schedule.steps == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"lora__dropout": 0.05}, r"config\.lora\.dropout=0\.05: with dropout an update"),
        ({"rl__mini_batches": 3}, r"config\.phases\[0\]\.steps=8: each rollout is learned from in 3 steps"),
        ({"eval__answers": 0}, r"config\.checkpoint\.best='max val_reward': config\.eval\.answers=0"),
        ({"rl__merge_adapters": True, "model__quantize": "int8"}, r"config\.rl\.merge_adapters with config\.model\.quantize='int8'"),
        ({"rl__epochs": 0}, r"config\.rl\.epochs=0: at least 1"),
        ({"rl__chunk": 5}, r"config\.rl\.chunk=5 does not divide the 32 prompts"),
        ({"rl__waves": 2}, r"config\.rl\.waves=2 with config\.rl\.advantages\.zero_variance='keep'"),
        ({"rl__advantages__zero_variance": "resample"}, r"config\.rl\.waves=1 with .*'resample'"),
        ({"rl__advantages__filter_on": "exakt"}, r"config\.rl\.advantages\.filter_on: reward 'exakt' is not known; did you mean 'exact'"),
        ({"rl__objective__ratio": "tokens"}, r"config\.rl\.objective\.ratio='tokens': did you mean 'token'"),
        ({"rl__rewards": (("exakt", 1.0),)}, "reward 'exakt' is not known; did you mean 'exact'"),
        ({"rl__rewards": (("nowhere.py:mine", 1.0),)}, r"nowhere\.py: no such file of rewards"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_before_anything_is_read(overrides, said):
    with pytest.raises(ValueError, match=said):
        settled(**overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of all runs, which are on two devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_mesh", lambda *_: make_mesh(data=2, devices=jax.devices()[:2]))
        yield tmp_path_factory.mktemp("grouped")


def small(folder, workdir, last=10**6, **rl):
    """The recipe of grouped learning in this folder; its reward ends the run at its last call."""
    config = recipe.get_config("grouped")
    config.workdir, config.runs = str(folder / workdir), ()
    config.model.update(folder=str(folder / "backbone"), text_decoder=str(folder / "text"))
    config.data.update(records=str(folder / "records"), encoder=str(folder / "siglip"))
    reward = folder / f"rewards_{last}.py"
    reward.write_text(REWARD.format(last=last))
    config.rl.update(rewards=((f"{reward}:odd", 1.0),), **rl)
    return config


@pytest.fixture(scope="module")
def finished(folder):
    train.train(small(folder, "whole"))
    return folder / "whole"


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in one.items() if not k.startswith(("seconds", "tokens/s"))} for one in found]


def test_every_step_says_how_far_sampler_and_replay_are_apart(finished):
    found = lines(finished)
    assert [one["step"] for one in found] == list(range(1, 9))
    assert all(abs(one["sampler_ratio_max"] - 1) < 1e-5 for one in found)
    for place in (0, 4):
        assert abs(found[place]["ratio_max"] - 1) < 1e-5 and 0 < found[place]["reward/odd"] < 1
        assert found[place]["unique_prompts"] == found[place]["prompts"] == 8


def test_a_run_that_dies_in_a_reward_goes_on_with_equal_curves(folder, finished):
    """In the second rollout, behind the checkpoint of step 3: the rollout at hand comes from there, the next is drawn again."""
    with pytest.raises(RewardError, match=r"reward 'odd' raised OSError: no room \(.*rewards_30\.py:10\)"):
        train.train(small(folder, "broken", last=30))
    with Checkpoints(folder / "broken" / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 3
    train.train(small(folder, "broken"))
    assert lines(folder / "broken") == lines(finished)
    for name in ("00000000.jsonl", "00000004.jsonl"):
        ours, expected = ((place / "rollouts" / name).read_text() for place in (folder / "broken", finished))
        assert ours == expected


def test_held_out_answers_are_rewarded_too(finished):
    rows = [json.loads(line) for line in (finished / "answers.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 0, 3, 3, 6, 6, 8, 8]
    assert all(row["val_reward"] == row["val_reward/odd"] in (0.0, 1.0) for row in rows)


def test_another_block_of_prompts_is_refused_on_resume(folder, finished):
    with pytest.raises(ValueError, match=r"rl\.group: the checkpoint has 3, this run has 4"):
        config = small(folder, "whole")
        config.rl.group = 4
        train.train(config)


def test_what_a_run_learned_is_opened_without_its_rollouts(finished):
    run = open_run(finished)
    assert run.leaves and all(path.startswith("lora/") for path in run.leaves)


def test_the_plan_shows_tokens_and_memory_of_a_rollout(folder, finished, capsys):
    config = small(folder, "plan")
    config.dry_run = True
    train.train(config)
    said = capsys.readouterr().out
    assert "rollouts: 8 prompts x 3 answers of at most" in said and ":odd x 1; reference: a copy of what trains" in said


def test_a_program_of_prompts_is_split_evenly_over_the_devices(folder, finished):
    config = small(folder, "uneven")
    config.rl.chunk = 1
    with pytest.raises(ValueError, match=r"config\.rl\.chunk=1: .* data\*fsdp = 2"):
        train.train(config)


def test_methods_that_think_in_latents_are_refused_by_name(folder, finished):
    config = small(folder, "latent")
    config.method = ConfigDict({"name": "coconut", "c": 1, "max_stage": 1})
    config.phases[0].stage = 1
    with pytest.raises(ValueError, match=r"config\.rl with method 'coconut'"):
        train.train(config)
