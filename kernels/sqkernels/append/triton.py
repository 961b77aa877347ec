"""One program a head of a sequence."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sqkernels.common.device import start_next, wait_for_previous
from sqkernels.common.launch import next_power
from sqkernels.common.runtime import overlap


def launch(keys: Tensor, values: Tensor, places: Tensor, key_room: Tensor, value_room: Tensor) -> None:
    """See `api.append`. Heads may lie anywhere; elements of a head lie side by side."""
    keys, values = (x if x.stride(-1) == 1 else x.contiguous() for x in (keys, values))
    batch, heads, room, dim = key_room.shape
    append_kernel[(batch, heads)](
        keys,
        values,
        places,
        key_room,
        value_room,
        *(keys.stride(0), keys.stride(1), values.stride(0), values.stride(1)),
        room=room,
        D=dim,
        DP=next_power(dim),
        **overlap(keys.device, True),
        num_warps=1,
    )


@triton.jit(do_not_specialize=["room"])
def append_kernel(
    K,
    V,
    PLACES,
    KEY_ROOM,
    VALUE_ROOM,
    k_batch,
    k_head,
    v_batch,
    v_head,
    room,
    D: tl.constexpr,
    DP: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid (B, Hk). KEY_ROOM, VALUE_ROOM: `[B, Hk, room, D]`; the other numbers are strides in elements."""
    wait_for_previous(OVERLAP)
    start_next(OVERLAP)
    b = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    d = tl.arange(0, DP)
    inside = d < D
    key = tl.load(K + b * k_batch + h * k_head + d, mask=inside)
    value = tl.load(V + b * v_batch + h * v_head + d, mask=inside)
    at = ((b * tl.num_programs(1) + h) * room + tl.load(PLACES + b) % room) * D + d
    tl.store(KEY_ROOM + at, key, mask=inside)
    tl.store(VALUE_ROOM + at, value, mask=inside)
