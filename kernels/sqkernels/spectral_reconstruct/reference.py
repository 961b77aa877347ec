"""Reconstruction in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from sqkernels.common.matrices import RowMatrices
from sqkernels.common.reference import read_dense


def spectral_reconstruct(
    storage: Tensor,
    pages: Tensor,
    matrices: RowMatrices,
    dtype: torch.dtype,
    rope: tuple[Tensor, Tensor] | None,
    compute: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """See `api.spectral_reconstruct`; computed in `compute`."""
    span = torch.arange(matrices.layout.page_bytes, device=storage.device)
    both = [read_dense(storage[row[:, None] + span], matrices, compute) for row in pages]
    keys, values = (torch.stack([pair[i] for pair in both]) for i in range(2))
    if rope is not None:
        cos, sin = (t[:, None].to(compute) for t in rope)
        half = keys.shape[-1] // 2
        keys = keys * cos + torch.cat([-keys[..., half:], keys[..., :half]], dim=-1) * sin
    return keys.to(dtype), values.to(dtype)
