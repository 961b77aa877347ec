"""One program a head of a sequence: queries first, then keys."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sqkernels.common.device import start_next, wait_for_previous
from sqkernels.common.launch import next_power
from sqkernels.common.runtime import overlap


def launch(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `api.rotate`. Heads may lie anywhere; elements of a head lie side by side."""
    query, key, cos, sin = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, cos, sin))
    batch, heads, _, dim = query.shape
    kv = key.shape[1]
    out = [x.new_empty(batch, x.shape[1], 1, dim) for x in (query, key)]
    table = 0 if cos.shape[0] == 1 else cos.stride(0)
    rotate_kernel[(batch, heads + kv)](
        query,
        key,
        cos,
        sin,
        *out,
        *(query.stride(0), query.stride(1), key.stride(0), key.stride(1), table, table and sin.stride(0)),
        H=heads,
        HK=kv,
        D=dim,
        HALF=next_power(dim // 2),
        **overlap(query.device, True),
        num_warps=1,
    )
    return out[0], out[1]


@triton.jit
def rotate_kernel(
    Q,
    K,
    COS,
    SIN,
    Q_OUT,
    K_OUT,
    q_batch,
    q_head,
    k_batch,
    k_head,
    cos_batch,
    sin_batch,
    H: tl.constexpr,
    HK: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid (B, H + Hk). Q_OUT: `[B, H, 1, D]`, K_OUT: `[B, Hk, 1, D]`; the other numbers are strides in elements."""
    wait_for_previous(OVERLAP)
    start_next(OVERLAP)
    b = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    left = tl.arange(0, HALF)
    right = D // 2 + left
    inside = left < D // 2
    if head < H:
        at = Q + b * q_batch + head * q_head
        out = Q_OUT + (b * H + head) * D
    else:
        at = K + b * k_batch + (head - H) * k_head
        out = K_OUT + (b * HK + head - H) * D
    x = tl.load(at + left, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(at + right, mask=inside, other=0.0).to(tl.float32)
    cos = COS + b * cos_batch
    sin = SIN + b * sin_batch
    low = x * tl.load(cos + left, mask=inside, other=0.0) - y * tl.load(sin + left, mask=inside, other=0.0)
    high = y * tl.load(cos + right, mask=inside, other=0.0) + x * tl.load(sin + right, mask=inside, other=0.0)
    tl.store(out + left, low.to(Q_OUT.dtype.element_ty), mask=inside)
    tl.store(out + right, high.to(Q_OUT.dtype.element_ty), mask=inside)
