"""A toy VITAL: a two-tower model of a few thousand parameters and batches of random but well-formed arrays, float32 throughout."""

import jax
import jax.numpy as jnp
import numpy as np

from vital_jax.methods.base import Budgets, Phase
from vital_jax.methods.vital import Vital
from vital_jax.models.backbone import Backbone, abstract_backbone
from vital_jax.models.config import BackboneConfig, DecoderConfig, LoraConfig, VisionConfig
from vital_jax.models.decoder import Decoder
from vital_jax.models.lora import init_lora
from vital_jax.pipeline.segments import Suffix
from vital_jax.training.partition import flatten, unflatten

VOCAB, WIDTH, ROI = 61, 32, 12
DECODER = DecoderConfig(VOCAB, WIDTH, 3, 4, 2, 8, 48, 5e6, mrope_section=(2, 1, 1))
CONFIG = BackboneConfig("qwen3_vl", DECODER, VisionConfig(16, 3, 2, 24, WIDTH, (0, 1), 4, patch=2), 57, 58, 59)
TEXT = DecoderConfig(VOCAB, 24, 2, 4, 2, 8, 40, 1e6, tied=True)
LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0)


def draw(abstract: dict, seed: int = 0) -> dict:
    """A tree of these shapes with every leaf away from its neutral start (zero biases and adapters, unit scales).

    Drawn with NumPy: a program of the package's own initialisers compiles longer than any test runs.
    """
    r = np.random.default_rng(seed)

    def leaf(path: str, shape: tuple[int, ...]) -> np.ndarray:
        kind = path.rpartition("/")[2]
        centre = {"scale": shape[-1] ** -0.5 if "output_norm" in path else 1.0}.get(kind, 0.0)
        spread = {"scale": 0.0, "bias": 0.0, "b": 0.0, "embedding": 1.0, "pos_embed": 0.02}.get(kind, shape[-1] ** -0.5)
        return jnp.asarray(centre + np.hypot(spread, 0.1) * r.normal(size=shape), jnp.float32)

    return unflatten({path: leaf(path, x.shape) for path, x in flatten(abstract).items()})


def backbone(**options) -> Backbone:
    """The toy backbone, float32."""
    return Backbone(CONFIG, options.pop("lora", LORA), **{"dtype": jnp.float32, **options})


def method(**options) -> Vital:
    """The toy method."""
    model = options.pop("model", None) or backbone()
    return Vital(model, **{"decoder": Decoder(TEXT), "roi_width": ROI, "projector_dropout": 0.0, **options})


def params(vital: Vital, lora: bool = True) -> dict:
    """Base, lora and scaffold, every leaf away from its neutral start."""
    tree = {"base": abstract_backbone(vital.model), **vital.abstract()}
    adapters = {"lora": jax.eval_shape(lambda key: init_lora(DECODER, LORA, key), jax.random.key(0))} if lora else {}
    return draw({**tree, **adapters})


WEIGHTS = {"text": 1.0, "visual": 0.1}


def phase(K: int = 4, **weights) -> Phase:
    """A phase with K latent steps."""
    return Phase(K, K, weights=tuple((WEIGHTS | weights).items()))


def suffix(vital: Vital, K: int = 4, T: int = 5) -> Suffix:
    """The columns of `batch` in a phase with K latent steps."""
    return vital.layout(phase(K), Budgets(T, 6, roi=ROI)).suffix


def batch(
    rows: int = 4, seed: int = 0, S: int = 14, P: int = 16, T: int = 5, K: int = 4, C: int = 6, steps=None
) -> dict:
    """A batch of `rows` prompts of uneven length with an image each, and 1..K steps in turn."""
    r = np.random.default_rng(seed)
    lengths = r.integers(P // 4 + 4, S + 1, rows).astype(np.int32)
    latent_steps = np.asarray(steps if steps is not None else 1 + np.arange(rows) % K, np.int32)
    positions = np.zeros((rows, 3, S), np.int32)
    for row, n in enumerate(lengths):
        positions[row, :, :n] = np.sort(r.integers(0, n, (3, n)), axis=-1)
    words = r.integers(2, C + 1, (rows, K))
    chain_mask = (np.arange(C) < words[..., None]) & (np.arange(K) < latent_steps[:, None])[..., None]
    roi = r.normal(size=(2, rows, ROI)).astype(np.float32)
    roi /= np.linalg.norm(roi, axis=-1, keepdims=True)
    tokens = r.integers(0, 50, (rows, S)).astype(np.int32)
    return {
        "tokens": np.where(np.arange(S) < lengths[:, None], tokens, 0),
        "lengths": lengths,
        "positions": positions,
        "next_position": positions.max((1, 2)) + 1,
        "patches": r.normal(size=(rows, P, CONFIG.vision.patch_width)).astype(np.float32),
        "patch_index": r.integers(0, 16, (rows, P, 4)).astype(np.int32),
        "patch_weight": r.dirichlet(np.ones(4), (rows, P)).astype(np.float32),
        "patch_coords": r.integers(0, 8, (rows, P, 2)).astype(np.int32),
        "patch_segment": np.repeat([[1] * (P // 2) + [2] * (P // 4) + [0] * (P - P // 2 - P // 4)], rows, 0).astype(
            np.int32
        ),
        "patch_target": np.repeat([[1, 2, *[4] * (P // 4 > 2), *[S] * (P // 4 - 3)]], rows, 0).astype(np.int32),
        "answer": r.integers(0, 50, (rows, T)).astype(np.int32),
        "answer_mask": np.arange(T) < r.integers(1, T + 1, rows)[:, None],
        "latent_steps": latent_steps,
        "chain": r.integers(0, 50, (rows, K, C)).astype(np.int32),
        "chain_mask": chain_mask,
        "roi": roi[0],
        "roi_global": roi[1],
        "roi_mask": np.arange(rows) % 3 != 1,
        "index": np.arange(rows, dtype=np.int32),
    }


def row(batch: dict, i: int) -> dict:
    """One row of a batch, alone."""
    return {name: value[i : i + 1] for name, value in batch.items()}
