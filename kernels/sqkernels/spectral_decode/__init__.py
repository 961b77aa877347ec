"""Decode attention over fixed-rate codes, read in place."""

from sqkernels.spectral_decode.api import decode_traffic, spectral_decode

__all__ = ["decode_traffic", "spectral_decode"]
