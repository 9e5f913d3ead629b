"""VITAL: task, text and visual losses on the recurrent latents (equation 7), as one method.

    L = L_task + lambda_1 L_text + lambda_2 L_visual

L_task is the token mean over the whole step's answers. L_text and L_visual are means over samples of each sample's mean over its own K_i
steps. All three are sums divided by counts of the whole step (`normalizers`), so neither accumulation nor sharding changes them.

With lambda_1 = 0 or lambda_2 = 0 the scaffold part is absent, not idle: rows (a) to (e) of Table 2 are overrides of two numbers and K.
Where the paper is silent, a switch below says what is done; its default stands first and the reason is in the configuration.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vital_jax.latent.loop import Thoughts, embed, prefill, teacher_force, variables_of
from vital_jax.latent.loss import cross_entropy
from vital_jax.latent.scaffold import OUTPUT_NORMS, PROJECTORS, PjIn, VisualProjector, read_latents
from vital_jax.models.backbone import Backbone
from vital_jax.models.decoder import Decoder, abstract_decoder, init_decoder
from vital_jax.training.partition import merge

SWITCHES = {
    "projector": PROJECTORS,
    "output_norm": OUTPUT_NORMS,
    "l1_reduction": ("sum", "mean", "scaled_sum"),
    "visual_target": ("shared", "per_step"),
    "fused": (True, False),
}


@dataclasses.dataclass(frozen=True)
class Vital:
    """The method: two models, the widths and the switches.

    Attributes:
      model: the backbone. decoder: the text decoder, or None when lambda_1 is zero in every phase.
      roi_width: E, or None when lambda_2 is zero in every phase.
      projector, output_norm: see `VisualProjector`.
      l1_reduction: of the L1 norm over E: `sum` (equation 6 as written), `mean`, `scaled_sum` (sum / sqrt(E)).
      visual_target: `shared` (every step regresses the region's feature) or `per_step` (equation 8: from the global feature to it).
      fused: run the last latent step with the answer.
    """

    model: Backbone
    decoder: Decoder | None = None
    roi_width: int | None = None
    projector: str = "residual_mlp_ln"
    output_norm: str = "ln"
    projector_dropout: float = 0.1
    l1_reduction: str = "sum"
    visual_target: str = "shared"
    fused: bool = True

    def __post_init__(self):
        for switch, values in SWITCHES.items():
            if getattr(self, switch) not in values:
                raise ValueError(f"unknown {switch}={getattr(self, switch)!r}: use one of {values}")

    @property
    def visual(self) -> VisualProjector:
        """The projector module."""
        return VisualProjector(self.roi_width, self.projector, self.output_norm, self.projector_dropout)

    def init_scaffold(self, key: jax.Array, text_decoder: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Scaffold parameters, float32. `text_decoder` holds loaded weights; without it the text decoder is drawn at random."""
        keys = jax.random.split(key, 3)
        z = jnp.zeros((1, 1, self.model.config.decoder.width))
        scaffold: dict[str, Any] = {}
        if self.decoder is not None:
            scaffold["pj_in"] = PjIn(self.decoder.config.width).init(keys[0], z)["params"]
            scaffold["text_decoder"] = text_decoder if text_decoder is not None else init_decoder(self.decoder, keys[1])
        if self.roi_width is not None:
            scaffold["visual_projector"] = self.visual.init(keys[2], z)["params"]
        return scaffold

    def abstract_scaffold(self) -> dict[str, Any]:
        """The scaffold's shapes; nothing is allocated."""
        text = None if self.decoder is None else abstract_decoder(self.decoder)
        shapes = jax.eval_shape(lambda key: self.init_scaffold(key, {}), jax.random.key(0))
        return {**shapes, "text_decoder": text} if text is not None else shapes


def normalizers(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """What each loss is divided by: answer tokens, samples with a chain, samples with a region. Any leading axes; never zero."""
    return {
        "task": jnp.maximum(jnp.sum(batch["answer_mask"]), 1).astype(jnp.float32),
        "text": jnp.maximum(jnp.sum(jnp.any(batch["chain_mask"], axis=(-2, -1))), 1).astype(jnp.float32),
        "visual": jnp.maximum(jnp.sum(batch["roi_mask"]), 1).astype(jnp.float32),
    }


def thoughts(
    method: Vital,
    params: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    max_steps: int,
    key: jax.Array | None = None,
    probe: jax.Array | None = None,
) -> Thoughts:
    """The teacher-forced pass of a batch, G = 1. `params` holds base, and lora if any; `key` turns dropout on."""
    variables = variables_of(params)
    prefill_key, loop_key = (None, None) if key is None else jax.random.split(key)
    prefix = embed(method.model, variables, batch)
    z0, prompt = prefill(method.model, variables, prefix, batch["next_position"], prefill_key)
    return teacher_force(
        method.model,
        variables,
        prompt,
        z0[:, None],
        batch["answer"][:, None],
        batch["latent_steps"][:, None],
        max_steps,
        method.fused,
        loop_key,
        probe,
    )


def visual_targets(method: Vital, batch: Mapping[str, jax.Array], max_steps: int) -> jax.Array:
    """What each step regresses, [B, K, E]: the region's feature, or equation 8's path from the global feature to it over K_i steps."""
    roi = jnp.broadcast_to(batch["roi"][:, None], (batch["roi"].shape[0], max_steps, batch["roi"].shape[1]))
    if method.visual_target == "shared":
        return roi
    last = jnp.maximum(batch["latent_steps"] - 1, 1)[:, None]
    alpha = jnp.where(batch["latent_steps"][:, None] > 1, jnp.arange(max_steps) / last, 1.0)[..., None]
    mixed = alpha * roi + (1 - alpha) * batch["roi_global"][:, None]
    return mixed / jnp.maximum(jnp.linalg.norm(mixed, axis=-1, keepdims=True), 1e-6)


def losses(
    method: Vital,
    params: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    norms: Mapping[str, jax.Array],
    max_steps: int,
    weights: Mapping[str, float],
    key: jax.Array | None = None,
    probe: jax.Array | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], Thoughts]:
    """The three losses of a batch (equations 2, 4 and 6), unweighted.

    Args:
      params: base, lora, scaffold. batch: see pipeline/batch.py. norms: of the whole step. max_steps: K_max of the phase.
      weights: `text` and `visual`; a zero leaves that part of the scaffold out of the program.
      key: turns dropout on. probe: [B, 1, K, D] added to the latents.
    Returns: losses by name, metrics by name, and the thoughts.
    """
    model, scaffold = method.model, params.get("scaffold", {})
    loop_key, projector_key = (None, None) if key is None else jax.random.split(key)
    thought = thoughts(method, params, batch, max_steps, loop_key, probe)
    base = variables_of(params)
    h = model.apply(base, thought.h, method="head_input")
    task, correct = cross_entropy(
        h, model.apply(base, method="head"), batch["answer"][:, None], batch["answer_mask"][:, None] / norms["task"]
    )
    values, metrics = {"task": task}, {"answer_accuracy": correct}
    if not max_steps:
        return values, metrics, thought

    z, K = thought.z[:, 0], max_steps
    if weights["text"]:
        mask = batch["chain_mask"][:, :K].astype(jnp.float32)
        words = jnp.sum(mask, axis=-1, keepdims=True)
        steps = jnp.sum(words > 0, axis=1, keepdims=True)
        share = mask / jnp.maximum(words, 1) / jnp.maximum(steps, 1) / norms["text"]
        states = read_latents(method.decoder, scaffold, z, batch["chain"][:, :K])
        head = method.decoder.apply({"params": scaffold["text_decoder"]}, method="head")
        values["text"], metrics["chain_accuracy"] = cross_entropy(states, head, batch["chain"][:, :K], share)
    if weights["visual"]:
        rngs = None if key is None else {"dropout": projector_key}
        taken = jnp.arange(1, K + 1) <= batch["latent_steps"][:, None]
        projected = method.visual.apply({"params": scaffold["visual_projector"]}, z, taken, key is None, rngs=rngs)
        target = visual_targets(method, batch, K)
        distance = jnp.sum(jnp.abs(projected - target), axis=-1)
        width = target.shape[-1]
        distance = distance * {"sum": 1.0, "mean": 1 / width, "scaled_sum": width**-0.5}[method.l1_reduction]
        own = taken & batch["roi_mask"][:, None]
        share = own / jnp.maximum(batch["latent_steps"], 1)[:, None] / norms["visual"]
        values["visual"] = jnp.sum(jnp.where(own, distance, 0.0) * share)
        unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)  # noqa: E731
        metrics["roi_cosine"] = jnp.sum(jnp.sum(unit(projected) * target, axis=-1) * share)
    return values, metrics, thought


