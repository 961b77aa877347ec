"""Project, quantize and pack a block of keys and values."""

from sqkernels.spectral_compress.api import compress_traffic, spectral_compress

__all__ = ["compress_traffic", "spectral_compress"]
