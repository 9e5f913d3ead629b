"""The other side of the export's round trip: transformers and PEFT on the folders that `vital export` wrote.

    python tests/exported.py FOLDER BASE CASE.npz OUT.npz

FOLDER holds merged weights and adapter/, BASE is the model that was trained on, CASE the prompts. Needs numpy, torch, transformers and
peft, and nothing of vital_jax: tests/export_versions.py runs it under several versions of transformers, the tests import it.
"""

import sys

import numpy as np
import torch
import transformers

STEPS = range(5)
TOKENS = 6
NEVER = 10**6  # a token outside every vocabulary: no answer ends


def model(folder, **options):
    """A Qwen3-VL folder in float32, in evaluation mode."""
    kind = transformers.Qwen3VLForConditionalGeneration
    return kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **options).eval()


def inputs(case, image_token_id: int, rows=None) -> dict:
    """The prompts (see vital_jax.hub.parity.make_case) as one batch padded on the left, as a processor would make it."""
    rows = range(int(case["rows"])) if rows is None else rows
    longest = max(len(case[f"ids_{row}"]) for row in rows)
    ids = np.stack([np.pad(case[f"ids_{row}"], (longest - len(case[f"ids_{row}"]), 0)) for row in rows])
    mask = np.stack([np.arange(longest) >= longest - len(case[f"ids_{row}"]) for row in rows])
    made = {"input_ids": torch.from_numpy(ids).long(), "attention_mask": torch.from_numpy(mask).long()}
    grids = [case[f"grids_{row}"] for row in rows if len(case[f"grids_{row}"])]
    if grids:
        made["image_grid_thw"] = torch.from_numpy(np.concatenate(grids)).long()
        made["pixel_values"] = torch.from_numpy(np.concatenate([case[f"patches_{row}"] for row in rows]))
        if int(transformers.__version__.split(".")[0]) >= 5:  # 4.57 neither needs nor takes it
            made["mm_token_type_ids"] = (made["input_ids"] == image_token_id).int() * made["attention_mask"].int()
    return made


def answers(model, folder, given: dict, steps: int, **options) -> dict[str, np.ndarray]:
    """Greedy answers after `steps` latents: tokens [B, T], logits [B, T, V] and latents [B, K, D]."""
    told = dict(max_new_tokens=TOKENS, do_sample=False, pad_token_id=0, eos_token_id=NEVER, **options)
    with torch.no_grad():
        found = model.generate(
            **given,
            custom_generate=str(folder),
            trust_remote_code=True,
            latent_steps=steps,
            return_latents=True,
            return_dict_in_generate=True,
            output_logits=True,
            **told,
        )
    return {
        "tokens": found.sequences[:, given["input_ids"].shape[1] :].numpy(),
        "logits": torch.stack(found.logits, 1).numpy(),
        "latents": found.latents.numpy(),
    }


def _named(found: dict, form: str, steps: int) -> dict:
    return {f"{form}_{steps}_{name}": array for name, array in found.items()}


def main(folder: str, base: str, case_path: str, out: str) -> None:
    """Writes what each form of the export answers, and how far their weights and logits are apart."""
    from peft import PeftModel

    torch.set_num_threads(1)  # models this small lose time to threads
    with np.load(case_path, allow_pickle=False) as held:
        case = dict(held)
    merged = model(folder)
    given = inputs(case, merged.config.image_token_id)
    config = transformers.AutoConfig.from_pretrained(f"{folder}/adapter")
    adapted = PeftModel.from_pretrained(model(base, config=config), f"{folder}/adapter").eval()
    found = {}
    for steps in STEPS:
        found |= _named(answers(merged, folder, given, steps), "merged", steps)
        found |= _named(answers(adapted, f"{folder}/adapter", given, steps), "peft", steps)
    with torch.no_grad():
        found["plain"] = merged(**given).logits.numpy()
        found["logits_apart"] = (merged(**given).logits - adapted(**given).logits).abs().max().numpy()
    ours, theirs = merged.state_dict(), adapted.merge_and_unload().state_dict()
    if ours.keys() != theirs.keys():
        raise SystemExit(f"merged and unloaded differ in names: {sorted(ours.keys() ^ theirs.keys())[:3]}")
    found["weights_apart"] = np.asarray(max(float((ours[name] - theirs[name]).abs().max()) for name in ours))
    np.savez(out, transformers=transformers.__version__, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
