"""Host memory of loading: a random checkpoint of about 1 GB in Qwen3-VL's layout, read in a process of its own on the CPU.

    python benchmarks/load_memory.py

On a CPU host and device are one, so the arrays themselves count: the peak should be one copy of the model and one leaf (all layers of one
name). The layers are those of the 2B model; the vocabulary is cut, so that no single leaf is most of the model. Needs Linux (/proc).
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CONFIG = {
    "model_type": "qwen3_vl", "tie_word_embeddings": True,
    "image_token_id": 32000, "vision_start_token_id": 32001, "vision_end_token_id": 32002,
    "text_config": {
        "vocab_size": 32768, "hidden_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 6144, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 5e6,
        "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
    },
    "vision_config": {
        "depth": 4, "hidden_size": 1024, "num_heads": 16, "intermediate_size": 4096, "out_hidden_size": 2048,
        "hidden_act": "gelu_pytorch_tanh", "deepstack_visual_indexes": [1, 2, 3], "num_position_embeddings": 2304,
        "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
}  # fmt: skip
SHARD = 250 << 20


def write(folder: Path) -> None:
    """Writes config, shards and index."""
    import ml_dtypes

    from vital_jax.hub.safetensors import INDEX, write_file
    from vital_jax.models.backbone import Backbone, abstract_backbone
    from vital_jax.models.families import backbone_entries, read_config
    from vital_jax.training.partition import flatten

    (folder / "config.json").write_text(json.dumps(CONFIG))
    config = read_config(folder)
    leaves = flatten(abstract_backbone(Backbone(config)))
    pool = np.random.default_rng(0).standard_normal(1 << 22).astype(ml_dtypes.bfloat16)
    shapes = [
        (name, leaves[entry.path].shape[int(entry.stacked) :])
        for entry in backbone_entries(config)
        for name in entry.names
    ]
    shard: dict[str, np.ndarray] = {}
    weight_map, files = {}, 0
    for i, (name, shape) in enumerate(shapes):
        shard[name] = np.resize(pool, shape)
        if i == len(shapes) - 1 or sum(array.nbytes for array in shard.values()) > SHARD:
            file = f"model-{files:05}.safetensors"
            write_file(folder / file, shard)
            weight_map |= dict.fromkeys(shard, file)
            shard, files = {}, files + 1
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def memory(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10


def load(folder: Path) -> None:
    """Loads and prints baseline, peak, model and largest leaf in bytes. Runs in the child."""
    import jax

    from vital_jax.hub.load import load_backbone
    from vital_jax.models.backbone import Backbone, abstract_backbone
    from vital_jax.models.families import read_config
    from vital_jax.training.partition import flatten
    from vital_jax.training.sharding import base_rows, make_mesh, shardings

    base = {"base": abstract_backbone(Backbone(read_config(folder)))}
    placed = flatten(shardings(base, make_mesh(1, -1, 1), base_rows("fsdp")))
    jax.block_until_ready(jax.numpy.zeros(1) + 1)
    baseline = memory("VmRSS")
    _, params = load_backbone(folder, lambda path, shape: placed[f"base/{path}"])
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(params)]
    print(json.dumps([baseline, memory("VmHWM"), sum(sizes), max(sizes)]))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        load(options.load)
        return
    print("| devices | model MiB | largest leaf MiB | peak less baseline MiB | over model + largest leaf |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch))
        for devices in (1, 8):
            flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
            child = subprocess.run(
                [sys.executable, __file__, "--load", scratch],
                env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if child.returncode:
                sys.exit(child.stderr)
            baseline, peak, model, largest = json.loads(child.stdout)
            numbers = " | ".join(f"{size / 2**20:,.0f}" for size in (model, largest, peak - baseline))
            print(f"| {devices} | {numbers} | {(peak - baseline) / (model + largest):.2f} |")


if __name__ == "__main__":
    main()
