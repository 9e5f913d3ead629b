"""One table of parameter names: Hugging Face tensors on the left, our leaves on the right. Import, export and coverage all read it.

A pattern with `{i}` stands for one tensor per layer (or per deepstack merger) that our tree keeps stacked on a leading axis. Kernels keep
the file's orientation, so an entry is at most a stack and a flattening, never a transpose.
"""

import dataclasses
from collections.abc import Iterable

from vital_jax.models.config import BackboneConfig, ClipVisionConfig, DecoderConfig, SiglipVisionConfig


@dataclasses.dataclass(frozen=True)
class Entry:
    """One leaf of ours and the tensors it is made of."""

    path: str  # "language_model/layers/mlp/up_proj/kernel"
    names: tuple[str, ...]  # one name, or one per stacked layer
    stacked: bool


def _linear(theirs: str, ours: str, bias: bool) -> list[tuple[str, str]]:
    rows = [(f"{theirs}.weight", f"{ours}/kernel")]
    return [*rows, (f"{theirs}.bias", f"{ours}/bias")] if bias else rows


def _norm(theirs: str, ours: str, bias: bool = True) -> list[tuple[str, str]]:
    rows = [(f"{theirs}.weight", f"{ours}/scale")]
    return [*rows, (f"{theirs}.bias", f"{ours}/bias")] if bias else rows


EMBEDDING, HEAD = "embed_tokens/embedding", "lm_head.weight"  # our leaf of the one, their name of the other
PROJECTIONS = (
    "self_attn/q_proj",
    "self_attn/k_proj",
    "self_attn/v_proj",
    "self_attn/o_proj",
    "mlp/gate_proj",
    "mlp/up_proj",
    "mlp/down_proj",
)


def _decoder_rows(config: DecoderConfig) -> list[tuple[str, str]]:
    rows = [("embed_tokens.weight", EMBEDDING), ("norm.weight", "norm/scale")]
    for name in ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"):
        rows += _norm(f"layers.{{i}}.{name}", f"layers/{name.replace('.', '/')}", bias=False)
    for projection in PROJECTIONS:
        bias = config.attention_bias and projection.startswith("self_attn")
        rows += _linear(f"layers.{{i}}.{projection.replace('/', '.')}", f"layers/{projection}", bias)
    return rows


_VISION_ROWS = [
    *_linear("patch_embed.proj", "patch_embed", bias=True),
    ("pos_embed.weight", "pos_embed"),
    *_norm("blocks.{i}.norm1", "blocks/norm1"),
    *_norm("blocks.{i}.norm2", "blocks/norm2"),
    *_linear("blocks.{i}.attn.qkv", "blocks/qkv", bias=True),
    *_linear("blocks.{i}.attn.proj", "blocks/proj", bias=True),
    *_linear("blocks.{i}.mlp.linear_fc1", "blocks/fc1", bias=True),
    *_linear("blocks.{i}.mlp.linear_fc2", "blocks/fc2", bias=True),
]

_MERGER_ROWS = [
    *_norm("norm", "norm"),
    *_linear("linear_fc1", "fc1", bias=True),
    *_linear("linear_fc2", "fc2", bias=True),
]

# The tower that SigLIP and CLIP share in transformers.
_TOWER_ROWS = [
    ("embeddings.position_embedding.weight", "pos_embed"),
    *_norm("encoder.layers.{i}.layer_norm1", "blocks/norm1"),
    *_norm("encoder.layers.{i}.layer_norm2", "blocks/norm2"),
    *_linear("encoder.layers.{i}.self_attn.q_proj", "blocks/q_proj", bias=True),
    *_linear("encoder.layers.{i}.self_attn.k_proj", "blocks/k_proj", bias=True),
    *_linear("encoder.layers.{i}.self_attn.v_proj", "blocks/v_proj", bias=True),
    *_linear("encoder.layers.{i}.self_attn.out_proj", "blocks/out_proj", bias=True),
    *_linear("encoder.layers.{i}.mlp.fc1", "blocks/fc1", bias=True),
    *_linear("encoder.layers.{i}.mlp.fc2", "blocks/fc2", bias=True),
    *_norm("post_layernorm", "post_layernorm"),
]

