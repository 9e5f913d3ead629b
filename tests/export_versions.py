"""The export's round trip under several versions of transformers: JAX in this process, transformers and PEFT each in its own environment.

    PYTHONPATH=. python tests/export_versions.py --python PATH_TO_PYTHON [--python ...] [--run RUN] [--work FOLDER]

Exports two tiny redrawn models (untied and tied head) and the quickstart's backbone with drawn adapters, or a trained RUN, in both forms
and in float32; asks each four prompts of unequal lengths and images with K = 0..4 latents; compares tokens, logits, latents, the two forms,
and the merged weights with PEFT's own. Without --python it takes the one it runs under. An environment needs numpy, torch, transformers
and peft:

    python -m venv v4 && v4/bin/pip install numpy torch peft transformers==4.57.6
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import exported
import numpy as np
import trained

import vital_jax
from vital_jax.latent.loop import variables_of
from vital_jax.pipeline.images import ImageConfig, patchify
from vital_jax.pipeline.prompts import Prompter

TOLERANCE = 1e-4
BACKBONE = Path(vital_jax.__file__).parent / "demo" / "weights" / "backbone"
QUESTIONS = (
    ("Is the kidney brighter or darker than the surroundings in this CT image?", (96, 64)),
    ("What is shown in the upper left?", (64, 64)),
    ("Left, center or right: where in the image is the polyp?", (128, 96)),
    ("Is a nodule visible, yes or no?", (64, 128)),
)


def older(folder: Path) -> None:
    """Rewrites a configuration of 5.x as 4.57 writes it, which both read."""
    path = folder / "config.json"
    table = json.loads(path.read_text())
    scaling = table["text_config"].pop("rope_parameters")
    table["text_config"] |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    table["vision_config"].pop("rope_parameters", None)
    path.write_text(json.dumps(table))


def questions(folder: Path, max_pixels: int) -> dict[str, np.ndarray]:
    """A case of real prompts about drawn noise."""
    from PIL import Image

    prompter, config, case = Prompter(folder), ImageConfig.from_folder(folder, max_pixels), {}
    for row, (question, (height, width)) in enumerate(QUESTIONS):
        noise = np.random.default_rng(row).integers(0, 256, (height, width, 3), np.uint8)
        patches, grid = patchify(Image.fromarray(noise), config)
        case[f"ids_{row}"] = prompter.encode(question, [grid])
        case[f"grids_{row}"], case[f"patches_{row}"] = np.asarray([grid], np.int32), patches
    return {"rows": np.asarray(len(QUESTIONS)), **case}


def subjects(work: Path, run: Path | None):
    """(name, run's folder, base, model, parameters, case) of everything to be exported."""
    if run is not None:
        loaded = vital_jax.load(run)
        base, pixels = loaded.run.base, loaded.run.config.data.max_pixels
        yield run.name, run, base, loaded.method.model, loaded.params, questions(base, pixels)
        return
    for name in ("gqa4_untied", "gqa2_tied"):
        base = trained.save_base(name, work / name)
        older(base)
        made = trained.write_run(work / f"run_{name}", base)
        yield name, made.folder, base, made.method.model, made.params, trained.make_case(made.method.model.config)
    made = trained.write_run(work / "run_quickstart", BACKBONE)
    yield "quickstart", made.folder, BACKBONE, made.method.model, made.params, questions(BACKBONE, 128 * 128)


def compare(ours: dict, theirs: dict) -> dict[str, float]:
    """Largest differences over all K and both forms; `tokens` counts those that differ."""
    worst = dict.fromkeys(("tokens", "logits", "latents", "log_probs"), 0.0)
    for K, found in ours.items():
        for form in ("merged", "peft"):
            tokens, logits, latents = (theirs[f"{form}_{K}_{name}"] for name in ("tokens", "logits", "latents"))
            shifted = logits - logits.max(-1, keepdims=True)
            log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
            chosen = np.take_along_axis(log_probs, found["tokens"][..., None], -1)[..., 0]
            apart = {
                "tokens": np.sum(tokens != found["tokens"]),
                "logits": np.abs(logits[:, 0] - found["logits"]).max(),
                "latents": np.abs(latents - found["latents"]).max(initial=0.0),
                "log_probs": np.abs(chosen - found["log_probs"]).max(),
            }
            worst = {name: max(worst[name], float(value)) for name, value in apart.items()}
    return worst | {name: float(theirs[name]) for name in ("logits_apart", "weights_apart")}


def main() -> int:
    """Prints a line per model and version; 1 where something is further apart than `TOLERANCE`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", help="an environment's interpreter; give it again for several")
    parser.add_argument("--run", type=Path, help="a trained run's folder, in place of drawn ones")
    parser.add_argument("--work", type=Path, help="where to write; by default a folder that is removed")
    arguments = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        for name, run, base, model, params, case in subjects(work, arguments.run):
            quiet = dict(explain=False, overwrite=True, say=lambda line: None)
            out = trained.export_run(run, work / f"out_{name}", "both", dtype="float32", **quiet)
            np.savez(work / "case.npz", **case)
            ours = trained.answers(model, variables_of(params), case, exported.TOKENS, exported.STEPS)
            for python in arguments.python or [sys.executable]:
                paths = [out, base, work / "case.npz", work / "found.npz"]
                command = [python, exported.__file__, *map(str, paths)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{python} failed on {name}:\n{done.stderr[-2000:]}")
                with np.load(work / "found.npz") as held:
                    theirs = dict(held)
                worst = compare(ours, theirs)
                good = not worst["tokens"] and all(value <= TOLERANCE for value in worst.values())
                failed |= not good
                verdict = "agree" if good else "DIFFER"
                shown = ", ".join(f"{key} {value:.1e}" for key, value in worst.items() if key != "tokens")
                where = f"{name}, transformers {theirs['transformers']}"
                print(f"{where}: {worst['tokens']:.0f} tokens differ, {shown}: {verdict}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
