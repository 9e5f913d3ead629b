"""Direct answers with LoRA, no latents: the baseline of every method, on the same data, order and steps as configs/vital.py.

python train.py --config=configs/direct.py:qwen3_vl_8b --config.data.records=... --config.model.folder=...
"""

from ml_collections import ConfigDict

from configs import vital

METHOD = {"name": "direct"}


def get_config(arg: str = "qwen3_vl_8b") -> ConfigDict:
    """The recipe for a backbone of `vital.BASES`. Raises: ValueError for another."""
    config = vital.get_config(arg)
    config.workdir = "runs/direct"
    config.method = ConfigDict(METHOD)
    config.phases = (vital.phase("all records", 0, 20, losses=()),)
    return config
