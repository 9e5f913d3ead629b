"""What a step learns from: which prompts it asks, what it holds between updates, and that a run that was stopped goes on as it was."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from learning import GROUP, GRPO, Trainer

from vital_jax.pipeline.batch import Layout
from vital_jax.rl.experience import Schedule
from vital_jax.rl.rewards import Reward, RewardError

TIMES = ("seconds", "tokens/s")


def curves(found):
    return [{k: v for k, v in metrics.items() if not k.startswith(TIMES)} for metrics, _ in found]


def same(found, expected):
    assert [each.keys() for each in found] == [each.keys() for each in expected]
    for left, right in zip(found, expected, strict=True):
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@pytest.fixture(scope="module")
def run(records, tmp_path_factory):
    """(trainer, its steps, what was saved after each): six steps, four on a rollout."""
    trainer = Trainer(records, tmp_path_factory.mktemp("run"))
    found, saved = [], [trainer.saved()]
    for _ in range(6):
        found.append(trainer.step())
        saved.append(trainer.saved())
    return trainer, found, saved


@pytest.fixture
def resumed(run, trainer):
    """(step, options) -> another process that goes on from there; programs are compiled once."""

    def make(step, **options):
        other = trainer(**options).restore(run[2][step])
        other.train_step, other.experience._replay = run[0].train_step, run[0].experience._replay
        return other

    return make


def test_a_rollout_is_learned_from_in_mini_batches_one_after_the_other(run):
    _, found, _ = run
    asked = [batch["index"].tolist() for _, batch in found]
    assert asked[0] == asked[2] != asked[1] == asked[3] and asked[4] not in asked[:4]
    drawn = [batch["rollout_tokens"].tolist() for _, batch in found]
    assert drawn[0] == drawn[2] and drawn[1] == drawn[3]
    assert "reward" in found[0][0] and "reward" not in found[1][0] and "reward" in found[4][0]


def test_the_first_update_compares_a_policy_with_itself(run):
    for place in (0, 4):
        metrics = run[1][place][0]
        for name in ("ratio_max", "sampler_ratio_max"):
            np.testing.assert_allclose(metrics[name], 1, atol=1e-5)
    assert run[1][2][0]["ratio_max"] > 1.001, "later ones have moved"


def test_the_reference_is_where_the_run_started(run):
    _, found, saved = run
    assert found[0][0]["kl"] < 1e-9 < 1e-6 < found[4][0]["kl"]
    start = jax.tree.leaves(saved[0]["trainable"])
    for left, right in zip(jax.tree.leaves(saved[6]["experience"]["reference"]), start, strict=True):
        np.testing.assert_array_equal(left, right)


def test_every_prompt_is_asked_once_an_epoch(run):
    numbers = [n for place in (0, 1, 4, 5) for n in run[1][place][1]["index"].tolist()]
    assert len(set(numbers)) == len(numbers) == 16


@pytest.mark.parametrize("killed", [1, 2, 4, 5])
def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(run, resumed, killed):
    """In the middle of updates the rollout at hand is the checkpoint's; at its start it is drawn again, the same."""
    _, found, saved = run
    again = resumed(killed)
    same(curves([again.step() for _ in range(6 - killed)]), curves(found[killed:]))
    for left, right in zip(jax.tree.leaves(again.saved()), jax.tree.leaves(saved[6]), strict=True):
        np.testing.assert_array_equal(left, right)


def test_killed_while_rewards_are_worked_out(run, resumed):
    """Nothing of a rollout that was not finished is kept; the same prompts are asked again, and answered the same."""
    _, found, _ = run

    def dies(record, reply):
        raise KeyboardInterrupt

    broken = resumed(4, rewards=(Reward("even", 1.0, dies), Reward("short", 0.1, dies)))
    with pytest.raises(KeyboardInterrupt):
        broken.step()
    again = resumed(4)
    same(curves([again.step() for _ in range(2)]), curves(found[4:]))


def test_in_the_middle_without_its_rollout_is_an_error(trainer):
    lost = trainer()
    lost.number = 1
    with pytest.raises(RuntimeError, match="step 1 learns from the rollout of step 0"):
        lost.step()


def test_devices_and_chunks_do_not_matter(run, trainer):
    """Four devices, chunks of four prompts: the same draws, and the same curves but for the order of sums."""
    other = trainer(devices=2, micro_batches=1, schedule=Schedule(4, mini_batches=2, epochs=2, chunk=4))
    for place in range(2):
        metrics, batch = other.step()
        expected, known = run[1][place]
        np.testing.assert_array_equal(batch["rollout_tokens"], known["rollout_tokens"])
        np.testing.assert_array_equal(batch["index"], known["index"])
        for name in ("loss", "grad_norm", "kl", "entropy"):
            np.testing.assert_allclose(metrics[name], expected[name], rtol=2e-4, atol=1e-6, err_msg=name)


