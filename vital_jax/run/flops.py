"""How many floating-point operations a training step needs, by arithmetic. What MFU divides by the chips' peak.

A weight that multiplies a token costs 2 forward, 2 for the gradient of its input where one is needed, and 2 for its own gradient where it
trains. A frozen base under LoRA so costs 4 a token, not the usual 6, and a frozen vision tower 2. Attention costs 4 N H for each query and
key that meet, and twice that again backward. Only what the batch holds counts: padding is waste, and so is what remat computes twice.
Norms, embedding lookups, the optimizer and the projector's few tokens beyond their weights are left out (under 1 % at the 8B shapes).
"""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from vital_jax.latent.loop import KEPT
from vital_jax.methods.base import Method
from vital_jax.models.families import family_of
from vital_jax.pipeline.batch import Layout
from vital_jax.pipeline.segments import PADDING, Suffix
from vital_jax.run import setup
from vital_jax.training.partition import TRAINABLE, flatten, match

# The tokens that each weight meets, beside a tower's rows (models/families.py). The rest (norms, biases, tables that are looked up)
# multiplies nothing.
_MEETS = (
    (r"(base|lora)/language_model/layers/.*/(kernel|a|b)", "context"),
    (r"scaffold/text_decoder/layers/.*/kernel", "chains"),
    (r"scaffold/(pj_in|visual_projector)/.*kernel", "latents"),
)


@dataclasses.dataclass(frozen=True)
class Work:
    """What a batch asks of the model: tokens, and pairs of query and key, rows together."""

    context: int  # prompt, latents and answers
    context_pairs: int
    answers: int
    patches: int
    merged: int
    patch_pairs: int
    latents: int
    chains: int
    chain_pairs: int


def work_of(batch: Mapping[str, np.ndarray], suffix: Suffix, merge: int = 2) -> Work:
    """The work in a batch as the loader makes it (see pipeline/batch.py), of any leading axes.

    Args:
      suffix: its columns; branches count as if they stood behind one another. merge: side of the square of patches that become one token.
    """
    lengths: np.ndarray = np.asarray(batch["lengths"], np.int64)
    columns: np.ndarray = np.zeros((*lengths.shape, 1), np.int64)  # of each row, or of each rollout to it
    answers, latents = columns, columns
    for segment in suffix.segments:
        if segment.kind == "latent":
            own = np.asarray(batch[f"{segment.name}_steps"], np.int64)[..., None]
            latents = latents + own
        elif segment.fixed:
            own = np.full_like(columns, segment.budget)
        elif segment.kind == "recorded":
            own = np.sum(np.asarray(batch[f"{segment.name}_mode"]) != PADDING, axis=-1, dtype=np.int64)
        else:
            own = np.sum(batch[f"{segment.name}_mask"], axis=-1, keepdims=True, dtype=np.int64)
        columns = columns + own
        answers = answers + own * segment.supervised
    segments = np.asarray(batch["patch_segment"])
    images = [np.sum(segments == number, axis=-1, dtype=np.int64) for number in range(1, segments.max(initial=0) + 1)]
    patches = sum(int(size.sum()) for size in images)
    words = np.sum(batch.get("chain_mask", np.zeros((1, 1), bool)), axis=-1, dtype=np.int64)
    return Work(
        context=int(np.sum(lengths) + np.sum(columns)),
        context_pairs=int(np.sum(lengths**2 / 2) + np.sum(columns * lengths[..., None] + columns**2 / 2)),
        answers=int(np.sum(answers)),
        patches=patches,
        merged=patches // merge**2,
        patch_pairs=sum(int(np.sum(size**2)) for size in images),
        latents=int(np.sum(latents)),
        chains=int(np.sum(words)),
        chain_pairs=int(np.sum(words**2) / 2),
    )


def of_phase(config: Any, method: Method, index: int, layout: Layout) -> Callable[[Mapping[str, np.ndarray]], float]:
    """(batch) -> the FLOPs that a step of phase `index` needs for these rows."""
    arithmetic = Arithmetic(method, setup.tables(config)[index])
    scaffold = method.parts(config.method, setup.phases_of(config)[index : index + 1])
    return lambda batch: arithmetic(work_of(batch, layout.suffix, method.model.config.vision.merge), scaffold)


class Arithmetic:
    """FLOPs of a step, forward and backward.

    Args:
      method: models without parameters. table: what trains, as for `training.partition.match`.
    """

    def __init__(self, method: Method, table: Sequence[tuple[str, str]]):
        leaves = flatten(setup.abstract_params(method))
        marks = match(table, leaves)
        self._config = method.model.config
        self._text = None if method.decoder is None else method.decoder.config
        meets = [*_MEETS, *((f"base/visual/{pattern}", kind) for pattern, kind in family_of(self._config).meets)]
        kinds = (*(kind for _, kind in meets), "answers", "words")
        self.weights, self.trained = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
        for path, leaf in leaves.items():
            kind = next((kind for pattern, kind in meets if re.fullmatch(pattern, path)), None)
            if kind:
                self.weights[kind] += math.prod(leaf.shape)
                self.trained[kind] += math.prod(leaf.shape) * (marks[path] == TRAINABLE)
        for kind, part, config in (
            ("answers", "base/language_model", self._config.decoder),
            ("words", "scaffold/text_decoder", self._text),
        ):
            if config is not None:
                head = f"{part}/embed_tokens/embedding" if config.tied else f"{part}/lm_head"
                self.weights[kind] = config.vocab * config.width
                self.trained[kind] = self.weights[kind] * (marks[head] == TRAINABLE)
        trains = {path for path in leaves if marks[path] == TRAINABLE}
        self._tower = any(path.startswith("base/visual/") for path in trains)
        # A gradient passes through the language model if anything before its end trains.
        self._base = any(path.split("/")[0] in ("base", *KEPT) for path in trains)

    def __call__(self, work: Work, scaffold: Collection[str], remat: bool = False) -> float:
        """FLOPs of this work.

        Args:
          scaffold: the parts of it that run (`methods.base.Method.parts`).
          remat: count also what is computed twice; the hardware's work, not the model's.
        """
        text = self._text if "text_decoder" in scaffold else None
        tokens = dict(
            context=work.context,
            answers=work.answers,
            patches=work.patches,
            merged=work.merged,
            latents=work.latents if "visual_projector" in scaffold or text else 0,
            chains=work.chains if text else 0,
            words=work.chains if text else 0,
        )
        flows = dict.fromkeys(("patches", "merged"), self._tower) | dict.fromkeys(("context", "answers"), self._base)
        twice = ("context", "chains") if remat else ()
        total = 0.0
        for kind, count in tokens.items():
            passes = 1 + flows.get(kind, True) + (kind in twice)
            total += 2.0 * count * (passes * self.weights[kind] + self.trained[kind])
        decoder, vision = self._config.decoder, self._config.vision
        for kind, width, pairs in (
            ("context", decoder.layers * decoder.heads * decoder.head_width, work.context_pairs),
            ("patches", vision.layers * vision.width, work.patch_pairs),
            ("chains", text.layers * text.heads * text.head_width if text else 0, work.chain_pairs),
        ):
            total += 4.0 * width * pairs * (1 + 2 * flows.get(kind, True) + (kind in twice))
        return total
