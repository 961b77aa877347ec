"""`reduce_kernel`: splits and exact parts under one softmax, and the sum of value planes back to values."""

from __future__ import annotations

import triton
import triton.language as tl

from sqkernels.common.device import start_next, wait_for_previous
from sqkernels.common.traffic import reduce_bytes


def _metadata(grid, kernel, args):
    return {"name": "spectral_decode_reduce", "bytes": reduce_bytes(args)}


@triton.jit(launch_metadata=_metadata, do_not_specialize=["splits"])
def reduce_kernel(
    PART,
    STATS,
    PART_EXACT,
    STATS_EXACT,
    VALUE_DECODE,
    VALUE_CONSTANT,
    OUT,
    splits,
    HK: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    SP: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_P: tl.constexpr,
    PLANES: tl.constexpr,
    PLANES_P: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid (B·H, D / COLUMNS): merge the splits (at most SP) and exact parts of one query head and move the sum of value
    planes back to `OUT: [B, H, D]`."""
    bh = tl.program_id(0) // G
    g = tl.program_id(0) % G
    h = bh % HK
    d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    column = tl.arange(0, PLANES_P)
    at = VALUE_DECODE + (h * PLANES + column)[:, None] * D + d[None, :]
    matrix = tl.load(at, mask=(column < PLANES)[:, None] & (d < D)[None, :], other=0.0)
    constant = tl.load(VALUE_CONSTANT + h * D + d, mask=d < D, other=0.0)
    wait_for_previous(OVERLAP)
    s = tl.arange(0, SP)
    e = tl.arange(0, PARTS_P)
    stats = STATS + (bh * splits + s) * 32 + g
    m = tl.load(stats, mask=s < splits, other=float("-inf"))
    norm = tl.load(stats + 16, mask=s < splits, other=0.0)
    exact = STATS_EXACT + (bh * PARTS + e) * 32 + g
    m_exact = tl.load(exact, mask=e < PARTS, other=float("-inf"))
    l_exact = tl.load(exact + 16, mask=e < PARTS, other=0.0)
    at = PART_EXACT + ((bh * PARTS + e) * G + g)[:, None] * D + d[None, :]
    exacts = tl.load(at, mask=(e < PARTS)[:, None] & (d < D)[None, :], other=0.0)
    top = tl.maximum(tl.max(m, axis=0), tl.max(m_exact, axis=0))
    top = tl.where(top == float("-inf"), 0.0, top)
    weight_exact = tl.exp2(m_exact - top)
    coded = tl.sum(tl.exp2(m - top) * norm, axis=0)
    total = coded + tl.sum(weight_exact * l_exact, axis=0)
    planes = tl.zeros((PLANES_P,), tl.float32)
    for start in range(0, splits, CHUNK):
        c = start + tl.arange(0, CHUNK)
        weight = tl.exp2(tl.load(STATS + (bh * splits + c) * 32 + g, mask=c < splits, other=float("-inf")) - top)
        part = PART + ((bh * splits + c) * G + g)[:, None] * PLANES + column[None, :]
        parts = tl.load(part, mask=(c < splits)[:, None] & (column < PLANES)[None, :], other=0.0)
        planes += tl.sum(parts * weight[:, None], axis=0)
    out = tl.sum(matrix * planes[:, None], axis=0) + tl.sum(exacts * weight_exact[:, None], axis=0)
    out += coded * constant
    start_next(OVERLAP)
    out = tl.where(total > 0.0, out / tl.where(total > 0.0, total, 1.0), 0.0)
    tl.store(OUT + (bh * G + g) * D + d, out, mask=d < D)
