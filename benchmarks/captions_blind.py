"""Does a captioning backbone look at the image? Its loss on held-out captions with the right images and with exchanged ones.

    python benchmarks/captions_blind.py [FOLDER]

after `train.py --config=configs/pretrain.py`, whose validation split it reads; FOLDER is the backbone (default: the shipped one).
"""

import argparse
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np

from configs import pretrain
from vital_jax.hub.load import load_backbone
from vital_jax.methods.base import losses
from vital_jax.pipeline.batch import collate
from vital_jax.run import plan, setup

ROWS = 32


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("vital_jax/demo/weights/backbone"))
    config = pretrain.get_config()
    config.model.folder = str(parser.parse_args().folder)
    plan.resolve(config)
    method = setup.make_method(config, None)
    params = {"base": load_backbone(config.model.folder, param_dtype=np.float32)[1]}
    feed = plan.open_feed(config, "val")
    phase, layout = setup.phases_of(config)[0], setup.layouts_of(config, method, None, feed.encoder.prompter)[0]
    make, index = feed.maker(layout), feed.source.index

    @jax.jit
    def score(batch):
        norms = method.normalizers(batch, phase, layout.suffix)
        values, metrics, _ = losses(method, params, batch, norms, phase, layout.suffix)
        return values["task"], metrics["answer_accuracy"]

    found = defaultdict(list)
    for start in range(0, len(index) - ROWS + 1, ROWS):
        numbers = range(start, start + ROWS)
        batch = collate([make(i, 0) for i in numbers])
        # Two captions of an image stand side by side: two places on is another image.
        other, rows = np.arange(ROWS), defaultdict(list)
        for row, i in enumerate(numbers):
            rows[index[i]["metadata"]["modality"]].append(row)
        for same in rows.values():
            other[same] = np.roll(same, 2)
        found["right images"].append(score(batch))
        found["exchanged within the modality"].append(score({**batch, "patches": batch["patches"][other]}))
    for name, values in found.items():
        loss, right = np.mean(values, axis=0)
        print(f"{name}: loss {loss:.3f}, tokens right {right:.3f} (N = {ROWS * len(values)})")


if __name__ == "__main__":
    main()
