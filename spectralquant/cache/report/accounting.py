"""What a cache holds, measured from storages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectralquant.cache.pool import PageRef
from spectralquant.cache.report.stats import CacheStats, GroupStats, TierStats
from spectralquant.cache.tiers.base import StoredBlock
from spectralquant.cache.tokens.group import GroupTokens

if TYPE_CHECKING:
    from spectralquant.cache.spectral_cache import SpectralCache


def _distinct(group: GroupTokens) -> list[StoredBlock]:
    return list(dict.fromkeys(b for blocks in group.rows for b in blocks))


def exact_bytes(cache: SpectralCache) -> int:
    """Bytes of sinks, window and what is kept about tokens."""
    storages = [t.untyped_storage() for t in (*cache.state.exact_tensors(), *cache.own_tensors().values())]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def held_bytes(cache: SpectralCache) -> int:
    """Bytes of everything but unused pages of the pool; refreshed bases of an adaptive tier included."""
    coded = sum(b.nbytes for group in cache.state.groups for b in _distinct(group))
    tiers = [tier for group in cache.groups for tier in group.tiers.values()]
    bases = sum(getattr(getattr(tier, "codec", None), "basis_bytes", 0) for tier in tiers)
    return exact_bytes(cache) + coded + bases + cache.groups.working_bytes


def _readable_bytes(group: GroupTokens, tier: str) -> int:
    """fp16 bytes, over all sequences, of the tokens of a tier that these layers can still read."""
    oldest = group.kind.first_read(group.total)
    mine = [b for row in group.rows for b in row if b.tier == tier and b.stop > oldest]
    return sum(b.stop - max(b.start, oldest) for b in mine) * group.geometry.fp16_bytes_per_token


def _group_stats(group: GroupTokens) -> GroupStats:
    return GroupStats(
        layers=len(group.layers),
        window=group.kind.window,
        coded=group.coded,
        held_tokens=(group.total - group.first) * len(group.rows),
        coded_tokens=group.coded_tokens * len(group.rows),
        coded_bytes=sum(b.nbytes for b in _distinct(group)),
    )


def cache_stats(cache: SpectralCache) -> CacheStats:
    """See `SpectralCache.stats`."""
    groups, first = cache.state.groups, cache.state.groups[0]
    every = [b for group in groups for row in group.rows for b in row]
    distinct = [b for group in groups for b in _distinct(group)]
    tiers = {
        name: TierStats(
            sum(b.tier == name for b in every),
            sum(b.tokens for row in first.rows for b in row if b.tier == name),
            sum(b.nbytes for b in distinct if b.tier == name),
            sum(_readable_bytes(group, name) for group in groups),
        )
        for name in dict.fromkeys(b.tier for b in every)
    }
    pool = cache.pool.stats()
    slack = pool.allocated - pool.used if any(isinstance(b.payload, PageRef) for b in distinct) else 0
    resident = held_bytes(cache) + slack
    total, rows = cache.get_seq_length(), len(first.rows)
    fp16 = cache.geometry.fp16_bytes(total) * rows
    coded = sum(t.bytes for t in tiers.values())
    failure = cache.reconstructor.failure
    return CacheStats(
        rows=rows,
        tokens=total,
        fp16_bytes=fp16,
        exact_bytes=exact_bytes(cache),
        exact_tokens=(total - first.first - first.coded_tokens) * rows,
        tiers=tiers,
        groups=tuple(_group_stats(group) for group in groups),
        pool_bytes=pool.allocated,
        pool_fragmentation=pool.fragmentation,
        working_set_bytes=cache.groups.working_bytes,
        resident_bytes=resident,
        payload_ratio=sum(t.fp16_bytes for t in tiers.values()) / coded if coded else None,
        resident_ratio=fp16 / resident if resident else None,
        spent=cache.spent,
        reconstructor_failure=None if failure is None else repr(failure),
        over_budget=cache.over_budget,
        not_compressed=tuple(cache.report.reasons()),
    )
