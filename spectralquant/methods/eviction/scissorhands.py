"""`scissorhands`: persistence of importance (Liu et al. 2023, "Scissorhands", arXiv 2305.17118, algorithms 1 and 2).

A query finds a token unimportant when it gives it less than an equal share of its attention. A full cache drops the
tokens that most of the newest queries found unimportant (a history window; here the newest 384 queries, the paper has
400); the newest 10 tokens are never dropped. The paper drops half the budget at once to save time; here only what is
too much goes, which keeps more. `mode=streaming` is the paper's; `mode=prompt` makes the choice once, after the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from spectralquant.methods.entry import plain
from spectralquant.methods.eviction.evictor import BOTH_MODES, Evictor
from spectralquant.methods.eviction.history import HistoryView

RECENT = 10


@dataclass(frozen=True)
class Scissorhands(Evictor):
    """Counts of unimportance; ties go to newer tokens."""

    name: ClassVar[str] = "scissorhands"

    def scores(self, history: HistoryView, budget: int) -> Tensor:
        """Minus the number of counted queries that could read a token and found it unimportant."""
        could_read = (history.age + 1).clamp(max=history.counted)
        scores = history.hits - could_read - 1e-5 * history.age
        return scores.masked_fill(history.age < RECENT, float("inf"))


METHOD = plain(Scissorhands, "persistence of importance", "arXiv 2305.17118", BOTH_MODES)
