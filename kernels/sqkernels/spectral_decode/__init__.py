"""Decode attention over fixed-rate codes, read in place."""

from sqkernels.spectral_decode.api import spectral_decode
from sqkernels.spectral_decode.traffic import decode_traffic

__all__ = ["decode_traffic", "spectral_decode"]
