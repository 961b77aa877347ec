"""`RowPages` and `ExactTokens`: what a batch of sequences offers to attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sqkernels.common.layout import PAGE
from sqkernels.common.matrices import RowMatrices


@dataclass(frozen=True)
class RowPages:
    """Coded tokens of B sequences.

    storage: uint8 `[n]`. pages: int64 `[B, N]`, byte offset of every page from storage's start, a multiple of 16; kernels
    only add, so that on one device pages may lie in other allocations (the reference reads storage alone). first: int32 `[B]`, slots of the first page that hold no token. tokens: int32 `[B]`, coded tokens.
    """

    storage: Tensor
    pages: Tensor
    first: Tensor
    tokens: Tensor
    matrices: RowMatrices

    @classmethod
    def contiguous(cls, data: Tensor, matrices: RowMatrices, tokens: Tensor | None = None) -> RowPages:
        """Pages that lie one after the other: `data: [B, N, page_bytes]`. tokens: int `[B]`, by default all."""
        batch, count, nbytes = data.shape
        offsets = torch.arange(batch * count, device=data.device, dtype=torch.int64).view(batch, count) * nbytes
        if tokens is None:
            tokens = torch.full((batch,), count * PAGE)
        first = torch.zeros(batch, dtype=torch.int32, device=data.device)
        return cls(data.view(-1), offsets, first, tokens.to(data.device, torch.int32), matrices)

    @property
    def batch(self) -> int:
        return self.pages.shape[0]


@dataclass(frozen=True)
class ExactTokens:
    """Tokens that are not coded: keys (after RoPE) and values `[B, Hk, E, D]`, float16 or bfloat16 or float32.

    sinks come before and window after the coded tokens. tokens: int32 `[B]`, how many of the window's E are real
    (None: all).
    """

    sink_keys: Tensor
    sink_values: Tensor
    window_keys: Tensor
    window_values: Tensor
    tokens: Tensor | None = None
