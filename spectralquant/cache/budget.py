"""`max_bytes`: the oldest blocks move down until a cache fits."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from spectralquant.cache.report.accounting import held_bytes

if TYPE_CHECKING:
    from spectralquant.cache.spectral_cache import SpectralCache


def fit_into(cache: SpectralCache, limit: int | None) -> None:
    """Move blocks down, oldest first, until the cache holds at most `limit` bytes; warn once where it cannot."""
    while limit is not None and held_bytes(cache) > limit:
        if cache.evict(1):
            continue
        if not cache.over_budget:
            warnings.warn(
                f"SpectralCache holds {held_bytes(cache):,} bytes, over max_bytes={limit:,}, with all blocks in the lowest "
                "tier of the profile. Allow more, or calibrate a lower tier.",
                stacklevel=2,
            )
        cache.over_budget = True
        return
    cache.over_budget = False
