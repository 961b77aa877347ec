"""Split-KV decode attention over dense keys and values, and its reduction."""

from __future__ import annotations

import triton
import triton.language as tl

from sqkernels.common.device import softmax_step


def _metadata(grid, kernel, args):
    keys = args["K"]
    return {
        "name": f"dense_decode_{keys.shape[2]}",
        "bytes": 2 * keys.numel() * keys.element_size(),
        "flops16": 4 * keys.numel() * args["G"],
    }


@triton.jit(launch_metadata=_metadata, do_not_specialize=["tokens"])
def split_kernel(
    Q,
    K,
    V,
    PART,
    STATS,
    scale,
    tokens,
    G: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid (B·Hk, splits). UPCAST: work in float32 (the interpreter's bfloat16 dot is wrong)."""
    bh = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    row = tl.arange(0, 16)
    d = tl.arange(0, DP)
    query = tl.load(
        Q + bh * G * D + row[:, None] * D + d[None, :], mask=(row < G)[:, None] & (d < D)[None, :], other=0.0
    )
    if UPCAST:
        query = query.to(tl.float32)
    per = tl.cdiv(tl.cdiv(tokens, BLOCK), splits) * BLOCK
    stop = tl.minimum((split + 1) * per, tokens)
    m = tl.full((16,), float("-inf"), tl.float32)
    norm = tl.zeros((16,), tl.float32)
    acc = tl.zeros((16, DP), tl.float32)
    for start in tl.range(split * per, stop, BLOCK, num_stages=STAGES):
        t = start + tl.arange(0, BLOCK)
        inside = (t < stop)[:, None] & (d < D)[None, :]
        at = bh * tokens * D + t[:, None] * D + d[None, :]
        keys = tl.load(K + at, mask=inside, other=0.0)
        if UPCAST:
            keys = keys.to(tl.float32)
        scores = tl.dot(query, tl.trans(keys)) * scale
        scores = tl.where((t < stop)[None, :], scores, float("-inf"))
        m, factor, p, norm = softmax_step(scores, m, norm)
        values = tl.load(V + at, mask=inside, other=0.0)
        if UPCAST:
            values = values.to(tl.float32)
        acc = tl.dot(p.to(values.dtype), values, acc * factor[:, None])
    stats = STATS + (bh * splits + split) * 32
    tl.store(stats + row, m)
    tl.store(stats + 16 + row, norm)
    part = PART + (bh * splits + split) * G * D
    tl.store(part + row[:, None] * D + d[None, :], acc, mask=(row < G)[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=["splits"])
def merge_kernel(
    PART,
    STATS,
    OUT,
    splits,
    G: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    SP: tl.constexpr,
):
    """Grid (B·H,)."""
    bh = tl.program_id(0) // G
    g = tl.program_id(0) % G
    s = tl.arange(0, SP)
    d = tl.arange(0, DP)
    stats = STATS + (bh * splits + s) * 32 + g
    m = tl.load(stats, mask=s < splits, other=float("-inf"))
    weight = tl.exp2(m - tl.max(m, axis=0))
    total = tl.sum(weight * tl.load(stats + 16, mask=s < splits, other=0.0), axis=0)
    at = PART + ((bh * splits + s) * G + g)[:, None] * D + d[None, :]
    parts = tl.load(at, mask=(s < splits)[:, None] & (d < D)[None, :], other=0.0)
    out = tl.sum(parts * weight[:, None], axis=0) / total
    tl.store(OUT + (bh * G + g) * D + d, out, mask=d < D)
