"""`EntropyCoder`: symbols of blocks to bytes with static tables chosen per component and importance class, and back.

Symbols are range coded by thousands of lanes at once (`sqkernels.entropy`), on a GPU or a CPU with the same bytes. Values
beyond ±15, and those that a table gives no frequency, take an escape symbol and travel beside (`codec.rans_block`).

Tables are ordered by entropy, so a neighbouring table is a slightly wider or narrower distribution. On text unlike
the calibration's, a block with adaptive tables moves groups of sixteen components up or down that order; the shifts travel in
the block (forward adaptation: every block is still decoded alone).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spectralquant.codec.cold.importance import NEUTRAL
from spectralquant.codec.cold.rans.decode import PendingSymbols, SparseSymbols
from spectralquant.codec.cold.rans.encode import encode_blocks
from spectralquant.codec.cold.rans.setting import CoderSetting
from spectralquant.codec.cold.rans_block import DIGITS, RansParts
from spectralquant.codec.cold.symbols import NO_SHIFT
from spectralquant.codec.cold.table_shifts import ShiftSearch

INT16 = 2**15


@dataclass(frozen=True)
class CodedSymbols:
    """Some blocks after entropy decoding. symbols: int16 or int32 `[R, N]`, keys' components first, blocks side by side.
    classes: int64 `[N, 2]`. ids: each block's id before it and its ids `[T]` (−1: unknown), or None."""

    symbols: Tensor
    classes: Tensor
    ids: tuple[tuple[int, np.ndarray] | None, ...]


class EntropyCoder(CoderSetting):
    """Coder for blocks of key and value symbols; see `CoderSetting`."""

    @functools.cached_property
    def search(self) -> ShiftSearch:
        """Which shifts code a block shortest."""
        return ShiftSearch(self.tables, self.device)

    def encode(
        self,
        symbols: Tensor,
        classes: Tensor,
        lengths: Sequence[int],
        ids: Sequence[tuple[int, np.ndarray] | None],
        *,
        adaptive_tables: bool = False,
    ) -> list[RansParts]:
        """Code blocks of `lengths` tokens: symbols int16 or int32 `[R, N]`, classes `[N, 2]`, ids as in `CodedSymbols`."""
        classes = classes.T.to(self.device, torch.uint8).contiguous()
        shifts = self._best_shifts(symbols, classes, lengths) if adaptive_tables else None
        return encode_blocks(self, symbols, classes, lengths, ids, shifts)

    def decode(self, blocks: Sequence[RansParts]) -> CodedSymbols:
        """Inverse of `encode`.

        Raises:
            PacketError: the words, states or side bytes do not belong to these tables.
        """
        sparse = self.decode_sparse(blocks)
        symbols = sparse.symbols.to(torch.int32 if sparse.largest >= INT16 else torch.int16)
        symbols.view(-1)[sparse.positions] = sparse.escaped.to(symbols.dtype)
        return CodedSymbols(symbols, sparse.classes.T.long(), sparse.ids)

    def decode_sparse(self, blocks: Sequence[RansParts]) -> SparseSymbols:
        """`decode` before escaped values are put in their places; waits for the device once.

        Raises:
            PacketError: the words, states or side bytes do not belong to these tables.
        """
        return self.start(blocks).finish()

    def start(self, blocks: Sequence[RansParts]) -> PendingSymbols:
        """The first half of `decode_sparse`, which waits for nothing."""
        return PendingSymbols(self, blocks)

    def ideal_bits(self, symbols: Tensor, classes: Tensor) -> float:
        """Bits that the tables charge for symbols int32 `[R, N]` and classes `[N, 2]`, eight for each escaped value."""
        classes = classes.T.to(self.device, torch.uint8)
        stated = bool((classes != NEUTRAL).any()) * classes.numel() * 16 / DIGITS
        return self.search.bits(symbols, self._tables_of(classes)) + stated

    def _tables_of(self, classes: Tensor) -> Tensor:
        """Int64 `[R, N]`: the table of every symbol."""
        split = self.ranks[0]
        parts = self.choice[:split][:, classes[0].long()], self.choice[split:][:, classes[1].long()]
        return torch.cat(parts).long()

    def _best_shifts(self, symbols: Tensor, classes: Tensor, lengths: Sequence[int]) -> np.ndarray | None:
        shifts = self.search.best(symbols, self._tables_of(classes), self.group, lengths)
        return None if (shifts == NO_SHIFT).all() else shifts
