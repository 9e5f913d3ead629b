"""VITAL on Qwen3-VL: the paper's recipe, with every choice the paper leaves open as a named switch.

    python train.py --config=configs/vital.py:qwen3_vl_8b --config.data.records=... --config.model.folder=...

The argument is the backbone: qwen3_vl_2b, qwen3_vl_4b, qwen3_vl_8b (the paper's) or qwen3_vl_32b. It names the default folder under models/
and how the base lies; everything else is the paper's for all of them, and sizes are read from the checkpoints. Every value can be
overridden on the command line, phases too (`--config.phases[0].steps=100`). Every row of the paper's ablation tables is one override:

    Table 2    --config.method.scaffold=False | --config.method.visual=0 | --config.method.text=0
    Table 3    --config.method.max_steps=0..4; --config.curriculum=full_mix | two_phase | reverse
    Table 13   --config.method.projector=linear | mlp | mlp_ln | transformer
    Table 14   --config.data.encoder=FOLDER (another SigLIP, or the backbone itself for the self-referential target)
    Table 15   --config.method.visual_target=per_step, or own_region where records have a region per step
    ours       --config.method.train_k=phase_max

`configs/ablations.py` runs them by name, with several seeds.
"""

from ml_collections import ConfigDict, config_dict

# Where the frozen base lies. A copy on every device needs no gathers and fits wherever the weights do (4, 9 and 18 GB; v5e, and
# v6e from the 8B on, take `fsdp`); the 67 GB of the 32B leave room for the rest on very few chips. docs/RESULTS.md has a table.
BASES = {
    "qwen3_vl_2b": "replicated",
    "qwen3_vl_4b": "replicated",
    "qwen3_vl_8b": "replicated",
    "qwen3_vl_32b": "fsdp",
}


def phase(
    name: str, max_steps: int, epochs: float, losses: tuple[str, ...] = ("text", "visual"), **changes
) -> ConfigDict:
    """One phase of the curriculum, as data: which records (by their latent steps), how long, which losses, what trains."""
    return ConfigDict(
        dict(
            name=name,
            max_steps=max_steps,  # records with at most this many steps; 0 takes all of them
            latent_steps=config_dict.placeholder(int),  # K; empty takes max_steps, at most method.max_steps
            stage=0,  # of methods that are taught in stages
            epochs=float(epochs),
            steps=0,  # optimizer steps; 0 takes them from epochs
            # Of the method's losses; empty takes the method's own weight.
            weights={loss: config_dict.placeholder(float) for loss in losses},
            reset_optimizer=True,  # Coconut's habit; the paper is silent
            table=(),  # what trains in this phase; empty takes the run's
        )
        | changes
    )


