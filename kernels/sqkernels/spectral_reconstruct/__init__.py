"""Codes back to keys and values."""

from sqkernels.spectral_reconstruct.api import reconstruct_traffic, spectral_reconstruct

__all__ = ["reconstruct_traffic", "spectral_reconstruct"]
