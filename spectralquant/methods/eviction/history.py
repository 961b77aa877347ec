"""What evicting methods know about attention, and the selection they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectralquant.geometry import CacheGeometry
from spectralquant.methods.eviction.queries import Content

OBSERVED_QUERIES = 64
COUNTED_CALLS = 3
SCORE_BYTES = 2


@dataclass(frozen=True)
class HistoryView:
    """Attention that n consecutive tokens of one stream received, summed over a head group: float32 `[L, Hk, n]`.

    accumulated: from all queries so far. latest: from the newest 64 queries, averaged. hits: of the newest
    `counted` queries, how many gave it more than an equal share of their attention. age: tokens since each one's
    position `[n]` (the newest query has age 0). start: position of the first. content: for methods that read it.
    """

    accumulated: Tensor
    latest: Tensor
    hits: Tensor
    age: Tensor
    counted: int
    start: int = 0
    content: Content | None = None

    def of_layers(self, layers: Sequence[int]) -> HistoryView:
        """The same tokens in some of the layers."""
        index = list(layers)
        parts = (self.accumulated[index], self.latest[index], self.hits[index])
        return HistoryView(*parts, self.age, self.counted, self.start)

    def with_content(self, content: Content) -> HistoryView:
        """The same tokens, and what is known of them beside attention."""
        return replace(self, content=content)


class AttentionHistory:
    """Running sums for all streams, `[L, B, Hk, T]`; a call has the queries of one block."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.accumulated = torch.zeros(shape, dtype=torch.float32, device=device)
        self.latest = torch.zeros(shape, dtype=torch.float32, device=device)
        self._hits = torch.zeros(COUNTED_CALLS, *shape, dtype=torch.float32, device=device)
        self._starts: list[int] = []
        self.seen = 0

    def add(self, layer: int, p: Tensor, start: int, readable: Tensor) -> None:
        """Add probabilities `[B, Hk, G, new, S]` of queries from position `start` on.

        readable: how many tokens each query reads, `[new]` or `[B, Hk, new]`. A batch of one stands for all streams.
        """
        stop = p.shape[-1]
        self.accumulated[layer, :, :, :stop] += p.sum((2, 3))
        recent = p[:, :, :, -OBSERVED_QUERIES:]
        self.latest[layer, :, :, :stop] = recent.sum((2, 3)) / recent.shape[3]
        if not self._starts or self._starts[-1] != start:
            self._starts = [*self._starts, start][-COUNTED_CALLS:]
            self._hits = self._hits.roll(-1, 0)
            self._hits[-1] = 0
        self._hits[-1, layer, :, :, :stop] = (p.mean(2) > (1.0 / readable)[..., None]).sum(2).float()
        self.seen = stop

    def of(self, stream: int, start: int, stop: int) -> HistoryView:
        """Tokens start … stop of one stream."""
        part = (slice(None), stream, slice(None), slice(start, stop))
        age = self.seen - 1 - torch.arange(start, stop, device=self.latest.device)
        hits = self._hits[(slice(None), *part)].sum(0)
        counted = self.seen - self._starts[0]
        return HistoryView(self.accumulated[part], self.latest[part], hits, age, counted, start)


def keep_best(scores: Tensor, held: Tensor, count: int) -> Tensor:
    """Of the held entries `[L, Hk, n]` the `count` with the best scores, for each head."""
    masked = scores.masked_fill(~held, float("-inf"))
    index = masked.topk(min(count, held.shape[-1]), dim=-1).indices
    return torch.zeros_like(held).scatter_(-1, index, True) & held


def fp16_entry_bytes(kept: Tensor, geometry: CacheGeometry, extra: int = 0) -> int:
    """Bytes of kept keys and values in fp16, plus `extra` bytes an entry."""
    return int(kept.sum()) * (2 * 2 * geometry.head_dim + extra)
