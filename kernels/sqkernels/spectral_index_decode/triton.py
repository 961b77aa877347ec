"""Scan, then selection and attention: two launches before the reduction of `spectral_decode`.

`scan_kernel` scores cells of 1,024 tokens on the index: an 8-bit bin a token, and how many of a cell's tokens lie in each of
32 levels; a few more programs prepare query and exact tokens. `gather_kernel` finds the level at which the budget ends
from the counts of all cells, takes its cell's part, finds the cell's own threshold by bisection, writes down which tokens
pass and attends to their codes. There is no sort and no synchronization with the host.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sqkernels.rows.device import attend_rows, empty_state, head_bands, load_latents, load_query, store_partial
from sqkernels.spectral_decode.triton import prepare_role


def _scan_metadata(grid, kernel, args):
    pages, heads = args["PAGES"], args["HK"]
    batch = pages.shape[0]
    coded = batch * pages.shape[1] * 128 * heads
    exact = 2 * batch * (args["sinks"] + args["window"]) * heads * args["D"] * args["WK"].element_size()
    nbytes = coded * args["RANK"] // 2 + exact + (args["KEY_DECODE"].numel() + args["INDEX_DECODE"].numel()) * 4
    return {"name": f"spectral_index_scan_{pages.shape[1] * 128}", "bytes": nbytes, "flops32": 2 * coded * args["RANK"]}


@triton.jit(launch_metadata=_scan_metadata, do_not_specialize=["sinks", "window"])
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
    COORDINATES,
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
    CELLS: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """Grid (B·Hk, PARTS + PLANES / COLUMNS + PROGRAMS): `prepare_role`, then `cells_per_program` cells a program.
    COORDINATES: float32 `[B·Hk, PROGRAMS, RANK]` (scratch). BINS: uint8 `[B·Hk, CELLS·CELL]`. LEVELS: int32
    `[B·Hk, CELLS, 32]`."""
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
        program = role - ROLES
        b = bh // HK
        h = bh % HK
        mean = tl.sum(query, axis=0) / G
        component = tl.arange(0, RANK)
        d = tl.arange(0, DP)
        at = INDEX_DECODE + (h * RANK + component)[:, None] * D + d[None, :]
        matrix = tl.load(at, mask=(d < D)[None, :], other=0.0)
        coordinates = tl.sum(matrix * mean[None, :], axis=1)
        least = tl.sum(tl.minimum(coordinates * 15.0, 0.0), axis=0)
        most = tl.sum(tl.maximum(coordinates * 15.0, 0.0), axis=0)
        to_bin = 256.0 / tl.maximum(most - least, 1e-18)
        # Through memory, so that the loop below can take them one by one.
        scratch = COORDINATES + (bh * PROGRAMS + program) * RANK
        tl.store(scratch + component, coordinates * to_bin)
        tl.debug_barrier()
        first = tl.load(FIRST + b)
        end = first + tl.load(TOKENS + b)
        codes = STORAGE + tl.multiple_of(tl.load(HEADS + h * 9 + 8), 128)
        begin = program * cells_per_program
        for cell in range(begin, tl.minimum(begin + cells_per_program, CELLS)):
            slot = cell * CELL + tl.arange(0, CELL)
            inside = slot < n_pages * 128
            page = tl.load(PAGES + b * n_pages + slot // 128, mask=inside, other=0)
            where = tl.max_contiguous(tl.multiple_of(codes + tl.multiple_of(page, 16) + slot % 128, 16), 16)
            score = tl.zeros((CELL,), tl.float32) - least * to_bin
            for byte in tl.static_range(RANK // 2):
                raw = tl.load(where + byte * 128, mask=inside, other=0).to(tl.int32)
                score += (raw & 15).to(tl.float32) * tl.load(scratch + byte)
                score += (raw >> 4).to(tl.float32) * tl.load(scratch + RANK // 2 + byte)
            bins = tl.minimum(tl.maximum(score, 0.0), 255.0).to(tl.int32)
            tl.store(BINS + (bh * CELLS + cell) * CELL + tl.arange(0, CELL), bins.to(tl.uint8))
            levels = tl.histogram(bins >> 3, 32, mask=(slot >= first) & (slot < end))
            tl.store(LEVELS + (bh * CELLS + cell) * 32 + tl.arange(0, 32), levels)


@triton.jit
def _cell_budget(LEVELS, budget, cell, CELLS: tl.constexpr, CELLS_P: tl.constexpr):
    """How many of a cell's tokens are selected: those of the levels above the one at which the budget ends, and of that one
    the cell's part in proportion."""
    cells = tl.arange(0, CELLS_P)
    level = tl.arange(0, 32)
    counts = tl.load(LEVELS + cells[:, None] * 32 + level[None, :], mask=(cells < CELLS)[:, None], other=0)
    total = tl.sum(counts, axis=0)
    above = tl.cumsum(total, axis=0, reverse=True)
    whole = tl.sum((above > budget).to(tl.int32), axis=0)
    remaining = (budget - tl.sum(tl.where(level >= whole, total, 0), axis=0)).to(tl.int64)
    edges = tl.sum(tl.where((level == whole - 1)[None, :], counts, 0), axis=1)
    edge_total = tl.maximum(tl.sum(edges, axis=0), 1)
    before = tl.sum(tl.where(cells < cell, edges, 0), axis=0)
    after = tl.sum(tl.where(cells <= cell, edges, 0), axis=0)
    mine = tl.sum(tl.where((cells == cell)[:, None] & (level >= whole)[None, :], counts, 0), axis=1)
    part = (remaining * after) // edge_total - (remaining * before) // edge_total
    return tl.sum(mine, axis=0) + tl.where(whole > 0, part, 0).to(tl.int32)


