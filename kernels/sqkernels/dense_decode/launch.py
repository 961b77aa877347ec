"""Launches the two kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from sqkernels.common.attention import LOG2E
from sqkernels.common.launch import bucket, next_power
from sqkernels.common.runtime import interpreting, multiprocessors
from sqkernels.dense_decode.triton import merge_kernel, split_kernel


def launch(query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """See `api.dense_decode`; contiguous arguments."""
    batch, kv, tokens, dim = keys.shape
    group = query.shape[1] // kv
    splits = max(1, min(4 * multiprocessors(query.device) // (batch * kv), -(-tokens // 256), 128))
    part = query.new_empty(batch * kv, splits, group, dim, dtype=torch.float32)
    stats = query.new_empty(batch * kv, splits, 2, 16, dtype=torch.float32)
    out = torch.empty_like(query)
    shape = {"G": group, "D": dim, "DP": next_power(dim)}
    split_kernel[(batch * kv, splits)](
        query,
        keys,
        values,
        part,
        stats,
        scaling * LOG2E,
        tokens,
        **shape,
        BLOCK=64 if dim <= 128 else 32,
        STAGES=3,
        UPCAST=interpreting(),
        num_warps=4,
    )
    merge_kernel[(query.shape[0] * query.shape[1],)](part, stats, out, splits, **shape, SP=bucket(splits), num_warps=4)
    return out
