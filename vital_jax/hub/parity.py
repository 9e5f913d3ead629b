"""Does our backbone compute what transformers computes, on this checkpoint? Vision features, deepstack features, rope indices, logits.

The prompts are made here from random tokens and pixels, so no tokenizer is needed: one with two images of unlike sizes between words, one
shorter with a single image. The reference reads them one at a time and unpadded; ours are one padded batch with spare budget. The sides run
one after the other, the reference in its own process, and only arrays on disk pass between them.

How far apart two right answers may be depends on the checkpoint. So the reference is run again in a finer type, which says how much of its
own result is rounding, and ours may be a few times as far from the finer result as the reference is.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vital_jax.hub.load import load_backbone
from vital_jax.hub.safetensors import read_folder
from vital_jax.models.attention import Causal
from vital_jax.models.backbone import Backbone
from vital_jax.models.config import BackboneConfig
from vital_jax.models.families import family_of, read_config

EXACT = {"float32": "float64", "bfloat16": "float32"}  # what is taken for exact beside a type
# How many times the reference's own error ours may be: the largest, which a single number decides, and the root mean square, which all do.
# In 24 comparisons of the small pretrained backbone's the one was 0.5 to 1.4 (bfloat16: 0.6 to 3.4) and the other 0.6 to 1.0 (0.8 to 1.6).
_TIMES = {"": 4.0, "rms_": 2.0}
_PROMPTS = (  # words, then images as (rows, columns) of patches, in turn
    (5, (6, 8), 4, (4, 14), 7),
    (3, (10, 4), 6),
)
Case = dict[str, np.ndarray]


def make_case(config: BackboneConfig, seed: int = 0) -> Case:
    """Random prompts: `rows`, and for each row ids [S], grids [images, 3], patches [P, patch_width]."""
    r = np.random.default_rng(seed)
    special = min(config.image_token_id, config.vision_start_token_id, config.vision_end_token_id)
    merge = config.vision.merge
    case: Case = {"rows": np.asarray(len(_PROMPTS))}
    for row, parts in enumerate(_PROMPTS):
        ids, grids = [], []
        for part in parts:
            if isinstance(part, int):
                ids += r.integers(0, special, part).tolist()
                continue
            pads = part[0] * part[1] // merge**2
            ids += [config.vision_start_token_id, *[config.image_token_id] * pads, config.vision_end_token_id]
            grids.append((1, *part))
        count = sum(h * w for _, h, w in grids)
        case[f"ids_{row}"] = np.asarray(ids, np.int32)
        case[f"grids_{row}"] = np.asarray(grids, np.int32)
        case[f"patches_{row}"] = r.uniform(-1, 1, (count, config.vision.patch_width)).astype(np.float32)
    return case


def make_batch(case: Case, config: BackboneConfig, spare: int = 8) -> dict[str, np.ndarray]:
    """The prompts as one padded batch (pipeline/batch.py), with `spare` columns and patches more than the longest needs."""
    rows = range(int(case["rows"]))
    merge, geometry = config.vision.merge, family_of(config).geometry(config)
    S = max(len(case[f"ids_{row}"]) for row in rows) + spare
    P = max(len(case[f"patches_{row}"]) for row in rows) + spare * merge**2
    made = []
    for row in rows:
        ids, patches = case[f"ids_{row}"], case[f"patches_{row}"]
        grids = [tuple(int(x) for x in grid) for grid in case[f"grids_{row}"]]
        positions, following = geometry.positions(ids, grids)
        target = np.flatnonzero(ids == config.image_token_id)
        made.append(
            {
                "tokens": np.pad(ids, (0, S - len(ids))),
                "lengths": np.int32(len(ids)),
                "positions": np.pad(positions, ((0, 0), (0, S - len(ids)))),
                "next_position": np.int32(following),
                "patches": np.pad(patches, ((0, P - len(patches)), (0, 0))),
                "patch_target": np.pad(target, (0, P // merge**2 - len(target)), constant_values=S).astype(np.int32),
                **geometry.plan(grids, P, f"prompt {row}")._asdict(),
            }
        )
    return {name: np.stack([row[name] for row in made]) for name in made[0]}


def run_ours(model: Backbone, params: dict[str, Any], case: Case) -> dict[str, np.ndarray]:
    """What `compare` compares, from our model: per row vision, deepstack, positions and logits, padding cut away."""
    batch = make_batch(case, model.config)

    @jax.jit
    def forward(params, batch):
        variables = {"params": params}
        vision, deepstack = model.apply(variables, batch, method="encode_images")
        prefix = model.apply(variables, batch, method="embed")
        x, positions = prefix.x[:, None], prefix.positions[:, :, None]
        h, *_ = model.apply(
            variables, x, positions, Causal(prefix.lengths), deepstack=prefix.deepstack, method="decode"
        )
        return vision, deepstack, model.apply(variables, h[:, 0], method="logits")

    with jax.default_matmul_precision("highest"):
        vision, deepstack, logits = (np.asarray(x, np.float64) for x in forward(params, batch))
    out = {}
    for row in range(int(case["rows"])):
        words, tokens = len(case[f"ids_{row}"]), len(case[f"patches_{row}"]) // model.config.vision.merge**2
        out[f"vision_{row}"] = vision[row, :tokens]
        out |= {f"deepstack_{i}_{row}": feature[row, :tokens] for i, feature in enumerate(deepstack)}
        out[f"positions_{row}"] = batch["positions"][row, :, :words]
        out[f"logits_{row}"] = logits[row, :words]
    return out


def run_reference(folder: str | Path, case: Case, dtype: str = "float32", device: str = "cpu") -> dict[str, np.ndarray]:
    """The same from transformers on `device` (as torch names it), in a process of its own.

    Raises: RuntimeError with its last line where it fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        paths = Path(scratch) / "case.npz", Path(scratch) / "reference.npz"
        np.savez(paths[0], **case)
        command = [
            sys.executable,
            "-m",
            "vital_jax.hub.reference",
            str(paths[0]),
            str(folder),
            str(paths[1]),
            dtype,
            device,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise RuntimeError(f"the reference failed: {lines[-1]}")
        with np.load(paths[1], allow_pickle=False) as held:
            return dict(held)


def _apart(one: Case, other: Case, kind: str) -> dict[str, float]:
    """The largest difference of two sides over everything of a kind, and the root of the mean square."""
    names = [name for name in other if name.rpartition("_")[0] == kind]
    apart = np.abs(np.concatenate([(one[name] - other[name]).ravel() for name in names]))
    return {"": float(apart.max()), "rms_": float(np.sqrt(np.mean(apart**2)))}


def compare(ours: Case, reference: Case, exact: Case, dtype: str = "float32") -> dict[str, Any]:
    """One report: of each kind over all rows the errors of both sides, the tolerance of ours, and whether everything passed.

    Args: reference, exact: of `run_reference` in `dtype` and in what `EXACT` has for it.
    """

    nothing = {name: np.zeros_like(array) for name, array in exact.items()}

    def entry(kind: str) -> dict[str, Any]:
        size, error, own = (
            _apart(side, other, kind) for side, other in ((exact, nothing), (ours, exact), (reference, exact))
        )
        found: dict[str, Any] = {
            "max_abs_diff": _apart(ours, reference, kind)[""],
            "max_abs_value": size[""],
            "passed": True,
        }
        for measure, times in _TIMES.items():
            # A reference that happens to be exact still rounds its numbers.
            allowed = times * max(own[measure], size[measure] * float(jnp.finfo(dtype).eps) / 2)
            found |= {
                f"{measure}error": error[measure],
                f"{measure}reference_error": own[measure],
                f"{measure}tolerance": allowed,
            }
            found["passed"] &= bool(np.isfinite(allowed) and error[measure] <= allowed)
        return found

    if not set(ours) == set(reference) == set(exact):
        raise ValueError(f"the two sides give other things: {sorted(set(ours) ^ set(reference))}")
    kinds = sorted({name.rpartition("_")[0] for name in reference if name.startswith("deepstack")})
    equal = all(np.array_equal(ours[name], reference[name]) for name in reference if name.startswith("positions"))
    report = {
        "logits": entry("logits"),
        "vision": entry("vision"),
        "deepstack": [entry(kind) for kind in kinds],
        "rope": {"equal": bool(equal)},
    }
    parts = [report["logits"], report["vision"], *report["deepstack"]]
    passed = bool(equal and all(part["passed"] for part in parts))
    return {**report, "dtype": dtype, "exact": EXACT[dtype], "passed": passed}


def memory_plan(folder: str | Path, dtype: str) -> str:
    """What each side will hold, in words. Reads headers only."""
    numbers = sum(int(np.prod(tensor.shape)) for tensor in read_folder(folder).values())
    held, finer = (numbers * jnp.finfo(kind).bits / 8 / 2**30 for kind in (dtype, EXACT[dtype]))
    return (
        f"{numbers / 1e6:,.1f} M parameters: {held:,.2f} GiB for transformers in {dtype}, then {finer:,.2f} GiB in {EXACT[dtype]}, "
        f"then {held:,.2f} GiB for ours"
    )


def check(folder: str | Path, dtype: str = "float32", seed: int = 0, device: str = "cpu") -> dict[str, Any]:
    """The whole comparison on a local folder.

    Args:
      folder: a backbone's folder. dtype: float32 | bfloat16, what both sides keep and compute in. seed: of the prompts.
      device: of the reference; ours computes where jax does.
    Returns: {"logits": {...}, "vision": {...}, "deepstack": [{...}], "rope": {"equal": b}, "dtype", "exact", "passed"}; see `compare`.
    Raises: FileNotFoundError or ValueError naming what is wrong with the folder; RuntimeError where the reference fails.
    """
    if dtype not in EXACT:
        raise ValueError(f"dtype {dtype!r}: use one of {', '.join(EXACT)}")
    case = make_case(read_config(folder), seed)
    reference, exact = (run_reference(folder, case, kind, device) for kind in (dtype, EXACT[dtype]))
    model, params = load_backbone(folder, param_dtype=jnp.dtype(dtype), dtype=jnp.dtype(dtype), attention="xla")
    return compare(run_ours(model, params, case), reference, exact, dtype)
