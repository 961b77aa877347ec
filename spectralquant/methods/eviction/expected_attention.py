"""`expected_attention`: attention that future queries are expected to give (Devoto et al. 2025, arXiv 2510.00636).

Queries so far, before RoPE, are taken as a Gaussian and turned to the average of the next 512 positions. Such a query q gives
a key k the expected weight E[exp(q·k/√D)] = exp(μ·k/√D + kᵀΣk/2D); normalized over the keys, averaged over the heads that read
them, times the norm of the value, it is a token's score. The first four tokens always stay. `mode=prompt` is the published
one, with the settings of kvpress, the authors' code; `mode=streaming` chooses again after every block of text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spectralquant.errors import InputError
from spectralquant.geometry import SINKS, CacheGeometry
from spectralquant.methods.entry import plain
from spectralquant.methods.eviction.evictor import BOTH_MODES, STREAMING, Evictor
from spectralquant.methods.eviction.history import HistoryView

MOMENT_BYTES = 4


@dataclass(frozen=True)
class ExpectedAttention(Evictor):
    """future: positions after the newest token over which queries are expected."""

    future: int = 512

    name: ClassVar[str] = "expected_attention"
    entry_bytes: ClassVar[int] = 0
    reads_content: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.future < 1:
            raise InputError(f"expected_attention: future={self.future} must be positive (a number of positions).")

    def scores(self, history: HistoryView, budget: int) -> Tensor:
        """Expected attention times the norm of the value; sinks are always kept."""
        content = history.content
        if content is None:
            raise RuntimeError("expected attention needs keys, values and queries, which nobody kept")
        seen = history.start + content.keys.shape[2]
        means, spreads = content.future_queries(seen, seen + self.future)
        sinks = max(0, SINKS - history.start)
        out = torch.full(content.held.shape, float("inf"), device=content.keys.device)
        for layer, scaling in enumerate(content.scaling):
            keys, held = content.keys[layer, :, None, sinks:], content.held[layer, :, None, sinks:]
            mean, spread = (x[layer].unflatten(0, (len(keys), -1)) for x in (means, spreads))
            linear = (keys @ mean[..., None]).squeeze(-1) * scaling
            square = ((keys @ spread) * keys).sum(-1) * scaling**2 / 2
            weights = (linear + square).masked_fill(~held, float("-inf")).softmax(-1).mean(1)
            out[layer, :, sinks:] = weights * content.values[layer, :, sinks:].norm(dim=-1)
        return out

    def held_bytes(self, kept: Tensor, geometry: CacheGeometry) -> int:
        """See `EvictingMethod.held_bytes`; to choose again, mean and covariance of each head's queries are kept too."""
        moments = kept.shape[0] * geometry.heads * geometry.head_dim * (geometry.head_dim + 3) // 2 * MOMENT_BYTES
        return super().held_bytes(kept, geometry) + (moments if self.mode == STREAMING else 0)


METHOD = plain(ExpectedAttention, "attention that future queries are expected to give", "arXiv 2510.00636", BOTH_MODES)
