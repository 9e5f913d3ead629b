"""Pallas kernels. Each has an XLA oracle (`models/attention.py` for attention) and is reached through `attend` alone."""
