"""Model folders that hold a config.json and nothing else, and a recipe on them: what is compiled from shapes alone needs no more."""

import json
from pathlib import Path

from configs import vital as recipe
from vital_jax.run import plan

ROPE = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [2, 1, 1]}
DECODER = dict(
    hidden_act="silu",
    attention_bias=False,
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=48,
    rope_theta=5e6,
)
VISION = dict(
    hidden_act="gelu_pytorch_tanh",
    hidden_size=16,
    depth=3,
    num_heads=2,
    intermediate_size=24,
    out_hidden_size=32,
    deepstack_visual_indexes=[0, 1],
    num_position_embeddings=16,
    patch_size=2,
    temporal_patch_size=2,
    spatial_merge_size=2,
)
FOLDERS = {
    "backbone": dict(
        model_type="qwen3_vl",
        text_config=DECODER | {"rope_scaling": ROPE},
        vision_config=VISION,
        tie_word_embeddings=False,
        image_token_id=57,
        vision_start_token_id=58,
        vision_end_token_id=59,
    ),
    "text_decoder": DECODER | dict(model_type="qwen3", hidden_size=24, num_hidden_layers=2, tie_word_embeddings=True),
    "encoder": dict(model_type="siglip_vision_model", hidden_size=12, image_size=8, patch_size=2),
}


def write(folder: Path) -> Path:
    """The three folders."""
    for name, table in FOLDERS.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(table))
    return folder


def overrides(folder: Path, **changes) -> dict:
    """What makes configs/vital.py fit these folders, and changes to it."""
    small = {
        "model.folder": str(folder / "backbone"),
        "model.text_decoder": str(folder / "text_decoder"),
        "model.dtype": "float32",
        "data.encoder": str(folder / "encoder"),
        "data.buckets": ((14, 16),),
        "data.answer": 5,
        "data.chain": 6,
        "lora.rank": 4,
        "batch": 16,
    }
    return small | changes


def config(folder: Path, **changes):
    """configs/vital.py on these folders, resolved, its phases 10 steps long."""
    made = recipe.get_config()
    made.update_from_flattened_dict(overrides(folder, **changes))
    for phase in made.phases:
        phase.steps = 10
    plan.resolve(made)
    return made
