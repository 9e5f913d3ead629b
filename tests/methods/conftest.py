"""Fixtures of the methods' tests."""

from givenlatents import held  # noqa: F401 (tests take it by name)
