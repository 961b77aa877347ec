"""Which shift of tables codes a group of components shortest, in integers so that every machine finds the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spectralquant.codec.cold.symbols import NO_SHIFT, SHIFTS
from sqkernels.entropy import RansTables
from sqkernels.entropy.tables import FRACTION, PRECISION, VALUES

ESCAPE_BITS = 8
SHIFT_BITS = 4


class ShiftSearch:
    """Code lengths of values under tables. A value takes place clipped + 32 in a table's 64."""

    def __init__(self, tables: RansTables, device: torch.device) -> None:
        self.tables, self.device = tables.count, device
        place = tables.symbol_of_value
        escapes = place == tables.alphabet - 1
        cost = tables.cost.gather(1, place) + FRACTION * ESCAPE_BITS * escapes
        exact = PRECISION - tables.frequency.double().log2().gather(1, place) + ESCAPE_BITS * escapes
        self.cost, self.exact = cost.int().reshape(-1).to(device), exact.reshape(-1).to(device)

    def bits(self, symbols: Tensor, tables: Tensor) -> float:
        """Bits of symbols `[R, N]` under `tables: [R, N]`."""
        return float(self.exact[tables * VALUES + self._place(symbols)].sum())

    def best(self, symbols: Tensor, tables: Tensor, group: Tensor, lengths: Sequence[int]) -> np.ndarray:
        """Indices into SHIFTS uint8 `[B, groups]` for blocks side by side; no shift at all where that costs less in sum."""
        count = int(group.max()) + 1 if len(group) else 0
        block = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(self.device)
        place = self._place(symbols)
        costs = torch.empty(len(SHIFTS), len(lengths), count, dtype=torch.int64, device=self.device)
        for i, shift in enumerate(SHIFTS):
            moved = (tables + shift).clamp_(0, self.tables - 1) * VALUES + place
            cost = self.cost[moved].long()
            by_group = torch.zeros(count, cost.shape[1], dtype=torch.int64, device=self.device)
            by_group.index_add_(0, group, cost)
            costs[i] = torch.zeros(len(lengths), count, dtype=torch.int64, device=self.device).index_add_(
                0, block, by_group.T.contiguous()
            )
        preferred = costs * 2 + 1
        preferred[NO_SHIFT] -= 1  # of equals, not to shift
        best = preferred.argmin(0)
        saved = costs[NO_SHIFT].sum(1) - costs.gather(0, best[None])[0].sum(1)
        worth = saved > FRACTION * SHIFT_BITS * count
        return torch.where(worth[:, None], best, NO_SHIFT).to(torch.uint8).cpu().numpy()

    def _place(self, symbols: Tensor) -> Tensor:
        return symbols.clamp(-VALUES // 2, VALUES // 2 - 1).long() + VALUES // 2
