"""The paper's ablation tables on the bench: a named list of runs, several seeds, mean and spread.

    python train.py --config=configs/ablations.py:losses

Lists: losses (Table 2), steps and curriculum (Table 3), projector (13), encoder (14), target (15), train_k (ours), and all of them. Every
run is VITAL on the bench (configs/bench.py) with one value changed. The three seeds change the drawn parameters and the order of the data,
not the data.
"""

from ml_collections import ConfigDict

from configs import bench, quickstart

REFERENCE = ("VITAL", {})
RUNS = {
    "losses": (
        ("task only", {"method.scaffold": False}),
        ("task and text", {"method.visual": 0.0}),
        ("task and visual", {"method.text": 0.0}),
    ),
    "steps": tuple((f"K = {K}", {"method.max_steps": K}) for K in range(4)),
    "curriculum": tuple((name, {"curriculum": name}) for name in ("full_mix", "two_phase", "reverse")),
    "projector": tuple(
        (f"projector {kind}", {"method.projector": kind}) for kind in ("linear", "mlp", "mlp_ln", "transformer")
    ),
    "encoder": (
        ("encoder: the backbone's own", {"data.encoder": f"{quickstart.WEIGHTS}/backbone"}),
        ("encoder: low resolution", {"data.encoder": f"{quickstart.WEIGHTS}/siglip_low"}),
    ),
    "target": tuple((f"{kind} target", {"method.visual_target": kind}) for kind in ("shared", "per_step")),
    "train_k": (("K of each record", {"method.train_k": "per_sample"}),),
}


def get_config(arg: str = "all") -> ConfigDict:
    """The list named `arg`."""
    if arg != "all" and arg not in RUNS:
        raise ValueError(f"unknown list {arg!r}: use {', '.join(RUNS)} or all")
    config = bench.get_config()
    config.workdir = "runs/ablations"
    chosen = RUNS.values() if arg == "all" else (RUNS[arg],)
    config.runs = (REFERENCE, *(run for runs in chosen for run in runs))
    config.seeds = (0, 1, 2)
    return config
