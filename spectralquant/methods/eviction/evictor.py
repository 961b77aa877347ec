"""`Evictor`: the part that all evicting methods share; a method adds its scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.errors import InputError
from spectralquant.methods.eviction.history import SCORE_BYTES, HistoryView, fp16_entry_bytes, keep_best

SHARES = ({"keep": 0.5}, {"keep": 0.2}, {"keep": 0.1})


@dataclass(frozen=True)
class Evictor:
    """Keeps the best `keep` share of the tokens that left the window, for every key/value head; in fp16.

    exact_bits: sinks and window are held at 16 bits. entry_bytes: what is remembered about a kept entry.
    """

    keep: float = 0.2

    name: ClassVar[str]
    exact_bits: ClassVar[int] = 16
    entry_bytes: ClassVar[int] = SCORE_BYTES

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise InputError(f"{self.name}: keep={self.keep} is outside 0 to 1 (a share of the tokens).")

    @property
    def options(self) -> dict[str, Any]:
        return asdict(self)

    def scores(self, history: HistoryView) -> Tensor:
        """`[L, Hk, n]`, larger is kept."""
        raise NotImplementedError

    def evict(self, history: HistoryView, kept: Tensor, first_new: int, block: Callable[[], KVBlock]):
        """See `EvictingMethod.evict`."""
        return keep_best(self.scores(history), kept, self.keep), None

    def held_bytes(self, kept: Tensor, head_dim: int) -> int:
        """See `EvictingMethod.held_bytes`."""
        return fp16_entry_bytes(kept, head_dim, self.entry_bytes)
