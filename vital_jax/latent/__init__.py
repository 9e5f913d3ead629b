"""The latent loop, the sampler and the training-time scaffold."""
