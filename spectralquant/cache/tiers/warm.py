"""`warm`: fixed-rate codes in a basis per layer, before RoPE; reconstructed when read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spectralquant.cache.pool import PagePart, SpectralBufferPool
from spectralquant.cache.tiers.base import LeavingBlock, ReadScratch, StoredBlock, whole_from_layers
from spectralquant.cache.tiers.paged import PagedTier, joined
from spectralquant.codec.block import BLOCK
from spectralquant.codec.fixed import FixedRateCodec
from sqkernels.bitpack import packed_bytes


class WarmTier(PagedTier):
    """Pages that hold 128 rows of keys of all layers, then 128 rows of values."""

    name = "warm"

    def __init__(self, codec: FixedRateCodec, pool: SpectralBufferPool) -> None:
        self.codec, self.pool = codec, pool
        self.row_bytes = [packed_bytes(bits) for bits in codec.bits]
        self.offsets = (0, BLOCK * self.row_bytes[0])
        self.page_bytes = BLOCK * sum(self.row_bytes)

    def encode(self, block: LeavingBlock) -> StoredBlock:
        """Quantize and pack all layers at once."""
        coded = self.codec.encode(block.plain())
        page = self.pool.allocate(self.page_bytes)
        data = page.data
        for offset, rows in zip(self.offsets, (coded.keys, coded.values), strict=True):
            data[offset : offset + rows.numel()].copy_(rows.reshape(-1))
        return StoredBlock(self.name, block.start, block.tokens, page, self.page_bytes)

    def dense(
        self, layer: int, blocks: Sequence[StoredBlock], positions: Tensor, scratch: ReadScratch
    ) -> tuple[Tensor, Tensor]:
        """See `Tier.dense`."""
        g = self.codec.geometry
        out = []
        for kind in range(2):
            first, last = self.codec.layer_bytes(layer, kind)
            part = PagePart(self.offsets[kind], BLOCK, self.row_bytes[kind], first, last)
            rows = joined(self.pool.gather([b.payload for b in blocks], part), blocks)
            out.append(self.codec.decode_layer(rows, layer, kind).view(-1, g.kv_heads, g.head_dim))
        key = (blocks[0].start, blocks[-1].stop, int(positions[0]))
        return scratch.rotate(out[0], positions, layer, key), out[1]

    def whole(self, block: StoredBlock, positions: Tensor, scratch: ReadScratch) -> tuple[Tensor, Tensor]:
        """See `Tier.whole`."""
        return whole_from_layers(self, self.codec.geometry.layers, block, positions, scratch)
