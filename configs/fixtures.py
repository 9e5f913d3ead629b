"""VITAL on everything with masks or labels in the test data, nine modalities, with a small random backbone: the real path end to end.

    VITAL_FIXTURES=... python train.py --config=configs/fixtures.py

A few thousand slices and images and a random backbone make no medical model; what is shown is that every part works on real files.
`configs/fixtures.py:overfit` keeps to 32 records, drops out nothing, and should reach zero loss and exact answers.
"""

import os

from ml_collections import ConfigDict

from configs import quickstart, vital

KINDS = ("biomedparse", "manifest", "msd", "volumes", "dicom")


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is empty or `overfit`."""
    if arg not in ("", "overfit"):
        raise ValueError(f"unknown variant {arg!r}: use configs/fixtures.py or configs/fixtures.py:overfit")
    config = quickstart.get_config()
    work = "runs/fixtures"
    config.workdir, config.runs = f"{work}/{arg or 'full'}", ()
    # Small models pretrained on drawn images know no real ones, so these start at random, and the backbone trains too.
    config.model.tiny = ConfigDict(dict(seed=0, width=128, layers=4))
    config.table = tuple((f"{part}/.*", "trainable") for part in ("base", "lora", "scaffold"))
    config.lora.update(rank=8, alpha=16.0)
    config.optim.learning_rate = 1e-3
    # The paper's: steps of these records have no regions of their own.
    config.method.update(visual_target="shared", beyond="free")
    config.model.folder, config.model.text_decoder = f"{work}/models/backbone", f"{work}/models/text_decoder"
    config.data.update(
        records=f"{work}/set/records",
        encoder=f"{work}/models/siglip",
        roi_threshold=0.2,
        buckets=((80, 48), (112, 64)),
        chain=96,
        answer=64,
    )
    # Everything with masks or labels, as `vital data build` reads it.
    source = dict(source="factory", path=os.environ.get("VITAL_FIXTURES", "../shared/fixtures"), kinds=KINDS)
    config.data.build = ConfigDict(source | dict(seed=0, questions=4, form="open", val=0.075, test=0.075))
    config.phases = (
        vital.phase("one step", 1, 0, steps=150),
        vital.phase("two steps", 2, 0, steps=150),
        vital.phase("all steps", 4, 0, steps=300),
    )
    config.log.diagnose = 100
    config.eval.update(every=100, answers=6, evidence="")
    config.checkpoint.every = 100
    if arg == "overfit":
        config.data.limit = 32
        config.method.projector_dropout = 0.0
        config.phases = (vital.phase("all steps", 4, 0, steps=240),)
        config.log.diagnose = 0
        config.eval.update(every=120, answers=32, split="train")
    return config
