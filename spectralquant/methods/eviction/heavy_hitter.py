"""`heavy_hitter`: tokens whose mean attention is over a threshold (the rule of the seed's claim; a budget follows from
the text instead of being given). The first four and the last 128 tokens are always kept.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor

from spectralquant.errors import InputError
from spectralquant.geometry import BLOCK, SINKS, CacheGeometry
from spectralquant.methods.entry import plain
from spectralquant.methods.eviction.evictor import MODES, STREAMING, require_mode
from spectralquant.methods.eviction.history import SCORE_BYTES, HistoryView, fp16_entry_bytes


@dataclass(frozen=True)
class HeavyHitter:
    """Keeps a token while the attention it received per later query is over `threshold` times an equal share.

    mode: `prompt` decides once, when a prompt has been read; `streaming` after every block of text.
    """

    threshold: float = 0.5
    mode: str = STREAMING

    name: ClassVar[str] = "heavy_hitter"
    exact_bits: ClassVar[int] = 16

    def __post_init__(self) -> None:
        if self.threshold <= 0:
            raise InputError(f"heavy_hitter: threshold={self.threshold} must be positive.")
        require_mode(self.name, self.mode)

    @property
    def options(self) -> dict[str, Any]:
        return asdict(self)

    def choose(self, history: HistoryView, held: Tensor, length: int) -> Tensor:
        """See `EvictingMethod.choose`."""
        old = (history.age >= BLOCK).clone()
        old[: max(0, SINKS - history.start)] = False
        queries = (history.age + 1) * old
        received = history.accumulated * old
        share = received / received.sum(-1, keepdim=True).clamp_min(1e-12)
        heavy = share > self.threshold * queries / queries.sum().clamp_min(1)
        return held & (heavy | ~old)

    def held_bytes(self, kept: Tensor, geometry: CacheGeometry) -> int:
        """See `EvictingMethod.held_bytes`."""
        return fp16_entry_bytes(kept, geometry, SCORE_BYTES if self.mode == STREAMING else 0)


METHOD = plain(
    HeavyHitter,
    "tokens over an attention threshold",
    "a threshold rule",
    tuple({"threshold": threshold, "mode": mode} for mode in MODES for threshold in (0.25, 0.5, 1.0)),
)
