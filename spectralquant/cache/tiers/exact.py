"""`exact`: blocks in pages, in the model's dtype. Lossless; what a short context and the tests run on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectralquant.cache.pool import PagePart, SpectralBufferPool
from spectralquant.cache.tiers.base import LeavingBlock, ReadScratch, StoredBlock, encode_each
from spectralquant.cache.tiers.paged import PagedTier, joined
from spectralquant.geometry import BLOCK, CacheGeometry
from spectralquant.hooks.rotary_tables import Places


class ExactTier(PagedTier):
    """Pages of `[L, 2, 128, Hk, D]` numbers, keys after RoPE."""

    name = "exact"

    def __init__(
        self, geometry: CacheGeometry, dtype: torch.dtype, pool: SpectralBufferPool, device: torch.device
    ) -> None:
        self.geometry, self.dtype, self.pool, self.device = geometry, dtype, pool, device
        self.row = geometry.layer_width * dtype.itemsize
        self.page_bytes = geometry.layers * 2 * BLOCK * self.row

    def encode(self, block: LeavingBlock) -> StoredBlock:
        """Copy the block into a page."""
        page = self.pool.allocate(self.page_bytes)
        both = torch.stack([block.keys, block.values], dim=1).to(self.dtype).transpose(2, 3)
        rows = both.reshape(self.geometry.layers, 2, block.tokens, -1).contiguous().view(torch.uint8)
        page.data.view(self.geometry.layers, 2, BLOCK, self.row)[:, :, : block.tokens].copy_(rows)
        return StoredBlock(self.name, block.start, block.tokens, page, self.page_bytes)

    def encode_run(self, run: LeavingBlock, lengths: Sequence[int]) -> list[StoredBlock]:
        """See `Tier.encode_run`."""
        return encode_each(self, run, lengths)

    def dense(
        self, layer: int, blocks: Sequence[StoredBlock], places: Places, scratch: ReadScratch
    ) -> tuple[Tensor, Tensor]:
        """See `Tier.dense`; in the stored dtype, on the model's device."""
        part = PagePart(layer * 2 * BLOCK * self.row, 2 * BLOCK, self.row, 0, self.row)
        rows = self.pool.gather([b.payload for b in blocks], part, self.device).view(len(blocks), 2, BLOCK, self.row)
        shape = (-1, self.geometry.kv_heads, self.geometry.head_dim)
        return tuple(joined(rows[:, i], blocks).contiguous().view(self.dtype).view(shape) for i in range(2))

    def whole(self, block: StoredBlock, places: Places, scratch: ReadScratch) -> tuple[Tensor, Tensor]:
        """See `Tier.whole`."""
        g = self.geometry
        page = block.payload.data.to(self.device).view(self.dtype).view(g.layers, 2, BLOCK, g.kv_heads, g.head_dim)
        both = page[:, :, : block.tokens].transpose(2, 3)
        return both[:, 0].clone(), both[:, 1].clone()
