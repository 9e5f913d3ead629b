"""What grouped learning costs and what merging adapters moves, on models with random weights (text prompts, every budget full).

    python benchmarks/grouped_cost.py update --prefix 256       # the update: G answers behind one prefill against G prefills
    python benchmarks/grouped_cost.py rollout                   # drawing against transformers' generate: same weights, batch and tokens
    python benchmarks/grouped_cost.py rollout --model vital_jax/demo/weights/backbone --prefix 48 --answer 24 --rows 16
    python benchmarks/grouped_cost.py merge                     # sampler against replay, adapters merged or not, float32 and bfloat16
    python benchmarks/grouped_cost.py parts --metrics runs/grpo_quickstart/metrics.jsonl

`rollout` and `merge` make a backbone of about 100 M parameters unless --model names one. Both sides write --answer tokens to each of
rows x group prompts, without end tokens, at temperature 1. Ratios are medians with quartiles over rounds in which both take turns.
"""

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import loop_model
import numpy as np

from vital_jax.hub.load import load_backbone
from vital_jax.hub.tiny import write_backbone
from vital_jax.latent.choose import Decoding, row_keys
from vital_jax.latent.decode import Decoded, Plan, respond
from vital_jax.methods.direct import Direct
from vital_jax.models.backbone import Backbone
from vital_jax.models.config import LoraConfig
from vital_jax.models.lora import init_lora
from vital_jax.pipeline.segments import TOKEN, Segment, Suffix
from vital_jax.rl.objective import Objective
from vital_jax.rl.policy import make_loss
from vital_jax.rl.replay import replay
from vital_jax.rl.rollout import policy

GRPO = Objective(
    ratio="token", surrogate="clip", clip_low=0.2, clip_high=0.2, dual_clip=0, log_ratio_clamp=0, aggregation="token_mean", length=0,
    kl="none", kl_coefficient=0, kl_clamp=0, entropy_coefficient=0, top_entropy=1, old="replay", sampler_weight="none", sampler_cap=2,
)  # fmt: skip
LORA = LoraConfig(rank=16, alpha=32.0, dropout=0.0)


def full_prompts(tokens: np.ndarray, model: Backbone) -> dict[str, np.ndarray]:
    """A batch of text prompts [B, S] without padding."""
    B, S = tokens.shape
    return {
        "tokens": tokens.astype(np.int32),
        "lengths": np.full(B, S, np.int32),
        "positions": np.broadcast_to(np.arange(S, dtype=np.int32), (B, 3, S)),
        "next_position": np.full(B, S, np.int32),
        "patches": np.zeros((B, 0, model.config.vision.patch_width), np.float32),
    }


def update(options: argparse.Namespace) -> None:
    """The gradient of an update, shared prefix against unshared: time, compiler's memory, and that it is the same gradient."""
    model, shapes, _ = loop_model.make(options, jnp.dtype(options.dtype), options.remat)
    params = loop_model.draw(shapes)
    B, G, S, U = options.rows, options.group, options.prefix, options.answer
    r = np.random.default_rng(1)
    prompts = full_prompts(r.integers(0, options.vocab, (B, S)), model)
    rollout = {
        "mode": np.full((B, G, U), TOKEN, np.int32),
        "tokens": r.integers(0, options.vocab, (B, G, U)).astype(np.int32),
        "mask": np.ones((B, G, U), bool),
        "old": np.full((B, G, U), -np.log(options.vocab), np.float32),
    }
    advantage = {"rollout_advantage": r.normal(size=(B, G)).astype(np.float32)}
    shared = prompts | {f"rollout_{name}": x for name, x in rollout.items()} | advantage
    repeated = {name: np.repeat(x, G, axis=0) for name, x in prompts.items()}
    alone = {name: x.reshape(B * G, 1, *x.shape[2:]) for name, x in shared.items() if name.startswith("rollout_")}
    loss, normalizers = make_loss(Direct(model), GRPO, 1.0, np.zeros(options.vocab, bool))
    base = {"base": params["base"]}

    def gradient(lora: Any, batch: Any) -> Any:
        return jax.grad(lambda x: loss({"lora": x}, base, batch, None, normalizers(batch))[0])(lora)

    compiled: dict[str, Callable[[], Any]] = {}
    found, memory = {}, {}
    for name, batch in {"one prefill for all": shared, "one prefill each": repeated | alone}.items():
        program = jax.jit(gradient).lower(params["lora"], batch).compile()
        on_device = jax.device_put(batch)
        compiled[name] = lambda program=program, batch=on_device: program(params["lora"], batch)
        found[name], memory[name] = compiled[name](), program.memory_analysis().temp_size_in_bytes
    one, other = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in found.values())
    tokens = (B * (S + G * U), B * G * (S + U))
    stated = tokens[1] / tokens[0]
    print(f"update, {options.dtype}: B = {B}, G = {G}, S = {S}, U = {U}; {loop_model.device()}")
    print(f"  tokens computed {tokens[0]:,} and {tokens[1]:,}: {stated:.2f} times")
    print(f"  gradients apart by at most {np.abs(one - other).max() / np.abs(one).max():.1e} of the largest element")
    for name, ratio in loop_model.alternate(compiled, options.repeats).items():
        print(f"  {name:20s} time {ratio}, temporary memory {memory[name] / 2**20:.0f} MiB")


