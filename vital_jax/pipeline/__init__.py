"""Records, images, prompts and batches. NumPy only: no file of this package imports jax (tested)."""
