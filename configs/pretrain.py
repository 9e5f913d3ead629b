"""The small backbone of the quickstart, pretrained on captions of drawn images; no question is ever put to it here.

    python train.py --config=configs/pretrain.py
    python -m vital_jax.demo.pretrain runs/pretrain vital_jax/demo/weights

The first command trains the backbone (about an hour on two cores), the second the text decoder and the SigLIP towers, and writes all
of them as Hugging Face folders. The images are other ones than any experiment draws: their seed is never used elsewhere.
"""

from ml_collections import ConfigDict

from configs import direct, vital

SEED = 1000


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; takes no argument."""
    if arg:
        raise ValueError(f"configs/pretrain.py takes no argument, not {arg!r}")
    config = vital.get_config()
    work = "runs/pretrain"
    config.workdir = work
    config.model.update(
        folder=f"{work}/models/backbone",
        text_decoder=f"{work}/models/text_decoder",
        dtype="float32",
        param_dtype="float32",
        remat="none",
    )
    # The tower is shown regions first: from random weights, captions alone hardly teach it to see (pretrain/tower.py).
    config.model.tiny = ConfigDict(dict(seed=0, width=128, layers=4, tower=dict(images=8000, steps=600, seed=SEED)))
    config.lora.rank = 0
    config.method = ConfigDict(direct.METHOD)
    config.table = (("base/.*", "trainable"), ("lora/.*", "trainable"), ("scaffold/.*", "trainable"))
    config.optim.learning_rate = 1.5e-3
    config.data.update(
        records=f"{work}/records",
        encoder=f"{work}/models/siglip",
        features="",
        max_pixels=128 * 128,
        buckets=((48, 64),),
        answer=64,
        chain=0,
        workers=0,
    )
    config.data.build = ConfigDict(
        dict(source="captions", path="", count=16_000, seed=SEED, questions=2, form="", val=0.01, test=0.0)
    )
    config.batch = 32
    config.phases = (vital.phase("captions", 0, 0, losses=(), steps=3000),)
    config.log.update(every=20, diagnose=0)
    config.eval.update(every=500, answers=4)
    config.checkpoint.every = 500
    return config
