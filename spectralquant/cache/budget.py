"""`max_bytes`: the oldest blocks move down until a cache fits."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from spectralquant.cache.groups import CacheGroups


def fit_into(groups: CacheGroups, limit: int | None, held_bytes: Callable[[], int], warned: bool) -> bool:
    """Move blocks down, oldest first, until a cache holds at most `limit` bytes; whether it still holds more.

    Warns where it does, unless the caller has `warned` already. held_bytes: what the cache holds now.
    """
    while limit is not None and held_bytes() > limit:
        if groups.demote(1):
            continue
        if not warned:
            warnings.warn(
                f"SpectralCache holds {held_bytes():,} bytes, over max_bytes={limit:,}, with all blocks in the lowest "
                "tier of the profile. Allow more, or calibrate a lower tier.",
                stacklevel=2,
            )
        return True
    return False
