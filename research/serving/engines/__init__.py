"""Engines in processes of their own that do more than those of `sq serve-check`, and how they share GPUs."""
