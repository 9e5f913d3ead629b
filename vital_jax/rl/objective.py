"""The policy loss of a step: the GRPO family as one table of named choices.

Every published variant is a way to weigh tokens, a ratio of two policies, and a bound on it, so there is one function and no class per
paper. Each choice names its source in the table of `Objective`; docs/rl.md shows which choices make which paper.

The loss is a sum over tokens. All that couples tokens of different rows (how many there are, how many rows, the entropy that only the top
tokens reach) is counted over the WHOLE step by `normalizers`. So micro-batches, mini-batches and devices add up to one gradient, however
rows are dealt to them. A mean over each micro-batch, averaged again, would weigh a token by how many others share its micro-batch.

A row is dropped by a mask of zeros. Nothing of it is read: its log-probabilities and its advantage may be NaN.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vital_jax.rl.choices import Names, Number, check

Sums = dict[str, jax.Array]


@dataclass(frozen=True)
class Objective:
    """What is maximised. No choice has a default.

    Let d_t = log π(y_t) - log π_old(y_t), A the advantage of the reply y, |y| its tokens.

    Attributes:
      ratio: what the ratio r is of.
        token: exp(d_t). PPO (Schulman 2017, arXiv 1707.06347), GRPO (Shao 2024, arXiv 2402.03300).
        sequence: exp(mean_t d_t), one for all tokens. GSPO (Zheng 2025, arXiv 2507.18071).
        sequence_token: the value of `sequence` with the gradient of log π(y_t) at each token. GSPO-token (the same paper).
      surrogate: what is made of it.
        clip: min(r A, clip(r, 1 - clip_low, 1 + clip_high) A). PPO; two bounds: DAPO (Yu 2025, arXiv 2503.14476).
        cispo: stop_gradient(clip(r)) A log π. CISPO (MiniMax-M1 2025, arXiv 2506.13585).
      clip_low: 1 is no lower bound, as in CISPO's paper. clip_high: TRL writes CISPO's upper bound as 1 + clip_high.
      dual_clip: c, where A < 0 the loss is at most -c A; 0 is off. Dual-clip PPO (Ye 2020, arXiv 1912.09729); TRL's `delta`.
      log_ratio_clamp: log-ratios stay within ± this before exp, those of k3 too; 0 is off. 20 in verl and EasyR1, off in TRL.
      aggregation: the weight of a token.
        sequence_mean_token_mean: 1 / (rows |y|). GRPO.
        token_mean: 1 / (tokens of the step). DAPO.
        constant_length: 1 / (rows `length`). Dr. GRPO (Liu 2025, arXiv 2503.20783). A row is one that has tokens left.
      length: tokens of the longest reply, for constant_length; 0 otherwise.
      kl: how the divergence from the reference is estimated, x = log π - log π_ref (Schulman 2020, joschu.net/blog/kl-approx.html).
        none. k1: x, whose gradient is zero in the mean. k2: x² / 2. k3: exp(-x) + x - 1, as in GRPO.
        k3+: the value of k3 with the gradient of k2, which is that of the divergence. verl (core_algos.py, kl_penalty).
      kl_coefficient: its weight in the loss; 0 only measures it.
      kl_clamp: k3 counts at most this much; 0 is off. 10 in verl and EasyR1, off in TRL.
      entropy_coefficient: the weight of the mean entropy, a bonus; A3C (Mnih 2016, arXiv 1602.01783). Tokens weigh as in `aggregation`.
      top_entropy: the share of tokens that the policy term keeps, those of highest entropy of the step; 1 keeps all.
        Wang 2025 (arXiv 2506.01939). Divergence and bonus keep all tokens, and so do the counts.
      old: who is π_old. replay: the policy before the update, computed by the trainer's own forward pass. sampler: as the rollout recorded.
      sampler_weight: corrects for a sampler that is not quite the replayed policy; multiplies the policy term, no gradient.
        none. token: min(π_old / π_sampler, cap). sequence: the same of the product over the reply.
        Truncated importance sampling (Yao 2025, fengyao.notion.site/off-policy-rl); verl (rollout_corr_helper.py).
      sampler_cap: cap, at least 1; 2 in verl.

    Raises: ValueError naming a choice that is not allowed and what is.
    """

    ratio: str
    surrogate: str
    clip_low: float
    clip_high: float
    dual_clip: float
    log_ratio_clamp: float
    aggregation: str
    length: int
    kl: str
    kl_coefficient: float
    kl_clamp: float
    entropy_coefficient: float
    top_entropy: float
    old: str
    sampler_weight: str
    sampler_cap: float

    CHOICES: ClassVar[dict[str, Names | Number]] = {
        "ratio": Names(("token", "sequence", "sequence_token")),
        "surrogate": Names(("clip", "cispo")),
        "clip_low": Number("a number from 0 to 1", 0, 1),
        "clip_high": Number("a number of at least 0", 0),
        "dual_clip": Number("a number of at least 1, or 0 for none", 1, others=(0,)),
        "log_ratio_clamp": Number("a positive number, or 0 for none", 0),
        "aggregation": Names(("sequence_mean_token_mean", "token_mean", "constant_length")),
        "length": Number("a whole number of tokens, 0 where the aggregation has no constant length", 0, whole=True),
        "kl": Names(("none", "k1", "k2", "k3", "k3+")),
        "kl_coefficient": Number("a number of at least 0", 0),
        "kl_clamp": Number("a positive number, or 0 for none", 0),
        "entropy_coefficient": Number("a number of at least 0", 0),
        "top_entropy": Number("a share above 0, at most 1", 1e-6, 1),
        "old": Names(("replay", "sampler")),
        "sampler_weight": Names(("none", "token", "sequence")),
        "sampler_cap": Number("a number of at least 1", 1),
    }

    def __post_init__(self) -> None:
        check(vars(self), self.CHOICES)
        contradictions = {
            "dual_clip: cispo has no second clip; use 0": self.surrogate == "cispo" and self.dual_clip,
            "length: constant_length divides by it; give the longest reply in tokens": self.aggregation
            == "constant_length"
            and not self.length,
            "length: only constant_length divides by it; use 0": self.aggregation != "constant_length" and self.length,
            "kl_coefficient: kl='none' estimates nothing to weigh; use 0, or one of k1, k2, k3, k3+": self.kl == "none"
            and self.kl_coefficient,
            "sampler_weight: old='sampler' already divides by the sampler; use 'none'": self.old == "sampler"
            and self.sampler_weight != "none",
        }
        for message, holds in contradictions.items():
            if holds:
                raise ValueError(message)


def normalizers(objective: Objective, mask: jax.Array, old_entropy: jax.Array | None = None) -> Sums:
    """What a step's sums are divided by, counted over all its rows.

    Args:
      mask: [..., G, T], nonzero at the tokens that count; every micro-batch of the step.
      old_entropy: [..., G, T] of the policy before the update, for `top_entropy` below 1.
    Returns: scalars `tokens`, `sequences` (rows that have a token), at least 1; and `entropy`, which the top tokens reach.
    Raises: ValueError where the entropy is needed and missing.
    """
    real = mask != 0
    norms = {"tokens": jnp.sum(real), "sequences": jnp.sum(jnp.any(real, axis=-1))}
    norms = {name: jnp.maximum(count, 1).astype(jnp.float32) for name, count in norms.items()}
    if objective.top_entropy < 1:
        known = _needed(old_entropy, "old_entropy", f"top_entropy={objective.top_entropy}").astype(jnp.float32)
        least = jnp.nanquantile(jnp.where(real, known, jnp.nan), 1 - objective.top_entropy)
        # Above zero: a token without any entropy is no top one, and the train step takes a norm of zero for an empty count.
        norms["entropy"] = jnp.maximum(jnp.nan_to_num(least), jnp.finfo(jnp.float32).tiny)
    return norms


def policy_loss(
    objective: Objective,
    logp: jax.Array,
    old: jax.Array | None,
    advantage: jax.Array,
    mask: jax.Array,
    norms: Sums,
    *,
    ref: jax.Array | None = None,
    sampler: jax.Array | None = None,
    entropy: jax.Array | None = None,
    old_entropy: jax.Array | None = None,
) -> tuple[jax.Array, Sums]:
    """The loss of some rows of a step, and what there is to see of them.

    All log-probabilities are of the tokens that were sampled, at the temperature and among the tokens of the rollout.

    Args:
      logp: [B, G, T] of the policy; gradients go through it and through `entropy` alone.
      old: of the policy before the update; unused with old="sampler".
      advantage: [B, G]. mask: [B, G, T], nonzero at the tokens that count. norms: from `normalizers` over the whole step.
      ref: of the reference. sampler: as the rollout recorded. entropy, old_entropy: of the policy now, and before the update.
    Returns: (loss, metrics), float32 scalars, added over the parts of a step. Of a metric whose name ends in `_max` the largest counts.
    Raises: ValueError where a choice needs an array that is missing, or the shapes do not agree.
    """
    given = {"old": old, "mask": mask, "ref": ref, "sampler": sampler, "entropy": entropy, "old_entropy": old_entropy}
    for name, array in {**given, "advantage": advantage}.items():
        wanted = logp.shape[:-1] if name == "advantage" else logp.shape
        if array is not None and array.shape != wanted:
            raise ValueError(f"{name} has shape {array.shape}, log-probabilities {logp.shape} ask for {wanted}")
    real = mask != 0

    def clean(x: jax.Array) -> jax.Array:
        return jnp.where(real, x.astype(jnp.float32), 0.0)

    def fixed(x: jax.Array | None, name: str, why: str) -> jax.Array:
        return jax.lax.stop_gradient(clean(_needed(x, name, why)))

    logp = clean(logp)
    A = jax.lax.stop_gradient(clean(advantage[..., None]))
    behind = (sampler, "sampler") if objective.old == "sampler" else (old, "old")
    delta = logp - fixed(*behind, f"old={objective.old!r}")
    ratio = jnp.exp(_clamped(objective, _levelled(objective, logp, delta, real)))
    gain, metrics = (_cispo if objective.surrogate == "cispo" else _clip)(objective, ratio, A, logp)
    metrics |= {
        "ratio": ratio,
        "ratio_max": ratio,
        # k3 of the policy before the update against the one now (Schulman 2020).
        "approximate_kl": jnp.expm1(_clamped(objective, delta)) - delta,
    }
    if objective.top_entropy < 1:
        known = fixed(old_entropy, "old_entropy", f"top_entropy={objective.top_entropy}")
        gain = jnp.where(known >= norms["entropy"], gain, 0.0)
    if objective.old == "replay" and (sampler is not None or objective.sampler_weight != "none"):
        apart = fixed(old, "old", "") - fixed(sampler, "sampler", f"sampler_weight={objective.sampler_weight!r}")
        metrics |= {"sampler_ratio": jnp.exp(apart), "sampler_ratio_max": jnp.exp(apart), "sampler_gap": jnp.abs(apart)}
        if objective.sampler_weight == "sequence":
            apart = jnp.broadcast_to(jnp.sum(apart, axis=-1, keepdims=True), apart.shape)
        if objective.sampler_weight != "none":
            # Capped before exp: the product over a long reply may leave the range of float32.
            gain = gain * jnp.exp(jnp.minimum(apart, jnp.log(objective.sampler_cap)))
            metrics["sampler_capped"] = apart > jnp.log(objective.sampler_cap)

    weights = _weights(objective, real, norms)
    parts = {"policy_loss": -jnp.sum(weights * gain)}
    loss = parts["policy_loss"]
    if objective.kl != "none":
        kl = _divergence(objective, logp - fixed(ref, "ref", f"kl={objective.kl!r}"))
        metrics["kl"] = kl
        if objective.kl_coefficient:
            loss = loss + objective.kl_coefficient * jnp.sum(weights * kl)
    if entropy is not None or objective.entropy_coefficient:
        bonus = clean(_needed(entropy, "entropy", f"entropy_coefficient={objective.entropy_coefficient}"))
        metrics["entropy"] = bonus
        if objective.entropy_coefficient:
            loss = loss - objective.entropy_coefficient * jnp.sum(weights * bonus)
    return loss, jax.lax.stop_gradient(parts | {name: _summary(name, x, real, norms) for name, x in metrics.items()})


def _needed(array: jax.Array | None, name: str, why: str) -> jax.Array:
    if array is None:
        raise ValueError(f"{why} needs {name}, which the step does not hold")
    return array


def _clamped(objective: Objective, x: jax.Array) -> jax.Array:
    bound = objective.log_ratio_clamp
    return jnp.clip(x, -bound, bound) if bound else x


def _levelled(objective: Objective, logp: jax.Array, delta: jax.Array, real: jax.Array) -> jax.Array:
    """The log-ratio of each token; `delta` is zero off the tokens that count."""
    if objective.ratio == "token":
        return delta
    count = jnp.maximum(jnp.sum(real, axis=-1, keepdims=True), 1)
    mean = jnp.where(real, jnp.sum(delta, axis=-1, keepdims=True) / count, 0.0)
    if objective.ratio == "sequence":
        return mean
    return jax.lax.stop_gradient(mean) + (logp - jax.lax.stop_gradient(logp))


def _clip(objective: Objective, ratio: jax.Array, A: jax.Array, logp: jax.Array) -> tuple[jax.Array, Sums]:
    low, high = 1 - objective.clip_low, 1 + objective.clip_high
    whole, bounded = ratio * A, jnp.clip(ratio, low, high) * A
    # `where` and not `minimum`: at r = 1 with a bound of 0 a tie would halve the gradient.
    gain = jnp.where(whole <= bounded, whole, bounded)
    shares = {"clip_low": (A < 0) & (ratio < low), "clip_high": (A > 0) & (ratio > high)}
    if c := objective.dual_clip:
        shares["clip_dual"] = (A < 0) & (gain < c * A)
        gain = jnp.where(shares["clip_dual"], c * A, gain)
    return gain, shares


def _cispo(objective: Objective, ratio: jax.Array, A: jax.Array, logp: jax.Array) -> tuple[jax.Array, Sums]:
    low, high = 1 - objective.clip_low, 1 + objective.clip_high
    gain = jax.lax.stop_gradient(jnp.clip(ratio, low, high)) * A * logp
    return gain, {"clip_low": ratio < low, "clip_high": ratio > high}


def _divergence(objective: Objective, x: jax.Array) -> jax.Array:
    if objective.kl == "k1":
        return x
    square = 0.5 * jnp.square(x)
    if objective.kl == "k2":
        return square
    back = _clamped(objective, -x)
    value = jnp.expm1(back) - back
    value = jnp.minimum(value, objective.kl_clamp) if objective.kl_clamp else value
    return value if objective.kl == "k3" else square + jax.lax.stop_gradient(value - square)


def _weights(objective: Objective, real: jax.Array, norms: Sums) -> jax.Array:
    """What a token's term is multiplied by, [B, G, T]; zero where it does not count."""
    if objective.aggregation == "token_mean":
        return real / norms["tokens"]
    if objective.aggregation == "constant_length":
        return real / (norms["sequences"] * objective.length)
    return real / (norms["sequences"] * jnp.maximum(jnp.sum(real, axis=-1, keepdims=True), 1))


def _summary(name: str, x: jax.Array, real: jax.Array, norms: Sums) -> jax.Array:
    """The share of the step's mean over tokens that these rows make up, or their largest value."""
    if name.endswith("_max"):
        return jnp.max(jnp.where(real, x, 0.0), initial=0.0)
    return jnp.sum(jnp.where(real, x, 0).astype(jnp.float32)) / norms["tokens"]
