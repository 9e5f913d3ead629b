"""The embedded default: VITAL's three phases on drawn phantoms with small random models, on a laptop, nothing to download.

It shows the path, not a result: a random backbone trained for a few minutes on drawn shapes. Everything is made under runs/quickstart.
"""

from ml_collections import ConfigDict

from configs import vital


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; takes no argument."""
    if arg:
        raise ValueError(f"configs/quickstart.py takes no argument, not {arg!r}")
    config = vital.get_config()
    work = "runs/quickstart"
    config.workdir = work
    config.model.update(
        folder=f"{work}/models/backbone",
        text_decoder=f"{work}/models/text_decoder",
        dtype="float32",
        param_dtype="float32",
    )
    config.model.remat = "none"
    config.model.tiny = ConfigDict(dict(seed=0, width=128, layers=4))
    config.lora.rank, config.lora.alpha, config.lora.dropout = 8, 16.0, 0.0
    # A random backbone has nothing to keep: it trains too.
    config.table = tuple((f"{part}/.*", "trainable") for part in ("base", "lora", "scaffold"))
    config.optim.learning_rate = 1e-3
    config.data.update(
        records=f"{work}/records",
        encoder=f"{work}/models/siglip",
        features="roi-siglip-block-T0.20-P0.05",
        max_pixels=128 * 128,
        buckets=((96, 64),),
        answer=40,
        chain=64,
        workers=0,
    )
    config.data.build = ConfigDict(
        dict(source="phantoms", path="", count=400, seed=0, questions=4, val=0.05, test=0.05)
    )
    config.batch = 16
    config.phases = (
        vital.phase("one step", 1, 0, steps=50),
        vital.phase("two steps", 2, 0, steps=50),
        vital.phase("all steps", 4, 0, steps=100),
    )
    config.log.update(every=10, diagnose=50)
    config.eval.update(every=50, answers=4)
    config.checkpoint.every = 50
    return config
