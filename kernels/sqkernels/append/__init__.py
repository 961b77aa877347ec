"""One new token of every sequence into buffers of keys and values, in one launch."""

from sqkernels.append.api import append

__all__ = ["append"]
