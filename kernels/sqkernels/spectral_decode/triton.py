"""Dense latent decode attention: preparation, the sequence in splits, reduction.

`prepare_kernel` moves the query into the coordinates of the key planes and attends to the exact tokens; `decode_kernel`
attends to the codes, keys and values never materialized; `reduce_kernel` merges everything under one softmax and moves
the sum of value planes back. (m, norm) of a part are its maximum score in base 2 and its sum of exponentials.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sqkernels.common.device import (
    attend_rows,
    constant_score,
    empty_state,
    exact_part,
    head_bands,
    key_latents,
    load_query,
    store_latents,
    store_partial,
    wait_for_previous,
)


def _prepare_metadata(grid, kernel, args):
    query = args["Q"]
    exact = query.shape[0] * (args["sinks"] + args["window"])
    element = args["WK"].element_size()
    nbytes = 2 * exact * args["HK"] * args["D"] * element + args["KEY_DECODE"].numel() * 4
    return {"name": "spectral_prepare", "bytes": nbytes, "flops32": 4 * exact * query.shape[1] * args["D"]}


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


@triton.jit(launch_metadata=_prepare_metadata, do_not_specialize=["sinks", "window"])
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
    OVERLAP: tl.constexpr,
):
    """Grid (B·Hk, PARTS + PLANES / COLUMNS), see `prepare_role`. Q: `[B, Hk·G, D]`."""
    wait_for_previous(OVERLAP)
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


def _decode_metadata(grid, kernel, args):
    pages, latents = args["PAGES"], args["LATENTS"]
    coded = pages.shape[0] * pages.shape[1] * 128
    planes = args["PART"].shape[-1] + latents.shape[-1]
    return {
        "name": f"spectral_decode_{pages.shape[1] * 128}",
        "bytes": coded * args["token_bytes"],
        "flops16": 2 * coded * args["HK"] * args["G"] * planes,
    }


@triton.jit(launch_metadata=_decode_metadata, do_not_specialize=["n_pages", "token_bytes"])
def decode_kernel(
    STORAGE,
    PAGES,
    FIRST,
    TOKENS,
    HEADS,
    LATENTS,
    CONSTANT,
    PART,
    STATS,
    n_pages,
    token_bytes,
    HK: tl.constexpr,
    G: tl.constexpr,
    N: tl.constexpr,
    UNIFORM: tl.constexpr,
    FULL: tl.constexpr,
    ALIGN: tl.constexpr,
    ROW: tl.constexpr,
    BANDS: tl.constexpr,
    K4: tl.constexpr,
    K2: tl.constexpr,
    K1: tl.constexpr,
    V4: tl.constexpr,
    V2: tl.constexpr,
    V1: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid (B·Hk, splits). PAGES: int64 `[B, n_pages]`. PART: float32 `[B·Hk, splits, G, planes]`,
    STATS: `[B·Hk, splits, 2, 16]`. N: 8 or 16, at least G."""
    wait_for_previous(OVERLAP)
    bh = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    b = bh // HK
    h = bh % HK
    PLANES: tl.constexpr = 4 * K4 + 4 * K2 + 8 * K1
    VALUE_PLANES: tl.constexpr = 4 * V4 + 4 * V2 + 8 * V1
    offset, row_bytes, bands = head_bands(HEADS, h, UNIFORM, ALIGN, ROW, BANDS)
    latents, key_offset = key_latents(LATENTS + bh * 16 * PLANES, K4, K2, K1, N)
    constant = tl.load(CONSTANT + bh * 16 + tl.arange(0, N)) - key_offset
    first = tl.load(FIRST + b)
    end = first + tl.load(TOKENS + b)
    TILES: tl.constexpr = 128 // BLOCK
    per = tl.cdiv(tl.cdiv(end, 128), splits) * TILES
    last = tl.minimum((split + 1) * per, tl.cdiv(end, BLOCK))
    state = empty_state(V4, V2, V1, N)
    for tile in tl.range(split * per, last, num_stages=STAGES):
        page = tl.multiple_of(tl.load(PAGES + b * n_pages + tile // TILES), 16)
        slot = tile * BLOCK + tl.arange(0, BLOCK)
        inside = (tile % TILES) * BLOCK + tl.arange(0, BLOCK)
        rows = STORAGE + page + offset + inside * row_bytes
        valid = (slot >= first) & (slot < end)
        state = attend_rows(
            state, latents, constant, rows, valid, bands, K4, K2, K1, V4, V2, V1, FULL, BLOCK, N, ASSEMBLY
        )
    part = PART + (bh * splits + split) * G * VALUE_PLANES
    store_partial(state, part, STATS + (bh * splits + split) * 32, G, V4, V2, V1, N)


def _reduce_metadata(grid, kernel, args):
    nbytes = args["PART"].numel() * 4 + args["PART_EXACT"].numel() * 4 + args["VALUE_DECODE"].numel() * 4
    return {"name": "spectral_decode_reduce", "bytes": nbytes}


@triton.jit(launch_metadata=_reduce_metadata, do_not_specialize=["splits"])
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
    out = tl.where(total > 0.0, out / tl.where(total > 0.0, total, 1.0), 0.0)
    tl.store(OUT + (bh * G + g) * D + d, out, mask=d < D)
