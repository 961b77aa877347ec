"""What a cache holds, measured from storages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import Tensor

from spectralquant.cache.groups import CacheGroups
from spectralquant.cache.pool import PageRef, SpectralBufferPool
from spectralquant.cache.report.stats import CacheStats, GroupStats, Spent, TierStats
from spectralquant.cache.report.uncompressed import NotCompressed
from spectralquant.cache.tiers.base import StoredBlock
from spectralquant.cache.tiers.cold import payload_bytes
from spectralquant.cache.tokens.group import GroupTokens
from spectralquant.cache.tokens.state import CacheState
from spectralquant.codec.cold.complement.bounded_block import way_of


def _distinct(group: GroupTokens) -> list[StoredBlock]:
    return list(dict.fromkeys(b for blocks in group.sequences for b in blocks))


def exact_bytes(state: CacheState, own: Iterable[Tensor]) -> int:
    """Bytes of sinks, window, what is kept about tokens, and a cache's `own` tensors."""
    storages = [t.untyped_storage() for t in (*state.exact_tensors(), *own)]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def held_bytes(state: CacheState, groups: CacheGroups, own: Iterable[Tensor]) -> int:
    """Bytes of everything but unused pages of the pool."""
    coded = sum(b.nbytes for group in state.groups for b in _distinct(group))
    return exact_bytes(state, own) + coded + groups.working_bytes + groups.waiting_bytes


def _readable_bytes(group: GroupTokens, tier: str) -> int:
    """fp16 bytes, over all sequences, of the tokens of a tier that these layers can still read."""
    oldest = group.kind.first_read(group.total)
    readable = [b for row in group.sequences for b in row if b.tier == tier and b.stop > oldest]
    return sum(b.stop - max(b.start, oldest) for b in readable) * group.geometry.fp16_bytes_per_token


def _group_stats(group: GroupTokens) -> GroupStats:
    return GroupStats(
        layers=len(group.layers),
        window=group.kind.window,
        coded=group.coded,
        held_tokens=(group.total - group.first) * len(group.sequences),
        coded_tokens=group.coded_tokens * len(group.sequences),
        coded_bytes=sum(b.nbytes for b in _distinct(group)),
    )


def cache_stats(
    state: CacheState,
    groups: CacheGroups,
    pool: SpectralBufferPool,
    own: Iterable[Tensor],
    *,
    spent: Spent,
    failure: BaseException | None,
    over_budget: bool,
    not_compressed: Iterable[NotCompressed],
) -> CacheStats:
    """See `SpectralCache.stats`. failure: of the worker that codes in the background."""
    own = tuple(own)
    first = state.groups[0]
    every = [b for group in state.groups for row in group.sequences for b in row]
    distinct = [b for group in state.groups for b in _distinct(group)]
    tiers = {
        name: TierStats(
            sum(b.tier == name for b in every),
            sum(b.tokens for row in first.sequences for b in row if b.tier == name),
            sum(b.nbytes for b in distinct if b.tier == name),
            sum(_readable_bytes(group, name) for group in state.groups),
        )
        for name in dict.fromkeys(b.tier for b in every)
    }
    pages = pool.stats()
    slack = pages.allocated - pages.used if any(isinstance(b.payload, PageRef) for b in distinct) else 0
    resident = held_bytes(state, groups, own) + slack
    total, rows = state.total, len(first.sequences)
    fp16 = state.geometry.fp16_bytes(total) * rows
    coded = sum(t.bytes for t in tiers.values())
    return CacheStats(
        rows=rows,
        tokens=total,
        fp16_bytes=fp16,
        exact_bytes=exact_bytes(state, own),
        exact_tokens=(total - first.first - first.coded_tokens) * rows,
        tiers=tiers,
        groups=tuple(_group_stats(group) for group in state.groups),
        pool_bytes=pages.allocated,
        pool_fragmentation=pages.fragmentation,
        working_set_bytes=groups.working_bytes,
        resident_bytes=resident,
        payload_ratio=sum(t.fp16_bytes for t in tiers.values()) / coded if coded else None,
        resident_ratio=fp16 / resident if resident else None,
        spent=spent,
        reconstructor_failure=None if failure is None else repr(failure),
        over_budget=over_budget,
        ways=dict(Counter(way_of(payload_bytes(b)) for b in distinct if b.tier == "cold")),
        not_compressed=tuple(not_compressed),
    )
