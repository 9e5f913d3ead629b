"""Asking a language model for reasoning chains: tasks in, checked lessons out, every reply kept (VITAL A.2 and A.3)."""
