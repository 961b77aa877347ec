"""`snapkv`: attention of an observation window, pooled over neighbours (Li et al. 2024, "SnapKV", arXiv 2404.14469).

`mode=prompt` is the paper's (section 4.1, listing 1): when a prompt has been read, its last 64 queries, the question among
them, vote for the tokens before them; votes are averaged over 5 neighbours, and the best stay beside the window itself.
Window, kernel and pooling are those of the authors' code and of kvpress; heads of a group vote together, as in kvpress.
`mode=streaming` votes again after every block of text, for use where a text has no question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spectralquant.errors import InputError
from spectralquant.methods.entry import plain
from spectralquant.methods.eviction.evictor import BOTH_MODES, Evictor
from spectralquant.methods.eviction.history import OBSERVED_QUERIES, HistoryView

ALWAYS = 1e6


@dataclass(frozen=True)
class SnapKV(Evictor):
    """kernel: odd width of the pooling."""

    kernel: int = 5

    name: ClassVar[str] = "snapkv"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise InputError(f"snapkv: kernel={self.kernel} must be odd and positive.")

    def scores(self, history: HistoryView, budget: int) -> Tensor:
        """Pooled attention from the newest 64 queries, which are always kept (of a smaller budget, the newest)."""
        before = history.latest.shape[-1] - OBSERVED_QUERIES
        if before <= 0:
            return (-history.age.float()).expand_as(history.latest)
        votes = history.latest[..., :before]
        pooled = torch.nn.functional.avg_pool1d(votes, self.kernel, stride=1, padding=self.kernel // 2)
        window = (ALWAYS - history.age[before:].float()).expand(*pooled.shape[:-1], -1)
        return torch.cat([pooled, window], dim=-1)


METHOD = plain(SnapKV, "pooled attention of an observation window", "arXiv 2404.14469", BOTH_MODES)
