"""Decode attention over codes in plain torch, in any precision."""

from __future__ import annotations

import torch
from torch import Tensor

from sqkernels.common.pages import ExactTokens, RowPages
from sqkernels.common.reference import coded_slots, exact_tokens, read_dense, sequence_pages


def spectral_decode(
    query: Tensor, pages: RowPages, exact: ExactTokens, scaling: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """See `api.spectral_decode`; computed in `dtype`."""
    out = []
    for row in range(pages.batch):
        keys, values = read_dense(sequence_pages(pages, row), pages.matrices, dtype)
        slots = coded_slots(pages, row)
        out.append(attend(query[row], (keys[:, slots], values[:, slots]), exact_tokens(exact, row, dtype), scaling))
    return torch.stack(out).to(query.dtype if dtype == torch.float32 else dtype)


def attend(query: Tensor, *parts_and_scaling) -> Tensor:
    """Attention `[H, D]` of `query: [H, D]` over (keys, values) `[Hk, T, D]` parts under one softmax."""
    *parts, scaling = parts_and_scaling
    keys = torch.cat([p[0] for p in parts], dim=1)
    values = torch.cat([p[1] for p in parts], dim=1)
    grouped = query.to(keys.dtype).view(len(keys), -1, query.shape[-1])
    p = (grouped @ keys.transpose(1, 2) * scaling).softmax(-1)
    return (p @ values).view(query.shape)
