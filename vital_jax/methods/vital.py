"""VITAL: task, text and visual losses on the recurrent latents (equation 7).

    [latent K, answer]        L = L_task + lambda_1 L_text + lambda_2 L_visual

L_task is the token mean over the whole step's answers. L_text and L_visual are means over samples of each sample's mean over its own K_i
steps. With lambda_1 = 0 or lambda_2 = 0 that part of the scaffold is absent, not idle: rows (a) to (e) of Table 2 are overrides of two
numbers and K. Where the paper is silent, a switch says what is done; its default stands first and the reason is in configs/vital.py.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp

from vital_jax.latent.interpret import Columns
from vital_jax.latent.loss import cross_entropy
from vital_jax.latent.scaffold import OUTPUT_NORMS, PROJECTORS, PjIn, VisualProjector, read_latents
from vital_jax.methods.base import Budgets, Losses, Method, Params, Phase, Switch, task_loss, tokens_of
from vital_jax.models.backbone import LATENT_STATES
from vital_jax.models.decoder import abstract_decoder, init_decoder
from vital_jax.pipeline.batch import TRAIN_K, Batch, Layout
from vital_jax.pipeline.segments import Segment, Suffix

COUNT = {"per_sample": "own", "phase_max": "all"}  # of latents, by train_k


@dataclasses.dataclass(frozen=True)
class Vital(Method):
    """The method and its switches.

    Attributes:
      projector, output_norm: see `VisualProjector`.
      l1_reduction: of the L1 norm over E: `sum` (equation 6 as written), `mean`, `scaled_sum` (sum / sqrt(E)).
      visual_target: `shared` (every step regresses the region's feature), `per_step` (equation 8: from the global feature to it) or
        `own_region` (every step regresses that of its own region; the record's, where it has none).
      train_k: `per_sample` (a row takes its record's own number of steps, equation 4's "valid steps") or `phase_max` (K for all).
      beyond: latents of a row beyond its record's steps are `free` (no sentence of their own) or `stay` (taught as its last step again).
      fused: run the last latent step with the answer.
    """

    projector: str = "residual_mlp_ln"
    output_norm: str = "ln"
    projector_dropout: float = 0.1
    l1_reduction: str = "sum"
    visual_target: str = "shared"
    train_k: str = "per_sample"
    beyond: str = "free"
    fused: bool = True

    name = "vital"
    losses = ("task", "text", "visual")
    switches: ClassVar = {
        "scaffold": Switch(True, free=True),
        "text": Switch(1.0, free=True),
        "visual": Switch(0.1, free=True),
        "max_steps": Switch(4, free=True),
        "latent_state": Switch("post_norm", LATENT_STATES),
        "train_k": Switch("per_sample", TRAIN_K),
        "projector": Switch("residual_mlp_ln", PROJECTORS),
        "projector_dropout": Switch(0.1),
        "output_norm": Switch("ln", OUTPUT_NORMS),
        "l1_reduction": Switch("sum", ("sum", "mean", "scaled_sum")),
        "visual_target": Switch("shared", ("shared", "per_step", "own_region")),
        "beyond": Switch("free", ("free", "stay")),
        "fused": Switch(True, free=True),
    }

    def __post_init__(self) -> None:
        for name, switch in self.switches.items():
            if switch.values and (value := getattr(self, name, switch.default)) not in switch.values:
                raise ValueError(f"unknown {name}={value!r}: use one of {switch.values}")

    @classmethod
    def steps_of(cls, settings: Mapping[str, Any], phase: Mapping[str, Any]) -> int:
        own = phase["latent_steps"]
        return min(phase["max_steps"], settings["max_steps"]) if own is None else own

    @classmethod
    def weights_of(cls, settings: Mapping[str, Any], phase: Mapping[str, Any]) -> dict[str, float]:
        own = {loss: settings[loss] if phase.get(loss) is None else phase[loss] for loss in cls.losses[1:]}
        return {loss: float(weight) if settings["scaffold"] else 0.0 for loss, weight in own.items()}

    @classmethod
    def parts(cls, settings: Mapping[str, Any], phases: Sequence[Phase]) -> frozenset[str]:
        needs = {"text": "text_decoder", "visual": "visual_projector"}
        used = {loss for phase in phases for loss in needs if phase.latent_steps and phase.weight(loss)}
        return frozenset(needs[loss] for loss in used)

    @property
    def own_steps(self) -> bool:
        return self.train_k == "per_sample"

    def layout(self, phase: Phase, budgets: Budgets) -> Layout:
        K = phase.latent_steps
        # Table 3's ablation caps K below what records have: they keep their first steps. Elsewhere a longer record is an error.
        latent = Segment("latent", "latent", K, count=COUNT[self.train_k], cut=not K or phase.max_steps > K)
        answer = Segment("tokens", "answer", budgets.answer, source="answer", supervised=True)
        chain = budgets.chain if self.decoder is not None and phase.weight("text") else 0
        roi = budgets.roi if phase.weight("visual") else 0
        regions, stay = bool(roi) and self.visual_target == "own_region", self.beyond == "stay"
        return Layout(suffix=Suffix((latent, answer)), chain=chain, roi=roi, step_regions=regions, record_steps=stay)

    @property
    def visual(self) -> VisualProjector | None:
        if self.roi_width is None:
            return None
        return VisualProjector(self.roi_width, self.projector, self.output_norm, self.projector_dropout)

    def init(self, key: jax.Array, loaded: Mapping[str, Any]) -> dict[str, Any]:
        keys = jax.random.split(key, 3)
        z = jnp.zeros((1, 1, self.model.config.decoder.width))
        scaffold: dict[str, Any] = {}
        if self.decoder is not None:
            scaffold["pj_in"] = PjIn(self.decoder.config.width).init(keys[0], z)["params"]
            text = loaded.get("text_decoder")
            scaffold["text_decoder"] = init_decoder(self.decoder, keys[1]) if text is None else text
        if self.visual is not None:
            scaffold["visual_projector"] = self.visual.init(keys[2], z)["params"]
        return {"scaffold": scaffold} if scaffold else {}

    def abstract(self) -> dict[str, Any]:
        trees = jax.eval_shape(lambda key: self.init(key, {"text_decoder": {}}), jax.random.key(0))
        if self.decoder is not None:
            trees["scaffold"]["text_decoder"] = abstract_decoder(self.decoder)
        return trees

    def normalizers(self, batch: Batch, phase: Phase, suffix: Suffix) -> Losses:
        """Answer tokens, samples with a chain, samples with a region."""
        found = tokens_of(batch, suffix)
        if "chain_mask" in batch:
            rows = jnp.sum(jnp.any(batch["chain_mask"], axis=(-2, -1)))
            found["text"] = jnp.maximum(rows, 1).astype(jnp.float32)
        if "roi_mask" in batch:
            rows = jnp.sum(jnp.any(batch["roi_steps_mask"], axis=-1) if self.own_region else batch["roi_mask"])
            found["visual"] = jnp.maximum(rows, 1).astype(jnp.float32)
        return found

    def loss(
        self, params: Params, columns: Columns, batch: Batch, norms: Losses, phase: Phase, suffix: Suffix, key: Any
    ) -> tuple[Losses, Losses]:
        values, metrics = task_loss(self.model, params, columns, batch, norms, suffix)
        if not phase.latent_steps:
            return values, metrics
        _, z, own = (x[:, 0] for x in columns.steps("latent"))
        scaffold, batch = params.get("scaffold", {}), self.stayed(batch, own)
        if phase.weight("text"):
            values["text"], metrics["chain_accuracy"] = self.text_loss(scaffold, z, batch, norms)
        if phase.weight("visual"):
            values["visual"], metrics["roi_cosine"] = self.visual_loss(scaffold, z, own, batch, norms, key)
        return values, metrics

    @property
    def own_region(self) -> bool:
        return self.visual_target == "own_region"

    def stayed(self, batch: Batch, own: jax.Array) -> Batch:
        """The batch in which what a step is taught stands again in the latents beyond its record's last step, where `beyond` says so.

        Args: own [B, K], the latents of a row.
        """
        if self.beyond == "free":
            return batch
        step = jnp.minimum(jnp.arange(own.shape[1]), jnp.maximum(batch["record_steps"] - 1, 0)[:, None])
        held: dict[str, Any] = dict(batch)
        for name in ("chain", "chain_mask", "roi_steps", "roi_steps_mask"):
            if name in held:
                held[name] = held[name][jnp.arange(len(step))[:, None], step]
        if "chain_mask" in held:
            held["chain_mask"] &= own[..., None]
        return cast(Batch, held)

    def text_loss(self, scaffold: Params, z: jax.Array, batch: Batch, norms: Losses) -> tuple[jax.Array, jax.Array]:
        """(loss, share of likeliest tokens): the decoder must say each step's sentence from its latent alone (equations 3 and 4).

        Args: z [B, K, D], a row's own steps first.
        """
        assert self.decoder is not None  # `parts` names it wherever a phase weighs this loss
        mask = batch["chain_mask"].astype(jnp.float32)
        words = jnp.sum(mask, axis=-1, keepdims=True)
        steps = jnp.sum(words > 0, axis=1, keepdims=True)
        share = mask / jnp.maximum(words, 1) / jnp.maximum(steps, 1) / norms["text"]
        states = read_latents(self.decoder, scaffold, z, batch["chain"])
        head = self.decoder.apply({"params": scaffold["text_decoder"]}, method="head")
        return cross_entropy(states, head, batch["chain"], share)

    def visual_loss(
        self, scaffold: Params, z: jax.Array, own: jax.Array, batch: Batch, norms: Losses, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """(loss, mean cosine with the target): every step's projection must be near the region's feature (equations 5 and 6).

        Args: z [B, K, D], a row's own steps first; own [B, K].
        """
        projector, rngs = self.visual, None if key is None else {"dropout": key}
        assert projector is not None  # `parts` names it wherever a phase weighs this loss
        projected = projector.apply({"params": scaffold["visual_projector"]}, z, own, key is None, rngs=rngs)
        steps = jnp.sum(own, axis=-1)
        last = steps if self.beyond == "free" else jnp.minimum(steps, batch["record_steps"])
        target = self.visual_targets(batch, last, own.shape[-1])
        width = target.shape[-1]
        scale = {"sum": 1.0, "mean": 1 / width, "scaled_sum": width**-0.5}[self.l1_reduction]
        distance = jnp.sum(jnp.abs(projected - target), axis=-1) * scale
        counted = own & (batch["roi_steps_mask"] if self.own_region else batch["roi_mask"][:, None])
        share = counted / jnp.maximum(jnp.sum(counted, axis=-1), 1)[:, None] / norms["visual"]
        unit = projected / jnp.maximum(jnp.linalg.norm(projected, axis=-1, keepdims=True), 1e-6)
        return jnp.sum(jnp.where(counted, distance, 0.0) * share), jnp.sum(jnp.sum(unit * target, axis=-1) * share)

    def visual_targets(self, batch: Batch, steps: jax.Array, K: int) -> jax.Array:
        """What each step regresses, [B, K, E]: its own region's feature, the record's, or equation 8's path from the global feature to that
        over `steps` [B], where it stays."""
        if self.own_region:
            return batch["roi_steps"]
        roi = jnp.broadcast_to(batch["roi"][:, None], (batch["roi"].shape[0], K, batch["roi"].shape[1]))
        if self.visual_target == "shared":
            return roi
        last = jnp.maximum(steps - 1, 1)[:, None]
        alpha = jnp.where(steps[:, None] > 1, jnp.minimum(jnp.arange(K) / last, 1.0), 1.0)[..., None]
        mixed = alpha * roi + (1 - alpha) * batch["roi_global"][:, None]
        return mixed / jnp.maximum(jnp.linalg.norm(mixed, axis=-1, keepdims=True), 1e-6)
