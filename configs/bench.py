"""The bench: six ways to answer questions that need one to four looks at the image, on the same data, backbone and steps, three seeds.

    python train.py --config=configs/pretrain.py                                       # its backbone, half an hour on two cores
    python -m vital_jax.demo.pretrain runs/pretrain runs/pretrain/weights              # its text decoder and SigLIP
    python train.py --config=configs/bench.py                                          # all rows
    python train.py --config=configs/bench.py:coconut                                  # or one

A question names a structure of a board and asks what is reached after one to four hops of a flow that only the image shows
(vital_jax/demo/flow.py); others need one look. Rows differ in the method alone, and all take the same number of samples. Every question is
asked with the same K: a row with fewer steps goes on thinking, and is taught to stay where it arrived. A list that was stopped goes on
where it was.
"""

from ml_collections import ConfigDict

from configs import coconut, direct, quickstart, text_cot, vital

WEIGHTS = "runs/pretrain/weights"
STEPS = (600, 900, 2000)  # of 16 samples: with one latent step, with up to two, with up to four
ALL = (vital.phase("all records", 0, 0, losses=(), steps=sum(STEPS)),)
# Coconut's stages: the written chain, then a latent for each of its first sentences.
STAGES = tuple(
    vital.phase(f"stage {stage}", 0, 0, losses=(), stage=stage, steps=steps)
    for stage, steps in enumerate((800, 600, 600, 600, 900))
)
RUNS = {
    "direct": {"method": direct.METHOD, "phases": ALL},
    "text_cot": {"method": text_cot.METHOD, "phases": ALL},
    "coconut": {"method": {**coconut.METHOD, "pad_latent_to_max": True}, "phases": STAGES},
    "task-only latents": {"method.scaffold": False},
    "VITAL, no regions": {"method.visual": 0.0},
    "VITAL": {},
}


def get_config(arg: str = "all") -> ConfigDict:
    """The row named `arg` (underscores for spaces, no commas), or all of them. Raises: ValueError for another."""
    names = {name.lower().replace(",", "").replace(" ", "_"): name for name in RUNS}
    if arg != "all" and arg not in {**names, **RUNS}:
        raise ValueError(f"unknown row {arg!r}: use all, {', '.join(names)}")
    config = quickstart.get_config()
    work = "runs/bench"
    config.workdir = work
    config.model.update(folder=f"{WEIGHTS}/backbone", text_decoder=f"{WEIGHTS}/text_decoder")
    config.method.update(beyond="stay", visual_target="own_region")
    config.data.update(
        records=f"{work}/records",
        encoder=f"{WEIGHTS}/siglip",
        roi_threshold=0.0,  # regions are read off the whole image: a heat map then compares like with like
        buckets=((56, 64),),
        chain=16,
        written=48,
    )
    config.data.build = ConfigDict(
        dict(source="flow", path="", count=12_000, seed=0, hops=(1, 2, 3, 4), questions=4, looks=1, noise=0.02)
        | dict(val=0.01, test=0.025)
    )
    config.batch = 16
    config.phases = tuple(
        vital.phase(name, K, 0, steps=steps)
        for name, K, steps in zip(("one step", "two steps", "all steps"), (1, 2, 4), STEPS, strict=True)
    )
    chosen = RUNS if arg == "all" else {names.get(arg, arg): RUNS[names.get(arg, arg)]}
    config.runs = tuple(chosen.items())
    config.seeds = (0, 1, 2)
    config.eval.update(audit=256, audit_by="question_type")
    return config
