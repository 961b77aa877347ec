"""Argument checks of the attention entry points."""

from __future__ import annotations

import torch
from torch import Tensor

from sqkernels.common.pages import ExactTokens, RowPages

MAX_GROUP = 16
HEAD_DIMS = (16, 32, 64, 96, 128, 256)
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def check_attention(query: Tensor, pages: RowPages, exact: ExactTokens) -> None:
    """Raise ValueError where query, pages and exact tokens do not fit each other."""
    matrices = pages.matrices
    batch, kv, dim = pages.batch, matrices.kv_heads, matrices.head_dim
    if query.dim() != 3 or query.shape[0] != batch or query.shape[2] != dim or query.shape[1] % kv:
        raise ValueError(f"query is {tuple(query.shape)}, expected [{batch}, a multiple of {kv}, {dim}]")
    if query.shape[1] // kv > MAX_GROUP:
        raise ValueError(f"{query.shape[1] // kv} query heads share a key head; at most {MAX_GROUP} can")
    if dim not in HEAD_DIMS:
        raise ValueError(f"head dimension {dim} is not one of {', '.join(map(str, HEAD_DIMS))}")
    if pages.storage.dtype != torch.uint8 or pages.pages.dtype != torch.int64:
        raise ValueError(f"storage must be uint8 and pages int64, not {pages.storage.dtype} and {pages.pages.dtype}")
    for name in ("first", "tokens"):
        part = getattr(pages, name)
        if part.dtype != torch.int32 or part.shape != (batch,):
            raise ValueError(f"{name} must be int32 [{batch}], not {part.dtype} {tuple(part.shape)}")
    for name in ("sink_keys", "sink_values", "window_keys", "window_values"):
        part = getattr(exact, name)
        if part.dim() != 4 or part.shape[:2] != (batch, kv) or part.shape[3] != dim:
            raise ValueError(f"{name} is {tuple(part.shape)}, expected [{batch}, {kv}, tokens, {dim}]")
        if part.dtype not in FLOATS:
            raise ValueError(f"{name} has dtype {part.dtype}, expected a float of at most 32 bits")
    if exact.window_keys.shape != exact.window_values.shape or exact.sink_keys.shape != exact.sink_values.shape:
        raise ValueError("keys and values of exact tokens differ in shape")
    if exact.tokens is not None and (exact.tokens.dtype != torch.int32 or exact.tokens.shape != (batch,)):
        raise ValueError(f"tokens of the window must be int32 [{batch}]")
    parts = (pages.storage, pages.pages, pages.first, pages.tokens, matrices.heads, exact.sink_keys, exact.window_keys)
    where = {str(p.device) for p in parts} | {str(query.device)}
    if len(where) > 1:
        raise ValueError(f"tensors are on {', '.join(sorted(where))}; move them to one device")
