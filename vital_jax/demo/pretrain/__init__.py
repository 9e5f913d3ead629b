"""Small models pretrained on drawn images: the recipe and the weights it made. See `python -m vital_jax.demo.pretrain --help`."""
