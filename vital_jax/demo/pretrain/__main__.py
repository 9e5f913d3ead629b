"""Makes the small pretrained folders: `python -m vital_jax.demo.pretrain RUN OUT [PART ...]`.

It comes after `train.py --config=configs/pretrain.py`.
RUN is that run's folder; its backbone goes to OUT as it is. The text decoder learns sentences, and the SigLIP towers image-sentence pairs,
of boards of the same seed. Everything is stored in bfloat16. Parts: backbone, text_decoder, siglip, siglip_low (half the image side).
"""

import argparse
import shutil
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

from vital_jax.demo.boards import draw_board
from vital_jax.demo.flow import flow_records
from vital_jax.demo.pretrain.siglip import train_siglip
from vital_jax.demo.pretrain.text import train_text
from vital_jax.hub import tiny
from vital_jax.hub.load import load_backbone, load_siglip, load_text_decoder
from vital_jax.pipeline.records import new_folder
from vital_jax.training.checkpoint import init_from

SEED = 1000  # as configs/pretrain.py
STORED = ml_dtypes.bfloat16
TOWERS = {"siglip": 112, "siglip_low": 56}


def save_trained_backbone(run: Path, folder: Path) -> None:
    """The backbone of a run that trained all of it, as a folder. Raises: FileNotFoundError without a checkpoint."""
    start = run / "models/backbone"
    trained, _ = init_from(run / "checkpoints", {"base": load_backbone(start, param_dtype=np.float32)[1]})
    shutil.copytree(start, folder, dirs_exist_ok=True)
    tiny.save_backbone(folder, trained["base"], STORED)


def _chains(count: int) -> list[str]:
    """Distinct reasoning sentences about `count` boards."""
    records = flow_records(count, SEED, per_board=4, looks=6)
    return sorted({sentence for record in records for sentence in record.chain})


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m vital_jax.demo.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of the finished run of configs/pretrain.py")
    parser.add_argument("out", type=Path, help="where the folders go")
    parts = ("backbone", "text_decoder", *TOWERS)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"some of {', '.join(parts)}; all of them by default")
    parser.add_argument("--images", type=int, default=3000, help="boards that the towers learn from")
    parser.add_argument("--steps", type=int, default=600, help="of each training")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.parts) - set(parts):
        parser.error(f"unknown part {', '.join(sorted(unknown))}: use some of {', '.join(parts)}")
    words = arguments.run / "models/backbone"  # its tokenizer serves all
    for part in arguments.parts or parts:
        if (arguments.out / part).exists():
            parser.error(f"{arguments.out / part} exists: remove it, or name another OUT")
        with new_folder(arguments.out / part) as folder:
            if part == "backbone":
                save_trained_backbone(arguments.run, folder)
            elif part == "text_decoder":
                tiny.write_text_decoder(folder, words)
                train_text(folder, _chains(arguments.images // 4), arguments.steps)
                tiny.save_text_decoder(folder, load_text_decoder(folder)[1], STORED)
            else:
                tiny.write_siglip(folder, image=TOWERS[part])
                train_siglip(
                    folder, words, (draw_board(SEED, index) for index in range(arguments.images)), arguments.steps
                )
                tiny.save_siglip(folder, load_siglip(folder)[1], STORED)
        size = (arguments.out / part / "model.safetensors").stat().st_size
        print(f"{arguments.out / part}: {size / 2**20:.2f} MiB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
