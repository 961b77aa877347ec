"""Scan, then selection and attention: two launches before the reduction of `spectral_decode`.

`scan_kernel` scores cells of 1,024 tokens on the index: an 8-bit bin a token, and how many of a cell's tokens lie in each of
32 levels; a few more programs prepare query and exact tokens. `gather_kernel` finds the level at which the budget ends
from the counts of all cells, takes its cell's part, finds the cell's own threshold by bisection, writes down which tokens
pass and attends to their codes. There is no sort and no synchronization with the host.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sqkernels.common.device import (
    attend_rows,
    empty_state,
    head_bands,
    key_latents,
    load_query,
    start_next,
    store_partial,
    wait_for_previous,
)
from sqkernels.common.prepare import prepare_role
from sqkernels.spectral_index_decode.traffic import gather_bytes, scan_bytes, scan_flops


def _scan_metadata(grid, kernel, args):
    tokens = args["PAGES"].shape[1] * 128
    return {"name": f"spectral_index_scan_{tokens}", "bytes": scan_bytes(args), "flops32": scan_flops(args)}


@triton.jit
def _dot4(codes, weights, total, ASSEMBLY: tl.constexpr):
    """total + Σ of four bytes of `codes` (unsigned) times those of `weights` (signed), int32."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [codes, weights, total], dtype=tl.int32, is_pure=True, pack=1
        )
    for byte in tl.static_range(4):
        total += ((codes >> (8 * byte)) & 0xFF) * ((weights << (24 - 8 * byte)) >> 24)
    return total


