"""The embedded default: VITAL on drawn boards with small pretrained models, on a laptop, nothing to download; ends with evidence.

    python train.py --config=configs/quickstart.py

Two runs with the same data, order and steps are trained, LoRA without latents and VITAL, and asked about held-out boards, beside text-only
baselines. Half of the questions need two looks at the board, one after the other; the others need one (vital_jax/demo/flow.py). Everything
is made under runs/quickstart. The backbone, the text decoder and the SigLIP have seen captions of other boards before (configs/pretrain.py)
and never a question. Drawn images make no medical model. configs/bench.py goes on to four looks, other methods and several seeds.
"""

from ml_collections import ConfigDict

from configs import vital

WEIGHTS = "vital_jax/demo/weights"


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; takes no argument."""
    if arg:
        raise ValueError(f"configs/quickstart.py takes no argument, not {arg!r}")
    config = vital.get_config()
    work = "runs/quickstart"
    config.workdir = work
    config.runs = (("LoRA, direct", {"method": {"name": "direct"}}), ("VITAL", {}))
    config.model.update(
        folder=f"{WEIGHTS}/backbone",
        text_decoder=f"{WEIGHTS}/text_decoder",
        dtype="float32",
        param_dtype="float32",
        remat="none",
    )
    config.lora.update(rank=16, alpha=32.0, dropout=0.0)
    config.optim.learning_rate = 2e-3
    # Every question is asked with the same K: with fewer steps to take, the model goes on thinking, and is taught to stay where it arrived.
    config.method.update(train_k="phase_max", beyond="stay", visual_target="own_region")
    config.data.update(
        records=f"{work}/records",
        encoder=f"{WEIGHTS}/siglip",
        roi_threshold=0.0,  # regions are read off the whole image: a heat map then compares like with like
        max_pixels=128 * 128,
        buckets=((56, 64),),
        answer=8,
        chain=16,
        workers=0,
    )
    config.data.build = ConfigDict(
        dict(source="flow", path="", count=4000, seed=0, hops=(1, 2, 2, 2), questions=4, looks=2, noise=0.02)
        | dict(val=0.01, test=0.03)
    )
    config.batch = 16
    # A third of the compilation less on a CPU, and steps that are no slower: the products are library calls.
    config.compiler = (("xla_backend_optimization_level", "1"),)
    config.phases = (
        vital.phase("one step", 1, 0, steps=600),
        vital.phase("two steps", 2, 0, steps=900),
    )
    config.log.update(every=50, diagnose=0)
    config.eval.update(answers=0, evidence="test", audit=64, audit_by="question_type")
    config.checkpoint.every = 250
    return config
