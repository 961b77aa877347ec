"""Calls on the device "meta", which holds no memory: what a launch would read and write is counted from them."""

from __future__ import annotations

import torch

from sqkernels.common.attention import AttentionCall, AttentionTensors
from sqkernels.common.launch import LayoutArguments
from sqkernels.common.layout import PAGE
from sqkernels.common.matrices import RowMatrices


def call_without_memory(
    matrices: RowMatrices, batch: int, coded: int, exact: int, group: int, dtype: torch.dtype
) -> AttentionCall:
    """A call of `batch` sequences of `coded` coded and `exact` exact tokens each, as tensors that hold no memory."""
    kv, dim = matrices.kv_heads, matrices.head_dim

    def empty(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    tensors = AttentionTensors(
        query=empty(batch, kv * group, dim),
        storage=empty(0, of=torch.uint8),
        pages=empty(batch, -(-coded // PAGE), of=torch.int64),
        first=empty(batch, of=torch.int32),
        tokens=empty(batch, of=torch.int32),
        heads=matrices.heads,
        key_decode=matrices.key.decode,
        key_constant=matrices.key.constant,
        value_decode=matrices.value.decode,
        value_constant=matrices.value.constant,
        sink_keys=empty(batch, kv, 0, dim),
        sink_values=empty(batch, kv, 0, dim),
        window_keys=empty(batch, kv, exact, dim),
        window_values=empty(batch, kv, exact, dim),
        window_tokens=empty(0, of=torch.int32),
    )
    return AttentionCall(tensors, LayoutArguments.of(matrices), dim**-0.5)