@triton.jit
def _index_weights(query, INDEX_DECODE, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, RANK: tl.constexpr):
    """(words, least, to_bin): the mean query in the index's coordinates as 8-bit integers, four a word, int32 `[RANK / 4]`;
    the least score codes can have; and bins are (score − least) · to_bin >> 16."""
    mean = tl.sum(query, axis=0) / G
    component = tl.arange(0, RANK)
    d = tl.arange(0, DP)
    matrix = tl.load(INDEX_DECODE + component[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0)
    coordinates = tl.sum(matrix * mean[None, :], axis=1)
    unit = 127.0 / tl.maximum(tl.max(tl.abs(coordinates), axis=0), 1e-30)
    weights = tl.floor(coordinates * unit + 0.5).to(tl.int32)
    least = 15 * tl.sum(tl.minimum(weights, 0), axis=0)
    span = 15 * tl.sum(tl.abs(weights), axis=0)
    words = tl.sum(tl.reshape((weights & 0xFF) << (component % 4 * 8), (RANK // 4, 4)), axis=1)
    return words, least, (1 << 24) // (span + 1)


@triton.jit
def _word(words, index, COUNT: tl.constexpr):
    """One of `words: [COUNT]` as a scalar."""
    return tl.sum(tl.where(tl.arange(0, COUNT) == index, words, 0), axis=0)


@triton.jit(launch_metadata=_scan_metadata, do_not_specialize=["sinks", "window", "n_pages", "cells_per_program"])
def scan_kernel(
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
    STORAGE,
    PAGES,
    FIRST,
    TOKENS,
    HEADS,
    INDEX_DECODE,
    BINS,
    LEVELS,
    n_pages,
    cells_per_program,
    HK: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    PLANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    RAGGED: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    RANK: tl.constexpr,
    CELL: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid (B·Hk, PARTS + PLANES / COLUMNS + programs): `prepare_role`, then `cells_per_program` cells a program.
    BINS: uint8 `[B·Hk, cells·CELL]`. LEVELS: int32 `[B·Hk, cells, 32]`."""
    wait_for_previous(OVERLAP)
    bh = tl.program_id(0).to(tl.int64)
    role = tl.program_id(1)
    query = load_query(Q, tl.arange(0, 16), bh * G * D, G, D, DP)
    ROLES: tl.constexpr = PARTS + PLANES // COLUMNS
    if role < ROLES:
        prepare_role(
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
    else:
        b = bh // HK
        h = bh % HK
        words, least, to_bin = _index_weights(query, INDEX_DECODE + h * RANK * D, G, D, DP, RANK)
        first = tl.load(FIRST + b)
        end = first + tl.load(TOKENS + b)
        codes = STORAGE + tl.multiple_of(tl.load(HEADS + h * 9 + 8), 128)
        cells = tl.cdiv(n_pages * 128, CELL)
        begin = (role - ROLES) * cells_per_program
        for cell in range(begin, tl.minimum(begin + cells_per_program, cells)):
            slot = cell * CELL + tl.arange(0, CELL)
            inside = slot < n_pages * 128
            page = tl.multiple_of(tl.load(PAGES + b * n_pages + slot // 128, mask=inside, other=0), 16)
            row = (codes + page).to(tl.pointer_type(tl.int64)) + (slot % 128) * (RANK // 16)
            score = tl.zeros((CELL,), tl.int32) - least
            for eight in tl.static_range(RANK // 16):
                pair = tl.load(row + eight, mask=inside, other=0)
                for half in tl.static_range(2):
                    raw = (pair >> (32 * half)).to(tl.int32)
                    low = _word(words, 2 * eight + half, RANK // 4)
                    high = _word(words, RANK // 8 + 2 * eight + half, RANK // 4)
                    score = _dot4(raw & 0x0F0F0F0F, tl.zeros((CELL,), tl.int32) + low, score, ASSEMBLY)
                    score = _dot4((raw >> 4) & 0x0F0F0F0F, tl.zeros((CELL,), tl.int32) + high, score, ASSEMBLY)
            bins = (score * to_bin) >> 16
            tl.store(BINS + (bh * cells + cell) * CELL + tl.arange(0, CELL), bins.to(tl.uint8))
            levels = tl.histogram(bins >> 3, 32, mask=(slot >= first) & (slot < end))
            tl.store(LEVELS + (bh * cells + cell) * 32 + tl.arange(0, 32), levels)
    start_next(OVERLAP)


@triton.jit
def _cell_budget(LEVELS, budget, cell, cells, CELLS_P: tl.constexpr):
    """(wanted, whole): how many of a cell's tokens are selected, and the level from which on all are: of the level below,
    at which the budget ends, a cell gives its part in proportion."""
    every = tl.arange(0, CELLS_P)
    level = tl.arange(0, 32)
    counts = tl.load(LEVELS + every[:, None] * 32 + level[None, :], mask=(every < cells)[:, None], other=0)
    total = tl.sum(counts, axis=0)
    above = tl.cumsum(total, axis=0, reverse=True)
    whole = tl.sum((above > budget).to(tl.int32), axis=0)
    own = tl.load(LEVELS + cell * 32 + level)
    taken = tl.sum(tl.where(level >= whole, own, 0), axis=0)
    sharing = tl.where(whole > 0, cells, 0)
    edges = tl.load(LEVELS + every * 32 + whole - 1, mask=every < sharing, other=0)
    remaining = budget - tl.sum(tl.where(level >= whole, total, 0), axis=0)
    before = tl.sum(tl.where(every < cell, edges, 0), axis=0)
    after = before + tl.sum(tl.where(every == cell, edges, 0), axis=0)
    # Exact: these are integers below 2^53, and a quotient is never so near to the next integer that it is rounded to it.
    ends = tl.maximum(tl.sum(edges, axis=0), 1).to(tl.float64)
    until = (remaining.to(tl.float64) * after / ends).to(tl.int32)
    part = until - (remaining.to(tl.float64) * before / ends).to(tl.int32)
    return taken + tl.where(whole > 0, part, 0), whole


@triton.jit
def _select(bins, wanted, whole, slot, SELECTED):
    """Write to SELECTED the slots of the `wanted` highest `bins: [·, 16]` (−1: no token), the earlier first among equals.

    The threshold lies among the eight bins of the level below `whole`. A thread holds whole lines of 16, so that most of the
    counting needs no other thread.
    """
    threshold = tl.maximum(whole - 1, 0) * 8
    for bit in tl.static_range(2, -1, -1):
        higher = threshold + (1 << bit)
        reach = tl.sum(tl.sum((bins >= higher).to(tl.int32), axis=1), axis=0)
        threshold = tl.where(reach >= wanted, higher, threshold)
    above = (bins > threshold).to(tl.int32)
    edge = (bins == threshold).to(tl.int32)
    both = above + (edge << 16)
    inside = tl.cumsum(both, axis=1)
    lines = tl.sum(both, axis=1)
    ranks = inside + (tl.cumsum(lines, axis=0) - lines)[:, None]
    room = wanted - (tl.sum(lines, axis=0) & 0xFFFF)
    edge_rank = ranks >> 16
    chosen = (above > 0) | ((edge > 0) & (edge_rank <= room))
    place = (ranks & 0xFFFF) + tl.minimum(edge_rank, room) - 1
    tl.store(SELECTED + place, slot, mask=chosen)


def _gather_metadata(grid, kernel, args):
    selected, planes = args["PAGES"].shape[0] * args["expected"], args["PART"].shape[-1] + args["LATENTS"].shape[-1]
    return {
        "name": f"spectral_index_gather_{args['PAGES'].shape[1] * 128}",
        "bytes": gather_bytes(args),
        "flops16": 2 * args["HK"] * selected * args["G"] * planes,
    }


@triton.jit(launch_metadata=_gather_metadata, do_not_specialize=["n_pages", "expected", "token_bytes", "count"])
def gather_kernel(
    STORAGE,
    PAGES,
    FIRST,
    TOKENS,
    HEADS,
    LATENTS,
    CONSTANT,
    BUDGET,
    BINS,
    LEVELS,
    SELECTED,
    COUNTS,
    PART,
    STATS,
    n_pages,
    token_bytes,
    expected,
    share,
    count,
    HK: tl.constexpr,
    G: tl.constexpr,
    N: tl.constexpr,
    CELL: tl.constexpr,
    CELLS_P: tl.constexpr,
    BUDGET_KIND: tl.constexpr,
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
    """Grid (B·Hk, cells). BUDGET_KIND: 0 tokens from BUDGET, int32 `[B, Hk]`, 1 `share` of the coded tokens, 2 `count`
    tokens. SELECTED: int32 `[B·Hk, cells·CELL]`, a cell's list in the cell's place, COUNTS: int32 `[B·Hk, cells]`. PART:
    float32 `[B·Hk, cells, G, planes]`, STATS: `[B·Hk, cells, 2, 16]`. The rest as in `spectral_decode`."""
    wait_for_previous(OVERLAP)
    bh = tl.program_id(0).to(tl.int64)
    cell = tl.program_id(1)
    cells = tl.num_programs(1)
    b = bh // HK
    h = bh % HK
    first = tl.load(FIRST + b)
    tokens = tl.load(TOKENS + b)
    if BUDGET_KIND == 0:
        budget = tl.load(BUDGET + bh)
    elif BUDGET_KIND == 1:
        budget = tl.ceil(tokens.to(tl.float32) * share).to(tl.int32)
    else:
        budget = count
    wanted, whole = _cell_budget(LEVELS + bh * cells * 32, tl.minimum(budget, tokens), cell, cells, CELLS_P)
    within = tl.arange(0, CELL // 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    slot = cell * CELL + within
    bins = tl.load(BINS + (bh * cells + cell) * CELL + within).to(tl.int32)
    bins = tl.where((slot >= first) & (slot < first + tokens), bins, -1)
    selected = SELECTED + (bh * cells + cell) * CELL
    _select(bins, wanted, whole, slot, selected)
    tl.store(COUNTS + bh * cells + cell, wanted)
    tl.debug_barrier()

    PLANES: tl.constexpr = 4 * K4 + 4 * K2 + 8 * K1
    VALUE_PLANES: tl.constexpr = 4 * V4 + 4 * V2 + 8 * V1
    offset, row_bytes, bands = head_bands(HEADS, h, UNIFORM, ALIGN, ROW, BANDS)
    latents, key_offset = key_latents(LATENTS + bh * 16 * PLANES, K4, K2, K1, N)
    constant = tl.load(CONSTANT + bh * 16 + tl.arange(0, N)) - key_offset
    state = empty_state(V4, V2, V1, N)
    for start in tl.range(0, wanted, BLOCK, num_stages=STAGES):
        place = start + tl.arange(0, BLOCK)
        real = place < wanted
        chosen = tl.load(selected + place, mask=real, other=cell * CELL)
        page = tl.multiple_of(tl.load(PAGES + b * n_pages + chosen // 128), 16)
        rows = STORAGE + page + offset + (chosen % 128) * row_bytes
        state = attend_rows(
            state, latents, constant, rows, real, bands, K4, K2, K1, V4, V2, V1, FULL, BLOCK, N, ASSEMBLY
        )
    start_next(OVERLAP)
    part = PART + (bh * cells + cell) * G * VALUE_PLANES
    store_partial(state, part, STATS + (bh * cells + cell) * 32, G, V4, V2, V1, N)
