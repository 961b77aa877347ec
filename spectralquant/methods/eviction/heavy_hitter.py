"""`heavy_hitter`: tokens whose mean attention is over a threshold (the rule of the seed's claim; a budget follows from
the text instead of being given).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.errors import InputError
from spectralquant.methods.entry import plain
from spectralquant.methods.eviction.history import SCORE_BYTES, HistoryView, fp16_entry_bytes


@dataclass(frozen=True)
class HeavyHitter:
    """Keeps a token while the attention it received per later query is over `threshold` times an equal share."""

    threshold: float = 0.5

    name: ClassVar[str] = "heavy_hitter"
    exact_bits: ClassVar[int] = 16

    def __post_init__(self) -> None:
        if self.threshold <= 0:
            raise InputError(f"heavy_hitter: threshold={self.threshold} must be positive.")

    @property
    def options(self) -> dict[str, Any]:
        return asdict(self)

    def evict(self, history: HistoryView, kept: Tensor, first_new: int, block: Callable[[], KVBlock]):
        """See `EvictingMethod.evict`."""
        queries = history.age + 1
        share = history.accumulated / history.accumulated.sum(-1, keepdim=True).clamp_min(1e-12)
        return kept & (share > self.threshold * queries / queries.sum()), None

    def held_bytes(self, kept: Tensor, head_dim: int) -> int:
        """See `EvictingMethod.held_bytes`."""
        return fp16_entry_bytes(kept, head_dim, SCORE_BYTES)


METHOD = plain(
    HeavyHitter,
    "tokens over an attention threshold",
    "a threshold rule",
    ({"threshold": 0.25}, {"threshold": 0.5}, {"threshold": 1.0}),
)
