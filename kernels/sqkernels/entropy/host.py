"""What coding on the CPU looks up, derived from a set of tables and kept with it.

All arrays have an entry more than there are tables: table K leaves a lane's state as it is, for lanes without a symbol.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sqkernels.entropy.tables import PRECISION, SYMBOL_BITS, TOTAL, VALUES, RansTables

ESCAPED = -128


@dataclass(frozen=True)
class HostTables:
    """By slot, `[(K + 1) · 1024]`: slots int32, frequency << 16 | slot − first slot; value_of_slot int8, −128
    for escapes. By clipped value + 32, `[(K + 1) · 64]`: frequency and first slot float64, those of the escape for
    values that have none; escape_value bool.
    """

    slots: Tensor
    value_of_slot: Tensor
    frequency: Tensor
    first: Tensor
    escape_value: np.ndarray

    @classmethod
    def of(cls, tables: RansTables) -> HostTables:
        """Kept with the tables."""
        kept = tables.__dict__.get("_host")
        if kept is None:
            kept = tables.__dict__["_host"] = cls._make(tables)
        return kept

    @classmethod
    def _make(cls, tables: RansTables) -> HostTables:
        packed = tables.slots.long()
        entry = (packed >> SYMBOL_BITS + PRECISION) << 16 | (packed >> SYMBOL_BITS) & (TOTAL - 1)
        slots = torch.cat([entry, (TOTAL << 16 | torch.arange(TOTAL))[None]]).int().reshape(-1)
        symbol = torch.cat([tables.symbol_of_slot, torch.full((1, TOTAL), tables.span)])
        escape = symbol == tables.alphabet - 1
        value = torch.where(escape, ESCAPED, symbol - tables.span).to(torch.int8)
        place = tables.symbol_of_value
        frequency, first = tables.frequency.gather(1, place), tables.start.gather(1, place)
        ends = torch.full((1, VALUES), TOTAL), torch.zeros(1, VALUES, dtype=torch.int64)
        return cls(
            slots,
            value.reshape(-1),
            torch.cat([frequency, ends[0]]).double().reshape(-1),
            torch.cat([first, ends[1]]).double().reshape(-1),
            torch.cat([place == tables.alphabet - 1, torch.zeros(1, VALUES, dtype=torch.bool)]).reshape(-1).numpy(),
        )
