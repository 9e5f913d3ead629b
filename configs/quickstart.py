"""The embedded default: VITAL on drawn images with small pretrained models, on a laptop, nothing to download; ends with evidence.

    python train.py --config=configs/quickstart.py

Two runs with the same data, order and steps are trained, LoRA without latents and VITAL, and asked about held-out images in closed-ended,
balanced questions, beside text-only baselines. Everything is made under runs/quickstart. The backbone, the text decoder and the
SigLIP have seen captions of other drawn images before (configs/pretrain.py) and never a question. Drawn images make no medical model.
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
    # Every question is asked with K = 4, and a small model that was taught one step for a question is lost after four.
    config.method.train_k = "phase_max"
    config.data.update(
        records=f"{work}/records",
        encoder=f"{WEIGHTS}/siglip",
        max_pixels=128 * 128,
        buckets=((76, 64),),
        answer=8,
        chain=40,  # the longest sentence has 36 tokens
        workers=0,
    )
    config.data.build = ConfigDict(
        dict(source="phantoms", path="", count=1000, seed=0, questions=2, form="closed", val=0.03, test=0.12)
    )
    config.batch = 32
    # A third of the compilation less on a CPU, and steps that are no slower: the products are library calls.
    config.compiler = (("xla_backend_optimization_level", "1"),)
    config.phases = (
        vital.phase("one step", 1, 0, steps=60),
        vital.phase("two steps", 2, 0, steps=60),
        vital.phase("all steps", 4, 0, steps=120),
    )
    config.log.update(every=10, diagnose=0)
    config.eval.update(answers=0, evidence="test", audit=32)
    config.checkpoint.every = 100
    return config
