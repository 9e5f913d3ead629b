"""Peak memory of `vital export` against the size of what it exports: a drawn checkpoint of the published layout, scaled by --layers.

    PYTHONPATH=.:tests python benchmarks/export_memory.py [--layers 16] [--shard-mib 256] [--train-base]

Weights are drawn tensor by tensor, so that making them takes no more memory than exporting them. The export runs in a process of its own;
its peak is the operating system's own count of resident memory, and what the imports alone take is given beside it. With --train-base the
checkpoint holds a stacked leaf of the base too, which is read whole.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np


def write_base(folder: Path, layers: int) -> None:
    """A Qwen3-VL of width 2048 with a small tower, bfloat16."""
    import ml_dtypes

    from vital_jax.hub import tiny
    from vital_jax.hub.writing import Pending, shards, write_files
    from vital_jax.models.backbone import Backbone, abstract_backbone
    from vital_jax.models.families import backbone_entries, read_config
    from vital_jax.training.partition import flatten

    tiny.write_backbone(folder, ["a"], width=64, layers=2, vocab=300)
    (folder / "model.safetensors").unlink()
    table = json.loads((folder / "config.json").read_text())
    table["text_config"] |= dict(
        hidden_size=2048, num_hidden_layers=layers, num_attention_heads=16, num_key_value_heads=8
    )
    table["text_config"] |= dict(head_dim=128, intermediate_size=6144, vocab_size=32_768)
    table["text_config"]["rope_scaling"]["mrope_section"] = [24, 20, 20]
    table["vision_config"]["out_hidden_size"] = 2048
    (folder / "config.json").write_text(json.dumps(table))
    config = read_config(folder)
    leaves, pending = flatten(abstract_backbone(Backbone(config))), {}
    for entry in backbone_entries(config):
        shape = leaves[entry.path].shape[int(entry.stacked) :]
        for name in entry.names:
            draw = partial(np.random.default_rng(len(pending)).standard_normal, shape, np.float32)
            pending[name] = Pending(shape, ml_dtypes.bfloat16, draw)
    write_files(folder, shards(pending, 256 << 20), lambda line: None)


def write_run(folder: Path, base: Path, train_base: bool) -> None:
    """Rank-64 adapters, and with `train_base` one stacked leaf of the base, as a checkpoint."""
    import jax
    import trained
    from ml_collections import ConfigDict

    from configs import vital as recipe
    from vital_jax.hub.load import fingerprint
    from vital_jax.models.config import LoraConfig
    from vital_jax.models.families import read_config
    from vital_jax.models.lora import init_lora
    from vital_jax.run import setup
    from vital_jax.training.checkpoint import Checkpoints, make_meta
    from vital_jax.training.config import resolved

    config, decoder = recipe.get_config(), read_config(base).decoder
    config.model.folder, config.data.max_pixels = str(base), 128 * 128
    config.phases = (
        recipe.phase("all steps", 4, 0, steps=1, latent_steps=4, weights=ConfigDict(dict(text=0.0, visual=0.0))),
    )
    abstract = jax.eval_shape(lambda key: init_lora(decoder, LoraConfig(), key), jax.random.key(0))
    tree = {"lora": trained.toy.draw(abstract)}
    if train_base:
        leaf = np.zeros((decoder.layers, decoder.ffn, decoder.width), np.float32)
        tree["base"] = {"language_model": {"layers": {"mlp": {"up_proj": {"kernel": jax.numpy.asarray(leaf)}}}}}
    meta = make_meta(resolved(config), fingerprint(base), "vital", setup.switches(config), 0, 1)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(1, {"trainable": tree}, meta)


def measure(run: str, out: str, form: str, shard: str) -> None:
    """Exports in this process and prints what it took."""
    from vital_jax.hub.export import export
    from vital_jax.run.open import open_run

    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # noqa: E731
    before, start = peak(), time.perf_counter()
    export(open_run(run), out, form=form, shard=int(shard), overwrite=True, say=lambda line: None)
    size = sum(path.stat().st_size for path in Path(out).rglob("*.safetensors")) / 2**30
    took = time.perf_counter() - start
    print(
        f"{form}: {size:.2f} GiB written in {took:.0f} s; resident {before:.2f} GiB after imports, {peak():.2f} GiB at most"
    )


def main() -> None:
    """Makes the checkpoint, then measures both forms."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--shard-mib", type=int, default=256)
    parser.add_argument("--train-base", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        write_base(work / "base", arguments.layers)
        write_run(work / "run", work / "base", arguments.train_base)
        for form in ("merged",) if arguments.train_base else ("merged", "peft"):
            words = ["--measure", str(work / "run"), str(work / form), form, str(arguments.shard_mib << 20)]
            subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == "__main__":
    measure(*sys.argv[2:]) if sys.argv[1:2] == ["--measure"] else main()
