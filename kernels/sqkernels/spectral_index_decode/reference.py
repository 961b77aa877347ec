"""Index scan, selection and attention in plain torch.

A group's scores are pooled by their mean, which is the score of its mean query. That query's coordinates are rounded to
8-bit integers, so that scores are exact, and scores are sorted into 256 bins of the range that codes can give. A constant
of the keys moves all scores of a head alike and is left out. Every cell of 1,024 slots gives its part of the budget
(`budget.cell_budgets`): its highest bins, the earlier token first among equals.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sqkernels.common.pages import ExactTokens, RowPages
from sqkernels.common.reference import coded_slots, exact_tokens, read_dense, read_index, sequence_pages
from sqkernels.spectral_decode.reference import attend
from sqkernels.spectral_index_decode.budget import BINS, CELL, LEVELS, Budget, budget_tokens, cell_budgets


def index_weights(query: Tensor, decode: Tensor) -> Tensor:
    """The mean query of each group in the index's coordinates, as integers −127 … 127, float32 `[Hk, rank]`.

    query: `[H, D]`. decode: float32 `[Hk, rank, D]`.
    """
    kv, _, dim = decode.shape
    coordinates = torch.einsum("kd,krd->kr", query.float().view(kv, -1, dim).mean(1), decode)
    return integer_weights(coordinates)


def integer_weights(coordinates: Tensor) -> Tensor:
    """`coordinates: […, rank]` as 8-bit integers of equal proportions (float32)."""
    unit = 127.0 / coordinates.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    return (coordinates * unit + 0.5).floor()


def index_scores(query: Tensor, pages: RowPages, row: int) -> tuple[Tensor, Tensor]:
    """Pooled integer scores `[Hk, T]` of one sequence's coded tokens, and the weights `[Hk, rank]` they come from."""
    codes = read_index(sequence_pages(pages, row), pages.matrices)[:, coded_slots(pages, row)]
    weights = index_weights(query[row], pages.matrices.index.decode)
    return (codes @ weights[..., None])[..., 0], weights


def select_tokens(query: Tensor, pages: RowPages, budget: Budget) -> list[list[Tensor]]:
    """Per sequence and head the selected coded tokens (0 is the first token), ascending."""
    budgets = budget_tokens(budget, pages)
    out = []
    for row in range(pages.batch):
        kept = select_mask(score_bins(*index_scores(query, pages, row)), budgets[row], int(pages.first[row]))
        out.append([of_head.nonzero().squeeze(1) for of_head in kept])
    return out


def score_bins(scores: Tensor, weights: Tensor) -> Tensor:
    """Bins int64 `[…, T]` of integer scores within the range that codes 0 … 15 can give under `weights: […, rank]`."""
    least = 15 * weights.clamp(max=0).sum(-1).long()
    span = 15 * weights.abs().sum(-1).long()
    return ((scores.long() - least[..., None]) * (BINS * 65536 // (span + 1))[..., None]) >> 16


def select_mask(bins: Tensor, budget: Tensor, first: int) -> Tensor:
    """Which of the tokens with `bins: […, T]` are selected. first: slots before the first token, where cells begin."""
    tokens = bins.shape[-1]
    padded = torch.nn.functional.pad(bins, (first, -(first + tokens) % CELL), value=-1).unflatten(-1, (-1, CELL))
    counts = torch.zeros(*padded.shape[:-1], BINS + 1, dtype=torch.int32, device=bins.device)
    ones = torch.ones((), dtype=torch.int32, device=bins.device).expand(padded.shape)
    counts = counts.scatter_add_(-1, padded + 1, ones)[..., 1:].long()
    wanted = cell_budgets(counts.unflatten(-1, (LEVELS, -1)).sum(-1), budget)
    reach = counts.flip(-1).cumsum(-1).flip(-1)
    threshold = ((reach >= wanted[..., None]).sum(-1) - 1).clamp_min(0)[..., None]
    above, edge = padded > threshold, padded == threshold
    room = (wanted - above.sum(-1))[..., None]
    kept = above | (edge & (edge.cumsum(-1, dtype=torch.int32) <= room))
    return kept.flatten(-2)[..., first : first + tokens]


def spectral_index_decode(
    query: Tensor,
    pages: RowPages,
    exact: ExactTokens,
    budget: Budget,
    scaling: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """See `api.spectral_index_decode`; attention computed in `dtype`."""
    return attend_selected(query, pages, exact, select_tokens(query, pages, budget), scaling, dtype)


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
            own = tuple(part[h : h + 1] for part in sinks_and_window)
            out.append(attend(query[row, h * group : (h + 1) * group], coded, own, scaling))
    attended = torch.stack(out).view(query.shape)
    return attended.to(query.dtype if dtype == torch.float32 else dtype)
