"""Checked entry point of coding tokens into slots."""

from __future__ import annotations

import torch
from torch import Tensor

from sqkernels.common import runtime
from sqkernels.common.layout import PAGE
from sqkernels.common.matrices import RowMatrices
from sqkernels.spectral_slots import reference

HALVES = (torch.float16, torch.bfloat16)
ALIGN = 16


def page_bytes(matrices: RowMatrices, exact: int) -> int:
    """Least bytes of a page: the rows of its 128 tokens, and the first `exact` tokens as they are (two bytes a number)."""
    return -(-(matrices.layout.page_bytes + 4 * exact * matrices.kv_heads * matrices.head_dim) // ALIGN) * ALIGN


def spectral_slots(
    keys: Tensor,
    values: Tensor,
    matrices: RowMatrices,
    pages: Tensor,
    slots: Tensor,
    exact: int,
    *,
    backend: str = "auto",
) -> None:
    """Write tokens `keys, values: [T, Hk, D]` (keys as attention sees them; numbers of a head adjacent) into their slots.

    A page begins as `RowLayout` says; behind its rows lie its first `exact` tokens as they are, `[2, Hk, exact, D]` (keys, then
    values) in the dtype of the keys.

    Args:
        pages: uint8 `[P, bytes]`, rows adjacent bytes and multiples of 16 apart, each at least `page_bytes(matrices, exact)` long.
        slots: int64 `[T]`, page · 128 + place; negative: the token is not written. Nothing checks that they lie inside.

    Raises:
        ValueError: shapes, dtypes or strides disagree. RuntimeError: Triton was asked for and cannot run here.
    """
    kv, dim = matrices.kv_heads, matrices.head_dim
    good = keys.dim() == 3 and keys.shape == values.shape and keys.shape[1:] == (kv, dim)
    if not good or keys.dtype not in HALVES or values.dtype != keys.dtype:
        raise ValueError(
            f"keys {tuple(keys.shape)} {keys.dtype} and values {tuple(values.shape)} {values.dtype} must be [T, {kv}, {dim}], "
            "both float16 or both bfloat16"
        )
    if any(x.stride(2) != 1 or x.stride(1) != dim for x in (keys, values)):
        raise ValueError("the heads of a token must be adjacent")
    if matrices.index is not None:
        raise ValueError("slots have no index: build the matrices without one")
    if not 0 <= exact <= PAGE:
        raise ValueError(f"{exact} tokens of a page cannot be exact")
    if pages.dtype != torch.uint8 or pages.dim() != 2 or pages.stride(1) != 1 or pages.stride(0) % ALIGN:
        raise ValueError(f"pages must be uint8 [P, bytes], rows a multiple of {ALIGN} bytes apart")
    if pages.shape[1] < (least := page_bytes(matrices, exact)):
        raise ValueError(f"pages of {pages.shape[1]} bytes are shorter than the {least} bytes of these codes")
    if slots.dtype != torch.int64 or slots.shape != keys.shape[:1]:
        raise ValueError(f"slots must be int64 [{keys.shape[0]}]")
    if not len(slots):
        return
    if runtime.choose(backend, keys.device) == "reference":
        reference.spectral_slots(keys, values, matrices, pages, slots, exact)
        return
    from sqkernels.spectral_slots.ops import write

    write(keys, values, matrices, pages, slots, exact)
