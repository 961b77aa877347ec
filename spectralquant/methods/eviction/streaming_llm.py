"""`streaming_llm`: sinks and the most recent tokens (Xiao et al. 2023, "Efficient streaming language models with
attention sinks", arXiv 2309.17453, section 3.2).

Four sinks and, for the rest of the budget, the newest tokens. `mode=streaming` is the paper's; `mode=prompt` drops the
middle of a prompt once. Kept tokens keep their positions: texts stay within what the model was trained on, where the
paper's positions inside the cache are not needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from spectralquant.methods.entry import plain
from spectralquant.methods.eviction.evictor import BOTH_MODES, Evictor
from spectralquant.methods.eviction.history import HistoryView

SINK_TOKENS = 4


@dataclass(frozen=True)
class StreamingLLM(Evictor):
    """The first four tokens and the newest ones."""

    name: ClassVar[str] = "streaming_llm"
    entry_bytes: ClassVar[int] = 0

    def scores(self, history: HistoryView, budget: int) -> Tensor:
        """Newer is better; sinks are always kept."""
        newest = -history.age.float()
        newest[: max(0, SINK_TOKENS - history.start)] = float("inf")
        return newest.expand_as(history.accumulated)


METHOD = plain(StreamingLLM, "sinks and recent tokens", "arXiv 2309.17453", BOTH_MODES)
