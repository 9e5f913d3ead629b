"""Text chain of thought: the written chain, a lead-in, then the answer, on the same data as configs/vital.py.

python train.py --config=configs/text_cot.py:qwen3_vl_8b --config.data.records=... --config.model.folder=...
python train.py --config=configs/text_cot.py:quickstart
"""

from ml_collections import ConfigDict

from configs import quickstart, vital

METHOD = {"name": "text_cot", "lead_in": "The answer is: "}


def get_config(arg: str = "qwen3_vl_8b") -> ConfigDict:
    """The recipe for a backbone of `vital.BASES`, or on the quickstart's bench. Raises: ValueError for another."""
    config = quickstart.get_config() if arg == "quickstart" else vital.get_config(arg)
    config.workdir = f"runs/text_cot{'_quickstart' * (arg == 'quickstart')}"
    config.method = ConfigDict(METHOD)
    config.runs = ()
    steps = sum(phase.steps for phase in config.phases)
    config.phases = (vital.phase("all records", 0, 0 if steps else 20, losses=(), steps=steps),)
    if arg == "quickstart":
        config.data.written = 32
    return config
