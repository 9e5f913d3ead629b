"""What training needs of one device's memory, by arithmetic: a Markdown table. Nothing is compiled or run (`vital fit` asks the compiler).

    python benchmarks/memory_table.py

Frozen leaves count at their own width, trained ones at 16 bytes: float32 master, gradient and two moments; with micro-batches at 20, for
gradients are added up beside those being made. A row of S prefix tokens under full remat keeps the input of every block, its keys and
values with their gradients, and one block's own values twice (forward again, and their gradients); latents, answers and chains are small
beside it. Left out: what a compiler keeps for itself, fragmentation and the allocator's own share, some 5 to 10 %.

Architectures come from configs/models, which hold configurations of the published checkpoints and no weights.
"""

import math
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from configs import one_gpu, vital  # noqa: E402
from vital_jax.models.config import DecoderConfig  # noqa: E402
from vital_jax.run import plan, setup  # noqa: E402
from vital_jax.training.partition import flatten  # noqa: E402

MODELS = REPOSITORY / "configs" / "models"
ROI = 1152  # E of MedSigLIP
BUCKETS = (384, 1152)  # the smallest and the largest S of the recipe


def recipe(config: Any, text: str = "qwen3_1_7b", **model: Any) -> Any:
    """A recipe over the architectures of configs/models."""
    config.model.update(folder=str(MODELS / Path(config.model.folder).name), text_decoder=str(MODELS / text), **model)
    plan.resolve(config)
    return config


def state(config: Any) -> dict[str, int]:
    """Bytes of a run's state on one device with nothing sharded, by part: base, lora, text decoder, projectors."""
    kept = setup.kept_params(config, setup.make_method(config, ROI))
    wide = setup.trained(setup.tables(config), kept)
    each = 16 + 4 * (config.micro_batches > 1)
    sizes = {"base": 0, "lora": 0, "text decoder": 0, "projectors": 0}
    for path, leaf in flatten(kept).items():
        text = "text decoder" if path.startswith("scaffold/text_decoder/") else "projectors"
        part = path.split("/")[0]
        sizes[part if part in sizes else text] += math.prod(leaf.shape) * (
            each if path in wide else leaf.dtype.itemsize
        )
    return sizes


def activations(c: DecoderConfig, S: int) -> int:
    """Bytes that one row of S prefix tokens adds under full remat, in bfloat16."""
    keys, queries = 2 * c.kv_heads * c.head_width, 2 * c.heads * c.head_width
    blocks = c.layers * (c.width + 2 * keys)
    block = 2 * (4 * c.width + keys + queries + 3 * c.ffn)
    return 2 * S * (blocks + block)


def row(name: str, config: Any) -> list[str]:
    """A line of the table, in GiB: parts of the state, their sum, and one row of either bucket."""
    decoder = setup.make_method(config, ROI).model.config.decoder
    parts = state(config)
    numbers = [*parts.values(), sum(parts.values()), *(activations(decoder, S) for S in BUCKETS)]
    return [name, *(f"{number / 2**30:.1f}" for number in numbers)]


def rows() -> list[list[str]]:
    """All lines: every backbone with the paper's text decoder, then the recipes for one small GPU."""
    lines = [row(name.removeprefix("qwen3_vl_").upper(), recipe(vital.get_config(name))) for name in vital.BASES]
    lines += [
        row(f"{name.removeprefix('qwen3_vl_').upper()}, base in int8", recipe(vital.get_config(name), quantize="int8"))
        for name in ("qwen3_vl_8b", "qwen3_vl_32b")
    ]
    lines += [
        row(f"8B, one_gpu.py:{card}", recipe(one_gpu.get_config(card), "qwen3_0_6b")) for card in ("24gb", "48gb")
    ]
    return lines


def main() -> None:
    """Prints the table."""
    parts = ["base", "LoRA r 64", "text decoder", "projectors", "together"]
    print(f"| GiB | {' | '.join(parts)} | {' | '.join(f'a row of S = {S}' for S in BUCKETS)} |")
    print("|---" * (len(parts) + len(BUCKETS) + 1) + "|")
    for line in rows():
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
