"""Qwen3-VL, the Qwen3 text decoder and SigLIP as Flax modules."""
