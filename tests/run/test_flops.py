"""FLOPs of a step by arithmetic: against a count by hand, and against the estimate for 8B that batch sizes were planned with."""

import numpy as np
import pytest
import toy

from vital_jax.methods.vital import Vital
from vital_jax.models.backbone import Backbone
from vital_jax.models.config import LoraConfig
from vital_jax.models.decoder import Decoder
from vital_jax.models.families import read_config, read_text_config
from vital_jax.pipeline.segments import Suffix
from vital_jax.run.flops import Arithmetic, Work, work_of

LORA = (("base/.*", "frozen"), ("lora/.*", "trainable"), ("scaffold/.*", "trainable"))
FULL = (("(base|lora|scaffold)/.*", "trainable"),)
SCAFFOLD = (("(base|lora)/.*", "frozen"), ("scaffold/.*", "trainable"))
NOTHING = Work(**dict.fromkeys(Work.__dataclass_fields__, 0))
ALONE, WHOLE = (), ("text_decoder", "visual_projector")


def one_row(S: int, answer: int = 12, steps: int = 4, words: int = 48, patches: int = 1024) -> Work:
    batch = {
        "lengths": np.array([S]),
        "answer_mask": np.ones((1, answer), bool),
        "latent_steps": np.array([steps]),
        "chain_mask": np.ones((1, steps, words), bool),
        "patch_segment": np.ones((1, patches), np.int32),
    }
    return work_of(batch, SUFFIX)


SUFFIX = toy.suffix(toy.method())  # latents and an answer


# TFLOP of one row at 8B with K = 4, 12 answer tokens, chains of 48 and 1024 patches, worked out part by part: without and with full remat.
@pytest.mark.parametrize("S, model, hardware", [(350, 13.9, 19.8), (1000, 33.5, 48.9)])
def test_the_8b_step_is_what_was_estimated(real, S, model, hardware):
    configs = real("model_configs")
    backbone = Backbone(read_config(configs / "Qwen3-VL-8B-Instruct"), LoraConfig())
    arithmetic = Arithmetic(Vital(backbone, Decoder(read_text_config(configs / "Qwen3-1.7B")), 1152), LORA)
    assert round(arithmetic.weights["context"] / 1e9, 3) == 7.120  # 6.946 of the base, 0.175 of the adapters
    assert round(arithmetic.weights["chains"] / 1e9 + arithmetic.weights["words"] / 1e9, 2) == 1.72
    assert arithmetic(one_row(S), WHOLE) / 1e12 == pytest.approx(model, rel=0.02)
    assert arithmetic(one_row(S), WHOLE, remat=True) / 1e12 == pytest.approx(hardware, rel=0.02)


def per_token(table, **work) -> float:
    return Arithmetic(toy.method(), table)(Work(**(vars(NOTHING) | work)), ALONE)


def test_a_frozen_weight_costs_four_a_token_a_trained_one_six_and_one_no_gradient_passes_two():
    # Of one layer: attention q, k, v, o and the three of the feed-forward; adapters of rank 4 on all seven; three layers.
    base = 3 * (32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 48 * 32)
    adapters = 3 * 4 * ((32 + 32) * 2 + (16 + 32) * 2 + (48 + 32) * 3)
    assert per_token(LORA, context=5) == 5 * (4 * base + 6 * adapters)
    assert per_token(FULL, context=5) == 5 * 6 * (base + adapters)
    assert per_token(SCAFFOLD, context=5) == 5 * 2 * (base + adapters)
    tower = 3 * (48 * 16 + 16 * 16 + 2 * 24 * 16) + 16 * 24
    assert per_token(LORA, patches=7) == 7 * 2 * tower
    assert per_token(FULL, patches=7) == 7 * 6 * tower
    # 3 layers, 4 heads of 8: 4 N H forward for a pair, twice that backward.
    assert per_token(LORA, context_pairs=11) == 11 * 3 * 4 * 32 * 3


def test_only_what_the_losses_use_counts():
    arithmetic, work = Arithmetic(toy.method(), LORA), one_row(9, 3, 2, 4, 8)
    costs = [arithmetic(work, parts) for parts in ((), WHOLE[1:], WHOLE[:1], WHOLE)]
    assert costs[0] < costs[1] < costs[2] == pytest.approx(costs[3])


def test_padding_is_no_work():
    batch = toy.batch(rows=4)
    work = work_of(batch, SUFFIX)
    assert work.context == batch["lengths"].sum() + batch["latent_steps"].sum() + batch["answer_mask"].sum()
    assert work.patches == (batch["patch_segment"] > 0).sum() and work.merged == work.patches // 4
    assert work.patch_pairs == 4 * (8**2 + 4**2), "patches see their own image only"
    assert work.chains == batch["chain_mask"].sum()
    direct = {name: x for name, x in batch.items() if not name.startswith("chain")}
    none = work_of(direct, Suffix((SUFFIX["answer"],)))
    assert none.latents == none.chains == 0 and none.context == work.context - work.latents
    micro = {name: value.reshape(2, 2, *value.shape[1:]) for name, value in batch.items()}
    assert work_of(micro, SUFFIX) == work
