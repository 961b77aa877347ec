"""Checked entry point of compression into pages."""

from __future__ import annotations

import torch
from torch import Tensor

from sqkernels.common import runtime
from sqkernels.common.checks import FLOATS
from sqkernels.common.layout import PAGE
from sqkernels.common.matrices import RowMatrices
from sqkernels.spectral_compress import reference


def spectral_compress(
    keys: Tensor,
    values: Tensor,
    matrices: RowMatrices,
    storage: Tensor,
    pages: Tensor,
    *,
    backend: str = "auto",
) -> None:
    """Write `keys, values: [N, Hk, T, D]` (keys as attention sees them) into N pages of `storage`.

    Tokens of a short block (T < 128) become the last of its page; the slots before them hold unspecified codes.

    Args:
        storage: uint8 `[n]`. pages: int64 `[N]`, byte offsets, multiples of 16.

    Raises:
        ValueError: shapes, dtypes or devices disagree. RuntimeError: Triton was asked for and cannot run here.
    """
    kv, dim = matrices.kv_heads, matrices.head_dim
    good = keys.dim() == 4 and keys.shape == values.shape and keys.shape[1] == kv and keys.shape[3] == dim
    if not good or not 1 <= keys.shape[2] <= PAGE or keys.dtype not in FLOATS or values.dtype != keys.dtype:
        raise ValueError(
            f"keys {tuple(keys.shape)} {keys.dtype} and values {tuple(values.shape)} {values.dtype} must be "
            f"[N, {kv}, 1 to {PAGE}, {dim}] of one float dtype"
        )
    if storage.dtype != torch.uint8 or pages.dtype != torch.int64 or pages.shape != keys.shape[:1]:
        raise ValueError(f"storage must be uint8 and pages int64 [{keys.shape[0]}]")
    if runtime.choose(backend, keys.device) == "reference":
        reference.spectral_compress(keys, values, matrices, storage, pages)
        return
    from sqkernels.spectral_compress.ops import compress

    compress(keys.contiguous(), values.contiguous(), matrices, storage, pages)
