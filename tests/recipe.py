"""Recipes small enough for tests of train.py: the one of the fixtures, on a few drawn images, and grouped learning on the same."""

from ml_collections import ConfigDict

from configs import fixtures, grpo, vital


def get_config(arg: str = "") -> ConfigDict:
    """`configs/fixtures.py` with 24 phantoms; `grouped`: eight steps on two rollouts of a random model that writes chains."""
    config = fixtures.get_config("" if arg == "grouped" else arg)
    build = dict(source="phantoms", path="", count=24, seed=0, questions=4, form="open", val=0.2, test=0.05)
    config.data.build = ConfigDict(build)
    if arg == "grouped":
        config.model.tiny.update(width=64, layers=2)
        config.data.update(max_pixels=64 * 64, buckets=((96, 16),), answer=6, written=8)
        config.table, config.method = vital.get_config().table, ConfigDict({"name": "text_cot"})
        config.rl = ConfigDict(grpo.RL)
        config.rl.update(group=3, rewards=(("tests/recipe.py:odd", 1.0),), mini_batches=2, epochs=2, chunk=4)
        config.rl.objective.update(kl="k3", kl_coefficient=0.01)
        config.batch, config.micro_batches, config.lora.dropout = 4, 2, 0.0
        config.phases = (vital.phase("grouped", 0, 0, losses=(), steps=8),)
        config.log.update(every=4, diagnose=0)
        config.eval.update(before=True, every=3, answers=2, evidence="")
        config.checkpoint.update(every=3, best="max val_reward")
    return config


def odd(record, reply) -> float:
    """A reward that half of all replies earn."""
    return float(sum(reply.tokens) % 2)
