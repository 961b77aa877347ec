"""Baselines, statistics and verdicts: what `sq gate` decides by."""
