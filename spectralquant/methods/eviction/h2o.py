"""`h2o`: heavy hitters by accumulated attention (Zhang et al. 2023, "H2O", arXiv 2306.14048, section 4).

The most recent tokens, the other half of H2O's budget, are the window that every method here keeps exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from spectralquant.methods.entry import plain
from spectralquant.methods.eviction.evictor import SHARES, Evictor
from spectralquant.methods.eviction.history import HistoryView


@dataclass(frozen=True)
class H2O(Evictor):
    """Greedy: a token that was dropped never comes back."""

    name: ClassVar[str] = "h2o"

    def scores(self, history: HistoryView) -> Tensor:
        """Attention accumulated over all queries so far."""
        return history.accumulated


METHOD = plain(H2O, "heavy hitters by accumulated attention", "arXiv 2306.14048", SHARES)
