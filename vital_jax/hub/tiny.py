"""Small model folders in the Hugging Face layout, with random weights, for trying the real path without a download.

They are read by the same code as an 8B checkpoint and by transformers. The tokenizer is a small byte-level BPE trained on the texts it will
meet, with Qwen's control tokens. Random weights know nothing: a run on them has to train the base too.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vital_jax.hub.load import to_tensors
from vital_jax.hub.safetensors import write_file
from vital_jax.models.backbone import Backbone, init_backbone
from vital_jax.models.config import siglip_config
from vital_jax.models.decoder import Decoder, init_decoder
from vital_jax.models.families import backbone_entries, read_config, read_text_config
from vital_jax.models.names import Entry, decoder_entries, siglip_entries
from vital_jax.models.siglip import SiglipVision, init_siglip

_SPARE = (
    16  # rows of the vocabulary behind the tokenizer's last, as published checkpoints have; added tokens stand there
)
_PAD, _END = "<|endoftext|>", "<|im_end|>"
_CONTROL = (
    _PAD,
    "<|im_start|>",
    _END,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for part in message.content %}"
    "{%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}{%- else %}{{- part.text }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def _train_tokenizer(folder: Path, texts: Iterable[str], vocab: int) -> int:
    """Writes tokenizer files; returns the number of tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(_CONTROL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": _END,
        "pad_token": _PAD,
        "clean_up_tokenization_spaces": False,
        "chat_template": _TEMPLATE,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    return tokenizer.get_vocab_size()


def _write_weights(
    folder: Path, entries: list[Entry], params: dict, shapes: dict[str, tuple[int, ...]] | None, dtype: Any
) -> None:
    host = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), params)
    path = folder / "model.safetensors"
    write_file(path.with_suffix(".partial"), to_tensors(entries, host, shapes))
    path.with_suffix(".partial").replace(path)


def save_backbone(folder: str | Path, params: dict, dtype: Any = np.float32) -> None:
    """Writes a backbone's parameter tree as the weights of `folder`, whose config it must fit, in place of those there."""
    config = read_config(folder)
    v = config.vision
    convolution = (v.width, 3, v.temporal_patch, v.patch, v.patch)
    entries = backbone_entries(config)
    _write_weights(Path(folder), entries, params, {"model.visual.patch_embed.proj.weight": convolution}, dtype)


def save_text_decoder(folder: str | Path, params: dict, dtype: Any = np.float32) -> None:
    """Writes a text decoder's parameter tree as the weights of `folder`, whose config it must fit."""
    _write_weights(Path(folder), decoder_entries(read_text_config(folder)), params, None, dtype)


def save_siglip(folder: str | Path, params: dict, dtype: Any = np.float32) -> None:
    """Writes a SigLIP vision tower as the weights of `folder`, whose config it must fit."""
    c = siglip_config(folder)
    shapes = {"vision_model.embeddings.patch_embedding.weight": (c.width, c.channels, c.patch, c.patch)}
    _write_weights(Path(folder), siglip_entries(c), params, shapes, dtype)


def _write_json(path: Path, table: dict[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=2))


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    _write_json(folder / "config.json", config)


def write_backbone(
    folder: str | Path,
    texts: Iterable[str],
    seed: int = 0,
    width: int = 128,
    layers: int = 4,
    vocab: int = 1024,
    depth: int = 4,
) -> None:
    """Writes a small random Qwen3-VL: weights, config (4.57 style), tokenizer, image processor, chat template.

    Args:
      folder: made if absent. texts: what the tokenizer is trained on. seed: of the weights.
      width: D, a multiple of 64. layers: L. vocab: most tokens. depth: layers of the vision tower, at least two.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    size = _train_tokenizer(folder, texts, vocab)
    tower = max(32, width * 3 // 4 // 32 * 32)  # heads of 32, as in the decoder
    text = {
        "model_type": "qwen3_vl_text",
        "hidden_act": "silu",
        "vocab_size": size + _SPARE,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 64,
        "head_dim": 32,
        "intermediate_size": 3 * width,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000000,
        "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [8, 4, 4]},
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,  # here for transformers 4.57, outside for 5.x
    }
    vision = {
        "model_type": "qwen3_vl",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": tower,
        "depth": depth,
        "num_heads": tower // 32,
        "intermediate_size": 2 * tower,
        "out_hidden_size": width,
        "deepstack_visual_indexes": [0, 1],
        "num_position_embeddings": 144,
        "in_channels": 3,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    ids = {name: _CONTROL.index(f"<|{token}|>") for name, token in (
        ("image_token_id", "image_pad"),
        ("video_token_id", "video_pad"),
        ("vision_start_token_id", "vision_start"),
        ("vision_end_token_id", "vision_end"),
    )}  # fmt: skip
    top = {"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", "tie_word_embeddings": True}
    _write_config(folder, {**top, **ids, "text_config": text, "vision_config": vision})
    # Without it no answer of transformers would end.
    ends = {"eos_token_id": _CONTROL.index(_END), "pad_token_id": _CONTROL.index(_PAD)}
    _write_json(folder / "generation_config.json", ends)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 4096, "longest_edge": 1048576},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    _write_json(folder / "preprocessor_config.json", processor)
    config = read_config(folder)
    params = jax.jit(lambda key: init_backbone(Backbone(config), key))(jax.random.key(seed))
    params["language_model"]["embed_tokens"]["embedding"] *= width**-0.5
    save_backbone(folder, params)


def write_text_decoder(
    folder: str | Path, backbone: str | Path, seed: int = 1, width: int = 96, layers: int = 2
) -> None:
    """Writes a small random Qwen3 text model that shares the backbone's tokenizer."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((Path(backbone) / name).read_bytes())
    _write_config(
        folder,
        {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_act": "silu",
            "vocab_size": read_config(backbone).decoder.vocab,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "num_key_value_heads": width // 32,
            "head_dim": 32,
            "intermediate_size": 3 * width,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
        },
    )
    config = read_text_config(folder)
    params = jax.jit(lambda key: init_decoder(Decoder(config), key))(jax.random.key(seed))
    params["embed_tokens"]["embedding"] *= width**-0.5
    save_text_decoder(folder, params)


def write_siglip(folder: str | Path, seed: int = 2, width: int = 64, layers: int = 2, image: int = 112) -> None:
    """Writes a small random SigLIP vision tower with 14-pixel patches."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
        "image_size": image,
        "patch_size": 14,
        "num_channels": 3,
        "layer_norm_eps": 1e-6,
    }
    _write_config(folder, {"architectures": ["SiglipVisionModel"], **vision})
    config = siglip_config(folder)
    save_siglip(folder, jax.jit(lambda key: init_siglip(SiglipVision(config), key))(jax.random.key(seed)))
