"""Packing codes of mixed bit widths into bytes."""

from sqkernels.bitpack.api import pack_codes, packed_bytes, unpack_codes
from sqkernels.bitpack.reference import BitRows

__all__ = ["BitRows", "pack_codes", "packed_bytes", "unpack_codes"]
