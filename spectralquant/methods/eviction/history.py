"""What evicting methods know about attention, and the selection they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

OBSERVED_QUERIES = 32
SCORE_BYTES = 2


@dataclass(frozen=True)
class HistoryView:
    """Attention that each token of one stream received, summed over a head group: float32 `[L, Hk, n]`.

    accumulated: from all queries so far. latest: from the newest 32 queries, averaged. hits: number of queries that gave
    it more than an equal share. age: tokens since each one's position `[n]` (the newest query has age 0).
    """

    accumulated: Tensor
    latest: Tensor
    hits: Tensor
    age: Tensor

    def of_layers(self, layers: Sequence[int]) -> HistoryView:
        """The same tokens in some of the layers."""
        index = list(layers)
        return HistoryView(self.accumulated[index], self.latest[index], self.hits[index], self.age)


class AttentionHistory:
    """Running sums for all streams, `[L, B, Hk, T]`."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.accumulated = torch.zeros(shape, dtype=torch.float32, device=device)
        self.latest = torch.zeros(shape, dtype=torch.float32, device=device)
        self.hits = torch.zeros(shape, dtype=torch.float32, device=device)
        self.seen = 0

    def add(self, layer: int, p: Tensor, start: int) -> None:
        """Add probabilities `[B, Hk, G, new, S]` of queries from position `start` on."""
        stop = p.shape[-1]
        self.accumulated[layer, :, :, :stop] += p.sum((2, 3))
        recent = p[:, :, :, -OBSERVED_QUERIES:]
        self.latest[layer, :, :, :stop] = recent.sum((2, 3)) / recent.shape[3]
        share = 1.0 / torch.arange(start + 1, stop + 1, device=p.device)
        self.hits[layer, :, :, :stop] += (p.mean(2) > share[:, None]).sum(2)
        self.seen = stop

    def of(self, stream: int, start: int, stop: int) -> HistoryView:
        """Tokens start … stop of one stream."""
        part = (slice(None), stream, slice(None), slice(start, stop))
        age = self.seen - 1 - torch.arange(start, stop, device=self.hits.device)
        return HistoryView(self.accumulated[part], self.latest[part], self.hits[part], age)


def keep_best(scores: Tensor, kept: Tensor, share: float) -> Tensor:
    """Of the held entries those with the best scores, `share` of all n tokens (rounded up) for each head."""
    count = max(1, -(-round(share * kept.shape[-1] * 1e6) // 1_000_000))
    masked = scores.masked_fill(~kept, float("-inf"))
    index = masked.topk(min(count, kept.shape[-1]), dim=-1).indices
    return torch.zeros_like(kept).scatter_(-1, index, True) & kept


def fp16_entry_bytes(kept: Tensor, head_dim: int, extra: int = 0) -> int:
    """Bytes of kept keys and values in fp16, plus `extra` bytes an entry."""
    return int(kept.sum()) * (2 * 2 * head_dim + extra)
