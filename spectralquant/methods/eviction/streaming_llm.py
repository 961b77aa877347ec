"""`streaming_llm`: sinks and the most recent tokens (Xiao et al. 2023, "Efficient streaming language models with
attention sinks", arXiv 2309.17453).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from spectralquant.methods.entry import plain
from spectralquant.methods.eviction.evictor import SHARES, Evictor
from spectralquant.methods.eviction.history import HistoryView


@dataclass(frozen=True)
class StreamingLLM(Evictor):
    """Of the tokens beyond the exact window the newest share stays."""

    name: ClassVar[str] = "streaming_llm"
    entry_bytes: ClassVar[int] = 0

    def scores(self, history: HistoryView) -> Tensor:
        """Newer is better."""
        return (-history.age.float()).expand_as(history.accumulated)


METHOD = plain(StreamingLLM, "sinks and recent tokens", "arXiv 2309.17453", SHARES)
