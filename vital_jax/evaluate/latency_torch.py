"""The other side of `vital bench latency`: transformers on torch, in a process of its own, so that neither memory nor threads mix.

    python -m vital_jax.evaluate.latency_torch

It reads one JSON object a line and answers each with one, so that the process that times our side decides whose turn it is. Written as a
user of transformers would write it who knows how to be quick: the prompt once, then the decoder alone on one column at a time over the
cache; the head only where a token is read; positions and masks made outside the loop. Two forms:

    eager       DynamicCache, nothing compiled
    compiled    StaticCache; a latent step and a decoding step are compiled to one graph each. As in transformers' own `generate` with a
                static cache, the prompt is not compiled.
"""

import json
import os
import sys
import time
from itertools import pairwise
from typing import Any

import numpy as np

_TILE = 64  # a static cache is made for rounded lengths, as one does to compile rarely
STAGES = ("image", "prefill", "latent", "decode")


def _torch():
    try:
        import torch
        import transformers
    except ImportError as error:
        raise RuntimeError(
            f"the comparison needs torch ({error.name} not found): pip install 'vital_jax[test]'"
        ) from error
    return torch, transformers


class Reference:
    """A vision-language model of transformers and the rows it is asked to answer.

    Args:
      folder: whole weights in the Hugging Face layout. dtype: float32 or bfloat16. device: cpu or cuda. threads: of torch on the host.
    Raises: RuntimeError where torch is not installed or sees no such device.
    """

    def __init__(self, folder: str, dtype: str, device: str, threads: int):
        torch, transformers = _torch()
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(
                f"jax computes on a GPU and torch {torch.__version__} sees none: install torch with CUDA"
            )
        torch.set_num_threads(threads)
        torch._dynamo.config.recompile_limit = 256  # one shape of rows and one length of cache each has its own graph
        self.device = torch.device(device)
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False
        )
        self.model = self.model.to(self.device).eval()
        self.decoder, self.config = self.model.model.language_model, self.model.config.text_config
        options = {"mode": "reduce-overhead", "fullgraph": True, "dynamic": False}
        steps = {"eager": (self._think, self._write)}
        steps["compiled"] = tuple(torch.compile(step, **options) for step in steps["eager"])
        self._steps: dict[str, tuple[Any, Any]] = steps
        self._caches: dict[tuple[int, int], Any] = {}
        self.batches: list[dict[str, Any]] = []

    def facts(self) -> dict[str, Any]:
        """What runs here: versions, device, threads, attention, whether torch.compile is switched off."""
        torch, transformers = _torch()
        # One of the two variables that switch it off shows here, the other in that it hands back what it was given.
        off = torch._dynamo.config.disable or self._steps["compiled"] == self._steps["eager"]
        kind = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        return {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": kind,
            "threads": torch.get_num_threads(),
            "attention": self.config._attn_implementation,
            "compile": "switched off by the environment" if off else "with inductor, reduce-overhead",
        }

    def read(self, path: str) -> None:
        """Takes rows as `latency.for_torch` writes them: batches of left-padded prompts with their images' patches, without padding."""
        torch, _ = _torch()
        with np.load(path, allow_pickle=False) as held:
            arrays = {name: torch.from_numpy(held[name]) for name in held.files}
        self._caches.clear()
        self.batches = [
            {name: arrays[f"{b}/{name}"] for name in ("ids", "mask", "patches", "grids", "next_position")}
            for b in range(int(arrays["batches"]))
        ]

    # What is compiled: two small functions of fixed shapes.

    def _think(self, vector, positions, mask, cache):
        """vector [B, 1, D] at `positions` [3, B, 1]: the state that comes out, [B, 1, D]."""
        return self.decoder(
            inputs_embeds=vector, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state

    def _write(self, token, positions, mask, cache):
        """token [B, 1] at `positions`: the likeliest token that follows, and the logits [B, V]."""
        h = self._think(self.decoder.embed_tokens(token), positions, mask, cache)
        logits = self.model.lm_head(h[:, 0])
        return logits.argmax(-1, keepdim=True), logits

    def answer(self, form: str, steps: int, length: int, ends: list[int], check: bool = False) -> dict[str, Any]:
        """Greedy answers to all rows.

        Args:
          form: `eager` or `compiled`. steps: K. length: T. ends: tokens that end an answer; none: every answer has T tokens.
          check: also give margins, how much a chosen token's logit is above the second's, and log_probs, natural.
        Returns: seconds of each stage over all rows; tokens, a row each, filled with the first of `ends`; the others likewise, by zeros.
        """
        torch, _ = _torch()
        seconds, tokens, margins, log_probs = dict.fromkeys(STAGES, 0.0), [], [], []
        with torch.no_grad():
            for rows in self.batches:
                logits = [] if check else None
                marks, found = self._answer(rows, form, steps, length, ends, logits)
                for stage, (start, end) in zip(STAGES, pairwise(marks), strict=True):
                    seconds[stage] += end - start
                tokens += found.tolist()
                for b in range(len(found) if check else 0):
                    own = torch.stack([x[b].float() for x in logits]).cpu()
                    top, rest = own.topk(2).values, [0.0] * (length - len(own))
                    margins.append((top[:, 0] - top[:, 1]).tolist() + rest)
                    log_probs.append((top[:, 0] - own.logsumexp(-1)).tolist() + rest)
        return {"seconds": seconds, "tokens": tokens, "margins": margins, "log_probs": log_probs}

    def _mark(self) -> float:
        if self.device.type == "cuda":
            _torch()[0].cuda.synchronize()
        return time.perf_counter()

    def _answer(self, rows: dict[str, Any], form: str, steps: int, length: int, ends: list[int], kept: list | None):
        """(the times of the stages' borders, tokens [B, T]); the logits of each token go to `kept`, where it is a list."""
        torch, _ = _torch()
        think, write = self._steps[form]
        static, (B, S) = form == "compiled", rows["ids"].shape
        padded = not bool(rows["mask"].all())
        cache, size = self._cache(static, B, S + steps + length)
        marks = [self._mark()]
        ids, grids = rows["ids"].to(self.device), rows["grids"].to(self.device)
        patches = rows["patches"].to(self.device, self.model.dtype)
        position = rows["next_position"].to(self.device)[None, :, None].expand(3, -1, -1)
        # Without padding no mask is needed; a static cache wants one of its whole size, later columns hidden by causality.
        mask = torch.nn.functional.pad(rows["mask"], (0, size - S), value=1).to(self.device) if padded else None
        seen = lambda columns: mask if mask is None or static else mask[:, :columns]  # noqa: E731

        # The decoder is entered when the image tower is done.
        hook = self.decoder.register_forward_pre_hook(lambda *_: marks.append(self._mark()))
        try:
            h = self.model.model(
                input_ids=ids,
                attention_mask=rows["mask"].to(self.device) if padded else None,
                pixel_values=patches,
                image_grid_thw=grids,
                mm_token_type_ids=(ids == self.model.config.image_token_id).int(),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1:]
        finally:
            hook.remove()
        marks.append(self._mark())
        # A captured graph gives its results in memory of its own, which its next run overwrites.
        keep = (lambda x: x.clone()) if static and self.device.type == "cuda" else (lambda x: x)
        for k in range(steps):
            h = keep(think(h, position + k, seen(S + k + 1), cache))
        marks.append(self._mark())
        logits = self.model.lm_head(h[:, 0])
        tokens = [logits.argmax(-1, keepdim=True)]
        stop = torch.tensor(ends, device=self.device)
        done = torch.isin(tokens[0], stop)
        for t in range(1, length):
            if ends and bool(done.all()):
                break
            if kept is not None:
                kept.append(keep(logits))
            token, logits = write(tokens[-1], position + (steps + t - 1), seen(S + steps + t), cache)
            token = keep(token)
            if ends:
                token = torch.where(done, stop[0], token)
                done = done | torch.isin(token, stop)
            tokens.append(token)
        if kept is not None:
            kept.append(keep(logits))
        found = torch.cat(tokens, 1).cpu()
        marks.append(self._mark())
        if found.shape[1] < length:
            found = torch.nn.functional.pad(found, (0, length - found.shape[1]), value=ends[0])
        return marks, found

    def _cache(self, static: bool, rows: int, columns: int):
        """An empty cache for these rows, and its size."""
        _, transformers = _torch()
        if not static:
            return transformers.DynamicCache(config=self.config), columns
        size = -(-columns // _TILE) * _TILE
        if (rows, size) not in self._caches:
            self._caches[rows, size] = transformers.StaticCache(config=self.config, max_cache_len=size)
        cache = self._caches[rows, size]
        cache.reset()
        return cache, size


def main() -> None:
    """Serves requests until standard input ends. What fails is answered with {"error": one line}."""
    # Whatever libraries print goes to standard error; answers have a stream of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    reference = None
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        try:
            if do == "open":
                reference = Reference(**request)
                found = reference.facts()
            else:
                found = getattr(reference, {"read": "read", "answer": "answer"}[do])(**request) or {}
        except Exception as error:  # the other process tells the user
            text = " ".join(str(error).split()) or "no message"
            found = {"error": f"{type(error).__name__}: {text[:400]}"}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
