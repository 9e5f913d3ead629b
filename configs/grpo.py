"""Grouped reinforcement learning (the GRPO family) on a model that answers already: its own answers, and what they are worth.

    python train.py --config=configs/grpo.py:qwen3_vl_8b --config.init_from=runs/direct/checkpoints --config.data.records=...
    python train.py --config=configs/grpo.py:quickstart --config.method.name=text_cot \\
        --config.init_from=runs/text_cot_quickstart/checkpoints

It starts from a supervised run of the same method and adapters (configs/direct.py; `--config.method.name=text_cot` for written chains):
where all answers to a question are right, or all wrong, there is nothing to learn, so stop that run at 50 to 70 % right. Every choice of
the objective and of the advantages is a key below, none is implied; docs/rl.md says which make which paper. `--config.dry_run` shows the
tokens and the memory of a rollout.
"""

from ml_collections import ConfigDict

from configs import quickstart, vital

RL = dict(
    group=8,  # G, answers to a prompt
    temperature=1.0,  # of the policy, in rollouts and updates alike; cuts and penalties would make another one
    # (function, weight) rows: exact, normalised, choice, token_f1, boxes, format, length, overlong, repetition, judge, or file.py:function
    rewards=(("exact", 1.0),),
    mini_batches=1,  # M: a rollout has M times `batch` prompts, and M updates learn from it, one after the other,
    epochs=1,  # so often (mu)
    waves=1,  # with advantages.zero_variance=resample: at most so many times these prompts are asked
    chunk=0,  # prompts of one decoding program; 0: all of a rollout. Rewards of a chunk are worked out while the next one decodes
    threads=8,  # that work out rewards
    merge_adapters=False,  # into the base before a rollout: faster decoding, and rounding between sampler and replay (sampler_ratio)
    sync_every=0,  # steps between moves of the reference towards the policy; 0: it stays where the run started
    sync_mix=0.6,  # by how much it moves; TRL's
    page_every=10,  # rollouts between pages of completions; 0: none. Their lines are always written
    rollouts="",  # a folder of another run's rollouts to learn from instead of drawing any
    objective=dict(
        ratio="token",  # as GRPO; sequence is GSPO
        surrogate="clip",
        clip_low=0.2,
        clip_high=0.28,  # DAPO: the lower bound's size on both sides lets unlikely tokens grow too slowly
        dual_clip=3.0,  # verl's
        log_ratio_clamp=20.0,  # verl's
        aggregation="token_mean",  # DAPO and TRL: a mean over each answer first would favour short right ones and long wrong ones
        length=0,
        kl="none",  # TRL's default: with clipping, a few hundred steps and adapters, a reference costs memory and a pass and changes little
        kl_coefficient=0.0,
        kl_clamp=0.0,
        entropy_coefficient=0.0,
        top_entropy=1.0,
        old="replay",  # of the update's own program; the sampler's is another one, whose rounding the ratio would measure
        sampler_weight="none",  # sampler and trainer are one model in one process; `token` where adapters are merged
        sampler_cap=2.0,
    ),
    advantages=dict(
        baseline="mean",
        scale="group",
        std="unbiased",
        epsilon=1e-6,
        several="sum_then_normalise",
        zero_variance="keep",
        filter_on="total",
        overlong="keep",
    ),
)


def get_config(arg: str = "qwen3_vl_8b") -> ConfigDict:
    """The recipe for a backbone of `vital.BASES`, or on the quickstart's bench. Raises: ValueError for another."""
    small = arg == "quickstart"
    config = quickstart.get_config() if small else vital.get_config(arg)
    config.workdir = f"runs/grpo{'_quickstart' * small}"
    config.runs = ()
    config.method = ConfigDict({"name": "direct"})
    config.rl = ConfigDict(RL)
    config.lora.dropout = 0.0  # a ratio of two policies would measure it
    config.batch = 16 if small else 32
    config.phases = (vital.phase("grouped", 0, 0 if small else 1, losses=(), steps=60 * small),)
    config.optim.update(learning_rate=3e-4 if small else 1e-5, schedule="constant", weight_decay=0.0)
    config.log.update(every=1, diagnose=0)
    config.eval.update(before=True, every=20, answers=32 if small else 64, evidence="", audit=0)
    config.checkpoint.update(every=20, best="max val_reward")
    if small:
        config.data.written = 32  # of text_cot
    return config
