"""What a cache holds, measured from storages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectralquant.cache.pool import PageRef
from spectralquant.cache.stats import CacheStats, TierStats
from spectralquant.cache.tiers.base import StoredBlock

if TYPE_CHECKING:
    from spectralquant.cache.spectral_cache import SpectralCache


def _distinct_blocks(cache: SpectralCache) -> list[StoredBlock]:
    return list(dict.fromkeys(b for blocks in cache.state.rows for b in blocks))


def exact_bytes(cache: SpectralCache) -> int:
    """Bytes of sinks, window and what is kept about tokens."""
    storages = [t.untyped_storage() for t in (*cache.state.exact_tensors(), *cache.own_tensors().values())]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def held_bytes(cache: SpectralCache) -> int:
    """Bytes of everything but unused pages of the pool; refreshed bases of an adaptive tier included."""
    coded = sum(b.nbytes for b in _distinct_blocks(cache))
    bases = sum(getattr(getattr(tier, "codec", None), "basis_bytes", 0) for tier in cache.tiers.values())
    return exact_bytes(cache) + coded + bases + cache.reader.working_bytes


def cache_stats(cache: SpectralCache) -> CacheStats:
    """See `SpectralCache.stats`."""
    blocks = _distinct_blocks(cache)
    every = [b for row in cache.state.rows for b in row]
    tiers = {
        name: TierStats(
            sum(b.tier == name for b in every),
            sum(b.tokens for b in every if b.tier == name),
            sum(b.nbytes for b in blocks if b.tier == name),
        )
        for name in dict.fromkeys(b.tier for b in every)
    }
    pool = cache.pool.stats()
    slack = pool.allocated - pool.used if any(isinstance(b.payload, PageRef) for b in blocks) else 0
    resident = held_bytes(cache) + slack
    total, rows = cache.get_seq_length(), len(cache.state.rows)
    fp16 = cache.geometry.fp16_bytes_per_token
    coded = sum(t.bytes for t in tiers.values())
    failure = cache.reconstructor.failure
    return CacheStats(
        rows=rows,
        tokens=total,
        fp16_bytes=total * rows * fp16,
        exact_bytes=exact_bytes(cache),
        exact_tokens=(total - cache.state.coded_tokens) * rows,
        tiers=tiers,
        pool_bytes=pool.allocated,
        pool_fragmentation=pool.fragmentation,
        working_set_bytes=cache.reader.working_bytes,
        resident_bytes=resident,
        payload_ratio=sum(t.tokens for t in tiers.values()) * fp16 / coded if coded else None,
        resident_ratio=total * rows * fp16 / resident if resident else None,
        spent=cache.spent,
        reconstructor_failure=None if failure is None else repr(failure),
        over_budget=cache.compressor.over_budget,
        not_compressed=tuple(cache.report.reasons()),
    )
