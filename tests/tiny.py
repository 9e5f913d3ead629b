"""Tiny random checkpoints made by transformers, with every parameter redrawn.

transformers' own initialisation has every bias at 0 and every norm scale at 1: a port that never loads them would agree exactly. So
matrices are drawn N(0, 1/fan-in), embeddings N(0, 1), norm scales 1 + 0.3 N, biases 0.3 N. Where torch is absent, what asks for one skips.
"""

from pathlib import Path

import pytest

ARCHITECTURES = {
    # deepstack at the first, a middle and the last tower layer; 4 query heads per key head; untied; odd depths
    "gqa4_untied": dict(
        text=dict(hidden_size=64, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=1, head_dim=16,
                  intermediate_size=96),
        mrope=[4, 2, 2],
        vision=dict(hidden_size=32, depth=5, num_heads=4, intermediate_size=48,
                    deepstack_visual_indexes=[0, 2, 4], num_position_embeddings=64),
        tied=False, eps=1e-3,  # unlike every default, so that an eps not read shows
    ),
    # one deepstack feature, no grouping, tied head, even depths, a head width unlike width / heads
    "mha_tied": dict(
        text=dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=32,
                  intermediate_size=80),
        mrope=[6, 5, 5],
        vision=dict(hidden_size=48, depth=4, num_heads=2, intermediate_size=64,
                    deepstack_visual_indexes=[1], num_position_embeddings=36),
        tied=True,
    ),
    # two deepstack features, 2 query heads per key head, sections that leave time alone at the end
    "gqa2_tied": dict(
        text=dict(hidden_size=96, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=3, head_dim=16,
                  intermediate_size=128),
        mrope=[4, 3, 1],
        vision=dict(hidden_size=64, depth=3, num_heads=4, intermediate_size=96,
                    deepstack_visual_indexes=[0, 1], num_position_embeddings=25),
        tied=True,
    ),
}  # fmt: skip
IDS = dict(image_token_id=290, video_token_id=291, vision_start_token_id=292, vision_end_token_id=293)
VOCAB = 300


def redraw(model, seed: int = 0) -> None:
    """Redraws every parameter in place."""
    torch = pytest.importorskip("torch")

    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) in embeddings:
                parameter.copy_(noise)
            elif parameter.ndim >= 2:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif name.endswith("weight"):
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(0.3 * noise)


def qwen3_vl(name: str, seed: int = 0):
    """A tiny random Qwen3VLForConditionalGeneration, in evaluation mode."""
    pytest.importorskip("torch")
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    spec = ARCHITECTURES[name]
    text = dict(
        spec["text"],
        vocab_size=VOCAB,
        rms_norm_eps=spec.get("eps", 1e-6),
        max_position_embeddings=4096,
        tie_word_embeddings=spec["tied"],
    )
    text["rope_parameters"] = dict(
        rope_type="default", rope_theta=5e6, mrope_section=spec["mrope"], mrope_interleaved=True
    )
    vision = dict(
        spec["vision"], out_hidden_size=text["hidden_size"], patch_size=16, spatial_merge_size=2, temporal_patch_size=2
    )
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=spec["tied"], **IDS)
    model = Qwen3VLForConditionalGeneration(config).eval()
    redraw(model, seed)
    return model


def qwen3(seed: int = 0, tied: bool = True, layers: int = 3, **options):
    """A tiny random Qwen3ForCausalLM, in evaluation mode."""
    pytest.importorskip("torch")
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=40, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=64, rope_parameters=dict(rope_type="default", rope_theta=1e6), tie_word_embeddings=tied,
        **options,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    redraw(model, seed)
    return model


def siglip(seed: int = 0, whole: bool = True):
    """A tiny random SiglipModel, or its vision tower alone, in evaluation mode. 30 pixels hold four patches of 7 and two spare rows."""
    pytest.importorskip("torch")
    from transformers import SiglipConfig, SiglipModel, SiglipVisionModel

    tower = dict(num_attention_heads=4, intermediate_size=48, layer_norm_eps=1e-3)  # an eps unlike the default
    config = SiglipConfig(
        text_config=dict(
            tower, hidden_size=32, num_hidden_layers=1, vocab_size=50, max_position_embeddings=8, bos_token_id=1, eos_token_id=2
        ),
        vision_config=dict(tower, hidden_size=40, num_hidden_layers=3, image_size=30, patch_size=7),
    )  # fmt: skip
    model = (SiglipModel(config) if whole else SiglipVisionModel(config.vision_config)).eval()
    redraw(model, seed)
    return model


def clip(seed: int = 0, whole: bool = False, **options):
    """A tiny random CLIPVisionModel, or the whole CLIPModel, in evaluation mode. 30 pixels hold four patches of 7 and two spare rows."""
    pytest.importorskip("torch")
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

    tower = {**dict(num_attention_heads=4, intermediate_size=48, layer_norm_eps=1e-3), **options}
    vision = dict(tower, hidden_size=40, num_hidden_layers=3, image_size=30, patch_size=7)
    text = dict(
        tower,
        hidden_size=32,
        num_hidden_layers=1,
        vocab_size=50,
        max_position_embeddings=8,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = (
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision))
        if whole
        else CLIPVisionModel(CLIPVisionConfig(**vision))
    )
    redraw(model.eval(), seed)
    return model


def save(model, folder: Path, shard: str = "50GB") -> Path:
    """Writes a model folder as transformers does."""
    model.save_pretrained(folder, max_shard_size=shard)
    return folder
