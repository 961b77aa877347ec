"""`snapkv`: attention of an observation window, pooled over neighbours (Li et al. 2024, "SnapKV", arXiv 2404.14469).

SnapKV chooses once, at the end of a prompt, by what the prompt's last queries read. Under streaming every block is such
an end: its last 32 queries vote, votes are max-pooled over `kernel` tokens, and the best share stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spectralquant.errors import InputError
from spectralquant.methods.entry import plain
from spectralquant.methods.eviction.evictor import SHARES, Evictor
from spectralquant.methods.eviction.history import HistoryView


@dataclass(frozen=True)
class SnapKV(Evictor):
    """kernel: odd width of the pooling."""

    kernel: int = 7

    name: ClassVar[str] = "snapkv"
    entry_bytes: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise InputError(f"snapkv: kernel={self.kernel} must be odd and positive.")

    def scores(self, history: HistoryView) -> Tensor:
        """Pooled attention from the newest 32 queries."""
        return torch.nn.functional.max_pool1d(history.latest, self.kernel, stride=1, padding=self.kernel // 2)


METHOD = plain(SnapKV, "pooled attention of an observation window", "arXiv 2404.14469", SHARES)
