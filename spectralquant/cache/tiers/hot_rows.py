"""`HotRowTier`: the hot tier where Triton kernels read it, codes as rows of every layer's heads in one page."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from spectralquant.cache.pool import SpectralBufferPool
from spectralquant.cache.tiers.base import LeavingBlock, ReadScratch, StoredBlock, block_ranges
from spectralquant.cache.tiers.hot import unused_slots
from spectralquant.cache.tiers.paged import PagedTier
from spectralquant.codec.hot.codec import HotCodec
from spectralquant.codec.hot.pages import bands_to_rows, rows_to_bands
from spectralquant.geometry import BLOCK, CacheGeometry
from spectralquant.hooks.rotary_tables import Places
from sqkernels.common import RowMatrices, RowPages
from sqkernels.spectral_compress import spectral_compress
from sqkernels.spectral_reconstruct import spectral_reconstruct


class HotRowTier(PagedTier):
    """Same codes as `HotTier`, laid out as rows (see `sqkernels.common`); a block is coded by one launch for all layers.

    backend: of the kernels, triton or reference. On disk and in snapshots pages have `HotTier`'s layout, so that they
    can be read on any device.
    """

    name = "hot"

    def __init__(
        self, codec: HotCodec, matrices: RowMatrices, geometry: CacheGeometry, pool: SpectralBufferPool, backend: str
    ) -> None:
        self.codec, self.matrices, self.geometry, self.pool, self.backend = codec, matrices, geometry, pool, backend
        self.page_bytes = matrices.layout.page_bytes
        heads = geometry.kv_heads
        self.layers = [matrices.part(layer * heads, heads) for layer in range(geometry.layers)]
        self._table: tuple[int, list[weakref.ref[StoredBlock]], RowPages] | None = None

    def encode_run(self, run: LeavingBlock, lengths: Sequence[int]) -> list[StoredBlock]:
        """Quantize keys (as they are, after RoPE) and values of all layers; blocks of one length in one launch."""
        pages = [self.pool.allocate(self.page_bytes) for _ in lengths]
        base = pages[0].data
        ranges = block_ranges(lengths)
        for tokens in dict.fromkeys(lengths):
            which = [i for i, n in enumerate(lengths) if n == tokens]
            both = (
                torch.stack([x[:, :, slice(*ranges[i])].flatten(0, 1) for i in which]) for x in (run.keys, run.values)
            )
            offsets = [pages[i].data.data_ptr() - base.data_ptr() for i in which]
            where = torch.tensor(offsets, dtype=torch.int64, device=run.keys.device)
            spectral_compress(*both, self.matrices, base, where, backend=self.backend)
        return self.stored(run, lengths, pages)

    def row_pages(self, layer: int, rows: Sequence[Sequence[StoredBlock]], unread: int = 0) -> RowPages:
        """The blocks of every sequence as the kernels take them, without the first `unread` tokens; the table is built
        once for all layers.
        """
        self.pool.used_on(self.pool.device)
        blocks = [block for row in rows for block in row]
        if self._table is None or self._table[0] != unread or not same_objects(self._table[1], blocks):
            base = rows[0][0].payload.data
            address = base.data_ptr()
            offsets = [[b.payload.data.data_ptr() - address for b in row] for row in rows]
            device = self.matrices.device
            first = torch.full((len(rows),), unused_slots(rows[0]) + unread, dtype=torch.int32, device=device)
            count = sum(b.tokens for b in rows[0]) - unread
            tokens = torch.full((len(rows),), count, dtype=torch.int32, device=device)
            table = torch.tensor(offsets, dtype=torch.int64, device=device)
            pages = RowPages(base, table, first, tokens, self.matrices)
            self._table = (unread, [weakref.ref(block) for block in blocks], pages)
        whole = self._table[2]
        return RowPages(whole.storage, whole.pages, whole.first, whole.tokens, self.layers[layer])

    def dense(
        self, layer: int, blocks: Sequence[StoredBlock], places: Places, scratch: ReadScratch
    ) -> tuple[Tensor, Tensor]:
        """See `Tier.dense`."""
        pages = self.row_pages(layer, [blocks])
        both = spectral_reconstruct(pages.storage, pages.pages, self.layers[layer], torch.float32, backend=self.backend)
        unused = unused_slots(blocks)
        return tuple(x[0].transpose(0, 1)[unused:] for x in both)

    def whole(self, block: StoredBlock, places: Places, scratch: ReadScratch) -> tuple[Tensor, Tensor]:
        """See `Tier.whole`."""
        where = torch.zeros(1, 1, dtype=torch.int64, device=self.matrices.device)
        both = spectral_reconstruct(block.payload.data, where, self.matrices, torch.float32, backend=self.backend)
        shape = (self.geometry.layers, self.geometry.kv_heads, BLOCK, self.geometry.head_dim)
        return tuple(x[0].view(shape)[:, :, BLOCK - block.tokens :] for x in both)

    def to_bytes(self, block: StoredBlock) -> bytes:
        """The block's codes in `HotTier`'s layout."""
        return rows_to_bands(block.payload.data.cpu(), self.matrices, self.codec).numpy().tobytes()

    def from_bytes(self, data: bytes | memoryview, start: int, tokens: int) -> StoredBlock:
        """A block with the codes of a page in `HotTier`'s layout."""
        self.require_page(data, sum(BLOCK * m.layout.row_bytes for pair in self.codec.layers for m in pair), tokens)
        page = self.pool.allocate(self.page_bytes)
        bands = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        page.data.copy_(bands_to_rows(bands, self.matrices, self.codec))
        return StoredBlock(self.name, start, tokens, page, self.page_bytes)


def same_objects(references: Sequence[weakref.ref[StoredBlock]], blocks: Sequence[StoredBlock]) -> bool:
    """Whether references and blocks are the same, one by one; a block that is gone is no other that took over its id."""
    return len(references) == len(blocks) and all(r() is b for r, b in zip(references, blocks, strict=True))
