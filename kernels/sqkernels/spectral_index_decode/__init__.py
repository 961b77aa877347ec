"""Decode attention that reads a spectral index of all tokens and the codes of a few."""

from sqkernels.spectral_index_decode.api import select_tokens, spectral_index_decode
from sqkernels.spectral_index_decode.traffic import index_traffic

__all__ = ["index_traffic", "select_tokens", "spectral_index_decode"]
