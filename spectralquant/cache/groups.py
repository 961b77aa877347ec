"""`CacheGroups`: the groups of layers of one cache, and what is done to all of them."""

from __future__ import annotations

from dataclasses import dataclass

from spectralquant.cache.compress.compressor import BlockCompressor, CompressionRules
from spectralquant.cache.compress.reconstructor import AsyncReconstructor
from spectralquant.cache.read.reader import BlockReader
from spectralquant.cache.read.working_set import WorkingSet
from spectralquant.cache.report.stats import Spent
from spectralquant.cache.report.uncompressed import RunReport
from spectralquant.cache.tiers.base import Tier
from spectralquant.cache.tiers.registry import TierMaker
from spectralquant.cache.tokens.group import GroupTokens
from spectralquant.cache.tokens.state import CacheState


@dataclass(frozen=True)
class CacheGroup:
    """A group's tokens, the tiers that hold its blocks, and who reads and codes them."""

    tokens: GroupTokens
    tiers: dict[str, Tier]
    reader: BlockReader
    compressor: BlockCompressor


class CacheGroups(list[CacheGroup]):
    """Groups of layers; the first reads furthest back."""

    def of_layer(self, layer: int) -> tuple[CacheGroup, int]:
        """The group that a layer of the model belongs to, and the layer's number within it."""
        group = next(group for group in self if layer in group.tokens.kind.layers)
        return group, group.tokens.kind.layers.index(layer)

    @property
    def predict(self) -> bool:
        """Whether some cold tier predicts from token ids."""
        return any("cold" in group.tiers and group.tiers["cold"].codec.features is not None for group in self)

    @property
    def working_bytes(self) -> int:
        """Bytes of decoded blocks that are kept between forward passes."""
        return sum(group.reader.working_bytes for group in self)

    def begin_forward(self) -> None:
        """See `BlockReader.begin_forward`."""
        for group in self:
            group.reader.begin_forward()

    def end_forward(self) -> None:
        """See `BlockReader.end_forward`."""
        for group in self:
            group.reader.end_forward()

    def after_forward(self) -> None:
        """See `BlockCompressor.after_forward`."""
        for group in self:
            group.compressor.after_forward()

    def rest(self) -> None:
        """See `GroupTokens.rest`."""
        for group in self:
            group.tokens.rest()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of decoded blocks that wait for a worker."""
        return sum(group.reader.working.waiting_bytes for group in self)

    def fill_working_set(self, limit: int) -> None:
        """Keep decoded blocks as far as `limit` bytes go over all groups."""
        for group in self:
            group.reader.fill_working_set(limit - self.working_bytes + group.reader.working_bytes)

    def settle(self) -> None:
        """Finish background work, so that sequences and blocks may change."""
        for group in self:
            group.compressor.settle()

    def forget_pending(self) -> None:
        """Drop background work whose tokens are about to be removed."""
        for group in self:
            group.compressor.forget_pending()

    def forget_unread(self) -> None:
        """After a crop: let go of what is never read again."""
        for group in self:
            group.tokens.forget_unread(cropped=True)
        self.forget_unused()

    def forget_unused(self) -> None:
        """See `BlockReader.forget_unused`."""
        for group in self:
            group.reader.forget_unused()

    def demote(self, blocks: int) -> int:
        """Move the oldest `blocks` blocks that can go lower one tier down; returns how many moved."""
        moved = 0
        for group in self:
            moved += group.compressor.demote_oldest(blocks - moved)
        return moved


def make_groups(
    state: CacheState,
    maker: TierMaker,
    rules: CompressionRules,
    worker: AsyncReconstructor,
    spent: Spent,
    report: RunReport,
    working_tier: str | None = None,
) -> CacheGroups:
    """Tiers, readers and compressors for the groups of a cache. working_tier: of the working set, where there is to be one."""
    groups = CacheGroups()
    for tokens in state.groups:
        tiers = maker.tiers(tokens.kind.layers, coded=tokens.coded)
        kept = working_tier if working_tier in tiers else "exact"
        behind = worker if rules.background else None
        working = WorkingSet(state, tokens, tiers, spent, kept, behind, working_tier is not None)
        reader = BlockReader(state, tokens, tiers, spent, working)
        groups.append(
            CacheGroup(
                tokens, tiers, reader, BlockCompressor(state, tokens, tiers, reader, rules, worker, spent, report)
            )
        )
    return groups
