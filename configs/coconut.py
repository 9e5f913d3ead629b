"""Coconut: written steps give way to continuous thoughts, one stage after the other, on the same data as configs/vital.py.

    python train.py --config=configs/coconut.py:qwen3_vl_8b --config.data.records=... --config.model.folder=...
    python train.py --config=configs/bench.py:coconut    # on drawn boards, on a laptop

The published schedule (facebookresearch/coconut, GSM8K): a stage every few epochs, AdamW made anew with each, a last stage without written
steps. Chains here have up to four steps, so one latent a step (c = 1) and four stages.
"""

from ml_collections import ConfigDict

from configs import vital

METHOD = {
    "name": "coconut",
    "c": 1,  # latents in place of a step; the published 2 is for GSM8K's shorter steps
    "max_stage": 4,
    "pad_latent_to_max": False,  # the published default: a record never takes more latents than c times its steps
    "lead_in": "### ",
}


def get_config(arg: str = "qwen3_vl_8b") -> ConfigDict:
    """The recipe for a backbone of `vital.BASES`. Raises: ValueError for another."""
    config = vital.get_config(arg)
    config.workdir = "runs/coconut"
    config.method = ConfigDict(METHOD)
    # Stage 0 is the written chain; the published runs start from a model that was trained on it.
    config.phases = tuple(
        vital.phase(f"stage {stage}", 0, epochs, losses=(), stage=stage)
        for stage, epochs in enumerate((4, 3, 3, 3, 3, 4))
    )
    return config
