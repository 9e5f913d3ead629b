"""The model card's own code, run as it stands in an exported folder's README.md, for every question of a job.

    python tests/carded.py JOB.json OUT.json

JOB holds `folders` (name: [exported folder, its base]), `asked` (batches of [question, file, more files ...]) and `steps`; OUT is made:
name: {K: [[answer, ...] of each batch]}. Needs torch, transformers, peft and torchvision, and nothing of vital_jax:
tests/hub/test_export_card.py runs it under several versions of transformers.
"""

import json
import re
import sys
from pathlib import Path

import torch

KEPT = []  # an operator lives as long as the library that defines it


def torchvision() -> None:
    """Makes torchvision importable: one built for CUDA lacks two operators beside a CPU's torch, and nothing here calls them."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        KEPT.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            KEPT[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def code(folder: str, base: str, question: str, image: str) -> str:
    """The card's code with the places filled in that it leaves to its reader."""
    (found,) = re.findall(r"```python\n(.*?)```", Path(folder, "README.md").read_text(encoding="utf-8"), re.DOTALL)
    for place, value in (("FOLDER", folder), ("BASE", base), ("QUESTION", question), ("FILE.png", image)):
        found = found.replace(json.dumps(place), json.dumps(value))
    return found


def main(job: str, out: str) -> None:
    """Asks everything."""
    torchvision()
    torch.set_num_threads(1)  # models this small lose time to threads
    told, found = json.loads(Path(job).read_text()), {}
    for name, (folder, base) in told["folders"].items():
        card = {}
        exec(code(folder, base, *told["asked"][0][0][:2]), card)
        found[name] = {
            K: [card["ask"](*map(tuple, batch), latent_steps=K) for batch in told["asked"]] for K in told["steps"]
        }
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
