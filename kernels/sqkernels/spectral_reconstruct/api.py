"""Checked entry point of reconstruction from pages."""

from __future__ import annotations

import torch
from torch import Tensor

from sqkernels.common import runtime
from sqkernels.common.layout import PAGE
from sqkernels.common.matrices import RowMatrices
from sqkernels.spectral_reconstruct import reference


def spectral_reconstruct(
    storage: Tensor,
    pages: Tensor,
    matrices: RowMatrices,
    dtype: torch.dtype = torch.bfloat16,
    rope: tuple[Tensor, Tensor] | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Keys and values `[B, Hk, N·128, D]` of `pages: int64 [B, N]` byte offsets into `storage: uint8 [n]`.

    rope: (cos, sin) float32 `[B, N·128, D]` where keys were coded before RoPE and are to be turned to their positions
    (halves layout: k · cos + rotate_half(k) · sin); None leaves keys as they were coded.

    Raises:
        ValueError: shapes or dtypes disagree. RuntimeError: Triton was asked for and cannot run here.
    """
    if storage.dtype != torch.uint8 or pages.dtype != torch.int64 or pages.dim() != 2:
        raise ValueError("storage must be uint8 [n] and pages int64 [B, N]")
    shape = (pages.shape[0], pages.shape[1] * PAGE, matrices.head_dim)
    if rope is not None and any(t.shape != shape or t.dtype != torch.float32 for t in rope):
        raise ValueError(f"cos and sin must be float32 {list(shape)}")
    chosen = runtime.choose(backend, storage.device, "spectral_reconstruct")
    if chosen == "reference":
        return reference.spectral_reconstruct(storage, pages, matrices, dtype, rope)
    if chosen != "triton":
        return runtime.variant("spectral_reconstruct", chosen)(storage, pages, matrices, dtype, rope)
    from sqkernels.spectral_reconstruct.ops import reconstruct

    return reconstruct(storage, pages, matrices, dtype, rope)
