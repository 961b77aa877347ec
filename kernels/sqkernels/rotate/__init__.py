"""Rotary embedding of one token's queries and keys in one launch."""

from sqkernels.rotate.api import rotate

__all__ = ["rotate"]
