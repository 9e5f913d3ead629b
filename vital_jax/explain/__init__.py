"""Dual interpretability: the text window and the visual window of VITAL, put back on after training (paper sections 3.3, C.6, C.7)."""
