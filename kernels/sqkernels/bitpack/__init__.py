"""Packing codes of mixed bit widths into bytes."""

from sqkernels.bitpack.api import pack_codes, packed_bytes, unpack_codes

__all__ = ["pack_codes", "packed_bytes", "unpack_codes"]