def test_the_lines_of_a_rollout_hold_what_was_learned_from(run):
    trainer, found, _ = run
    lines = [json.loads(line) for line in (trainer.folder / "00000004.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and len(lines[0]["completions"]) == 4
    first, batch = lines[0]["completions"][0], found[4][1]
    own = batch["rollout_mode"][0, 0] != 0
    assert first["tokens"] == batch["rollout_tokens"][0, 0][own].tolist()
    assert first["advantage"] == pytest.approx(float(batch["rollout_advantage"][0, 0]))
    assert first["rewards"]["even"] == float(first["tokens"][0] % 2 == 0)
    record = trainer.feed.source[int(batch["index"][0])]
    assert lines[0]["id"] == record.id and lines[0]["question"] == record.question
    assert (trainer.folder / lines[0]["images"][0]).read_bytes() == record.images[0]


def test_the_page_shows_prompts_images_answers_and_rewards(run):
    trainer, _, _ = run
    page = (trainer.folder / "00000000.html").read_text()
    for text in (
        "Rollouts after step 0",
        "data:image/jpeg",
        '<th scope="col">even</th>',
        "advantage",
        "default-src &#39;none&#39;",
    ):
        assert text in page, text
    assert page.count("<article") == 8


def test_another_runs_rollouts_are_learned_from_without_drawing(run, resumed):
    done, found, _ = run
    again = resumed(0, more={"kept": done.folder})
    again.experience.sampler.__dict__["draw"] = None  # nothing is drawn
    same(
        [{k: v for k, v in each.items() if k not in ("waves",)} for each in curves([again.step() for _ in range(6)])],
        [{k: v for k, v in each.items() if k not in ("waves",)} for each in curves(found)],
    )
    assert not again.folder.exists()
    with pytest.raises(FileNotFoundError, match=r"00000008\.jsonl: no rollouts of step 8"):
        [again.step() for _ in range(3)]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"group": 3}, "line 1: 4 answers, config.rl.group=3"), ({"length": 1}, "this run has room for 1"),
     ({"rewards": (Reward("other", 1.0, lambda record, reply: 0.0),)}, "no reward of other; there are even, short")],
)  # fmt: skip
def test_rollouts_that_do_not_fit_this_run_are_refused(run, trainer, options, said):
    with pytest.raises(ValueError, match=said):
        trainer(more={"kept": run[0].folder}, **options).step()


def test_a_wave_is_the_same_prompts_however_many_processes_make_it(records):
    def numbers(part):
        blocks = records.phase(Layout(), 0, batch=16, steps=1, seed=0, part=part, waves=2)
        found = next(blocks)[1]["index"].reshape(2, -1)
        blocks.close()
        return found

    whole = numbers((0, 1))
    np.testing.assert_array_equal(np.concatenate([numbers((i, 4)) for i in range(4)], axis=1), whole)
    with pytest.raises(ValueError, match="16 rows does not fall into 3 waves"):
        next(records.phase(Layout(), 0, batch=16, steps=1, seed=0, waves=3))


# --- flat groups ------------------------------------------------------------------------------------------------------


def by_record(record, reply):
    """Flat in three quarters of the groups."""
    return float(reply.tokens[0] % 2) if "side" in record.question and "spleen" in record.question else 1.0


FLAT = (Reward("flat", 1.0, by_record),)


def test_flat_groups_give_way_to_others_of_the_reserved_prompts(trainer):
    plan = Schedule(4, waves=4)
    how = dataclasses.replace(GROUP, zero_variance="resample")
    asking = trainer(schedule=plan, normalisation=how, rewards=FLAT, group=8)
    metrics, batch = asking.step()
    assert metrics["prompts"] > 4 and metrics["waves"] > 1 and 0 < metrics["flat_groups"] < 1
    learned = {n for n in batch["index"].tolist() if "side of the spleen" in asking.feed.source[n].question}
    assert len(learned) >= 2 and metrics["counted"] > 0.25
    flat = ~batch["rollout_mask"].any((1, 2))
    for place, number in enumerate(batch["index"].tolist()):
        assert flat[place] or number in learned
        assert (batch["rollout_advantage"][place] != 0).any() != flat[place]
    following = asking.step()[1]
    assert not {*following["index"].tolist()} & {*batch["index"].tolist()}


def test_dropped_groups_are_out_of_the_loss_and_its_counts(trainer):
    how = dataclasses.replace(GROUP, zero_variance="drop")
    metrics, batch = trainer(normalisation=how, rewards=FLAT, group=8).step()
    kept = batch["rollout_mask"].any((1, 2))
    assert 0 < metrics["counted"] < 1 and metrics["prompts"] == 8
    assert (np.abs(batch["rollout_advantage"]).sum(-1) > 0).tolist() == kept.tolist()


# --- the reference ----------------------------------------------------------------------------------------------------


def test_the_reference_moves_where_the_recipe_says(trainer):
    plan = Schedule(4, sync_every=2, sync_mix=0.25)
    moving = trainer(schedule=plan)
    states = []
    for _ in range(5):
        states.append(jax.tree.map(np.array, moving.state["trainable"]))
        moving.step()
    leaf = lambda tree: np.asarray(jax.tree.leaves(tree)[0])  # noqa: E731
    once = 0.75 * leaf(states[0]) + 0.25 * leaf(states[2])
    expected = 0.75 * once + 0.25 * leaf(states[4])
    np.testing.assert_allclose(leaf(moving.experience.reference), expected, rtol=1e-6, atol=1e-8)


def test_without_a_divergence_there_is_no_reference(trainer):
    plain = trainer(objective=dataclasses.replace(GRPO, kl="none", kl_coefficient=0.0), schedule=Schedule(4))
    metrics, batch = plain.step()
    assert "reference" not in plain.saved()["experience"] and "kl" not in metrics and "rollout_ref" not in batch


def test_the_sampler_as_the_old_policy_needs_no_replay(trainer):
    plain = dataclasses.replace(GRPO, kl="none", kl_coefficient=0.0, old="sampler")
    own = trainer(objective=plain, schedule=Schedule(4))
    own.experience._replay = None
    metrics, batch = own.step()
    np.testing.assert_allclose(metrics["ratio_max"], 1, atol=1e-5)
    assert "rollout_old" not in batch


def test_a_mistake_in_a_reward_names_the_record_and_the_function(trainer):
    broken = trainer(rewards=(Reward("mine", 1.0, lambda record, reply: float("nan")),))
    with pytest.raises(RewardError, match=r"record 'train.*': reward 'mine' returned nan"):
        broken.step()