def get_config(arg: str = "qwen3_vl_8b") -> ConfigDict:
    """The recipe for a backbone of `BASES`. Raises: ValueError for another."""
    if arg not in BASES:
        raise ValueError(f"unknown backbone {arg!r}: use {', '.join(BASES)}")
    base = BASES[arg]
    return ConfigDict(
        dict(
            seed=0,
            workdir="runs/vital",
            dry_run=False,  # print the plan and stop
            init_from="",  # checkpoints folder of another run to start the trained parameters from
            runs=(),  # (name, {key: value}) rows: train one run for each and compare them; see run/campaign.py
            seeds=(0,),  # of those runs
            model=dict(
                folder=f"models/{arg}",
                text_decoder="models/qwen3_1_7b",
                dtype="bfloat16",  # of the computation
                param_dtype="bfloat16",  # of frozen parameters; trained ones are float32
                quantize="",  # int8: keep the frozen base's decoder so, for small cards; see configs/one_gpu.py
                remat="full",
                attention="auto",
                tiny=config_dict.placeholder(ConfigDict),  # settings of small random models to write there instead
            ),
            lora=dict(rank=64, alpha=128.0, dropout=0.05),
            method=dict(
                name="vital",
                scaffold=True,  # False: the task loss alone, no text decoder and no projector
                text=1.0,  # lambda_1
                visual=0.1,  # lambda_2
                max_steps=4,  # K is never larger; records with longer chains keep their first steps
                latent_state="post_norm",  # the head reads z_K, and every peer's public code feeds this state back
                # Equation 4's "valid steps", though Table 3 evaluates at K = 4 throughout, as every command here does; phase_max trains
                # every row at the phase's K too.
                train_k="per_sample",
                projector="residual_mlp_ln",
                projector_dropout=0.1,
                output_norm="ln",  # its scale starts at E^-0.5, where the target's length is
                l1_reduction="sum",  # equation 6 as written; a mean starves the latents of gradient
                visual_target="shared",
                beyond="free",  # stay: latents beyond a record's steps (phase_max) are taught as its last step again
                fused=True,
            ),
            curriculum="as_listed",  # of the phases below; see plan.CURRICULA
            # What trains, by path; every leaf is matched by exactly one row.
            table=(
                ("base/.*", "frozen"),
                ("lora/.*", "trainable"),
                ("tokens/.*", "trainable"),  # rows of added tokens
                ("feedback/.*", "trainable"),  # a method's modules inside the loop
                ("scaffold/.*", "trainable"),
            ),
            optim=dict(
                learning_rate=2e-5,
                schedule="cosine",
                warmup=0.05,
                weight_decay=0.01,
                clip=1.0,
                rates=((".*", 1.0),),  # learning-rate factors by path; the text decoder learns at the same rate
            ),
            data=dict(
                records="data/vital_61k",
                build=config_dict.placeholder(ConfigDict),  # how to make the records, where a recipe makes its own
                encoder="models/medsiglip",
                hook="block",  # last block before its final norm, as the paper's hook; or post_layernorm
                roi_threshold=0.20,
                roi_margin=0.05,
                features="auto",  # the folder of region features beside the records, named by the four settings above
                limit=0,  # keep to the first so many records of the training split; 0 takes all
                max_pixels=1_048_576,
                buckets=((384, 1024), (640, 2048), (1152, 4096)),  # (S, P), ascending
                answer=64,
                chain=96,
                written=192,  # tokens of a whole chain, where a method writes it out
                system=config_dict.placeholder(str),
                workers=4,
            ),
            # Rows per optimizer step, over all devices; the paper does not give it. 128 is Coconut's, whose curriculum this is. It makes
            # 6,400 steps of the paper's 817,000 passes (the first phase warms up for 38 of its 766) and divides over 1 to 128 chips.
            batch=128,
            micro_batches=1,
            compiler=(),  # (name, value) rows: options of XLA for the training step
            phases=(phase("one step", 1, 5), phase("two steps", 2, 5), phase("all steps", 4, 10)),
            mesh=dict(
                data=-1 if base == "replicated" else 1, fsdp=1 if base == "replicated" else -1, tensor=1, base=base
            ),
            log=dict(
                every=10,  # steps between progress lines
                diagnose=200,  # and between diagnostics of gradients and collapse
                tensorboard=False,  # also write the metrics for TensorBoard (the extra `tensorboard`)
            ),
            eval=dict(
                every=1000,
                answers=16,  # decoded while training, from this split
                split="val",
                before=False,  # also before the first step
                evidence="",  # a split to answer, and to probe the latents on, after the last step; empty: none
                audit=0,  # questions of that split asked again with latents, steps and images exchanged; 0: none
                audit_by="",  # a metadata key ("question_type"): the audit's accuracies for each of its values too; empty: none
            ),
            checkpoint=dict(
                every=500,
                keep=3,  # the newest
                best="",  # "min NAME" or "max NAME" of a metric ("min task"; "max exact" of the decoded answers): the best by it stay too
                keep_best=1,
                keep_every=0,  # steps that are a multiple of it stay too
            ),
            # Several processes, one a host or one a GPU. On a TPU slice, under SLURM, Open MPI or Kubernetes jax finds them by itself;
            # elsewhere say all three, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
            distributed=dict(
                coordinator="",  # host:port of process 0
                processes=config_dict.placeholder(int),
                index=config_dict.placeholder(int),  # of this process
                cluster="auto",  # none: do not look for one; or jax's name of one
                heartbeat=60,  # seconds of silence after which a process is dead and the others end
                connect=300,  # seconds to find each other
                wait=14400,  # seconds to wait for a process that works alone (records, features, evidence)
            ),
        )
    )
