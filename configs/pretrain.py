"""The small backbone of the bench, pretrained on captions of boards (vital_jax/demo/flow.py); no question is ever put to it here.

    python train.py --config=configs/pretrain.py
    python -m vital_jax.demo.pretrain runs/pretrain runs/pretrain/weights

The first command trains the backbone, the second the text decoder and the SigLIP towers, and writes all of them as Hugging Face folders:
those in vital_jax/demo/weights, which the quickstart and the bench use. The boards are other ones than any experiment draws: their seed is
never used elsewhere. Two text layers on purpose: a direct answer reaches about one hop a layer.
"""

from ml_collections import ConfigDict

from configs import direct, vital

SEED = 1000
STEPS = (1200, 1000, 800)


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
    config.model.tiny = ConfigDict(
        dict(seed=0, width=128, layers=2, depth=2, tower=dict(boards=4000, steps=200, seed=SEED))
    )
    config.lora.rank = 0
    config.method = ConfigDict(direct.METHOD)
    config.table = (("base/.*", "trainable"), ("lora/.*", "trainable"), ("scaffold/.*", "trainable"))
    config.optim.learning_rate = 1.5e-3
    config.data.update(
        records=f"{work}/records",
        encoder=f"{work}/models/siglip",
        features="",
        max_pixels=128 * 128,
        buckets=((44, 64),),
        answer=80,
        chain=0,
        workers=0,
    )
    config.data.build = ConfigDict(
        dict(source="captions", path="", count=12_000, seed=SEED, questions=5, val=0.01, test=0.0)
    )
    config.batch = 64
    config.compiler = (("xla_backend_optimization_level", "1"),)
    # The flow is learned in the first phase, sides and places in the others, whose rate starts high again.
    config.phases = tuple(
        vital.phase(f"captions {i}", 0, 0, losses=(), steps=steps) for i, steps in enumerate(STEPS, 1)
    )
    config.log.update(every=20, diagnose=0)
    config.eval.update(every=500, answers=4)
    config.checkpoint.every = 500
    return config
