"""Project, quantize and pack a block of keys and values."""

from sqkernels.spectral_compress.api import spectral_compress
from sqkernels.spectral_compress.traffic import compress_traffic

__all__ = ["compress_traffic", "spectral_compress"]
