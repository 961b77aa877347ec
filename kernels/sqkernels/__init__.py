"""Kernels of SpectralQuant, one operation a folder: `reference.py` is the oracle, `api.py` checks and dispatches."""
