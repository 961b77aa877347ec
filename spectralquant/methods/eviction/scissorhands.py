"""`scissorhands`: persistence of importance (Liu et al. 2023, "Scissorhands", arXiv 2305.17118, algorithm 2).

A token counts as important for a query when it gets more than an equal share of its attention; tokens that were
important least often are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from spectralquant.methods.entry import plain
from spectralquant.methods.eviction.evictor import SHARES, Evictor
from spectralquant.methods.eviction.history import HistoryView


@dataclass(frozen=True)
class Scissorhands(Evictor):
    """Counts are taken over all queries since the token appeared; ties go to newer tokens."""

    name: ClassVar[str] = "scissorhands"

    def scores(self, history: HistoryView) -> Tensor:
        """How often a token was important, per query that could read it."""
        return history.hits / (history.age + 1) - 1e-9 * history.age


METHOD = plain(Scissorhands, "persistence of importance", "arXiv 2305.17118", SHARES)
