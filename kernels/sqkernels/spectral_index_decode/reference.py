"""Index scan, selection and attention in plain torch.

A group's scores are pooled by their mean, which is the score of its mean query, and sorted into 256 bins of the range
that codes can give. A constant of the keys moves all scores of a head alike and is left out. Every cell of 1,024 slots
gives its part of the budget (`budget.cell_budgets`): its highest bins, the earlier token first among equals.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sqkernels.rows.pages import ExactTokens, RowPages
from sqkernels.rows.reference import coded_slots, exact_tokens, read_dense, read_index, sequence_pages
from sqkernels.spectral_decode.reference import attend
from sqkernels.spectral_index_decode.budget import BINS, CELL, LEVELS, Budget, budget_tokens, cell_budgets


def index_scores(query: Tensor, pages: RowPages, row: int, scaling: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Pooled scores `[Hk, T]` of one sequence's coded tokens and the range `[Hk]`, `[Hk]` that they must lie in."""
    decode = pages.matrices.index.decode.to(dtype)
    codes = read_index(sequence_pages(pages, row), pages.matrices)[:, coded_slots(pages, row)].to(dtype)
    kv, _, dim = decode.shape
    latent = torch.einsum("kd,krd->kr", query[row].to(dtype).view(kv, -1, dim).mean(1) * scaling, decode)
    pooled = (codes @ latent[..., None])[..., 0]
    return pooled, (latent * 15).clamp(max=0).sum(-1), (latent * 15).clamp(min=0).sum(-1)


def select_tokens(
    query: Tensor, pages: RowPages, budget: Budget, scaling: float, dtype: torch.dtype = torch.float32
) -> list[list[Tensor]]:
    """Per sequence and head the selected coded tokens (0 is the first token), ascending."""
    budgets = budget_tokens(budget, pages)
    out = []
    for row in range(pages.batch):
        pooled, low, high = index_scores(query, pages, row, scaling, dtype)
        kept = select_mask(score_bins(pooled, low, high), budgets[row], int(pages.first[row]))
        out.append([mine.nonzero().squeeze(1) for mine in kept])
    return out


def score_bins(scores: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Bins int64 `[…, T]` of scores within `low, high: […]`."""
    width = ((high - low) / BINS).clamp_min(1e-20)
    return ((scores - low[..., None]) / width[..., None]).clamp(0, BINS - 1).long()


def select_mask(bins: Tensor, budget: Tensor, first: int) -> Tensor:
    """Which of the tokens with `bins: […, T]` are selected. first: slots before the first token, where cells begin."""
    tokens = bins.shape[-1]
    padded = torch.nn.functional.pad(bins, (first, -(first + tokens) % CELL), value=-1).unflatten(-1, (-1, CELL)).int()
    # How many lie at or above each level, by one comparison a level; padding lies below all.
    reach = torch.stack([(padded >= step * (BINS // LEVELS)).sum(-1) for step in range(LEVELS + 1)], dim=-1)
    wanted = cell_budgets(reach[..., :-1] - reach[..., 1:], budget)
    # The order of (bin, earlier token) as one number; its threshold by bisection.
    order = padded * CELL + torch.arange(CELL - 1, -1, -1, device=bins.device, dtype=torch.int32)
    threshold = torch.zeros_like(wanted, dtype=torch.int32)
    for bit in reversed(range((BINS * CELL - 1).bit_length())):
        higher = threshold + (1 << bit)
        threshold = torch.where((order >= higher[..., None]).sum(-1) >= wanted, higher, threshold)
    kept = (order >= threshold[..., None]) & (wanted > 0)[..., None] & (padded >= 0)
    return kept.flatten(-2)[..., first : first + tokens]


def spectral_index_decode(
    query: Tensor,
    pages: RowPages,
    exact: ExactTokens,
    budget: Budget,
    scaling: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """See `api.spectral_index_decode`; computed in `dtype`, selection always in float32."""
    return attend_selected(query, pages, exact, select_tokens(query, pages, budget, scaling), scaling, dtype)


def attend_selected(
    query: Tensor,
    pages: RowPages,
    exact: ExactTokens,
    selected: list[list[Tensor]],
    scaling: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Attention `[B, H, D]` over exact tokens and the codes of `selected` tokens (per sequence and head)."""
    group = query.shape[1] // pages.matrices.kv_heads
    out = []
    for row, heads in enumerate(selected):
        keys, values = read_dense(sequence_pages(pages, row), pages.matrices, dtype)
        first = int(pages.first[row])
        sinks_and_window = exact_tokens(exact, row, dtype)
        for h, tokens in enumerate(heads):
            coded = (keys[h : h + 1, first + tokens], values[h : h + 1, first + tokens])
            mine = tuple(part[h : h + 1] for part in sinks_and_window)
            out.append(attend(query[row, h * group : (h + 1) * group], coded, mine, scaling))
    found = torch.stack(out).view(query.shape)
    return found.to(query.dtype if dtype == torch.float32 else dtype)
