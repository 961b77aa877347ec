"""`CacheGroups`: the groups of layers of one cache, made from a profile, and what is done to all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spectralquant.cache.compress.compressor import BlockCompressor
from spectralquant.cache.read.reader import BlockReader
from spectralquant.cache.tiers.registry import make_tiers
from spectralquant.cache.tokens.group import CacheGroup, GroupTokens
from spectralquant.codec.hot.linear import INDEX_RANK
from spectralquant.geometry import BLOCK, LayerGroup
from spectralquant.profile.model import CalibrationProfile

if TYPE_CHECKING:
    from spectralquant.cache.spectral_cache import SpectralCache


def usable_tiers(
    profile: CalibrationProfile, kinds: Sequence[LayerGroup], window: int, wanted: Sequence[str]
) -> tuple[str, ...]:
    """The profile's tiers that can code every group of layers that is coded at all.

    Raises:
        ProfileError: one of `wanted` cannot, because its basis mixes layers of different windows.
    """
    coded = [kind for kind in kinds if kind.reads_beyond(window + BLOCK)]
    for name in wanted:
        if name in profile.tiers:
            profile.parts(name, coded)
    return tuple(n for n in profile.tiers if all(profile.tier_of(n, kind.layers) is not None for kind in coded))


class CacheGroups(list[CacheGroup]):
    """Groups of layers; the first reads furthest back."""

    @classmethod
    def of(cls, cache: SpectralCache, backend: str | None) -> CacheGroups:
        """The groups of a cache. backend: of the kernels that read hot codes, or None."""
        return cls(_make_group(cache, tokens, backend) for tokens in cache.state.groups)

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

    def fill_working_set(self, limit: int) -> None:
        """Decode blocks as far as `limit` bytes go over all groups."""
        for group in self:
            group.reader.fill_working_set(limit - self.working_bytes + group.reader.working_bytes)

    def settle(self) -> None:
        """Finish background work, so that rows and blocks may change."""
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

    def evict(self, blocks: int) -> int:
        """Move the oldest `blocks` blocks that can go lower one tier down; returns how many moved."""
        moved = 0
        for group in self:
            moved += group.compressor.evict(blocks - moved)
        return moved


def _make_group(cache: SpectralCache, tokens: GroupTokens, backend: str | None) -> CacheGroup:
    options, adaptive = cache.options, cache.options["adaptive"]
    tiers = make_tiers(
        cache.binding.model,
        cache.profile if tokens.coded else None,
        cache.geometry,
        tokens.kind.layers,
        cache.pool,
        cache.reconstructor,
        options["step_scale"],
        None if adaptive is False else dict(adaptive) if isinstance(adaptive, Mapping) else {},
        backend,
        0 if options["select"] is None else INDEX_RANK,
    )
    reader = BlockReader(cache.state, tokens, tiers, cache.spent)
    settings = (options["window"], options["compress_from"], options["background"], options["lag"])
    work = (cache.policy, reader, cache.reconstructor, cache.spent, *settings)
    return CacheGroup(tokens, tiers, reader, BlockCompressor(cache.state, tokens, tiers, *work, cache.report))
