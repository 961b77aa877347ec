"""What tiers that keep their blocks in pages share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectralquant.cache.pool import PageRef, SpectralBufferPool
from spectralquant.cache.tiers.base import LeavingBlock, StoredBlock, block_ranges
from spectralquant.errors import InputError
from spectralquant.geometry import BLOCK


class PagedTier:
    """A tier whose payloads are pages of one pool."""

    name: str
    pool: SpectralBufferPool
    page_bytes: int

    def encode(self, block: LeavingBlock) -> StoredBlock:
        """A run of one block."""
        return self.encode_run(block, [block.tokens])[0]

    def encode_run(self, run: LeavingBlock, lengths: Sequence[int]) -> list[StoredBlock]:
        """See `Tier.encode_run`."""
        raise NotImplementedError

    def stored(self, run: LeavingBlock, lengths: Sequence[int], pages: Sequence[PageRef]) -> list[StoredBlock]:
        """The run's blocks, whose codes lie in `pages`."""
        return [
            StoredBlock(self.name, run.start + first, last - first, page, self.page_bytes)
            for page, (first, last) in zip(pages, block_ranges(lengths), strict=True)
        ]

    def to_bytes(self, block: StoredBlock) -> bytes:
        """The page."""
        return block.payload.data.cpu().numpy().tobytes()

    def from_bytes(self, data: bytes | memoryview, start: int, tokens: int) -> StoredBlock:
        """A block whose page holds `data`.

        Raises:
            InputError: bytes that are no page of this tier, or tokens that no block has.
        """
        self.require_page(data, self.page_bytes, tokens)
        page = self.pool.allocate(len(data))
        page.data.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return StoredBlock(self.name, start, tokens, page, len(data))

    def require_page(self, data: bytes | memoryview, nbytes: int, tokens: int) -> None:
        """Refuse what `from_bytes` cannot take."""
        if len(data) != nbytes or not 0 < tokens <= BLOCK:
            raise InputError(
                f"A {self.name} block of {tokens} tokens and {len(data)} bytes is not of this profile and model, whose pages "
                f"have {nbytes} bytes for at most {BLOCK} tokens."
            )


def joined(rows: Tensor, blocks: Sequence[StoredBlock]) -> Tensor:
    """Rows `[S, columns]` of gathered pages `[n, 128, columns]` without the unused rows that end the first of them."""
    if blocks[0].tokens == BLOCK:
        return rows.flatten(0, 1)
    return torch.cat([rows[0, : blocks[0].tokens], rows[1:].flatten(0, 1)])
