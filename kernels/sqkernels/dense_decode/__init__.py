"""Decode attention over uncompressed keys and values: the baseline of our own that compressed kernels are timed against."""

from sqkernels.dense_decode.api import dense_decode

__all__ = ["dense_decode"]
