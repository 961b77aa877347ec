"""Checked entry point."""

from __future__ import annotations

import torch
from torch import Tensor

from sqkernels.attention_received import reference
from sqkernels.common import runtime

KEYS = 64
MAX_DIM = 256


def attention_received(
    query: Tensor, key: Tensor, lse: Tensor, scaling: float, block: int = 128, *, backend: str = "auto"
) -> Tensor:
    """Attention float32 `[B, H, T]` that each token receives from later queries of its own block of `block` tokens and the next.

    Causal attention over T tokens of `query: [B, H, T, D]` and `key: [B, Hk, T, D]`, whose rows' log-sum-exps (of scaled scores,
    natural logarithm) are `lse: float32 [B, H, T]`, as flash attention (Dao 2023, arXiv 2307.08691) gives them. It reads T · 2 · `block` scores
    instead of T²/2.

    Raises:
        ValueError: shapes or dtypes disagree. RuntimeError: Triton was asked for and cannot run here.
    """
    batch, heads, tokens, dim = query.shape
    if key.dim() != 4 or (key.shape[0], key.shape[2], key.shape[3]) != (batch, tokens, dim) or heads % key.shape[1]:
        raise ValueError(f"keys {list(key.shape)} do not fit queries {list(query.shape)}")
    if lse.shape != (batch, heads, tokens) or lse.dtype != torch.float32:
        raise ValueError(f"lse must be float32 {[batch, heads, tokens]}, not {lse.dtype} {list(lse.shape)}")
    if block < KEYS or block % KEYS:
        raise ValueError(f"a block of {block} tokens must be a multiple of {KEYS}")
    if runtime.choose(backend, query.device) == "reference":
        return reference.attention_received(query, key, lse, scaling, block)
    if dim > MAX_DIM:
        raise ValueError(f"the kernel takes head dimensions up to {MAX_DIM}, not {dim}")
    from sqkernels.attention_received.launch import attention_received as launch

    return launch(query, key, lse, scaling, block)
