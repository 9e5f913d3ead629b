"""VITAL with the 8B on one GPU of 24 or 48 GB: what gives way, and what it costs.

    python train.py --config=configs/one_gpu.py:24gb --config.data.records=...

Everything is the paper's recipe but for what the memory forces. Sums below are arithmetic (`python benchmarks/memory_table.py`), in GiB;
XLA_CLIENT_MEM_FRACTION=0.92 in the environment lets jax have them, of which it takes three quarters by default.

    24gb  base 9.9 (int8), adapters 3.3, Qwen3-0.6B 4.1, projectors 0.5: 17.7, and 0.9 for one row of 1,152 prefix tokens
          The decoder's matrices are int8: docs/RESULTS.md says by how much that moves the answers. The text decoder is Qwen3-0.6B in place
          of 1.7B, and only its attention trains: what reads the latents is weaker, the loss that shapes them is the same.
    48gb  base 16.3 (bfloat16), adapters 3.3, Qwen3-0.6B 11.1, projectors 0.5: 31.2, and 0.9 for each of four rows
          The smaller text decoder alone, trained whole.

The step still has 128 rows: micro-batches make the same gradient in more passes. What the changes cost can be tried without such a card or
a download, on the quickstart's bench:

    python train.py --config=configs/one_gpu.py:cost
"""

from ml_collections import ConfigDict

from configs import quickstart, vital

# What of the text decoder trains on the smallest card: its attention and norms, 176 of its 596 million numbers.
ATTENTION = (
    ("base/.*", "frozen"),
    ("lora/.*", "trainable"),
    ("scaffold/(pj_in|visual_projector)/.*", "trainable"),
    ("scaffold/text_decoder/(embed_tokens|lm_head|layers/mlp).*", "frozen"),
    ("scaffold/text_decoder/(norm|layers/(self_attn|input_layernorm|post_attention_layernorm)).*", "trainable"),
)

COSTS = (
    ("VITAL", {}),
    ("base in int8", {"model.quantize": "int8"}),
    ("text decoder, attention alone", {"table": ATTENTION}),
    ("both", {"model.quantize": "int8", "table": ATTENTION}),
)


def get_config(arg: str = "24gb") -> ConfigDict:
    """The recipe for a card, or the bench (`cost`). Raises: ValueError for another argument."""
    if arg not in ("24gb", "48gb", "cost"):
        raise ValueError(f"unknown card {arg!r}: use 24gb, 48gb or cost")
    if arg == "cost":
        config = quickstart.get_config()
        config.workdir = "runs/one_gpu_cost"
        config.runs = COSTS
        return config
    config = vital.get_config("qwen3_vl_8b")
    config.workdir = f"runs/vital_{arg}"
    config.model.text_decoder = "models/qwen3_0_6b"
    config.micro_batches = 128
    if arg == "24gb":
        config.model.quantize = "int8"
        config.table = ATTENTION
    else:
        config.micro_batches = 32
    return config
