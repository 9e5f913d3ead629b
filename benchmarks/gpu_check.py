"""One command on an NVIDIA GPU: are the fast paths right there, what do they gain, and how fast is training at the 8B's shape?

    python benchmarks/gpu_check.py                       # the checks alone: --sft 0

Checks, each against the XLA form in float32 or against another path of the same mathematics: cuDNN attention forward and backward with
uneven lengths and with rubbish on padding, the fused against the literal latent loop, the whole training gradient under either attention;
and the backbone against transformers on the same GPU, in float32 and bfloat16, on a small redrawn checkpoint (`--parity FOLDER`: on that
one). Then speed, as ratios inside this run.

Then the SFT step of the 8B with random weights in bfloat16, at S = 350 and 1000, K = 1 and 4: rows doubled until memory ends, for ours and
for torch + peft (eager and compiled, the better counts), each measurement in a process of its own (sft_step.py). Needs torch with CUDA and
peft for that side; where they are absent it says so.

Exits 0 when all checks pass, 1 when one fails, 2 on a machine without such a GPU. To try the script on another: --anywhere --sft tiny.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from loop_model import alternate, arguments, device, draw, loss, make

from vital_jax.hub import parity
from vital_jax.hub.tiny import save_backbone
from vital_jax.latent.loop import embed, empty_suffix, extend, prefill
from vital_jax.models.attention import Causal, attend
from vital_jax.models.backbone import Backbone, abstract_backbone
from vital_jax.models.families import read_config
from vital_jax.training import chips
from vital_jax.training.partition import flatten, unflatten

K = 4
MODELS = Path(__file__).resolve().parents[1] / "configs" / "models"
CELLS = {"8b": ((350, 1024, 1), (350, 1024, 4), (1000, 3584, 1), (1000, 3584, 4)), "tiny": ((40, 64, 2),)}  # (S, P, K)
MOST_ROWS = {"8b": 64, "tiny": 2}
SIDES = ("ours", "eager", "compiled")


def distance(got: Any, expected: Any) -> float:
    """The largest difference over all leaves, in units of the largest number of each expected leaf; infinite where one is not finite."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    wide = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    if not all(np.all(np.isfinite(a)) for a, _ in wide):
        return float("inf")
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in wide)


