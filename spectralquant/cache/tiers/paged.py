"""What tiers that keep their blocks in pages share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectralquant.cache.pool import SpectralBufferPool
from spectralquant.cache.tiers.base import StoredBlock
from spectralquant.codec.block import BLOCK


class PagedTier:
    """A tier whose payloads are pages of one pool."""

    name: str
    pool: SpectralBufferPool

    def to_bytes(self, block: StoredBlock) -> bytes:
        """The page."""
        return block.payload.data.cpu().numpy().tobytes()

    def from_bytes(self, data: bytes | memoryview, start: int, tokens: int) -> StoredBlock:
        """A block whose page holds `data`."""
        page = self.pool.allocate(len(data))
        page.data.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return StoredBlock(self.name, start, tokens, page, len(data))


def joined(rows: Tensor, blocks: Sequence[StoredBlock]) -> Tensor:
    """Rows `[S, columns]` of gathered pages `[n, 128, columns]`, unused rows of short blocks left out."""
    if all(b.tokens == BLOCK for b in blocks):
        return rows.reshape(-1, rows.shape[-1])
    return torch.cat([page[: b.tokens] for page, b in zip(rows, blocks, strict=True)])
