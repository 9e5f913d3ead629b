"""Direct answers with LoRA, no latents: the baseline of every method, on the same data, order and steps as configs/vital.py.

python train.py --config=configs/direct.py:qwen3_vl_8b --config.data.records=... --config.model.folder=...
python train.py --config=configs/direct.py:quickstart
"""

from ml_collections import ConfigDict

from configs import quickstart, vital

METHOD = {"name": "direct"}


def get_config(arg: str = "qwen3_vl_8b") -> ConfigDict:
    """The recipe for a backbone of `vital.BASES`, or on the quickstart's bench. Raises: ValueError for another."""
    config = quickstart.get_config() if arg == "quickstart" else vital.get_config(arg)
    config.workdir = f"runs/direct{'_quickstart' * (arg == 'quickstart')}"
    config.method, config.runs = ConfigDict(METHOD), ()
    steps = sum(phase.steps for phase in config.phases)
    config.phases = (vital.phase("all records", 0, 0 if steps else 20, losses=(), steps=steps),)
    return config
