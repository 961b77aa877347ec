"""`h2o`: heavy hitters by accumulated attention (Zhang et al. 2023, "H2O", arXiv 2306.14048, section 4 and algorithm 1).

Half the budget are the newest tokens, half those with the most attention accumulated over all queries (section 5:
"equal budgets"). `mode=streaming` is the paper's: a full cache drops a token for every new one (here a block of 128 at a
time), greedily, so what was dropped never comes back. `mode=prompt` makes the same choice once, after the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from spectralquant.methods.entry import plain
from spectralquant.methods.eviction.evictor import BOTH_MODES, Evictor
from spectralquant.methods.eviction.history import HistoryView


@dataclass(frozen=True)
class H2O(Evictor):
    """Half recent, half heavy hitters."""

    name: ClassVar[str] = "h2o"

    def scores(self, history: HistoryView, budget: int) -> Tensor:
        """Attention accumulated over all queries so far; the newest half of the budget is always kept."""
        return history.accumulated.masked_fill(history.age < budget - budget // 2, float("inf"))


METHOD = plain(H2O, "recent tokens and heavy hitters by accumulated attention", "arXiv 2306.14048", BOTH_MODES)
