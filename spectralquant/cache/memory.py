"""Give memory that the allocator keeps back to the system.

Decoding cold blocks takes and frees many pieces too small for pages of their own; glibc would keep them, and the
process would look as large as if the cache had never been compressed.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return None


def release_free_memory() -> None:
    """`malloc_trim` where there is one, else nothing."""
    trim = _trim()
    if trim is not None:
        trim(0)
