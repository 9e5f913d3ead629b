"""Records, images, prompts and batches. NumPy only: no file of this room imports jax (tested)."""