def attention_checks(B: int = 4, S: int = 512, N: int = 8, M: int = 2, H: int = 128) -> dict[str, tuple[float, float]]:
    """name -> (difference, allowed) of cuDNN attention and its gradients in bfloat16."""
    r = np.random.default_rng(0)
    half = [jnp.asarray(r.normal(size=(B, 1, S, n, H)), jnp.bfloat16) for n in (N, M, M)]
    lengths = jnp.asarray([S, S - 129, S // 2, 1][:B], jnp.int32)
    exists = (jnp.arange(S) < lengths[:, None])[:, None, :, None, None]

    def step(implementation):
        def scalar(q, k, v):
            out = attend(q, None, (k, v), Causal(lengths), implementation)
            return jnp.sum(jnp.where(exists, jnp.sin(3 * out.astype(jnp.float32)), 0)), out

        return jax.jit(jax.grad(scalar, argnums=(0, 1, 2), has_aux=True))

    with jax.default_matmul_precision("highest"):
        exact = step("xla")(*[x.astype(jnp.float32) for x in half])
    xla, cudnn = (step(name)(*half) for name in ("xla", "cudnn"))
    rubbish = step("cudnn")(*[jnp.where(exists, x, jnp.inf) for x in half])
    # Both round to eight bits in places of their own; a wrong mask or scale is off by a large part of the largest number.
    allowed = max(2 * distance(xla, exact), 2.0**-6)
    return {
        "cuDNN attention, forward": (distance(cudnn[1], exact[1]), allowed),
        "cuDNN attention, gradients": (distance(cudnn[0], exact[0]), allowed),
        "the same, infinities on padding": (distance(rubbish, cudnn), 2.0**-8),  # its backward adds in no fixed order
    }


def loop_checks(options: Any) -> dict[str, tuple[float, float]]:
    """name -> (difference, allowed) of loss and adapter gradients through the whole loop."""

    def gradient(dtype, attention, fused):
        model, shapes, batch = make(options, dtype, "full", attention)
        # The same numbers for every dtype: what bfloat16 can hold.
        base = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(dtype), draw(shapes["base"]))
        lora = draw(shapes["lora"], 1)
        return jax.jit(jax.value_and_grad(lambda lora, base: loss(model, base, lora, batch, K, fused)))(lora, base)

    with jax.default_matmul_precision("highest"):
        literal, fused = (gradient(jnp.float32, "xla", fused) for fused in (False, True))
    xla, cudnn = (gradient(jnp.bfloat16, attention, True) for attention in ("xla", "cudnn"))
    return {
        "loop, fused against literal, float32": (distance(fused, literal), 1e-4),
        # The distance of bfloat16 from float32 is the model's own at this precision; cuDNN may take twice as much.
        "training gradient, cuDNN, bfloat16": (distance(cudnn, literal), max(2 * distance(xla, literal), 2.0**-6)),
    }


def speed(options: Any) -> dict[str, str]:
    """Times as multiples of the prefix pass through XLA."""
    calls = {}
    for attention in ("xla", "cudnn"):
        model, shapes, batch = make(options, jnp.bfloat16, "full", attention)
        variables = {"params": draw(shapes["base"]), "lora": draw(shapes["lora"], 1)}
        start = jax.jit(
            lambda variables, model=model, batch=batch: prefill(
                model, variables, embed(model, variables, batch), batch["next_position"]
            )
        )
        train = jax.jit(
            jax.value_and_grad(
                lambda lora, base, model=model, batch=batch: loss(model, base, lora, batch, K), argnums=0
            )
        )
        calls[f"prefix pass, {attention}"] = lambda start=start, variables=variables: start(variables)
        calls[f"training step, K={K}, {attention}"] = lambda train=train, v=variables: train(v["lora"], v["params"])
    z0, prompt = start(variables)
    step = jax.jit(
        lambda variables, prompt, z0: extend(
            model, variables, prompt, empty_suffix(prompt, 1, K), z0[:, None, None],
            prompt.next_position[:, None, None], jnp.ones((len(z0), 1, K), bool), 0,
        )
    )  # fmt: skip
    calls["one latent step"] = lambda: step(variables, prompt, z0)
    return alternate(calls, options.repeats)


def small_models(folder: Path) -> tuple[Path, Path]:
    """Configurations of the 8B's kind in small: (backbone, text decoder)."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300}
    backbone, text = (json.loads((MODELS / name / "config.json").read_text()) for name in ("qwen3_vl_8b", "qwen3_1_7b"))
    backbone["text_config"] |= heads | {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96}
    backbone["text_config"]["rope_scaling"]["mrope_section"] = [4, 2, 2]
    backbone["vision_config"] |= {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "out_hidden_size": 64,
    }
    backbone["vision_config"] |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    kinds = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    backbone |= {kind: 290 + i for i, kind in enumerate(kinds)}
    text |= heads | {"hidden_size": 40, "num_hidden_layers": 2, "intermediate_size": 64}
    for name, config in (("backbone", backbone), ("text", text)):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder / "backbone", folder / "text"


def redrawn(folder: Path) -> Path:
    """Weights for `folder`'s configuration with nothing at its neutral start."""
    shapes = abstract_backbone(Backbone(read_config(folder)))
    r = np.random.default_rng(0)

    def leaf(path: str, shape: tuple[int, ...]) -> np.ndarray:
        centre = float(path.endswith("scale"))
        spread = 0.3 if path.endswith(("scale", "bias")) else 1.0 if "embed" in path else shape[-1] ** -0.5
        return jnp.asarray(centre + spread * r.standard_normal(shape), jnp.float32)

    save_backbone(folder, unflatten({path: leaf(path, x.shape) for path, x in flatten(shapes).items()}))
    return folder


def parity_checks(folder: Path) -> dict[str, tuple[float, float]]:
    """name -> (error, allowed) of the backbone against transformers in a finer type, both on this machine's accelerator."""
    found, place = {}, "cuda" if jax.default_backend() == "gpu" else "cpu"
    for dtype in ("float32", "bfloat16"):
        report = parity.check(folder, dtype, device=place)
        parts = {"logits": report["logits"], "vision": report["vision"]}
        parts |= {f"deepstack {i}": part for i, part in enumerate(report["deepstack"])}
        for name, part in parts.items():
            found[f"transformers, {dtype}, {name}"] = (part["error"], part["tolerance"])
    return found


def cell(
    side: str, folders: tuple[Path, Path], S: int, P: int, steps: int, rows: int, extra: list[str]
) -> dict[str, Any]:
    """One measurement of sft_step.py in a process of its own: what it prints, {"oom": True}, or {"error": its last line}."""
    sizes = {"prefix": S, "patches": P, "steps": steps, "rows": rows}
    command = [
        sys.executable,
        str(Path(__file__).with_name("sft_step.py")),
        side,
        "--backbone",
        str(folders[0]),
        "--text",
        str(folders[1]),
    ]
    command += [word for name, size in sizes.items() for word in (f"--{name}", str(size))] + extra
    # This process has some of the memory; jax would take three quarters of all of it besides.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def sft(kind: str, folders: tuple[Path, Path], extra: list[str]) -> None:
    """Prints the table of the training step: every cell and side at one row, and doubled until memory ends."""
    peak = chips.peak(jax.devices()[0].device_kind)
    print("\n| S | K | side | rows | samples/s | peak GiB | MFU | |")
    print("|---|---|---|---|---|---|---|---|")
    for S, P, steps in CELLS[kind]:
        for side in SIDES:
            rows = 1
            while rows <= MOST_ROWS[kind]:
                found = cell(side, folders, S, P, steps, rows, extra)
                if "seconds" not in found:
                    print(
                        f"| {S} | {steps} | {side} | {rows} | | | | {found.get('error', 'out of memory')} |", flush=True
                    )
                    break
                gib = f"{found['peak'] / 2**30:.1f}" if found["peak"] else "not told"
                mfu = f"{found['flops'] / found['seconds'] / peak:.1%}" if peak else "chip not known"
                print(
                    f"| {S} | {steps} | {side} | {rows} | {rows / found['seconds']:.3f} | {gib} | {mfu} | |", flush=True
                )
                rows *= 2


def main() -> int:
    """Prints the tables."""
    extra = {"sft": ("8b", "0", *CELLS), "parity": None}
    options = arguments(__doc__, extra, ("anywhere",), width=2048, layers=8, prefix=1024, rows=4, head=128, vocab=32768)
    gpu = jax.default_backend() == "gpu"
    if not gpu and not options.anywhere:
        print(
            f"no NVIDIA GPU: jax runs on {jax.default_backend()} here. pip install 'vital_jax[cuda]' on a machine that has one"
        )
        return 2
    print(device())
    print(
        f"D={options.width} L={options.layers} S={options.prefix} B={options.rows} T={options.answer} H={options.head} K={K}\n"
    )
    print("| check | difference | allowed | |")
    print("|---|---|---|---|")
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        small = small_models(Path(scratch))
        checks = {**attention_checks(), **loop_checks(options)} if gpu else {}
        checks |= parity_checks(Path(options.parity) if options.parity else redrawn(small[0]))
        for name, (difference, allowed) in checks.items():
            failed |= not difference <= allowed
            print(f"| {name} | {difference:.1e} | {allowed:.1e} | {'ok' if difference <= allowed else 'FAILED'} |")
        if gpu:
            print(f"\nmedian (quartiles) of {options.repeats} alternating rounds, bfloat16\n")
            print("| what | time against the first |")
            print("|---|---|")
            for name, ratio in speed(options).items():
                print(f"| {name} | {ratio} |")
        if options.sft != "0":
            folders = (MODELS / "qwen3_vl_8b", MODELS / "qwen3_1_7b") if options.sft == "8b" else small
            tiny = ["--answer", "5", "--chain", "6", "--rank", "4", "--repeats", "2"]
            sft(options.sft, folders, tiny if options.sft == "tiny" else [])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
