"""`Selection`: what the scan leaves for the gather, and what the gather selects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sqkernels.common.attention import AttentionCall
from sqkernels.spectral_index_decode.budget import CELL, LEVELS
from sqkernels.spectral_index_decode.settings import cell_count


@dataclass(frozen=True)
class Selection:
    """Per key/value head of every sequence: `bins` uint8 `[B·Hk, cells·CELL]` of scores, `levels` int32 `[B·Hk, cells, 32]` (how
    many of a cell's tokens lie in each), `selected` slots int32 `[B·Hk, cells·CELL]`, each cell's list in its own place, and
    `counts` int32 `[B·Hk, cells]`."""

    bins: Tensor
    levels: Tensor
    selected: Tensor
    counts: Tensor

    @classmethod
    def of(cls, call: AttentionCall) -> Selection:
        """Room for a call's selection."""
        heads, cells = call.kv_heads, cell_count(call.n_pages)
        return cls(
            call.new(heads, cells * CELL, dtype=torch.uint8),
            call.new(heads, cells, LEVELS, dtype=torch.int32),
            call.new(heads, cells * CELL, dtype=torch.int32),
            call.new(heads, cells, dtype=torch.int32),
        )

    @property
    def cells(self) -> int:
        return self.counts.shape[1]

    @property
    def scores(self) -> dict[str, Tensor]:
        """What the scan writes and the gather reads."""
        return {"BINS": self.bins, "LEVELS": self.levels}

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the gather."""
        return {**self.scores, "SELECTED": self.selected, "COUNTS": self.counts}
