"""The data set `vital_five_tuples`; `tfds build data/vital_five_tuples` imports this folder as a package."""
