"""Bytes that kernels read and write, counted from the arguments of their launches.

A tensor counts once with its whole size, however many programs read it (the level-2 cache serves them); what one kernel
writes and the next reads counts twice. Codes count by token, with every slot of a page. `launch_metadata` and the functions
that predict traffic use the same counts: the second build the arguments on the device "meta", which holds no memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sqkernels.common.attention import AttentionCall, AttentionTensors
from sqkernels.common.launch import LayoutArguments
from sqkernels.common.layout import PAGE
from sqkernels.common.matrices import RowMatrices

Arguments = Mapping[str, Any]
PREPARED = (
    "Q",
    "SK",
    "SV",
    "WK",
    "WV",
    "KEY_DECODE",
    "KEY_CONSTANT",
    "LATENTS",
    "CONSTANT",
    "PART_EXACT",
    "STATS_EXACT",
)
REDUCED = ("PART", "STATS", "PART_EXACT", "STATS_EXACT", "VALUE_DECODE", "VALUE_CONSTANT", "OUT")


def tensor_bytes(arguments: Arguments, *names: str) -> int:
    """Bytes of the tensors of these names."""
    return sum(arguments[n].numel() * arguments[n].element_size() for n in names)


def slots(arguments: Arguments) -> int:
    """Slots of all pages of all sequences."""
    return arguments["PAGES"].numel() * PAGE


def prepare_bytes(arguments: Arguments) -> int:
    """Of `prepare_kernel`."""
    return tensor_bytes(arguments, *PREPARED)


def prepare_flops(arguments: Arguments) -> int:
    """Multiplications and additions of attention to exact tokens."""
    heads, tokens = arguments["Q"].shape[0] * arguments["Q"].shape[1], arguments["sinks"] + arguments["window"]
    return 4 * heads * tokens * arguments["D"]


def reduce_bytes(arguments: Arguments) -> int:
    """Of `reduce_kernel`."""
    return tensor_bytes(arguments, *REDUCED)


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
