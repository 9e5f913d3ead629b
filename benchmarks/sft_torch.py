"""The other side of sft_step.py: the same training step as a careful user of torch, transformers and peft would write it.

One prefix pass that fills a DynamicCache, latent steps over it, the last one with the answer; adapters by peft; float32 masters under
autocast to bfloat16; fused AdamW where there is a GPU. Without gradient checkpointing: transformers drops the cache under it, and K + 1
full passes would be another loop. `compiled` compiles the decoder and the text decoder, one graph for each length the cache takes.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, DynamicCache, Qwen3ForCausalLM, Qwen3VLForConditionalGeneration

_PROJECTIONS = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"


class Projector(nn.Module):
    """The visual projector, equation 5."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm, self.w1, self.w2, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.Linear(width, out),
            nn.LayerNorm(out),
        )
        self.drop = nn.Dropout(0.1)
        nn.init.constant_(self.out.weight, out**-0.5)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.out(self.w2(self.drop(F.gelu(self.w1(self.norm(z)))) + z))


def make(options: argparse.Namespace, roi: int) -> tuple[Callable[[], float], Callable[[], int | None]]:
    """(one step, which returns its loss; the peak of the device's memory so far)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch._dynamo.config.recompile_limit = 64
    config, text_config = (AutoConfig.from_pretrained(folder) for folder in (options.backbone, options.text))
    with device:
        torch.set_default_dtype(torch.bfloat16)
        model = Qwen3VLForConditionalGeneration(config)
        torch.set_default_dtype(torch.float32)
        text = Qwen3ForCausalLM(text_config)
        pj_in = nn.Linear(config.text_config.hidden_size, text_config.hidden_size)
        visual = Projector(config.text_config.hidden_size, roi)
    lora = LoraConfig(
        r=options.rank, lora_alpha=2 * options.rank, lora_dropout=0.05,
        target_modules=rf".*language_model\.layers\.\d+\.(self_attn|mlp)\.({_PROJECTIONS})",
    )  # fmt: skip
    get_peft_model(model, lora)  # puts the adapters into the model itself
    for module in (model, text, pj_in, visual):
        module.train()
    core, decoder = model.model, model.model.language_model
    reader = text.model
    if options.side == "compiled":
        decoder.forward = torch.compile(decoder.forward, dynamic=False)
        reader.forward = torch.compile(reader.forward, dynamic=False)
    trained = [p for module in (model, text, pj_in, visual) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-5, weight_decay=0.01, fused=device.type == "cuda")
    data = _batch(options, config, text_config.vocab_size, roi, device)
    B, K, T, C = options.rows, options.steps, options.answer, options.chain
    columns = torch.arange(T, device=device)

    def step() -> float:
        with torch.autocast(device.type, torch.bfloat16):
            cache = DynamicCache(config=config.text_config)
            h = core(**data["prompt"], past_key_values=cache, use_cache=True).last_hidden_state[:, -1:]
            at = data["next"].expand(3, B, 1)
            z = []
            for k in range(K - 1):
                h = decoder(
                    inputs_embeds=h, position_ids=at + k, past_key_values=cache, use_cache=True
                ).last_hidden_state
                z.append(h)
            words = decoder.embed_tokens(data["answer"][:, : T - 1])
            x = torch.cat([h, words], 1)
            h = decoder(
                inputs_embeds=x, position_ids=at + K - 1 + columns, past_key_values=cache, use_cache=True
            ).last_hidden_state
            z = torch.cat([*z, h[:, :1]], 1)  # [B, K, D]
            task = F.cross_entropy(model.lm_head(h).float().flatten(0, 1), data["answer"].flatten())
            chain = data["chain"].reshape(B * K, C)
            x = torch.cat([pj_in(z).reshape(B * K, 1, -1), reader.embed_tokens(chain[:, : C - 1])], 1)
            said = text.lm_head(reader(inputs_embeds=x, use_cache=False).last_hidden_state)
            words_loss = F.cross_entropy(said.float().flatten(0, 1), chain.flatten())
        seen = (visual(z.float()) - data["roi"][:, None]).abs().sum(-1).mean()
        loss = task + words_loss + 0.1 * seen
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step, lambda: torch.cuda.max_memory_allocated() if device.type == "cuda" else None


def _batch(options: argparse.Namespace, config: Any, vocab: int, roi: int, device: torch.device) -> dict[str, Any]:
    r, v = np.random.default_rng(0), config.vision_config
    pads = options.patches // v.spatial_merge_size**2
    height = max(h for h in range(2, int(options.patches**0.5) + 1, 2) if options.patches % (2 * h) == 0)
    B, S, K = options.rows, options.prefix, options.steps
    tokens = lambda *shape: torch.from_numpy(r.integers(0, vocab // 2, shape)).to(device)  # noqa: E731
    ids = tokens(B, S)
    ids[:, 0], ids[:, 1 : pads + 1], ids[:, pads + 1] = (
        config.vision_start_token_id, config.image_token_id, config.vision_end_token_id
    )  # fmt: skip
    width = v.in_channels * v.temporal_patch_size * v.patch_size**2
    patches = r.uniform(-1, 1, (B * options.patches, width)).astype(np.float32)
    grids = torch.tensor([[1, height, options.patches // height]] * B, device=device)
    prompt = dict(
        input_ids=ids, pixel_values=torch.from_numpy(patches).to(device, torch.bfloat16), image_grid_thw=grids,
        mm_token_type_ids=(ids == config.image_token_id).int(),
    )  # fmt: skip
    following = 2 + S - pads - 2 + max(height, options.patches // height) // v.spatial_merge_size
    return {
        "prompt": prompt,
        "next": torch.tensor(following - 1, device=device),
        "answer": tokens(B, options.answer),
        "chain": tokens(B, K, options.chain),
        "roi": torch.from_numpy((r.standard_normal((B, roi)) / roi**0.5).astype(np.float32)).to(device),
    }