def total(values: Mapping[str, jax.Array], weights: Mapping[str, float]) -> jax.Array:
    """Equation 7."""
    return values["task"] + sum(weights[name] * values[name] for name in ("text", "visual") if name in values)


def make_loss(method: Vital, max_steps: int, weights: Mapping[str, float]) -> Callable:
    """The loss of a phase as the trainer takes it: (trainable, frozen, batch, rng, norms) -> (loss, metrics).

    The two trees are halves of one; every metric is a sum already divided by the whole step's counts.
    """

    def loss(trainable, frozen, batch, rng, norms):
        values, metrics, _ = losses(method, merge(trainable, frozen), batch, norms, max_steps, weights, rng)
        return total(values, weights), {**values, **metrics}

    return loss


def diagnose(
    method: Vital,
    params: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    max_steps: int,
    weights: Mapping[str, float],
) -> dict[str, jax.Array]:
    """Numbers that tell whether the latents carry anything (deterministic; costs a backward pass per loss).

    Returns: `grad_z/<loss>` the norm of each weighted loss's gradient at the latents; `z_norm/k` mean length of z_k; `u_over_embedding`
    length of the inputs u against the mean embedding row; `z_cosine/i_j` mean cosine of z_i and z_j over the rows that have both
    (equation 9, the collapse matrix).
    """
    B, D = batch["answer"].shape[0], method.model.config.decoder.width
    norms = normalizers(batch)

    def at(probe):
        values, _, thought = losses(method, params, batch, norms, max_steps, weights, probe=probe)
        return {name: value * {"task": 1.0, **weights}[name] for name, value in values.items()}, thought

    probe = jnp.zeros((B, 1, max_steps, D), method.model.dtype)
    values, pull, thought = jax.vjp(at, probe, has_aux=True)
    # One loss after the other: a jacobian would hold all three backward passes at once.
    grads = {name: pull({other: jnp.float32(other == name) for other in values})[0] for name in values}
    out = {f"grad_z/{name}": jnp.sqrt(jnp.sum(jnp.square(g.astype(jnp.float32)))) for name, g in grads.items()}
    z = thought.z[:, 0].astype(jnp.float32)
    length = jnp.linalg.norm(z, axis=-1)
    own = jnp.arange(1, max_steps + 1) <= batch["latent_steps"][:, None]
    mean = lambda x, m: jnp.sum(jnp.where(m, x, 0.0)) / jnp.maximum(jnp.sum(m), 1)  # noqa: E731
    rows = params["base"]["language_model"]["embed_tokens"]["embedding"].astype(jnp.float32)
    row = jnp.mean(jnp.linalg.norm(rows, axis=-1))
    u = jnp.linalg.norm(thought.u[:, 0].astype(jnp.float32), axis=-1)
    out["u_over_embedding"] = mean(u, own) / row
    unit = z / jnp.maximum(length, 1e-6)[..., None]
    for i in range(max_steps):
        out[f"z_norm/{i + 1}"] = mean(length[:, i], own[:, i])
        for j in range(i + 1, max_steps):
            out[f"z_cosine/{i + 1}_{j + 1}"] = mean(jnp.sum(unit[:, i] * unit[:, j], axis=-1), own[:, j])
    return out
