"""The bench: six ways to answer questions that need one to four looks at the image, on the same data, backbone and steps, three seeds.

    python train.py --config=configs/bench.py            # all rows
    python train.py --config=configs/bench.py:coconut    # or one

A question names a structure of a board and asks what is reached after one to four hops of a flow that only the image shows
(vital_jax/demo/flow.py); others need one look. What the rows share is the quickstart's recipe. They differ in the method alone, and all
take the same number of samples. A list that was stopped goes on where it was. The numbers are in docs/results/bench.md.
"""

from ml_collections import ConfigDict

from configs import coconut, direct, quickstart, text_cot, vital

STEPS = (300, 500, 1200)  # of 16 samples: with one latent step, with up to two, with up to four


def together(steps):
    """All records in one phase."""
    return (vital.phase("all records", 0, 0, losses=(), steps=steps),)


ALL = together(sum(STEPS))
# Coconut's stages: the written chain, then a latent for each of its first sentences.
STAGES = tuple(
    vital.phase(f"stage {stage}", 0, 0, losses=(), stage=stage, steps=steps)
    for stage, steps in enumerate((400, 350, 350, 350, 550))
)
RUNS = {
    "direct": {"method": direct.METHOD, "phases": ALL},
    "text_cot": {"method": text_cot.METHOD, "phases": ALL},
    "coconut": {"method": {**coconut.METHOD, "pad_latent_to_max": True}, "phases": STAGES},
    "task-only latents": {"method.scaffold": False},
    "VITAL, no regions": {"method.visual": 0.0},
    "VITAL": {},
}
# By name alone, with --config.seeds='(0,)': how far direct answers come with four times the steps.
MORE = {"direct, long": {"method": direct.METHOD, "phases": together(4 * sum(STEPS))}}


def get_config(arg: str = "all") -> ConfigDict:
    """The row named `arg` (underscores for spaces, no commas), or all of them. Raises: ValueError for another."""
    rows = {**RUNS, **MORE}
    names = {name.lower().replace(",", "").replace(" ", "_"): name for name in rows}
    if arg != "all" and arg not in {**names, **rows}:
        raise ValueError(f"unknown row {arg!r}: use all, {', '.join(names)}")
    config = quickstart.get_config()
    config.workdir = "runs/bench"
    config.data.update(records="runs/bench/records", written=48)
    config.data.build.update(count=12_000, hops=(1, 2, 3, 4), looks=1, val=0.01, test=0.025)
    config.phases = tuple(
        vital.phase(name, K, 0, steps=steps)
        for name, K, steps in zip(("one step", "two steps", "all steps"), (1, 2, 4), STEPS, strict=True)
    )
    chosen = RUNS if arg == "all" else {names.get(arg, arg): rows[names.get(arg, arg)]}
    config.runs = tuple(chosen.items())
    config.seeds = (0, 1, 2)
    config.eval.audit = 512
    return config
