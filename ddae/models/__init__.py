"""Flax modules; the only place where Flax is imported."""
