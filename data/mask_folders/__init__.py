"""The data set `mask_folders`; `tfds build data/mask_folders` imports this folder as a package."""
