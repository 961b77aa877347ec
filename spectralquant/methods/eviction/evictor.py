"""`Evictor`: the part that all evicting methods with a budget share; a method adds its scores.

A budget is a share of the whole length, as in the papers: `keep=0.2` of a window of 2,048 tokens holds 409 entries in
every key/value head, recent tokens and sinks among them. Nothing is dropped before that many are held.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor

from spectralquant.errors import InputError
from spectralquant.geometry import CacheGeometry
from spectralquant.methods.eviction.history import SCORE_BYTES, HistoryView, fp16_entry_bytes, keep_best

PROMPT, STREAMING = "prompt", "streaming"
MODES = (PROMPT, STREAMING)
KEEPS = (0.5, 0.2, 0.1)
BOTH_MODES = tuple({"keep": keep, "mode": mode} for mode in MODES for keep in KEEPS)


def require_mode(name: str, mode: str) -> None:
    """Raise InputError for a mode that there is not."""
    if mode not in MODES:
        raise InputError(f"{name}: mode={mode!r} is not one of {', '.join(MODES)}.")


@dataclass(frozen=True)
class Evictor:
    """Keeps the `budget` best entries of every key/value head, in fp16.

    mode: `prompt` chooses once, when a prompt has been read; `streaming` chooses again after every block of text.
    exact_bits: what is kept is held at 16 bits. entry_bytes: what is remembered about a kept entry to choose again.
    reads_content: scores need keys, values and queries, not attention alone.
    """

    keep: float = 0.2
    mode: str = STREAMING

    name: ClassVar[str]
    exact_bits: ClassVar[int] = 16
    entry_bytes: ClassVar[int] = SCORE_BYTES
    reads_content: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise InputError(f"{self.name}: keep={self.keep} is outside 0 to 1 (a share of the tokens).")
        require_mode(self.name, self.mode)

    @property
    def options(self) -> dict[str, Any]:
        return asdict(self)

    def budget(self, length: int) -> int:
        """Entries a head may hold of a text of `length` tokens."""
        return max(1, int(length * self.keep))

    def scores(self, history: HistoryView, budget: int) -> Tensor:
        """`[L, Hk, n]`, larger is kept; infinite for what the method always keeps."""
        raise NotImplementedError

    def choose(self, history: HistoryView, held: Tensor, length: int) -> Tensor:
        """See `EvictingMethod.choose`."""
        budget = self.budget(length)
        if int(held.sum(-1).amax()) <= budget:
            return held
        return keep_best(self.scores(history, budget), held, budget)

    def held_bytes(self, kept: Tensor, geometry: CacheGeometry) -> int:
        """See `EvictingMethod.held_bytes`."""
        return fp16_entry_bytes(kept, geometry, self.entry_bytes if self.mode == STREAMING else 0)
