"""VITAL's latent loop for transformers; this file needs nothing else of the package that wrote it.

    model.generate(**inputs, custom_generate=FOLDER, trust_remote_code=True, latent_steps=4)

Before the first token, the model's last hidden state at the prompt's end is fed back as the next input, `latent_steps` times (VITAL,
equation 1); the answer is then read from the last of these states. With `latent_steps=0` this is the ordinary `generate`. Runs on
transformers 4.57.6 and 5.x. Greedy search and sampling, in batches (padded on the left); research only, not a medical device.
"""

import inspect
import warnings

import torch
from transformers import GenerationMixin
from transformers.generation import GenerateDecoderOnlyOutput

# Written by the exporter: K, the most steps this model was trained with, which it is evaluated with, taken where none are asked; and which
# state is fed back.
LATENT_STEPS = None
LATENT_STATE = "post_norm"


def generate(
    model,
    latent_steps=None,
    return_latents=False,
    streamer=None,
    assistant_model=None,
    custom_generate=None,
    trust_remote_code=None,
    **kwargs,
):
    """Arguments of `model.generate`, and two more.

    Args:
      latent_steps: K, the same for every row; by default as many as the model was trained with.
      return_latents: return an output object (as `return_dict_in_generate=True` does) with the field `latents`, [rows, K, width].
      custom_generate, trust_remote_code: name this function where it has replaced `model.generate` already, and change nothing then.
    Raises: ValueError for what the loop cannot do: beam search and other search modes, an assistant, a cache of fixed size.
    """
    steps = LATENT_STEPS if latent_steps is None else latent_steps
    if type(steps) is not int or steps < 0:
        raise ValueError(f"latent_steps={steps!r}: give a whole number, 0 (no latents) or more")
    if LATENT_STEPS is not None and steps != LATENT_STEPS:
        said = f"latent_steps={steps}: this model was trained with up to {LATENT_STEPS} and is evaluated with that"
        warnings.warn(said, stacklevel=2)
    if assistant_model is not None or kwargs.get("synced_gpus"):
        raise ValueError("latent steps work with neither an assistant model nor synced_gpus: leave both out")
    if model.config.model_type != "qwen3_vl":
        raise ValueError(f"the latent loop is for qwen3_vl models, not for {model.config.model_type}")

    def decode(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        _refuse(input_ids, generation_config, model_kwargs, assistant_model)
        loop = _Loop(model, input_ids, model_kwargs)
        latents = [loop.step(loop.state) for _ in range(steps)]
        found = _write(model, loop, input_ids, logits_processor, stopping_criteria, generation_config, streamer)
        if not (return_latents or generation_config.return_dict_in_generate):
            return found["sequences"]
        output = GenerateDecoderOnlyOutput(past_key_values=loop.cache, **found)
        # Not a field of the class: set as an item, which transformers' outputs take.
        output["latents"] = (
            torch.stack(latents, 1) if steps else loop.state.new_zeros(len(input_ids), 0, loop.state.shape[-1])
        )
        return output

    # Not model.generate: where this function has replaced it, that would call itself.
    return GenerationMixin.generate(model, custom_generate=decode, **kwargs)


def _refuse(input_ids, config, model_kwargs, assistant_model):
    mode = config.get_generation_mode(assistant_model)
    if mode not in ("greedy_search", "sample"):
        raise ValueError(f"latent steps work with greedy search and sampling, not with {getattr(mode, 'value', mode)}")
    cache, mask = model_kwargs.get("past_key_values"), model_kwargs.get("attention_mask")
    if config.cache_implementation not in (None, "dynamic", "dynamic_full") or getattr(cache, "is_compileable", False):
        raise ValueError(
            f"latent steps work with the dynamic cache, not with cache_implementation={config.cache_implementation!r} "
            f"({type(cache).__name__}): a cache of fixed size has no room for them"
        )
    if cache is not None and cache.get_seq_length():
        raise ValueError("latent steps start from a whole prompt, not from a cache that already holds tokens")
    if not input_ids.shape[1] or model_kwargs.get("inputs_embeds") is not None:
        raise ValueError("latent steps need the prompt as input_ids, not as inputs_embeds")
    if mask is not None and not bool(mask[:, -1].all()):
        raise ValueError("prompts are padded on the right: set tokenizer.padding_side = 'left'")
    for name in ("output_attentions", "output_hidden_states", "prefill_chunk_size"):
        if getattr(config, name, None):
            raise ValueError(f"{name} is not supported with latent steps; return_latents=True gives the latents")


class _Loop:
    """A prompt and what was fed back or written after it, one column at a time.

    `state` [rows, width] is what may be fed back next; `output` [rows, width] the head's input of the same column.
    """

    def __init__(self, model, input_ids, model_kwargs):
        self.decoder, self.mask = model.model.language_model, model_kwargs.get("attention_mask")
        taken = inspect.signature(model.model.forward).parameters
        inputs = {name: value for name, value in model_kwargs.items() if name in taken and value is not None}
        seen = {}
        # How positions are made differs between versions of transformers; the ones the model used are the ones to go on from.
        hook = self.decoder.register_forward_pre_hook(lambda _, args, given: seen.update(given), with_kwargs=True)
        try:
            found = self._run(model.model, input_ids=input_ids, **inputs)
        finally:
            hook.remove()
        self.cache, positions = found.past_key_values, seen["position_ids"]
        self.position = (positions[-3:] if positions.ndim == 3 else positions[None]).amax((0, 2)) + 1

    def _run(self, module, **inputs):
        """Runs the model or its decoder and keeps the last column's states."""
        before = []
        hook = self.decoder.norm.register_forward_pre_hook(lambda _, args: before.append(args[0][:, -1]))
        try:
            found = module(use_cache=True, return_dict=True, **inputs)
        finally:
            hook.remove()
        self.output = found.last_hidden_state[:, -1]
        self.state = self.output if LATENT_STATE == "post_norm" else before[-1]
        return found

    def step(self, vector):
        """Feeds a vector [rows, width] as the next column; returns the state that comes out."""
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        positions = self.position.to(vector.device)[None, :, None].expand(3, -1, -1)
        self._run(
            self.decoder,
            inputs_embeds=vector[:, None],
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
        )
        self.position = self.position + 1
        return self.state


def _write(model, loop, tokens, logits_processor, stopping_criteria, config, streamer):
    """Tokens one by one, as transformers' own sampling loop does; what the output object holds, by name."""
    kept = {
        name: ()
        for name in ("scores", "logits")
        if config.return_dict_in_generate and getattr(config, f"output_{name}")
    }
    pad, ends = config._pad_token_tensor, any(hasattr(rule, "eos_token_id") for rule in stopping_criteria)
    going = torch.ones_like(tokens[:, 0])
    if streamer is not None:
        streamer.put(tokens.cpu())
    while True:
        logits = model.lm_head(loop.output).to(copy=True, dtype=torch.float32, device=tokens.device)
        scores = logits_processor(tokens, logits)
        kept = {name: (*rows, scores if name == "scores" else logits) for name, rows in kept.items()}
        token = torch.multinomial(scores.softmax(-1), 1)[:, 0] if config.do_sample else scores.argmax(-1)
        if ends:
            token = token * going + pad.to(tokens.device) * (1 - going)
        tokens = torch.cat([tokens, token[:, None]], 1)
        if streamer is not None:
            streamer.put(token.cpu())
        going = going & ~stopping_criteria(tokens, kept.get("scores"))
        if not bool(going.any()):
            break
        loop.step(model.get_input_embeddings()(token))
    if streamer is not None:
        streamer.end()
    return {"sequences": tokens, **kept}
