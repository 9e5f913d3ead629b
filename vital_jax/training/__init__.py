"""State, parameter tables, optimizer, checkpoints and metrics. Knows nothing of latents or images."""
