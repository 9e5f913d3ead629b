"""The other side of the parity check: transformers on torch, run in a process of its own so that its memory is gone before ours is taken.

    python -m vital_jax.hub.reference CASE.npz FOLDER OUT.npz DTYPE [DEVICE]

Reads prompts from CASE.npz, one after the other and unpadded, and writes what `vital_jax.hub.parity` compares.
"""

import sys
from contextlib import nullcontext
from unittest import mock

import numpy as np


def main(case_path: str, folder: str, out_path: str, dtype: str, device: str = "cpu") -> None:
    """Runs the reference. Raises SystemExit that names the extra where torch is not installed."""
    try:
        import torch
        from transformers import AutoModelForImageTextToText
    except ImportError as error:
        raise SystemExit(
            f"the reference needs torch ({error.name} not found): pip install 'vital_jax[test]'"
        ) from error

    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # the patch embedding is a convolution; products are exact by default
    with np.load(case_path, allow_pickle=False) as held:
        case = dict(held)
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False
    )
    model = model.to(device).eval()
    out = {}
    # Norms, softmax and rope are computed in float32 whatever the model's type; a result to measure rounding by must not round there.
    finer = {"float32": torch.float64, "float": torch.float64} if model.dtype == torch.float64 else {}
    with torch.no_grad(), mock.patch.multiple(torch, **finer) if finer else nullcontext():
        for row in range(int(case["rows"])):
            ids = torch.from_numpy(case[f"ids_{row}"]).long()[None].to(device)
            grids = torch.from_numpy(case[f"grids_{row}"]).long().to(device)
            pixels = torch.from_numpy(case[f"patches_{row}"]).to(device, model.dtype)
            types = (ids == model.config.image_token_id).int()
            inputs = dict(input_ids=ids, image_grid_thw=grids, mm_token_type_ids=types)
            vision = model.model.visual(pixels, grid_thw=grids, return_dict=True)
            out[f"vision_{row}"] = vision.pooler_output.double().cpu().numpy()
            for i, feature in enumerate(vision.deepstack_features):
                out[f"deepstack_{i}_{row}"] = feature.double().cpu().numpy()
            positions, _ = model.model.get_rope_index(**inputs)
            out[f"positions_{row}"] = positions[:, 0].cpu().numpy()
            out[f"logits_{row}"] = model(pixel_values=pixels, **inputs).logits[0].double().cpu().numpy()
    np.savez(out_path, **out)


if __name__ == "__main__":
    main(*sys.argv[1:])