_SIGLIP_ROWS = [*_linear("embeddings.patch_embedding", "patch_embed", bias=True), *_TOWER_ROWS]

_CLIP_ROWS = [
    ("embeddings.class_embedding", "class_token"),
    *_linear("embeddings.patch_embedding", "patch_embed", bias=False),
    *_norm("pre_layrnorm", "pre_norm"),  # so spelt in every checkpoint
    *_TOWER_ROWS,
]

_TIMM_ROWS = [
    ("cls_token", "class_token"),
    ("pos_embed", "pos_embed"),
    *_norm("blocks.{i}.norm1", "blocks/norm1"),
    *_norm("blocks.{i}.norm2", "blocks/norm2"),
    *_linear("blocks.{i}.attn.qkv", "blocks/qkv", bias=True),
    *_linear("blocks.{i}.attn.proj", "blocks/out_proj", bias=True),
    *_linear("blocks.{i}.mlp.fc1", "blocks/fc1", bias=True),
    *_linear("blocks.{i}.mlp.fc2", "blocks/fc2", bias=True),
    *_norm("norm", "post_layernorm"),
]


def _entries(rows: Iterable[tuple[str, str]], theirs: str, ours: str, count: int) -> list[Entry]:
    def entry(name: str, path: str) -> Entry:
        stacked = "{i}" in theirs + name
        names = tuple((theirs + name).replace("{i}", str(i)) for i in range(count)) if stacked else (theirs + name,)
        return Entry(ours + path, names, stacked)

    return [entry(name, path) for name, path in rows]


def decoder_entries(config: DecoderConfig, theirs: str = "model.", ours: str = "") -> list[Entry]:
    """The table of a text decoder. A tied head has no tensor of its own, in the file or in our tree."""
    head = [] if config.tied else [Entry(f"{ours}lm_head", (HEAD,), False)]
    return _entries(_decoder_rows(config), theirs, ours, config.layers) + head


def qwen3_vl_entries(config: BackboneConfig) -> list[Entry]:
    """The table of Qwen3-VL."""
    visual, ours = "model.visual.", "visual/"
    deepstack = len(config.vision.deepstack_layers)
    return [
        *decoder_entries(config.decoder, "model.language_model.", "language_model/"),
        *_entries(_VISION_ROWS, visual, ours, config.vision.layers),
        *_entries(_MERGER_ROWS, visual + "merger.", ours + "merger/", 1),
        *(
            _entries(_MERGER_ROWS, visual + "deepstack_merger_list.{i}.", ours + "deepstack_mergers/", deepstack)
            if deepstack
            else []
        ),
    ]


def siglip_entries(config: SiglipVisionConfig, theirs: str = "vision_model.") -> list[Entry]:
    """The table of SigLIP's vision tower. Text tower, pooling head and logit scales have no part in ROI features (`SIGLIP_UNUSED`).

    `theirs` is empty for a vision tower saved alone by transformers 5.x, which drops the prefix that 4.57 wrote.
    """
    return _entries(_SIGLIP_ROWS, theirs, "", config.layers)


SIGLIP_UNUSED = r"text_model\..*|(vision_model\.)?head\..*|logit_scale|logit_bias"


def clip_entries(config: ClipVisionConfig, theirs: str) -> list[Entry]:
    """The table of CLIP's vision tower, as transformers or as timm names it; `theirs` is the prefix in the file."""
    if not config.timm:
        return _entries(_CLIP_ROWS, theirs, "", config.layers)
    rows = [*_linear("patch_embed.proj", "patch_embed", bias=not config.pre_norm), *_TIMM_ROWS]
    return _entries(rows + (_norm("norm_pre", "pre_norm") if config.pre_norm else []), theirs, "", config.layers)


# Text tower, projections and scales, as transformers and as open_clip name them.
CLIP_UNUSED = (
    r"text_model\..*|(visual|text)_projection\.weight|.*position_ids|text\..*|visual\.head\..*|logit_scale|logit_bias"
)