@triton.jit
def _select(bins, wanted, slot, mine):
    """Write the slots of the `wanted` highest bins (−1: no token), the earlier slot first among equals; their number."""
    threshold = 0
    for bit in tl.static_range(7, -1, -1):
        higher = threshold + (1 << bit)
        threshold = tl.where(tl.sum((bins >= higher).to(tl.int32), axis=0) >= wanted, higher, threshold)
    above = (bins > threshold).to(tl.int32)
    edge = (bins == threshold).to(tl.int32)
    ranks = tl.cumsum(above + (edge << 16), axis=0)
    room = wanted - tl.sum(above, axis=0)
    edge_rank = ranks >> 16
    chosen = (above > 0) | ((edge > 0) & (edge_rank <= room))
    place = (ranks & 0xFFFF) + tl.minimum(edge_rank, room) - 1
    tl.store(mine + place, slot, mask=chosen)
    return tl.sum(chosen.to(tl.int32), axis=0)


def _gather_metadata(grid, kernel, args):
    pages, heads = args["PAGES"], args["HK"]
    batch = pages.shape[0]
    selected = batch * args["expected"]
    nbytes = args["BINS"].numel() + args["LEVELS"].numel() * 4 + selected * (args["token_bytes"] + 4 * heads)
    planes = args["PART"].shape[-1] + args["LATENTS"].shape[-1]
    flops = 2 * heads * selected * args["G"] * planes
    return {"name": f"spectral_index_gather_{pages.shape[1] * 128}", "bytes": nbytes, "flops16": flops}


@triton.jit(launch_metadata=_gather_metadata, do_not_specialize=["expected", "token_bytes", "count"])
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
    CELL: tl.constexpr,
    CELLS: tl.constexpr,
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
):
    """Grid (B·Hk, CELLS). BUDGET_KIND: 0 tokens from BUDGET, int32 `[B, Hk]`, 1 `share` of the coded tokens, 2 `count`
    tokens. SELECTED: int32 `[B·Hk, CELLS·CELL]`, a cell's list in the cell's place, COUNTS: int32 `[B·Hk, CELLS]`. PART:
    float32 `[B·Hk, CELLS, G, planes]`, STATS: `[B·Hk, CELLS, 2, 16]`. The rest as in `spectral_decode`."""
    bh = tl.program_id(0).to(tl.int64)
    cell = tl.program_id(1)
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
    wanted = _cell_budget(LEVELS + bh * CELLS * 32, tl.minimum(budget, tokens), cell, CELLS, CELLS_P)
    slot = cell * CELL + tl.arange(0, CELL)
    bins = tl.load(BINS + (bh * CELLS + cell) * CELL + tl.arange(0, CELL)).to(tl.int32)
    bins = tl.where((slot >= first) & (slot < first + tokens), bins, -1)
    mine = SELECTED + (bh * CELLS + cell) * CELL
    found = _select(bins, wanted, slot, mine)
    tl.store(COUNTS + bh * CELLS + cell, found)
    tl.debug_barrier()

    PLANES: tl.constexpr = 2 * K4 + 4 * K2 + 8 * K1
    VALUE_PLANES: tl.constexpr = 2 * V4 + 4 * V2 + 8 * V1
    offset, row_bytes, bands = head_bands(HEADS, h, UNIFORM, ALIGN, ROW, BANDS)
    latents = load_latents(LATENTS + bh * 16 * PLANES, K4, K2, K1)
    constant = tl.load(CONSTANT + bh * 16 + tl.arange(0, 16))
    state = empty_state(V4, V2, V1)
    for start in tl.range(0, found, BLOCK, num_stages=STAGES):
        place = start + tl.arange(0, BLOCK)
        real = place < found
        chosen = tl.load(mine + place, mask=real, other=cell * CELL)
        page = tl.multiple_of(tl.load(PAGES + b * n_pages + chosen // 128), 16)
        rows = STORAGE + page + offset + (chosen % 128) * row_bytes
        state = attend_rows(state, latents, constant, rows, real, bands, K4, K2, K1, V4, V2, V1, FULL, BLOCK, ASSEMBLY)
    part = PART + (bh * CELLS + cell) * G * VALUE_PLANES
    store_partial(state, part, STATS + (bh * CELLS + cell) * 32, G, V4, V2, V1)
