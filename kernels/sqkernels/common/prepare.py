"""`prepare_kernel`: the query in the coordinates of the key planes, and attention to the exact tokens.

(m, norm) of a part are its maximum score in base 2 and its sum of exponentials.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sqkernels.common.device import (
    constant_score,
    exact_part,
    load_query,
    start_next,
    store_latents,
    wait_for_previous,
)
from sqkernels.common.traffic import prepare_bytes, prepare_flops


def _metadata(grid, kernel, args):
    return {"name": "spectral_prepare", "bytes": prepare_bytes(args), "flops32": prepare_flops(args)}


@triton.jit
def prepare_role(
    role,
    query,
    bh,
    KEY_DECODE,
    KEY_CONSTANT,
    SK,
    SV,
    WK,
    WV,
    WINDOW,
    LATENTS,
    CONSTANT,
    PART_EXACT,
    STATS_EXACT,
    scale,
    sinks,
    window,
    part_tokens,
    HK: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    PLANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    RAGGED: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Role 0 … PARTS − 1: a part of the exact tokens; then: some columns of the latents. LATENTS: float16
    `[B·Hk, 16, PLANES]`, CONSTANT: `[B·Hk, 16]`, PART_EXACT: `[B·Hk, PARTS, G, D]`, STATS_EXACT: `[B·Hk, PARTS, 2, 16]`."""
    h = bh % HK
    if role < PARTS:
        begin = role * part_tokens
        real = window
        if RAGGED:
            real = tl.load(WINDOW + bh // HK)
        end = tl.minimum(begin + part_tokens, real)
        part, stats = PART_EXACT + (bh * PARTS + role) * G * D, STATS_EXACT + (bh * PARTS + role) * 32
        exact_part(query, SK, SV, WK, WV, part, stats, bh, begin, end, scale, sinks, window, G, D, DP, BLOCK)
    else:
        start = (role - PARTS) * COLUMNS
        latents = LATENTS + bh * 16 * PLANES
        PRECISION: tl.constexpr = "tf32x3" if WK.dtype.element_ty == tl.float32 else "tf32"
        store_latents(query, KEY_DECODE + h * PLANES * D, latents, start, scale, PLANES, COLUMNS, D, DP, PRECISION)
        if start == 0:
            constant = constant_score(query, KEY_CONSTANT + h * D, D, DP) * scale
            tl.store(CONSTANT + bh * 16 + tl.arange(0, 16), constant)


@triton.jit(launch_metadata=_metadata, do_not_specialize=["sinks", "window"])
def prepare_kernel(
    Q,
    KEY_DECODE,
    KEY_CONSTANT,
    SK,
    SV,
    WK,
    WV,
    WINDOW,
    LATENTS,
    CONSTANT,
    PART_EXACT,
    STATS_EXACT,
    scale,
    sinks,
    window,
    part_tokens,
    HK: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    PLANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    RAGGED: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid (B·Hk, PARTS + PLANES / COLUMNS), see `prepare_role`. Q: `[B, Hk·G, D]`. EARLY: the next kernel has work that
    does not depend on this one."""
    wait_for_previous(OVERLAP)
    start_next(OVERLAP and EARLY)
    bh = tl.program_id(0).to(tl.int64)
    query = load_query(Q, tl.arange(0, 16), bh * G * D, G, D, DP)
    prepare_role(
        tl.program_id(1),
        query,
        bh,
        KEY_DECODE,
        KEY_CONSTANT,
        SK,
        SV,
        WK,
        WV,
        WINDOW,
        LATENTS,
        CONSTANT,
        PART_EXACT,
        STATS_EXACT,
        scale,
        sinks,
        window,
        part_tokens,
        HK,
        G,
        D,
        DP,
        PLANES,
        COLUMNS,
        RAGGED,
        PARTS,
        BLOCK,
    )
    start_next(OVERLAP and not EARLY)
