"""Codes back to keys and values."""

from sqkernels.spectral_reconstruct.api import spectral_reconstruct
from sqkernels.spectral_reconstruct.traffic import reconstruct_traffic

__all__ = ["reconstruct_traffic", "spectral_reconstruct"]
