"""`hot`: fixed-rate codes per head, read in place by `SpectralAttention`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spectralquant.cache.pool import PagePart, SpectralBufferPool
from spectralquant.cache.tiers.base import LeavingBlock, ReadScratch, StoredBlock, block_ranges, whole_from_layers
from spectralquant.cache.tiers.paged import PagedTier
from spectralquant.codec.hot.codec import HotCodec
from spectralquant.geometry import BLOCK
from spectralquant.hooks.rotary_tables import Places


class HotTier(PagedTier):
    """Pages that hold, layer after layer, bytes `[row_bytes, 128]` of keys and then of values.

    The tokens of a short block (the first, which lacks the sinks) are the last of its page.
    """

    name = "hot"

    def __init__(self, codec: HotCodec, pool: SpectralBufferPool) -> None:
        self.codec, self.pool = codec, pool
        self.parts: list[list[PagePart]] = []
        offset = 0
        for pair in codec.layers:
            self.parts.append([])
            for matrices in pair:
                row = matrices.layout.row_bytes
                self.parts[-1].append(PagePart(offset, row, BLOCK, 0, BLOCK))
                offset += BLOCK * row
        self.page_bytes = offset

    def encode_run(self, run: LeavingBlock, lengths: Sequence[int]) -> list[StoredBlock]:
        """Quantize keys (as they are, after RoPE) and values layer by layer."""
        pages = [self.pool.allocate(self.page_bytes) for _ in lengths]
        for layer, pair in enumerate(self.codec.layers):
            for kind, x in enumerate((run.keys[layer], run.values[layer])):
                part = self.parts[layer][kind]
                packed = pair[kind].page(x.transpose(0, 1).reshape(run.tokens, -1).float())
                for page, (first, last) in zip(pages, block_ranges(lengths), strict=True):
                    slots = page.data[part.offset : part.offset + part.rows * BLOCK].view(part.rows, BLOCK)
                    slots[:, BLOCK - (last - first) :].copy_(packed[:, first:last])
        return self.stored(run, lengths, pages)

    def pages(self, layer: int, kind: int, blocks: Sequence[StoredBlock]) -> Tensor:
        """Bytes uint8 `[n, row_bytes, 128]` of one layer's keys (0) or values (1), where the codec's matrices are."""
        return self.pool.gather([b.payload for b in blocks], self.parts[layer][kind], self.codec.device)

    def dense(
        self, layer: int, blocks: Sequence[StoredBlock], places: Places, scratch: ReadScratch
    ) -> tuple[Tensor, Tensor]:
        """See `Tier.dense`."""
        shape = (-1, self.codec.geometry.kv_heads, self.codec.geometry.head_dim)
        unused = unused_slots(blocks)
        both = [self.codec.layers[layer][i].dense(self.pages(layer, i, blocks))[unused:] for i in range(2)]
        return both[0].view(shape), both[1].view(shape)

    def whole(self, block: StoredBlock, places: Places, scratch: ReadScratch) -> tuple[Tensor, Tensor]:
        """See `Tier.whole`."""
        return whole_from_layers(self, self.codec.geometry.layers, [block], places, scratch)


def unused_slots(blocks: Sequence[StoredBlock]) -> int:
    """Slots at the start of the first page that hold no token (only the first block of a cache is short)."""
    return BLOCK - blocks[0].tokens