def writing(
    model: Backbone, options: argparse.Namespace
) -> tuple[dict[str, np.ndarray], np.ndarray, Callable[[Any], Decoded]]:
    """(prompts, tokens that are never drawn [V], what draws with given variables)."""
    B, G, S, T = options.rows, options.group, options.prefix, options.answer
    V = model.config.decoder.vocab
    banned = np.zeros(V, bool)
    banned[: V // 8] = True  # control tokens, ends among them, and words
    batch = full_prompts(np.random.default_rng(2).integers(V // 8, V, (B, S)), model)
    plan = Plan(Suffix((Segment("tokens", "answer", T, source="answer"),)), drawn=True)
    decoding = Decoding(T, ends=(0,), temperature=1.0)

    sampling = decoding.rows(B, G, row_keys(0, np.arange(B, dtype=np.uint32), G))
    drawn = jax.jit(lambda variables: respond(model, variables, batch, plan, sampling, None, banned))
    return batch, banned, drawn


def folder(options: argparse.Namespace) -> Iterator[Path]:
    """The folder of the model, once."""
    if options.model:
        yield Path(options.model)
        return
    with tempfile.TemporaryDirectory() as made:
        write_backbone(made, [" ".join(map(str, range(3000)))], width=768, layers=12)
        yield Path(made)


def rollout(options: argparse.Namespace) -> None:
    """Tokens a second beside `generate`, float32."""
    import torch
    from transformers import AutoModelForImageTextToText

    for place in folder(options):
        model, base = load_backbone(place, param_dtype=np.float32)
        other = AutoModelForImageTextToText.from_pretrained(place, dtype=torch.float32, local_files_only=True)
    batch, banned, drawn = writing(model, options)
    ids = torch.from_numpy(batch["tokens"].astype(np.int64))
    settings = dict(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=options.group, max_new_tokens=options.answer,
        min_new_tokens=options.answer, suppress_tokens=np.flatnonzero(banned).tolist(), use_cache=True,
    )  # fmt: skip

    def generate() -> None:
        with torch.inference_mode():
            found = other.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
        assert tuple(found.shape) == (options.rows * options.group, options.prefix + options.answer)

    found = drawn({"params": base})
    assert found.tokens.shape == (options.rows, options.group, options.answer) and not np.any(found.complete)
    size = sum(x.size for x in jax.tree.leaves(base))
    calls = {"here": lambda: drawn({"params": base}).tokens, "transformers": generate}
    count = options.rows * options.group * options.answer
    print(
        f"rollout, float32, {size / 1e6:.0f} M parameters: {options.rows} prompts of {options.prefix} tokens, {options.group} answers of "
        f"{options.answer} each, {count:,} tokens; {loop_model.device()}, torch {torch.__version__}"
    )
    for name, ratio in loop_model.alternate(calls, options.repeats).items():
        print(f"  {name:14s} time {ratio}")


def merge(options: argparse.Namespace) -> None:
    """Ratio of replay to sampler at equal weights, with the adapters merged before drawing and not."""
    print(f"merge: {options.rows} x {options.group} answers of {options.answer} tokens; {loop_model.device()}")
    for place in folder(options):
        for dtype in (jnp.float32, jnp.bfloat16):
            mismatch(place, jnp.dtype(dtype), options)


def mismatch(place: Path, dtype: np.dtype, options: argparse.Namespace) -> None:
    """Two lines of `merge`: random adapters on the model in `place`."""
    model, base = load_backbone(place, dtype=dtype, param_dtype=dtype, lora=LORA)
    key = jax.random.key(3)
    nudge = lambda x: x + 0.02 * jax.random.normal(key, x.shape, x.dtype)  # noqa: E731
    params = {"base": base, "lora": jax.tree.map(nudge, init_lora(model.config.decoder, LORA, key))}
    batch, banned, drawn = writing(model, options)
    read = jax.jit(lambda params, batch: replay(Direct(model), params, batch, 1.0, banned).log_probs)
    for merged in (False, True):
        found = jax.device_get(drawn(policy(model, params, merged)))
        again = read(params, batch | {"rollout_mode": found.modes, "rollout_tokens": found.tokens})
        gap = np.asarray(again, np.float64) - found.log_probs
        whole = np.exp(gap.sum(-1))
        print(
            f"  {dtype.name:9s} {'merged' if merged else 'not merged':10s} mean |log ratio| {np.abs(gap).mean():.1e}, ratio of a token "
            f"{np.exp(gap.min()):.6f} to {np.exp(gap.max()):.6f}, of an answer {whole.min():.5f} to {whole.max():.5f}"
        )


def parts(options: argparse.Namespace) -> None:
    """Seconds of a step by part, medians over a run's metrics."""
    seconds = defaultdict(list)
    for line in options.metrics.read_text().splitlines():
        for name, value in json.loads(line).items():
            if name.startswith("seconds/") or name == "tokens/s":
                seconds[name].append(value)
    for name, values in seconds.items():
        print(f"  {name:20s} {statistics.median(values):8.3f}  (N = {len(values)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("update", "rollout", "merge", "parts"))
    sizes = {"rows": 4, "group": 8, "prefix": 256, "answer": 64, "width": 512, "layers": 8, "head": 64, "vocab": 4096}
    for name, size in {**sizes, "repeats": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the update")
    parser.add_argument("--remat", default="none", help="of the update")
    parser.add_argument("--model", help="a folder in place of random weights")
    parser.add_argument("--metrics", type=Path, default=Path("runs/grpo_quickstart/metrics.jsonl"))
    options = parser.parse_args()
    {"update": update, "rollout": rollout, "merge": merge, "parts": parts}[options.what](options)


if __name__ == "__main__":
    main()
