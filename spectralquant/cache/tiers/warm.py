"""`warm`: fixed-rate codes in a basis per layer, before RoPE; reconstructed when read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spectralquant.cache.pool import PagePart, SpectralBufferPool
from spectralquant.cache.tiers.base import LeavingBlock, ReadScratch, StoredBlock, block_ranges, whole_from_layers
from spectralquant.cache.tiers.paged import PagedTier, joined
from spectralquant.codec.fixed.codec import FixedRateCodec
from spectralquant.geometry import BLOCK
from spectralquant.hooks.rotary_tables import Places
from sqkernels.bitpack import packed_bytes


class WarmTier(PagedTier):
    """Pages that hold 128 rows of keys of all layers, then 128 rows of values."""

    name = "warm"

    def __init__(self, codec: FixedRateCodec, pool: SpectralBufferPool) -> None:
        self.codec, self.pool = codec, pool
        self.row_bytes = [packed_bytes(bits) for bits in codec.bits]
        self.offsets = (0, BLOCK * self.row_bytes[0])
        self.page_bytes = BLOCK * sum(self.row_bytes)

    def encode_run(self, run: LeavingBlock, lengths: Sequence[int]) -> list[StoredBlock]:
        """Quantize and pack all layers at once."""
        coded = self.codec.encode(run.plain())
        pages = [self.pool.allocate(self.page_bytes) for _ in lengths]
        for offset, rows in zip(self.offsets, (coded.keys, coded.values), strict=True):
            for page, (first, last) in zip(pages, block_ranges(lengths), strict=True):
                part = rows[first:last].reshape(-1)
                page.data[offset : offset + part.numel()].copy_(part)
        return self.stored(run, lengths, pages)

    def dense(
        self, layer: int, blocks: Sequence[StoredBlock], places: Places, scratch: ReadScratch
    ) -> tuple[Tensor, Tensor]:
        """See `Tier.dense`."""
        g = self.codec.geometry
        out = []
        for kind in range(2):
            first, last = self.codec.layer_bytes(layer, kind)
            part = PagePart(self.offsets[kind], BLOCK, self.row_bytes[kind], first, last)
            pages = self.pool.gather([b.payload for b in blocks], part, self.codec.device)
            rows = joined(pages, blocks)
            out.append(self.codec.decode_layer(rows, layer, kind).view(-1, g.kv_heads, g.head_dim))
        return scratch.rotate(out[0], places, layer), out[1]

    def whole(self, block: StoredBlock, places: Places, scratch: ReadScratch) -> tuple[Tensor, Tensor]:
        """See `Tier.whole`."""
        return whole_from_layers(self, self.codec.geometry.layers, [block], places, scratch)
