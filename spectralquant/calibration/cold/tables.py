"""Frequency tables for the entropy coder: a few shared tables, and which one each component and class uses.

Thousands of components times nine importance classes cannot each afford a table of their own: the counts are thin,
and so would be the profile's budget. Histograms are clustered into K tables by cross-entropy (Lloyd's algorithm with
Kullback–Leibler distortion), starting from bins of equal scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectralquant.codec.cold.importance import CLASSES, NEUTRAL
from spectralquant.codec.cold.symbols import ALPHABET, ESCAPE, SPAN

TABLES = 192
ITERATIONS = 4
PRIOR_COUNT = 8.0
SCALE_PRIOR = 64.0


def symbol_histogram(symbols: Tensor, classes: Tensor) -> Tensor:
    """Counts float32 `[9, R, 32]` of symbols `[T, R]` under the tokens' classes `[T]`."""
    rank = symbols.shape[1]
    index = torch.where(symbols.abs() > SPAN, ESCAPE, symbols + SPAN).long()
    flat = (classes[:, None] * rank + torch.arange(rank, device=symbols.device)) * ALPHABET + index
    counts = torch.bincount(flat.flatten(), minlength=CLASSES * rank * ALPHABET)
    return counts.view(CLASSES, rank, ALPHABET).float()


def cluster_tables(histogram: Tensor, tables: int = TABLES) -> tuple[Tensor, Tensor]:
    """Cluster histograms `[9, N, 32]` into `tables` distributions.

    Returns:
        choice uint8 `[9, N]` and tables float32 `[K, 32]`, every entry positive, rows summing to 1, ordered by
        entropy.
    """
    counts = histogram.reshape(-1, ALPHABET)
    choice = _scale_bins(histogram, tables).flatten()
    for _ in range(ITERATIONS):
        fitted = _pool(counts, choice, tables)
        cost = -(counts + PRIOR_COUNT * fitted[choice]) @ fitted.log2().T
        choice = cost.argmin(1)
    fitted = _pool(counts, choice, tables)
    order = -(fitted * fitted.log2()).sum(1)
    rank = order.argsort()
    place = torch.empty_like(rank)
    place[rank] = torch.arange(tables, device=rank.device)
    return place[choice].view(histogram.shape[:2]).to(torch.uint8), fitted[rank]


def nearest_tables(histogram: Tensor, tables: Tensor) -> Tensor:
    """The table uint8 `[N]` that codes each of the histograms `[N, 32]` shortest."""
    return (histogram @ tables.log2().T).argmax(1).to(torch.uint8)


def _scale_bins(histogram: Tensor, tables: int) -> Tensor:
    """Initial tables: equal-population bins of the log second moment, shrunk to what the component's scale predicts."""
    value = torch.arange(-SPAN, SPAN + 2, device=histogram.device).float()
    count = histogram.sum(-1)
    energy = (histogram * value.square()).sum(-1)
    relative = torch.exp2(torch.arange(len(histogram), device=histogram.device).float() - NEUTRAL)[:, None]
    component = (energy * relative).sum(0) / count.sum(0).clamp_min(1)
    prior = component / relative
    trend = (energy.sum(1) / (prior * count).sum(1).clamp_min(1e-9)).clamp(0.2, 5)[:, None]
    scale = ((energy + SCALE_PRIOR * prior * trend) / (count + SCALE_PRIOR)).clamp_min(1e-7).log()
    edges = torch.linspace(0, 1, tables + 1, device=scale.device)[1:-1]
    ordered = scale.flatten().sort().values
    return torch.bucketize(scale, ordered[(edges * (ordered.numel() - 1)).long()])


def _pool(counts: Tensor, choice: Tensor, tables: int) -> Tensor:
    pooled = torch.zeros(tables, ALPHABET, device=counts.device).index_add_(0, choice, counts)
    overall = pooled.sum(0) / pooled.sum().clamp_min(1)
    distance = (torch.arange(ALPHABET, device=counts.device) - SPAN).abs().float()
    pooled = pooled + 0.005 * torch.exp(-distance / 1.5) + 0.1 * overall + 1e-6
    return pooled / pooled.sum(1, keepdim=True)


def class_tables(classes: Tensor) -> Tensor:
    """Probabilities float32 `[2, 9]` of the importance classes `[T, 2]` (keys, values)."""
    counts = torch.stack([torch.bincount(classes[:, i], minlength=CLASSES) for i in range(2)]).float() + 1
    return counts / counts.sum(1, keepdim=True)


def code_length(histogram: Tensor, choice: Tensor, tables: Tensor) -> float:
    """Cross-entropy in bits of counts `[9, N, 32]` under their tables, a byte more for each escape."""
    bits = -(histogram * tables[choice.long()].log2()).sum(dtype=torch.float64)
    return float(bits + 8 * histogram[..., ESCAPE].sum(dtype=torch.float64))
